"""Cost of extended statistics: echo with and without them, and a snapshot."""

import os
import statistics
import time
from typing import Literal

import virtnic
from virtnic.loops import make_frame

from .bench import Bench
from .dpdk import Backend
from .report import show

#: Lengths of frames, with the checksum: all in one class, and in several.
LENGTHS = {"64 bytes": [64], "mixed": [64, 64, 64, 594, 594, 1518]}

Kind = Literal["basic", "extended"]
#: Neither is always the first.
ORDERS: tuple[tuple[Kind, Kind], ...] = (("basic", "extended"), ("extended", "basic"))


def run(bench: Bench) -> None:
    """One table: frames a second that come back, by turns with and without."""
    socket = bench.scratch / "vhu0"
    cores = bench.cores
    rates: dict[str, dict[str, list[float]]] = {}
    with (
        Backend([socket], mode="macswap", cores=(cores.frontend, cores.backend)),
        virtnic.Qemu(virtnic.Memory("64M")) as qemu,
    ):
        port = qemu.attach(f"vhost-user,path={socket},wait=10", interrupts="none")
        before = os.sched_getaffinity(0)
        os.sched_setaffinity(0, {cores.frontend})
        try:
            for name, lengths in LENGTHS.items():
                frames = [make_frame(length) for length in lengths]
                rates[name] = {"basic": [], "extended": []}
                for turn in range(2 * bench.pairs):
                    order = ORDERS[turn % 2]
                    for which in order:
                        port.set_statistics(which)
                        result = virtnic.exchange(port, frames=frames, seconds=bench.seconds)
                        rates[name][which].append(result.received / result.seconds)
            snapshot = _snapshot(port, bench.count(2_000, 200))
        finally:
            os.sched_setaffinity(0, before)
    rows = []
    for name, by in rates.items():
        ratio = statistics.median(b / a for a, b in zip(by["basic"], by["extended"], strict=True))
        basic, extended = (statistics.median(by[which]) / 1e6 for which in ("basic", "extended"))
        each = 1e3 / extended - 1e3 / basic
        rows.append((name, basic, extended, show(ratio), each))
    bench.report.table(
        f"Echo by exchange(), Mpps; a snapshot takes {snapshot * 1e6:.1f} µs",
        ("frames", "basic", "extended", "ratio", "ns a frame"),
        rows,
    )
    bench.report.section("counters", {"echo_pps": rates, "snapshot_s": snapshot})


def _snapshot(port: virtnic.Port, count: int) -> float:
    times = []
    for _ in range(count):
        began = time.perf_counter()
        port.xstats()
        times.append(time.perf_counter() - began)
    return statistics.median(times)
