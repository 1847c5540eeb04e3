"""What statistics of frames cost: an echo with and without them, and a snapshot."""

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

Kind = Literal["basic", "sizes", "extended"]
KINDS: tuple[Kind, ...] = ("basic", "sizes", "extended")


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
                rates[name] = {which: [] for which in KINDS}
                for turn in range(2 * bench.pairs):
                    # None is always the first.
                    for which in KINDS[:: 1 if turn % 2 else -1]:
                        port.set_statistics(which)
                        result = virtnic.exchange(port, frames=frames, seconds=bench.seconds)
                        rates[name][which].append(result.received / result.seconds)
            snapshot = _snapshot(port, bench.count(2_000, 200))
        finally:
            os.sched_setaffinity(0, before)
    rows = []
    for name, by in rates.items():
        rates_of = {which: statistics.median(by[which]) / 1e6 for which in KINDS}
        ratios = [
            statistics.median(b / a for a, b in zip(by["basic"], by[which], strict=True))
            for which in KINDS[1:]
        ]
        rows.append((name, *rates_of.values(), *map(show, ratios)))
    bench.report.table(
        f"Echo by exchange(), Mpps; a snapshot takes {snapshot * 1e6:.1f} µs",
        ("frames", *KINDS, "sizes / basic", "extended / basic"),
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
