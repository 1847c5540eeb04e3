"""Latency histograms, and samples of the counts over time."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Histogram", "Latency", "Sample"]

_NS = 1e-9


@dataclass(frozen=True, slots=True)
class Latency:
    """Times from when each frame was due until it was received, in seconds."""

    count: int
    minimum: float
    mean: float
    p50: float
    p90: float
    p99: float
    p99_9: float
    p99_99: float
    p99_999: float
    maximum: float


@dataclass(frozen=True, slots=True)
class Histogram:
    """A histogram of latencies, with three significant digits; the longest latency is exact.

    ``+`` adds two histograms exactly.
    """

    #: In ascending order: the longest latency of a step in nanoseconds, and the step's count.
    steps: tuple[tuple[int, int], ...] = ()
    #: The shortest latency, the longest, and the sum of all, in nanoseconds.
    least: int = 0
    most: int = 0
    total: int = 0

    @property
    def count(self) -> int:
        """The number of latencies."""
        return sum(count for _, count in self.steps)

    @property
    def mean(self) -> float:
        """The mean in seconds; 0 if the histogram is empty."""
        return self.total / self.count * _NS if self.steps else 0.0

    def percentile(self, percent: float) -> float:
        """Return the latency in seconds that ``percent`` percent of the frames do not exceed.

        0 if the histogram is empty. Raises ValueError.
        """
        if not 0 <= percent <= 100:
            raise ValueError(f"a percentile must be from 0 to 100, not {percent}")
        wanted = max(1, -(-self.count * percent // 100)) if self.steps else 1
        seen = 0
        for value, count in self.steps:
            seen += count
            if seen >= wanted:
                return min(value, self.most) * _NS
        return self.most * _NS

    @property
    def latency(self) -> Latency:
        """The usual percentiles."""
        percents = (50, 90, 99, 99.9, 99.99, 99.999)
        p50, p90, p99, p99_9, p99_99, p99_999 = map(self.percentile, percents)
        return Latency(
            count=self.count,
            minimum=self.least * _NS,
            mean=self.mean,
            p50=p50,
            p90=p90,
            p99=p99,
            p99_9=p99_9,
            p99_99=p99_99,
            p99_999=p99_999,
            maximum=self.most * _NS,
        )

    def __add__(self, other: Histogram) -> Histogram:
        """Return the sum of both histograms."""
        if not (self.steps and other.steps):
            return self if self.steps else other
        counts = dict(self.steps)
        for value, count in other.steps:
            counts[value] = counts.get(value, 0) + count
        return Histogram(
            steps=tuple(sorted(counts.items())),
            least=min(self.least, other.least),
            most=max(self.most, other.most),
            total=self.total + other.total,
        )


@dataclass(frozen=True, slots=True)
class Sample:
    """The counts at one time of a run. Frames in flight are counted as sent only."""

    #: Seconds since the end of the warm-up.
    seconds: float
    #: Frames sent; frames sent with a signature; those of them that had arrived.
    sent: int
    signed: int
    received: int
    duplicates: int
    reordered: int
    corrupt: int
    foreign: int
    #: Latencies of the frames that arrived since the previous sample, in seconds.
    latency_mean: float
    latency_max: float
