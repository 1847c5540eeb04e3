"""``throughput``: the highest rate within the permitted loss (RFC 2544, section 26.1)."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from virtnic.arguments import suggest_options
from virtnic.measure.running import run
from virtnic.measure.streams import Field, Increment, Stream
from virtnic.units import CHECKSUM, L1_OVERHEAD

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    import virtnic
    from virtnic.measure.result import Result

__all__ = ["Throughput", "Trial", "throughput"]

#: Trials without a rate, to find out how fast frames can be sent at all.
_UNPACED_TRIALS = 3
#: A search that has not ended after this many trials is given up.
_MOST_TRIALS = 60


@dataclass(frozen=True, slots=True)
class Trial:
    """One trial at a rate."""

    #: The intended rate in frames per second.
    rate: float
    sent: int
    received: int
    #: The fraction of the frames that were due but did not arrive, whether sent or not.
    loss: float
    #: Frames that were due but not sent.
    unsent: int


@dataclass(frozen=True, slots=True)
class Throughput:
    """The throughput for one frame size."""

    #: Bytes on the wire, or ``"imix"``.
    size: int | Literal["imix"]
    #: The highest passing rate in frames per second; 0 if even the lowest rate loses too much.
    pps: float
    #: The lowest failing rate; infinite if none failed.
    limit: float
    #: Whether the generator was the limit, not the peer.
    by_generator: bool
    #: ``"mlrsearch"`` or ``"bisection"``.
    method: str
    trials: tuple[Trial, ...] = field(repr=False)
    #: Latencies of the last trial that passed; None if none did.
    result: Result | None = field(repr=False)
    #: Mean length of a frame in bytes, without checksum.
    length: float = 60.0

    @property
    def l1_bps(self) -> float:
        """Bits per second, including checksums, preambles and gaps."""
        return 8 * (self.length + CHECKSUM + L1_OVERHEAD) * self.pps


class _Search:
    """The trials of one size."""

    def __init__(
        self,
        ports: tuple[virtnic.Port, virtnic.Port],
        size: int | Literal["imix"],
        fields: Sequence[Field],
        seconds: float,
        options: dict[str, Any],
        progress: Callable[[Trial], object] | None,
    ) -> None:
        self.ports, self.size, self.fields, self.seconds = ports, size, fields, seconds
        self.options = options
        self.progress = progress
        self.trials: list[Trial] = []
        self.best: tuple[float, Result] | None = None
        self.interrupted = False

    def try_rate(self, rate: float | None, seconds: float | None = None) -> tuple[Trial, Result]:
        """Send at a rate and return what was lost. Raises KeyboardInterrupt."""
        stream = Stream(self.size, rate=rate, fields=self.fields)
        result = run(
            tx=self.ports[0],
            rx=self.ports[1],
            streams=stream,
            seconds=seconds or self.seconds,
            **self.options,
        )
        if result.interrupted:
            raise KeyboardInterrupt
        due = result.sent + result.unsent
        missing = due - result.received
        trial = Trial(
            rate=result.pps if rate is None else rate,
            sent=result.sent,
            received=result.received,
            loss=max(0, missing) / due if due else 1.0,
            unsent=result.unsent,
        )
        self.trials.append(trial)
        if self.progress is not None:
            self.progress(trial)
        return trial, result

    def passes(self, rate: float, loss: float) -> bool:
        """Whether a rate stays within the permitted loss."""
        trial, result = self.try_rate(rate)
        good = trial.loss <= loss
        if good and (self.best is None or rate >= self.best[0]):
            self.best = (rate, result)
        return good


@suggest_options
def throughput(
    *,
    tx: virtnic.Port,
    rx: virtnic.Port,
    sizes: Iterable[int | Literal["imix"]] = (64, 512, 1518),
    loss: float = 0.0,
    flows: int = 1,
    fields: Sequence[Field] = (),
    seconds: float = 1.0,
    precision: float = 0.005,
    least: float = 1000.0,
    most: float | None = None,
    method: Literal["auto", "mlrsearch", "bisection"] = "auto",
    progress: Callable[[Trial], object] | None = None,
    cpus: Iterable[int] = (),
) -> tuple[Throughput, ...]:
    """Find the highest rate at which no more than ``loss`` (0 to 1) of the frames are lost.

    ``sizes`` are searched one after the other: bytes on the wire, or ``"imix"``. A trial takes
    ``seconds``. Frames that were due but not sent count as lost, so a slow generator does not
    raise the result; ``by_generator`` is True where it was the limit. ``least`` and ``most`` bound
    the search, in frames per second; without ``most``, the upper bound is the generator's highest
    rate. ``precision``: the width of the result, relative to the rate. ``flows``: the number of
    IPv4 source addresses to use in turn; ``fields``: other fields to vary instead.

    ``method``: ``"mlrsearch"`` uses FD.io's library (extra ``measure``; draft-ietf-bmwg-mlrsearch),
    which repeats trials, so that one disturbed trial does not spoil the result; ``"bisection"``
    halves the interval and needs the fewest trials; ``"auto"`` uses the library if installed.

    Raises as :func:`run` does, KeyboardInterrupt, and ModuleNotFoundError for ``"mlrsearch"``
    without the library.
    """
    wanted = [*sizes]
    if not wanted:
        raise ValueError("sizes must not be empty")
    if not 0 <= loss < 1:
        raise ValueError(f"loss must be a fraction from 0 to below 1, not {loss}")
    if not 0 < precision < 1:
        raise ValueError(f"precision must be a fraction above 0 and below 1, not {precision}")
    if not (seconds > 0 and math.isfinite(seconds)):
        raise ValueError(f"seconds must be above 0, not {seconds}")
    if not 0 < least < (math.inf if most is None else most):
        raise ValueError(f"least must be above 0 and below most, not {least} to {most}")
    if method not in ("auto", "mlrsearch", "bisection"):
        raise ValueError(f"method must be 'auto', 'mlrsearch' or 'bisection', not {method!r}")
    if flows < 1:
        raise ValueError(f"flows must be 1 or more, not {flows}")
    if flows > 1 and fields:
        raise ValueError("flows and fields exclude each other")
    library = _library(method)
    varied = [Increment("ip.src", flows)] if flows > 1 else [*fields]
    options = {"warmup": min(0.1, seconds / 10), "cpus": [*cpus]}
    found = []
    for size in wanted:
        search = _Search((tx, rx), size, varied, seconds, options, progress)
        # The best of several trials: other programs on this machine may slow one down.
        tries = range(_UNPACED_TRIALS if most is None else 0)
        top = most or max(search.try_rate(None)[0].rate for _ in tries)
        by = _by_bisection if library is None else _by_library
        pps, limit = by(search, library, loss, precision, (least, max(top, 2 * least)))
        lossy = [trial for trial in search.trials if trial.loss > loss and trial.rate >= pps]
        ends_by_generator = bool(lossy) and all(
            trial.sent - trial.received <= loss * trial.sent for trial in lossy
        )
        frames = Stream(size).frames(tx, rx)
        found.append(
            Throughput(
                size=size,
                pps=pps,
                limit=limit,
                by_generator=ends_by_generator or (not lossy and most is None),
                method="bisection" if library is None else "mlrsearch",
                trials=tuple(search.trials),
                result=None if search.best is None else search.best[1],
                length=sum(map(len, frames)) / len(frames),
            )
        )
    return tuple(found)


def _library(method: str) -> Any:
    """Return the MLRsearch library, or None for bisection."""
    if method == "bisection":
        return None
    try:
        import MLRsearch
    except ModuleNotFoundError:
        if method == "auto":
            return None
        raise ModuleNotFoundError(
            "the search is done by the library MLRsearch, which is not installed; pip install "
            "virtnic[measure], or pass method='bisection'",
            name="MLRsearch",
        ) from None
    return MLRsearch


def _by_bisection(
    search: _Search, _: Any, loss: float, precision: float, rates: tuple[float, float]
) -> tuple[float, float]:
    """Return the highest passing rate and the lowest failing rate, by bisection."""
    low, high = rates
    if search.passes(high, loss):
        return high, math.inf
    if not search.passes(low, loss):
        return 0.0, low
    while high - low > precision * high and len(search.trials) < _MOST_TRIALS:
        middle = math.sqrt(low * high) if high > 4 * low else (low + high) / 2
        if search.passes(middle, loss):
            low = middle
        else:
            high = middle
    return low, high


def _by_library(
    search: _Search, library: Any, loss: float, precision: float, rates: tuple[float, float]
) -> tuple[float, float]:
    """Return the highest passing rate and the lowest failing rate, by MLRsearch."""

    class Measurer(library.AbstractMeasurer):  # type: ignore[misc]
        """Runs the trials that the library asks for."""

        def measure(self, intended_duration: float, intended_load: float) -> Any:
            trial, result = search.try_rate(intended_load, intended_duration)
            if trial.loss <= loss and (search.best is None or intended_load >= search.best[0]):
                search.best = (intended_load, result)
            return library.MeasurementResult(
                intended_duration=intended_duration,
                intended_load=intended_load,
                offered_count=trial.sent,
                loss_count=max(0, trial.sent - trial.received),
                intended_count=trial.sent + trial.unsent,
            )

    goal = library.SearchGoal(
        loss_ratio=loss,
        exceed_ratio=0.5,
        relative_width=precision,
        initial_trial_duration=search.seconds,
        final_trial_duration=search.seconds,
        duration_sum=3 * search.seconds,
        preceding_targets=2,
        expansion_coefficient=2,
        fail_fast=False,
    )
    config = library.Config()
    config.goals = [goal]
    config.max_load = rates[1]
    config.min_load = rates[0]
    config.search_duration_max = max(120.0, 200 * search.seconds)
    config.warmup_duration = 0.0
    found = library.MultipleLossRatioSearch(config).search(Measurer())[goal]
    lower, upper = found.relevant_lower_bound, found.relevant_upper_bound
    return (
        0.0 if lower is None else float(lower),
        math.inf if upper is None else float(upper),
    )
