"""Latencies and samples: numbers that runs find."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Histogram", "Latency", "Sample"]

_NS = 1e-9


@dataclass(frozen=True, slots=True)
class Latency:
    """How long frames took from the moment at which each was due to its reception, in seconds."""

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
    """Latencies, counted: each is right to three digits, the longest exactly.

    Two of them add up exactly.
    """

    #: In ascending order: the longest latency of a step in nanoseconds, and how many there are.
    steps: tuple[tuple[int, int], ...] = ()
    #: The shortest and the longest latency, nanoseconds; all latencies together.
    least: int = 0
    most: int = 0
    total: int = 0

    @property
    def count(self) -> int:
        """How many there are."""
        return sum(count for _, count in self.steps)

    @property
    def mean(self) -> float:
        """The mean, seconds; 0 where there is none."""
        return self.total / self.count * _NS if self.steps else 0.0

    def percentile(self, percent: float) -> float:
        """Return the latency, in seconds, that so many percent do not exceed.

        0 where there is none. Raises ValueError.
        """
        if not 0 <= percent <= 100:
            raise ValueError(f"a percentile is from 0 to 100, not {percent}")
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
        """Return both together."""
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
    """What had been counted at a moment of a run; what is under way counts as sent only."""

    #: Since counting began.
    seconds: float
    #: Frames sent; those with a signature; of these, different ones that had arrived.
    sent: int
    signed: int
    received: int
    duplicates: int
    reordered: int
    corrupt: int
    foreign: int
    #: Of the frames that arrived since the sample before, seconds.
    latency_mean: float
    latency_max: float
