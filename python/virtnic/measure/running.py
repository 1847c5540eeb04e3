"""``run``: sends streams and counts the frames that arrive."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import virtnic
from virtnic import _native
from virtnic.arguments import suggest_options
from virtnic.measure.counts import Histogram, Sample
from virtnic.measure.result import FlowResult, Result, StreamResult
from virtnic.measure.streams import Stream, compiled

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

__all__ = ["run"]

#: So many streams and more have no numbers in the signature.
_MOST_STREAMS = 1 << 16
#: The most samples kept; beyond this they are thinned out.
_SAMPLES = 1000
_NS = 1e-9


class _Samples:
    """A bounded number of samples of a run."""

    def __init__(self) -> None:
        self.kept: list[Sample] = []
        self._stride = 1
        self._seen = 0

    def add(self, sample: Sample) -> None:
        self._seen += 1
        if self._seen % self._stride:
            return
        self.kept.append(sample)
        if len(self.kept) > _SAMPLES:
            self._stride *= 2
            del self.kept[::2]


@suggest_options
def run(
    *,
    tx: virtnic.Port,
    rx: virtnic.Port | None,
    streams: Stream | Iterable[Stream],
    seconds: float | None = 10.0,
    packets: int | None = None,
    warmup: float = 0.0,
    drain: float = 1.0,
    verify: bool = True,
    progress: Callable[[Sample], object] | None = None,
    cpus: Iterable[int] = (),
) -> Result:
    """Send streams from ``tx`` and count the frames that arrive at ``rx``.

    ``rx`` may be the same port as ``tx`` if the peer sends frames back; with None, frames are only
    sent. Each frame carries its sequence number, so lost, duplicate and reordered frames are
    counted exactly, and frames from other senders are counted separately. Latency is the time from
    when a frame was due, according to its stream's rate, until it was received. It includes delays
    of the generator as well as of the peer (no coordinated omission); ``late`` and ``unsent`` of
    the result show how far the generator itself fell behind. Without a rate, frames are due when
    they are sent.

    ``seconds``: how long to send; None: until ``packets`` frames are sent, until Ctrl-C, or until
    ``progress``, which is called 20 times a second, returns False. Ctrl-C does not raise: the run
    ends and its result is returned; a second Ctrl-C raises. ``warmup``: seconds of sending before
    counting begins. ``drain``: how many seconds to wait for the last frames. ``verify``: also
    compare the payload between the headers and the signature. All queue pairs that the ports use
    are used, the same number on both, with one thread for each; ``cpus`` are the processors of
    these threads. Nothing else can use these queues during the run.

    Raises ValueError for streams that cannot be sent, MemoryUnavailable, PortBusy, and PortClosed,
    QemuDied or DeviceError with a note of the counts so far.
    """
    chosen: Sequence[Stream] = [streams] if isinstance(streams, Stream) else [*streams]
    if not chosen:
        raise ValueError("there is no stream to send")
    if len(chosen) >= _MOST_STREAMS:
        raise ValueError(f"there are fewer than {_MOST_STREAMS} streams, not {len(chosen)}")
    for port in (tx,) if rx is None else (tx, rx):
        if not isinstance(port, virtnic.Port):
            raise TypeError(f"streams go from a port to a port, not {port!r}")
    for name, value in (("seconds", seconds), ("warmup", warmup), ("drain", drain)):
        if value is not None and not 0 <= value < float("inf"):
            raise ValueError(f"{name} is 0 or more, not {value}")
    if packets is not None and not 0 <= packets < 1 << 64:
        raise ValueError(f"packets is 0 or more and below 2**64, not {packets}")
    pinned = [*cpus]
    if any(cpu < 0 for cpu in pinned):
        raise ValueError(f"cpus are numbers of processors, not {pinned}")
    given = [compiled(stream, tx, rx) for stream in chosen]
    samples = _Samples()

    def tell(counters: dict[str, Any]) -> object:
        sample = Sample(**counters)
        if sample.seconds:
            samples.add(sample)
        return None if progress is None else progress(sample)

    found = _native.measure(
        (tx, rx), given, (warmup, drain), verify, (seconds, packets, tell, pinned)
    )
    last = Sample(**found["glance"])
    return _result(chosen, found, (*samples.kept, last), counts=rx is not None)


def _result(
    streams: Sequence[Stream], found: dict[str, Any], samples: tuple[Sample, ...], *, counts: bool
) -> Result:
    told = [
        _stream_result(stream, counted, counts=counts)
        for stream, counted in zip(streams, found["streams"], strict=True)
    ]

    def total(name: str) -> Any:
        return sum(getattr(stream, name) for stream in told)

    histogram = Histogram()
    for stream in told:
        histogram += stream.histogram
    return Result(
        seconds=found["seconds"],
        signed=sum(stream.sent for stream in told if stream.flow and counts),
        latest=max(stream.latest for stream in told),
        corrupt=found["corrupt"],
        foreign=found["foreign"],
        untaken=found["untaken"],
        interrupted=found["interrupted"],
        streams=tuple(told),
        samples=samples,
        histogram=histogram,
        **{
            name: total(name)
            for name in (
                *("sent", "received", "lost", "duplicates", "reordered", "stale"),
                *("unsent", "late", "bytes"),
            )
        },
    )


def _stream_result(stream: Stream, counted: dict[str, Any], *, counts: bool) -> StreamResult:
    is_flow = stream.flow and counts
    flows = tuple(
        FlowResult(
            sent=sent,
            received=received,
            duplicates=duplicates,
            reordered=reordered,
            latency_mean=total / received * _NS if received else 0.0,
            latency_max=most * _NS,
        )
        for sent, received, duplicates, reordered, total, most in counted["flows"]
    )
    return StreamResult(
        name=stream.name,
        flow=is_flow,
        sent=sum(flow.sent for flow in flows),
        bytes=counted["bytes"],
        received=sum(flow.received for flow in flows),
        lost=sum(flow.lost for flow in flows) if is_flow else 0,
        duplicates=sum(flow.duplicates for flow in flows),
        reordered=sum(flow.reordered for flow in flows),
        stale=counted["stale"],
        unsent=counted["unsent"],
        late=counted["late"],
        latest=counted["latest"],
        histogram=Histogram(
            steps=tuple(counted["latencies"]),
            least=counted["least"],
            most=max(flow[5] for flow in counted["flows"]),
            total=sum(flow[4] for flow in counted["flows"]),
        ),
        flows=flows if is_flow else (),
    )
