"""A measurement from several machines at once: ports in Ray actors (extra ``ray``).

>>> actors = [Ports.remote(tx="vhost-user,path=/run/a0", rx="vhost-user,path=/run/a1"), ...]
>>> result = Fleet(actors).measure(streams=measure.Stream(64, rate="1Mpps"), seconds=10)
>>> result.lost, result.latency.p99_9, result.failures
"""

from __future__ import annotations

import time
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import ray

import virtnic
from virtnic import measure

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from virtnic.measure import Histogram, Latency, Result, Stream

__all__ = ["Fleet", "FleetResult", "Ports"]

#: Readings of an actor's clock; the quickest one counts.
_READINGS = 5
_NANOSECONDS = 10**9


@dataclass(frozen=True, slots=True)
class FleetResult:
    """The results of all actors. The counts are sums, the histogram is the sum of histograms."""

    #: By the actor's place in the fleet.
    results: Mapping[int, Result] = field(repr=False)
    #: Why actors have no result. Their frames are not in any count.
    failures: Mapping[int, str]
    #: From the first actor's start to the last one's, in seconds, by the driver's clock.
    spread: float
    #: The most by which the clocks of two actors may differ from that, in seconds.
    clock_error: float

    def _total(self, name: str) -> int:
        return sum(getattr(result, name) for result in self.results.values())

    @property
    def sent(self) -> int:
        """Frames sent."""
        return self._total("sent")

    @property
    def signed(self) -> int:
        """Frames sent with a signature."""
        return self._total("signed")

    @property
    def received(self) -> int:
        """Frames that arrived, each counted once."""
        return self._total("received")

    @property
    def lost(self) -> int:
        """Frames with a signature that did not arrive."""
        return self._total("lost")

    @property
    def duplicates(self) -> int:
        """Further copies of frames that had already arrived."""
        return self._total("duplicates")

    @property
    def reordered(self) -> int:
        """Frames that arrived after one that was sent later in their flow."""
        return self._total("reordered")

    @property
    def corrupt(self) -> int:
        """Frames with bit errors, also counted in `lost`."""
        return self._total("corrupt")

    @property
    def foreign(self) -> int:
        """Frames that are not of the actor's own run."""
        return self._total("foreign")

    @property
    def unsent(self) -> int:
        """Frames that were due but not sent."""
        return self._total("unsent")

    @property
    def late(self) -> int:
        """Frames sent more than 10 µs after they were due."""
        return self._total("late")

    @property
    def loss(self) -> float:
        """The fraction of the frames with a signature that was lost, 0 to 1."""
        return self.lost / self.signed if self.signed else 0.0

    @property
    def pps(self) -> float:
        """Frames sent per second by all actors together."""
        return sum(result.pps for result in self.results.values())

    @property
    def histogram(self) -> Histogram:
        """The latencies of all frames."""
        return sum((result.histogram for result in self.results.values()), measure.Histogram())

    @property
    def latency(self) -> Latency:
        """The usual percentiles of all frames."""
        return self.histogram.latency


class _Ports:
    """An actor that owns the ports of a measurement, and their QEMU."""

    def __init__(
        self,
        *,
        tx: str,
        rx: str | None = None,
        options: Mapping[str, Any] | None = None,
        qemu: Mapping[str, Any] | None = None,
    ) -> None:
        """Open a port on each netdev.

        ``rx``: None if the peer of ``tx`` sends frames back. ``options``: those of
        :meth:`virtnic.Qemu.attach`; ``qemu``: those of :class:`virtnic.Qemu`.
        """
        with ExitStack() as stack:
            machine = stack.enter_context(virtnic.Qemu(**(qemu or {})))
            attached = [
                stack.enter_context(machine.attach(netdev, **(options or {})))
                for netdev in (tx, rx)
                if netdev is not None
            ]
            self._tx, self._rx = attached[0], attached[-1]
            self._stack = stack.pop_all()

    def clock(self) -> int:
        """Return this machine's time in nanoseconds."""
        return time.time_ns()

    def measure(self, at: int, options: dict[str, Any]) -> tuple[int, Result]:
        """Run at a moment of this machine's clock; return when that was, and the result."""
        while (left := at - time.time_ns()) > 0:
            time.sleep(left / _NANOSECONDS)
        began = time.time_ns()
        return began, measure.run(tx=self._tx, rx=self._rx, **options)

    def close(self) -> None:
        """Close the ports and QEMU."""
        self._stack.close()


