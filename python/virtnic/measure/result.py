"""What a run found."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from virtnic.measure.plots import Plot, latency_plot
from virtnic.units import CHECKSUM, L1_OVERHEAD

if TYPE_CHECKING:
    from virtnic.measure.counts import Histogram, Latency, Sample

__all__ = ["FlowResult", "Result", "StreamResult"]


@dataclass(frozen=True, slots=True)
class FlowResult:
    """The frames of one flow."""

    sent: int
    received: int
    duplicates: int
    reordered: int
    #: Seconds; 0 where none arrived.
    latency_mean: float
    latency_max: float

    @property
    def lost(self) -> int:
        """Frames that did not arrive."""
        return max(0, self.sent - self.received)


@dataclass(frozen=True, slots=True)
class StreamResult:
    """The frames of one stream."""

    name: str
    #: Whether its frames had signatures; else only what was sent is known.
    flow: bool
    sent: int
    #: Bytes sent, without checksums.
    bytes: int
    #: Different frames that arrived; those that did not.
    received: int
    lost: int
    #: Frames that arrived once more; that arrived behind one that was sent later in their flow.
    duplicates: int
    reordered: int
    #: Frames that arrived so late that nobody knows whether they had come before: also in `lost`.
    stale: int
    #: Frames that were due and not sent: the generator could not keep up.
    unsent: int
    #: Frames that were sent more than 10 µs after they were due; the longest such delay, seconds.
    late: int
    latest: float
    histogram: Histogram = field(repr=False)
    flows: tuple[FlowResult, ...] = field(repr=False)

    @property
    def latency(self) -> Latency:
        """How long its frames took."""
        return self.histogram.latency


@dataclass(frozen=True, slots=True)
class Result:
    """What a run found. Frames of the warm-up are in none of it."""

    #: For how long frames were sent.
    seconds: float
    #: Frames sent; of streams with ``flow``; of these, those that arrived and those that did not.
    sent: int
    signed: int
    received: int
    lost: int
    #: Frames that arrived once more; that arrived behind one that was sent later in their flow.
    duplicates: int
    reordered: int
    #: Frames with wrong bits: also in `lost`. Frames that are not of this run.
    corrupt: int
    foreign: int
    #: Frames that arrived so late that nobody knows whether they had come before: also in `lost`.
    stale: int
    #: Frames that the peer had not taken from the transmit ring at the end: also in `lost`.
    untaken: int
    #: Frames that were due and not sent: the generator could not keep up.
    unsent: int
    #: Frames that were sent more than 10 µs after they were due; the longest such delay, seconds.
    late: int
    latest: float
    #: Bytes sent, without checksums.
    bytes: int
    #: Whether Ctrl-C ended it.
    interrupted: bool
    streams: tuple[StreamResult, ...] = field(repr=False)
    #: How it went, up to 1,000 of them.
    samples: tuple[Sample, ...] = field(repr=False)
    histogram: Histogram = field(repr=False)

    @property
    def loss(self) -> float:
        """Which part of the frames with a signature was lost, 0 to 1."""
        return self.lost / self.signed if self.signed else 0.0

    @property
    def pps(self) -> float:
        """Frames sent a second."""
        return self.sent / self.seconds if self.seconds else 0.0

    @property
    def received_pps(self) -> float:
        """Different frames received a second of sending."""
        return self.received / self.seconds if self.seconds else 0.0

    @property
    def l1_bps(self) -> float:
        """Bits sent a second, with checksums, preambles and gaps."""
        bits = 8 * (self.bytes + (CHECKSUM + L1_OVERHEAD) * self.sent)
        return bits / self.seconds if self.seconds else 0.0

    @property
    def latency(self) -> Latency:
        """How long frames took from the moment at which each was due."""
        return self.histogram.latency

    def plot(self) -> Plot:
        """Return the latencies by percentile, which a notebook shows."""
        return latency_plot([("latency", self.histogram)])

    def to_dict(self) -> dict[str, Any]:
        """Return all of it in numbers, text and lists: see :data:`SCHEMA`."""
        # The members of slotted dataclasses, without copies of the histograms' many steps.
        found: dict[str, Any] = {"version": 1}
        for each in dataclasses.fields(self):
            if each.name not in ("streams", "samples", "histogram"):
                found[each.name] = getattr(self, each.name)
        found |= {"loss": self.loss, "pps": self.pps, "received_pps": self.received_pps}
        found |= {"l1_bps": self.l1_bps, "latency": dataclasses.asdict(self.latency)}
        found["histogram"] = _histogram_dict(self.histogram)
        found["samples"] = [dataclasses.asdict(sample) for sample in self.samples]
        found["streams"] = [_stream_dict(stream) for stream in self.streams]
        return found

    def to_json(self, *, indent: int | None = None) -> str:
        """Return it as JSON: see :data:`SCHEMA`."""
        return json.dumps(self.to_dict(), indent=indent)


def _histogram_dict(histogram: Histogram) -> dict[str, Any]:
    steps = [list(step) for step in histogram.steps]
    return {
        "steps": steps,
        "least": histogram.least,
        "most": histogram.most,
        "total": histogram.total,
    }


def _stream_dict(stream: StreamResult) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for each in dataclasses.fields(stream):
        if each.name not in ("histogram", "flows"):
            found[each.name] = getattr(stream, each.name)
    found["latency"] = dataclasses.asdict(stream.latency)
    found["histogram"] = _histogram_dict(stream.histogram)
    found["flows"] = [
        {**dataclasses.asdict(flow), "lost": flow.lost} for flow in stream.flows[:MOST_FLOWS]
    ]
    return found


#: Flows of a stream that are in the JSON; :attr:`StreamResult.flows` has all.
MOST_FLOWS = 10_000
