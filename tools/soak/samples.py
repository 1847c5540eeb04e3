"""Sample the resources of processes, and detect growth."""

import gc
import math
import os
import statistics
import sys
from array import array
from collections.abc import Callable, Sequence
from itertools import combinations
from typing import Any

#: Of a run, the first part of which fills caches: this share is not looked at.
WARM_UP = 0.25
#: What may be gained in the measured part of a run. Kilobytes: allocators come and go.
KILOBYTES, COUNT = 1024.0, 0.5
#: Python's blocks, for each round: its own tables grow now and then, a leak does so each time.
BLOCKS = 0.2


def objects() -> dict[str, int]:
    """Return how many blocks of memory Python's objects take."""
    gc.collect()
    return {"Python blocks": sys.getallocatedblocks()}


def process(pid: int | str = "self") -> dict[str, int]:
    """Return memory, descriptors and threads of a process."""
    found = {}
    for file in ("smaps_rollup", "status"):
        for line in _read(f"/proc/{pid}/{file}").splitlines():
            key, *value = line.split()
            if value and value[0].isdigit():
                found[f"{file} {key[:-1].decode()}"] = int(value[0])
    return {
        "resident kB": found["smaps_rollup Rss"],
        "proportional kB": found["smaps_rollup Pss"],
        "private anonymous kB": found["smaps_rollup Anonymous"],
        "hugepages kB": found["status HugetlbPages"],
        "threads": found["status Threads"],
        "descriptors": len(os.listdir(f"/proc/{pid}/fd")),  # noqa: PTH208
    }


def growth(samples: Sequence[float]) -> float:
    """Return by how much a series grew after the warm-up: its slope times its length.

    The slope is the median of those between all pairs (Theil, 1950, and Sen, 1968): neither a
    peak nor where it happens to start and end matters.
    """
    measured = list(samples)[int(len(samples) * WARM_UP) :]
    if len(measured) < 4:
        raise ValueError(f"{len(samples)} samples say nothing; run it for longer")
    # A few hundred will do; more would be millions of pairs.
    stride = -(-len(measured) // 400)
    thinned = list(enumerate(measured))[::stride]
    slopes = [(b - a) / (j - i) for (i, a), (j, b) in combinations(thinned, 2)]
    return statistics.median(slopes) * (len(measured) - 1)


def bound(name: str, samples: int) -> float:
    """Return by how much a series of so many samples may grow; infinity where it may."""
    if name.endswith("proportional kB") or name in ("QEMU's resident kB", "QEMU's hugepages kB"):
        # Not of one process alone: what others share, and how much of our memory QEMU has met.
        return math.inf
    if name.endswith("kB"):
        return KILOBYTES
    return BLOCKS * samples * (1 - WARM_UP) if name.endswith("blocks") else COUNT


def _read(name: str) -> bytes:
    # Not a text file: looking codecs up leaves names in CPython's cache of attributes.
    file = os.open(name, os.O_RDONLY | os.O_CLOEXEC)
    try:
        # A file of /proc says all that it has to a read that is long enough.
        return os.read(file, 1 << 16)
    finally:
        os.close(file)


class Samples:
    """Series of numbers by name. Taking a sample makes no object that stays."""

    def __init__(self) -> None:
        self.series: dict[str, array[float]] = {}

    def add(self, whose: str, found: dict[str, int]) -> None:
        """Add what was found to the series."""
        for name, value in found.items():
            self.series.setdefault(f"{whose} {name}", array("d")).append(value)

    def __len__(self) -> int:
        return min(map(len, self.series.values()), default=0)

    def judge(self) -> dict[str, dict[str, Any]]:
        """Return for each series: first, last, least, most, growth, bound, ok."""
        judged = {}
        for name, values in self.series.items():
            warm = values[int(len(values) * WARM_UP) :]
            grown, most = growth(values), bound(name, len(values))
            judged[name] = {
                "first": warm[0],
                "last": warm[-1],
                "least": min(warm),
                "most": max(warm),
                "growth": round(grown, 2),
                "bound": round(most, 2) if math.isfinite(most) else None,
                "ok": grown <= most,
            }
        return judged


def table(judged: dict[str, dict[str, Any]], say: Callable[[str], object]) -> None:
    """Print what was found."""
    columns = ("first", "last", "least", "most", "growth", "bound")
    width = max(map(len, judged))
    say(" " * width + "".join(f"{column:>10}" for column in columns))
    for name, row in judged.items():
        found = (row[column] for column in columns)
        numbers = "".join(f"{'-' if n is None else format(n, '.6g'):>10}" for n in found)
        say(f"{name:<{width}}{numbers}{'' if row['ok'] else '  GROWS'}")