#: The actor: ``Ports.remote(tx=…, rx=…)``, ``Ports.options(resources={…}).remote(…)``.
Ports: Any = ray.remote(_Ports)


class Fleet:
    """Several actors that measure at the same time."""

    def __init__(self, actors: Sequence[Any]) -> None:
        """Take the actors, made by ``Ports.remote``. Raises ValueError without one."""
        self._actors = [*actors]
        if not self._actors:
            raise ValueError("a fleet has one actor at least")

    def measure(
        self,
        *,
        streams: Stream | Sequence[Stream],
        seconds: float = 10.0,
        delay: float = 0.5,
        warmup: float = 0.0,
        drain: float = 1.0,
        verify: bool = True,
        cpus: Sequence[int] = (),
    ) -> FleetResult:
        """Run :func:`virtnic.measure.run` in every actor, beginning at the same moment.

        ``seconds``: how long to send. ``delay``: how long before the start all actors are told, in
        seconds, which is how long Ray may take for that. The others are those of ``measure.run``.
        Each actor's clock is read first, so that the clocks of the machines need not agree.

        An actor that dies, before or during the run, is named in ``failures``, and so is one that
        raises; the others go on. Raises RuntimeError, with all causes, if no actor has a result.
        """
        failures: dict[int, str] = {}
        clocks: dict[int, tuple[int, int]] = {}
        for number, actor in enumerate(self._actors):
            try:
                clocks[number] = min(
                    (_reading(actor) for _ in range(_READINGS)), key=lambda reading: reading[1]
                )
            except ray.exceptions.RayError as error:
                failures[number] = _cause(error)
        start = time.time_ns() + round(delay * _NANOSECONDS)
        told = {
            "streams": streams,
            "seconds": seconds,
            "warmup": warmup,
            "drain": drain,
            "verify": verify,
            "cpus": cpus,
        }
        running = {
            number: self._actors[number].measure.remote(start + ahead, told)
            for number, (ahead, _) in clocks.items()
        }
        results: dict[int, Result] = {}
        began: list[int] = []
        for number, reference in running.items():
            try:
                moment, results[number] = ray.get(reference)
                began.append(moment - clocks[number][0])
            except ray.exceptions.RayError as error:
                failures[number] = _cause(error)
        if not results:
            listed = "; ".join(f"actor {number}: {why}" for number, why in failures.items())
            raise RuntimeError(f"no actor of the fleet has a result: {listed}")
        errors = sorted(clocks[number][1] for number in results)
        return FleetResult(
            results=results,
            failures=failures,
            spread=(max(began) - min(began)) / _NANOSECONDS,
            clock_error=sum(errors[-2:]) / _NANOSECONDS if len(errors) > 1 else 0.0,
        )


def _reading(actor: Any) -> tuple[int, int]:
    """Return how far an actor's clock is ahead, and by how much that may be wrong (RFC 5905, 8)."""
    before = time.time_ns()
    there = ray.get(actor.clock.remote())
    after = time.time_ns()
    return there - (before + after) // 2, (after - before + 1) // 2


def _cause(error: BaseException) -> str:
    """Return in one line why an actor has no result."""
    cause = getattr(error, "cause", None) or error
    said = str(cause).strip().splitlines()
    return f"{type(cause).__name__}: {said[0] if said else ''}"
