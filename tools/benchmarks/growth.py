"""How costs grow with the ports of a QEMU, the QEMUs of a process, and the ports in a loop.

The exponent of a figure is that of the power of the number that it grows by: 1 is in proportion,
0 not at all.
"""

import contextlib
import math
import os
import statistics
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import virtnic
from support.frames import arp_request, is_arp_reply

from .bench import Bench
from .report import show

PORTS = (1, 2, 4, 8, 16, 29)
QEMUS = (1, 2, 5, 10, 20, 50, 100, 200)
TOGETHER = (1, 2, 4, 8, 16)
#: Entries of a ring: 64 of 29 ports fit a small memory.
ENTRIES = 64
#: Bytes that each QEMU may take; no more of them are started than there is room for.
EACH = 64 << 20
#: An exponent above it is more than in proportion, with some room for noise.
LIMIT = 1.2


@dataclass(frozen=True)
class Step:
    """What one more and one less takes once there are so many, and what all of them hold."""

    count: int
    attach_s: float
    detach_s: float
    descriptors: int
    threads: int
    resident: int


def run(bench: Bench) -> None:
    """Three tables."""
    figures: dict[str, Any] = {}
    for name, title, steps in (
        ("ports", "Ports of one QEMU", _ports(bench, PORTS[:3] if bench.quick else PORTS)),
        ("qemus", "QEMUs of one process", _qemus(bench, QEMUS[:3] if bench.quick else QEMUS)),
    ):
        figures[name] = [asdict(step) for step in steps]
        rows: list[tuple[object, ...]] = [
            (
                str(step.count),
                step.attach_s * 1e3,
                step.detach_s * 1e3,
                str(step.descriptors),
                str(step.threads),
                step.resident / 2**20,
            )
            for step in steps
        ]
        powers = [
            exponent([step.count for step in steps], [getattr(step, field) for step in steps])
            for field in ("attach_s", "detach_s", "descriptors", "threads", "resident")
        ]
        rows.append(("exponent", *map(show, powers)))
        head = ("how many", "one more, ms", "one less, ms", "descriptors", "threads", "MiB")
        bench.report.table(title, head, rows, ["of this process, beside what it had before"])
        for what, power in zip(("descriptors", "threads", "memory"), powers[2:], strict=True):
            bench.report.target(f"{name}: exponent of {what}", power, LIMIT, least=False)
        # The time of one more, when there are many: that of all is one power above.
        bench.report.target(f"{name}: exponent of attaching", powers[0], 0.5, least=False)
    figures["rates"] = _rates(bench)
    bench.report.section("growth", figures)


def exponent(counts: Sequence[int], values: Sequence[float]) -> float:
    """Return the slope of the logarithms, by least squares."""
    pairs = [(math.log(n), math.log(max(v, 1e-9))) for n, v in zip(counts, values, strict=True)]
    xs, ys = zip(*pairs, strict=True)
    slope, _ = statistics.linear_regression(xs, ys)
    return slope


def _held() -> tuple[int, int, int]:
    """Descriptors, threads and resident bytes of this process."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return (
        len(os.listdir("/proc/self/fd")),  # noqa: PTH208
        len(os.listdir("/proc/self/task")),  # noqa: PTH208
        pages * os.sysconf("SC_PAGESIZE"),
    )


def _available() -> int:
    """Bytes of memory that are available to programs."""
    [line] = (line for line in Path("/proc/meminfo").read_text().splitlines() if "MemAvail" in line)
    return int(line.split()[1]) << 10


def _ports(bench: Bench, counts: Sequence[int]) -> list[Step]:
    steps = []
    with virtnic.Qemu(virtnic.Memory("32M", hugepages=None)) as qemu:
        before = _held()
        ports: list[virtnic.Port] = []
        for count in counts:
            bench.report.say(f"growth: {count} ports of one QEMU")
            while len(ports) < count:
                ports.append(qemu.attach("user", queue_size=ENTRIES))
            held = _held()
            attach, detach = [], []
            for _ in range(bench.count(5, 2)):
                ports.pop().close()
                began = time.perf_counter()
                ports.append(qemu.attach("user", queue_size=ENTRIES))
                attach.append(time.perf_counter() - began)
                began = time.perf_counter()
                ports.pop().close()
                detach.append(time.perf_counter() - began)
                ports.append(qemu.attach("user", queue_size=ENTRIES))
            steps.append(_step(count, attach, detach, before, held))
    return steps


def _qemus(bench: Bench, counts: Sequence[int]) -> list[Step]:
    steps = []
    room = _available() // EACH
    with contextlib.ExitStack() as stack:
        before = _held()
        started = 0

        def start() -> virtnic.Port:
            memory = virtnic.Memory("2M", hugepages=None, jumbo_buffers=0)
            return virtnic.open("user", memory=memory, queue_size=ENTRIES)

        for count in counts:
            if count > room:
                bench.report.say(f"growth: no memory for {count} QEMUs")
                break
            bench.report.say(f"growth: {count} QEMUs")
            while started < count:
                stack.enter_context(start())
                started += 1
            held = _held()
            attach, detach = [], []
            for _ in range(bench.count(5, 2)):
                began = time.perf_counter()
                port = start()
                attach.append(time.perf_counter() - began)
                began = time.perf_counter()
                port.close()
                detach.append(time.perf_counter() - began)
            steps.append(_step(count, attach, detach, before, held))
    return steps


def _step(
    count: int,
    attach: list[float],
    detach: list[float],
    before: tuple[int, int, int],
    held: tuple[int, int, int],
) -> Step:
    more = (now - then for now, then in zip(held, before, strict=True))
    return Step(count, statistics.median(attach), statistics.median(detach), *more)


def _rates(bench: Bench) -> list[tuple[int, float]]:
    """Replies a second that a Python loop gets by asking the gateways of so many ports in turn."""
    rates = []
    with virtnic.Qemu(virtnic.Memory("32M", hugepages=None)) as qemu:
        ports: list[virtnic.Port] = []
        for count in TOGETHER[:2] if bench.quick else TOGETHER:
            bench.report.say(f"growth: {count} ports in one loop")
            while len(ports) < count:
                ports.append(qemu.attach("user", queue_size=ENTRIES, interrupts="none"))
            questions = [[arp_request(port.mac)] for port in ports]
            replies, began = 0, time.perf_counter()
            while (seconds := time.perf_counter() - began) < bench.seconds:
                for port, question in zip(ports, questions, strict=True):
                    port.send(question)
                    replies += sum(is_arp_reply(frame) for frame in port.recv(64))
            rates.append((count, replies / seconds))
    power = exponent([count for count, _ in rates], [rate for _, rate in rates])
    bench.report.table(
        "ARP replies a second, one Python loop over ports of one QEMU",
        ("ports", "kfps"),
        [*((str(count), rate / 1e3) for count, rate in rates), ("exponent", show(power))],
    )
    return rates
