"""A port on slirp: start-up, round trip, and QEMU's idle cost."""

import os
import select
import statistics
import time
import unittest.mock
from pathlib import Path
from typing import Any

import virtnic
from support.frames import arp_request, is_arp_reply
from virtnic.nic.port import host_of
from virtnic.pci import PciBus, find_ivshmems
from virtnic.qemu import Machine

from .bench import Bench
from .report import percentile, spread


def run(bench: Bench) -> None:
    """All of it."""
    figures: dict[str, Any] = {}
    rows: list[tuple[object, ...]] = []
    target = bench.report.target

    bench.report.say("session: from open to the first reply")
    opens = [_open_to_reply() for _ in range(bench.count(11, 3))]
    figures["open_to_reply_s"] = opens
    words = target("open to first ARP reply, s", statistics.median(opens), 0.5, least=False)
    rows.append(('open("user") to first ARP reply', spread(opens, 1e3), "ms", words))

    bench.report.say("session: bring-up")
    scans, ups = zip(*(_bring_up() for _ in range(bench.count(11, 3))), strict=True)
    both = [scan + up for scan, up in zip(scans, ups, strict=True)]
    figures["scan_s"], figures["bring_up_s"] = scans, ups
    words = target("scan and bring-up, ms", statistics.median(both) * 1e3, 60.0, least=False)
    rows.append(("scan the bus", spread(scans, 1e3), "ms", ""))
    rows.append(("bring one device up", spread(ups, 1e3), "ms", ""))
    rows.append(("both", spread(both, 1e3), "ms", words))

    bench.report.say("session: ARP round trips")
    with virtnic.open("user") as port:
        count = bench.count(5000, 500)
        for how, wait in (
            ("recv(timeout=…)", _round_trip_recv),
            ("poll(fileno())", _round_trip_poll),
        ):
            times = wait(port, count)
            figures[f"arp_{wait.__name__}_s"] = {
                part: percentile(times, part / 100) for part in (1, 50, 90, 99)
            }
            middle, high = (percentile(times, part) * 1e6 for part in (0.5, 0.99))
            words = target(f"ARP round trip by {how}, p50, µs", middle, 60.0, least=False)
            rows.append((f"ARP round trip by {how}, p50", middle, "µs", words))
            rows.append((f"ARP round trip by {how}, p99", high, "µs", ""))

    bench.report.say("session: QEMU at rest")
    with virtnic.open("user") as port:
        time.sleep(0.5)
        cpu, memory = _at_rest(port.qemu.pid, bench.count(5, 1))
    figures["idle_cpu_percent"], figures["memory"] = cpu, memory
    words = target("QEMU at rest, % of a core", cpu, 0.5, least=False)
    rows.append(("QEMU at rest, of a core", cpu, "%", words))
    resident = memory["VmRSS"] / 1024
    words = target("QEMU resident, MB", resident, 60.0, least=False)
    rows.append(("QEMU resident", resident, "MB", words))

    head = ("session on QEMU's user network", "median (range)", "unit", "target")
    bench.report.table("A session", head, rows)
    bench.report.section("session", figures)


def _open_to_reply() -> float:
    began = time.perf_counter()
    with virtnic.open("user") as port:
        port.send([arp_request(port.mac)])
        _receive_reply(port)
        return time.perf_counter() - began


def _receive_reply(port: virtnic.Port) -> None:
    deadline = time.monotonic() + 5
    while time.monotonic() < deadline:
        if any(is_arp_reply(frame) for frame in port.recv(8, timeout=1.0)):
            return
    raise RuntimeError("no ARP reply came within 5 s")


def _bring_up() -> tuple[float, float]:
    """Seconds of the first scan (with the shared memory put in place), and of one device."""
    with Machine(virtnic.Memory("32M", hugepages=None)) as machine:
        began = time.perf_counter()
        bus = PciBus(machine.qtest, machine.machine)
        bus.scan()
        placed = bus.place(find_ivshmems(bus.functions)[0], {2: machine.memory.iova})
        bus.enable(placed)
        scan = time.perf_counter() - began
    with virtnic.Qemu(virtnic.Memory("32M", hugepages=None)) as qemu:
        # The work of QMP, which is QEMU's own, is told from ours over QTest.
        machine, qmp = host_of(qemu).machine, 0.0
        add_nic = machine.add_nic

        def timed(*arguments: Any) -> Any:
            nonlocal qmp
            start = time.perf_counter()
            try:
                return add_nic(*arguments)
            finally:
                qmp = time.perf_counter() - start

        with unittest.mock.patch.object(machine, "add_nic", timed):
            began = time.perf_counter()
            qemu.attach("user")
            up = time.perf_counter() - began - qmp
    return scan, up


def _round_trip_recv(port: virtnic.Port, count: int) -> list[float]:
    request = [arp_request(port.mac)]
    times = []
    for _ in range(count + 50):
        began = time.perf_counter()
        port.send(request)
        while not port.recv(8, timeout=1.0):
            pass
        times.append(time.perf_counter() - began)
    return times[50:]


def _round_trip_poll(port: virtnic.Port, count: int) -> list[float]:
    request = [arp_request(port.mac)]
    poller = select.poll()
    poller.register(port.fileno(), select.POLLIN)
    times = []
    for _ in range(count + 50):
        began = time.perf_counter()
        port.send(request)
        while not port.recv(8):
            poller.poll(1000)
        times.append(time.perf_counter() - began)
    return times[50:]


def _at_rest(pid: int, seconds: float) -> tuple[float, dict[str, int]]:
    """Percent of a core over some seconds, and the memory lines of its status (kB)."""
    before, began = _cpu_seconds(pid), time.monotonic()
    time.sleep(seconds)
    used, passed = _cpu_seconds(pid) - before, time.monotonic() - began
    memory = {}
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        name, _, value = line.partition(":")
        if name.startswith(("VmRSS", "VmHWM", "Rss")):
            memory[name] = int(value.split()[0])
    return 100 * used / passed, memory


def _cpu_seconds(pid: int) -> float:
    """All of its threads; from the scheduler, in nanoseconds, not in ticks of 10 ms."""
    total = 0
    for task in Path(f"/proc/{pid}/task").iterdir():
        total += int((task / "schedstat").read_text().split()[0])
    return total / 1e9 if total else _cpu_ticks(pid)


def _cpu_ticks(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
