"""Time of attach, detach, a returning backend and recovery from a dead QEMU."""

import contextlib
import os
import signal
import statistics
import threading
import time
from collections.abc import Callable
from typing import Any

import virtnic
from support.frames import arp_request, is_arp_reply, numbered

from .bench import Bench
from .dpdk import Backend
from .report import spread


def run(bench: Bench) -> None:
    """All of it."""
    figures: dict[str, Any] = {}
    rows: list[tuple[object, ...]] = []
    target = bench.report.target

    bench.report.say("changes: attach and detach while another port carries traffic")
    attach, detach, quiet, meanwhile = _hotplug(bench)
    figures |= {"attach_s": attach, "detach_s": detach, "quiet_pps": quiet, "busy_pps": meanwhile}
    for what, times in (("attach", attach), ("detach", detach)):
        words = target(f"{what}, ms", statistics.median(times) * 1e3, 100.0, least=False)
        rows.append((f"{what} a port", spread(times, 1e3), "ms", words))
    ratios = [busy / calm for busy, calm in zip(meanwhile, quiet, strict=True)]
    words = target("throughput meanwhile", statistics.median(ratios), 0.95, least=True)
    rows.append(("another port's throughput meanwhile", spread(ratios), "times", words))

    bench.report.say("changes: a backend that dies and comes back")
    back = [_backend_back(bench) for _ in range(bench.count(5, 1))]
    figures["backend_back_s"] = back
    words = target(
        "backend back to first frame, ms", statistics.median(back) * 1e3, 200.0, least=False
    )
    rows.append(("backend connected to first frame back", spread(back, 1e3), "ms", words))

    bench.report.say("changes: a QEMU that is killed")
    with virtnic.open("user", recover=True) as port:
        died = [_qemu_back(port) for _ in range(bench.count(11, 2))]
    figures["qemu_back_s"] = died
    words = target("QEMU killed to traffic, s", statistics.median(died), 1.0, least=False)
    rows.append(("QEMU killed to first ARP reply", spread(died, 1e3), "ms", words))

    bench.report.table("Comings and goings", ("what", "median (range)", "", "target"), rows)
    bench.report.section("changes", figures)


def _hotplug(bench: Bench) -> tuple[list[float], list[float], list[float], list[float]]:
    """Seconds to attach and to detach, and frames a second of another port, without and with."""
    attach: list[float] = []
    detach: list[float] = []
    quiet: list[float] = []
    meanwhile: list[float] = []
    socket = bench.scratch / "changes"
    cores = bench.cores
    with (
        Backend([socket], mode="macswap", cores=(cores.frontend, cores.backend)) as backend,
        virtnic.Qemu(virtnic.Memory("64M")) as qemu,
    ):
        busy = qemu.attach(f"vhost-user,path={socket},wait=10", interrupts="none")
        loop = threading.Thread(target=_echo, args=(busy, cores.frontend), daemon=True)
        loop.start()
        try:
            for _ in range(bench.pairs):
                quiet.append(backend.rates(bench.seconds).rx)
                done = threading.Event()
                changes = threading.Thread(target=_change, args=(qemu, attach, detach, done))
                changes.start()
                meanwhile.append(backend.rates(bench.seconds).rx)
                done.set()
                changes.join()
        finally:
            busy.close()
            loop.join()
    return attach, detach, quiet, meanwhile


def _echo(port: virtnic.Port, core: int) -> None:
    os.sched_setaffinity(0, {core})
    with contextlib.suppress(virtnic.PortClosed):
        virtnic.exchange(port, frames=[bytes(64)], seconds=3600.0)


def _change(
    qemu: virtnic.Qemu, attach: list[float], detach: list[float], done: threading.Event
) -> None:
    while not done.is_set():
        began = time.perf_counter()
        port = qemu.attach("user")
        attached = time.perf_counter()
        port.close()
        attach.append(attached - began)
        detach.append(time.perf_counter() - attached)
        # A port now and then, not a storm of them.
        done.wait(0.2)


def _backend_back(bench: Bench) -> float:
    """Seconds from the connection to a backend that came back to a frame that it sent back."""
    socket = bench.scratch / "back"
    cores = (bench.cores.frontend, bench.cores.backend)
    backend = Backend([socket], mode="macswap", cores=cores)
    try:
        with virtnic.open(f"vhost-user,path={socket},wait=10") as port:
            _until(lambda: _comes_back(port))
            events = port.qemu.events()
            backend.kill()
            backend = Backend([socket], mode="macswap", cores=cores)
            while (event := events.wait(30.0)) is None or event.kind != "backend-back":
                if event is None:
                    raise RuntimeError("the backend has not been connected to again")
            began = time.perf_counter()
            _until(lambda: _comes_back(port))
            return time.perf_counter() - began
    finally:
        backend.kill()


def _comes_back(port: virtnic.Port) -> bool:
    port.send([numbered(port.mac, 1)])
    return len(port.recv(64, timeout=0.01)) > 0


def _qemu_back(port: virtnic.Port) -> float:
    """Seconds from the death of a QEMU to traffic through its successor."""
    _until(lambda: _answers(port))
    pid = port.qemu.pid
    began = time.perf_counter()
    os.kill(pid, signal.SIGKILL)
    while port.qemu.pid == pid or port.away:
        time.sleep(0.001)
    _until(lambda: _answers(port))
    return time.perf_counter() - began


def _answers(port: virtnic.Port) -> bool:
    port.send([arp_request(port.mac)])
    return any(is_arp_reply(bytes(frame)) for frame in port.recv(64, timeout=0.01))


def _until(condition: Callable[[], bool], seconds: float = 20.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise RuntimeError(f"no frame has come back within {seconds:g} s")
