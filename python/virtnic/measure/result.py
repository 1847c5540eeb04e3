"""The result of a run."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from virtnic.arguments import suggest_options
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
    #: Seconds; 0 if no frame arrived.
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
    #: Whether its frames had signatures. If not, only the frames sent are counted.
    flow: bool
    sent: int
    #: Bytes sent, without checksums.
    bytes: int
    #: Frames that arrived, each counted once; frames that did not.
    received: int
    lost: int
    #: Further copies of frames; frames that arrived after one that was sent later in their flow.
    duplicates: int
    reordered: int
    #: Frames that arrived so late that they may be duplicates; also counted in `lost`.
    stale: int
    #: Frames that were due but not sent: the ring was full, or the generator too slow.
    unsent: int
    #: Frames sent more than 10 µs after they were due; the longest such delay in seconds.
    late: int
    latest: float
    histogram: Histogram = field(repr=False)
    flows: tuple[FlowResult, ...] = field(repr=False)

    @property
    def latency(self) -> Latency:
        """The latencies of its frames."""
        return self.histogram.latency


@dataclass(frozen=True, slots=True)
class Result:
    """The result of a run. Frames of the warm-up are not included."""

    #: How long frames were sent, in seconds, without the warm-up.
    seconds: float
    #: Frames sent; those with a signature; of these, those that arrived and those that did not.
    sent: int
    signed: int
    received: int
    lost: int
    #: Further copies of frames; frames that arrived after one that was sent later in their flow.
    duplicates: int
    reordered: int
    #: Frames with bit errors, also counted in `lost`; frames that are not of this run.
    corrupt: int
    foreign: int
    #: Frames that arrived so late that they may be duplicates; also counted in `lost`.
    stale: int
    #: Frames that the peer had not taken from the transmit ring at the end; also in `lost`.
    untaken: int
    #: Frames that were due but not sent: the ring was full, or the generator too slow.
    unsent: int
    #: Frames sent more than 10 µs after they were due; the longest such delay in seconds.
    late: int
    latest: float
    #: Bytes sent, without checksums.
    bytes: int
    #: Whether Ctrl-C ended the run.
    interrupted: bool
    streams: tuple[StreamResult, ...] = field(repr=False)
    #: Up to 1,000 samples of the counts over time.
    samples: tuple[Sample, ...] = field(repr=False)
    histogram: Histogram = field(repr=False)

    @property
    def loss(self) -> float:
        """The fraction of the frames with a signature that was lost, 0 to 1."""
        return self.lost / self.signed if self.signed else 0.0

    @property
    def pps(self) -> float:
        """Frames sent per second."""
        return self.sent / self.seconds if self.seconds else 0.0

    @property
    def received_pps(self) -> float:
        """Frames received, each counted once, per second of sending."""
        return self.received / self.seconds if self.seconds else 0.0

    @property
    def l1_bps(self) -> float:
        """Bits sent per second, including checksums, preambles and gaps."""
        bits = 8 * (self.bytes + (CHECKSUM + L1_OVERHEAD) * self.sent)
        return bits / self.seconds if self.seconds else 0.0

    @property
    def latency(self) -> Latency:
        """The latencies of all frames."""
        return self.histogram.latency

    def plot(self) -> Plot:
        """Return a plot of latency by percentile, which notebooks display."""
        return latency_plot([("latency", self.histogram)])

    def to_dict(self) -> dict[str, Any]:
        """Return the result as a dictionary for JSON: see :data:`SCHEMA`."""
        # Not dataclasses.asdict(), which would copy all steps of the histograms.
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

    @suggest_options
    def to_json(self, *, indent: int | None = None) -> str:
        """Return the result as JSON: see :data:`SCHEMA`."""
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


#: The most flows of a stream that the JSON has; :attr:`StreamResult.flows` has all.
MOST_FLOWS = 10_000
