"""Cost of kicks and interrupts, compared to the underlying system calls."""

import contextlib
import os
import select
import statistics
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import virtnic
from virtnic.loops import make_frame
from virtnic.nic.port import host_of
from virtnic.pci import find_virtio_nets, virtio_registers

from .bench import Bench
from .dpdk import Backend
from .peer import peer, shared_memory
from .report import percentile, show

#: The transmit queue of the one pair.
TRANSMIT = 1
#: Seconds between questions: time to fall asleep.
PAUSE = 300e-6


def run(bench: Bench) -> None:
    """Both tables."""
    figures: dict[str, Any] = {}
    socket = bench.scratch / "vhu0"
    cores = bench.cores
    with (
        Backend([socket], mode="macswap", cores=(cores.frontend, cores.backend)) as backend,
        virtnic.Qemu(virtnic.Memory("32M", hugepages=None)) as qemu,
    ):
        port = qemu.attach(f"vhost-user,path={socket},wait=10")
        before = os.sched_getaffinity(0)
        os.sched_setaffinity(0, {cores.frontend})
        try:
            bench.report.say("costs: kicks")
            figures["kick_s"] = _kicks(bench, port)
            bench.report.say("costs: interrupts")
            figures["interrupt_s"] = _interrupts(bench, backend, port)
            figures["interrupts"] = port.interrupts
        finally:
            os.sched_setaffinity(0, before)
    bench.report.section("costs", figures)


def _kicks(bench: Bench, port: virtnic.Port) -> dict[str, float]:
    """Seconds of the caller for one kick, less what calling an empty method costs."""
    qtest = host_of(port.qemu).machine.qtest
    (function,) = find_virtio_nets(host_of(port.qemu).devices.bus.functions)
    # The queue's notification address (section 4.1.4.4); QEMU numbers them like the queues.
    _, _, _, notify, _, multiplier = virtio_registers(function)
    address = notify + TRANSMIT * multiplier
    event = virtnic.EventFd()
    count = bench.count(20_000, 2_000)
    empty = _each(lambda: event.fileno(), count)
    by_event = _each(event.signal, count) - empty
    posted = _each(lambda: qtest.writew(address, TRANSMIT), count // 10, qtest.flush) - empty

    def answered() -> None:
        qtest.writew(address, TRANSMIT)
        qtest.flush()

    waited = _each(answered, count // 10) - empty
    bench.report.table(
        "A kick, µs of the caller",
        ("how", "µs", "beside an eventfd"),
        [
            ("write to an eventfd", by_event * 1e6, "1"),
            ("QTest, many without waiting", posted * 1e6, show(posted / by_event)),
            ("QTest, until QEMU has done it", waited * 1e6, show(waited / by_event)),
        ],
    )
    return {"eventfd": by_event, "qtest_posted": posted, "qtest_waited": waited}


def _each(
    call: Callable[[], object], count: int, last: Callable[[], object] | None = None
) -> float:
    """Seconds of one call: the median of five rounds."""
    rounds = []
    for _ in range(5):
        began = time.perf_counter()
        for _ in range(count):
            call()
        if last is not None:
            last()
        rounds.append((time.perf_counter() - began) / count)
    return statistics.median(rounds)


def _interrupts(bench: Bench, backend: Backend, port: virtnic.Port) -> dict[str, Any]:
    """From a question to the return of poll(2) and of what reads the answer.

    A thread asks while another sleeps; who answers polls, on the other core. Once that is
    the vhost backend, which is asked by a frame and whose answer is the frame and an
    interrupt; once a bare process, asked by a byte in shared memory.
    """
    count = bench.count(2_000, 300)
    times: dict[str, list[float]] = {"bare": [], "virtnic": [], "ping-pong": []}
    for _ in range(bench.count(bench.pairs, 1)):
        times["virtnic"] += _asleep(*_port_turn(port), count)
        backend.command("stop")  # else it has the core that the others need
        with _peer(bench.cores.backend, polls=True) as (ask, wait):
            times["bare"] += _asleep(ask, wait, count)
        with _peer(bench.cores.backend, polls=False) as (ask, wait):
            times["ping-pong"] += _there_and_back(ask, wait, count)
        backend.command("start")
    middle = {name: statistics.median(values) for name, values in times.items()}
    ratio = middle["virtnic"] / middle["bare"]
    words = bench.report.target("interrupt beside a bare eventfd", ratio, 1.5, least=False)
    rows = [
        ("an eventfd, by a process that polls memory", "bare", "1", ""),
        (f"fileno(), by a vhost backend ({port.interrupts})", "virtnic", show(ratio), words),
        ("two eventfds there and back, both sides asleep", "ping-pong", "", ""),
    ]
    bench.report.table(
        "An interrupt that wakes poll(2), µs",
        ("what", "p50", "p99", "ratio", "target"),
        [
            (what, middle[name] * 1e6, percentile(times[name], 0.99) * 1e6, beside, target)
            for what, name, beside, target in rows
        ],
    )
    return {
        name: {part: percentile(values, part / 100) for part in (1, 50, 90, 99)}
        for name, values in times.items()
    }


def _asleep(ask: Callable[[], None], wait: Callable[[], int], count: int) -> list[float]:
    """Seconds from each question, asked while we sleep, to its answer."""
    asked: list[float] = []
    answered: list[float] = []
    stopped = threading.Event()

    def questions() -> None:
        while len(asked) < count and not stopped.is_set():
            time.sleep(PAUSE)
            asked.append(time.perf_counter())
            ask()

    asking = threading.Thread(target=questions)
    asking.start()
    try:
        while len(answered) < count:
            answers = wait()
            answered += [time.perf_counter()] * answers
    finally:
        stopped.set()
        asking.join()
    # Answers come in the order of the questions.
    return [end - begin for begin, end in zip(asked, answered, strict=False)]


def _there_and_back(ask: Callable[[], None], wait: Callable[[], int], count: int) -> list[float]:
    times = []
    for _ in range(count):
        began = time.perf_counter()
        ask()
        wait()
        times.append(time.perf_counter() - began)
    return times


def _port_turn(port: virtnic.Port) -> tuple[Callable[[], None], Callable[[], int]]:
    """Ask by sending a frame; wait for the interrupt and receive."""
    poller = select.poll()
    poller.register(port.fileno(), select.POLLIN)
    frame = [make_frame(64)]

    def ask() -> None:
        port.send(frame)

    def wait() -> int:
        if not poller.poll(2000):
            raise RuntimeError("no interrupt came within 2 s")
        return len(port.recv(8))

    return ask, wait


@contextlib.contextmanager
def _peer(core: int, *, polls: bool) -> Iterator[tuple[Callable[[], None], Callable[[], int]]]:
    """A process that answers by an eventfd: to a byte of shared memory, or to an eventfd."""
    with contextlib.ExitStack() as stack:
        question, answer = os.eventfd(0, os.EFD_CLOEXEC), os.eventfd(0, os.EFD_CLOEXEC)
        stack.callback(os.close, question)
        stack.callback(os.close, answer)
        file, shared = stack.enter_context(shared_memory())
        stack.enter_context(peer(core, file if polls else question, answer))
        poller = select.poll()
        poller.register(answer, select.POLLIN)

        def ask() -> None:
            if polls:
                shared[0] = (shared[0] + 1) % 256
            else:
                os.eventfd_write(question, 1)

        def wait() -> int:
            if not poller.poll(5000):
                raise RuntimeError("the other process does not answer")
            return os.eventfd_read(answer)

        ask()
        wait()  # it is there
        yield ask, wait
