"""Shared code of the benchmarks."""

from dataclasses import dataclass
from pathlib import Path

from .machine import Cores
from .report import Report


@dataclass(frozen=True)
class Bench:
    """Options, places, the report."""

    report: Report
    cores: Cores
    #: For sockets; removed at the end.
    scratch: Path
    #: How long each rate is measured, and how often, alternately.
    seconds: float
    pairs: int
    quick: bool
    #: Of the cases beside DPDK, which; all when empty.
    cases: tuple[str, ...] = ()
    #: Whether instructions.json is written anew.
    update: bool = False

    def count(self, ordinary: int, quick: int) -> int:
        """How often to do something."""
        return quick if self.quick else ordinary
