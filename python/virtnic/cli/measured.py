"""What ``virtnic measure`` prints: a table, JSON, a page."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

from virtnic.cli.status import Status
from virtnic.measure import Throughput, Trial, page
from virtnic.measure.plots import count_text, seconds_text

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from virtnic.cli.output import Output
    from virtnic.measure import Result, Sample

__all__ = ["Report"]

_HEADS: dict[str, tuple[str, ...]] = {
    "throughput": ("size", "frames/s", "Gbit/s L1", "loses at", "trials", "limit"),
    "latency": ("size", "received", "lost", "p50", "p99", "p99.9", "p99.99", "max"),
    "loss": ("size", "frames/s", "sent", "received", "lost", "loss"),
    "soak": ("size", "received", "lost", "p50", "p99", "p99.9", "p99.99", "max"),
}


def _row(cells: Sequence[str]) -> str:
    return "".join(f"{cell:>12}" if number else f"{cell:<14}" for number, cell in enumerate(cells))


class Report:
    """The results of one command, printed as they come."""

    def __init__(self, kind: str, netdevs: Sequence[str], output: Output) -> None:
        self._kind, self._netdevs, self._output = kind, [*netdevs], output
        self._results: list[tuple[str, Result]] = []
        self._throughputs: list[Throughput] = []
        self._failed = False
        self._ended_as_meant = False
        self.interrupted = False
        output.line(f"MEASURE {kind} from {netdevs[0]} to {netdevs[-1]}")
        output.line(_row(_HEADS[kind]))

    def result(self, name: str, result: Result) -> None:
        """Take a run in, and print it."""
        self._results.append((name, result))
        self.interrupted = self.interrupted or result.interrupted
        if self._kind == "loss":
            cells = [
                *(name, count_text(result.pps), str(result.sent), str(result.received)),
                *(str(result.lost), f"{100 * result.loss:.4g} %"),
            ]
        else:
            latency = result.latency
            times = (latency.p50, latency.p99, latency.p99_9, latency.p99_99, latency.maximum)
            texts = map(seconds_text, times) if latency.count else ["-"] * len(times)
            cells = [name, str(result.received), str(result.lost), *texts]
            if not (latency.count or result.interrupted):
                self._failed = True
        self._output.line(_row(cells))
        for text in _remarks(result):
            self._output.line(f"  {text}")

    def throughput(self, found: Throughput) -> None:
        """Take a search in, and print it."""
        self._throughputs.append(found)
        if not found.pps:
            self._failed = True
        if found.result is not None:
            self._results.append((str(found.size), found.result))
        limit = "-" if found.limit == float("inf") else count_text(found.limit)
        self._output.line(
            _row(
                [
                    str(found.size),
                    count_text(found.pps),
                    f"{found.l1_bps / 1e9:.4g}",
                    limit,
                    str(len(found.trials)),
                    "generator" if found.by_generator else "peer",
                ]
            )
        )

    def trial(self, trial: Trial) -> None:
        """Tell of a trial of a search."""
        if self._output.verbosity:
            self._output.note(
                f"{count_text(trial.rate)} frames/s: {trial.received} of {trial.sent} received, "
                f"{trial.unsent} not sent"
            )

    def ticker(self, interval: float) -> Callable[[Sample], None]:
        """Return a progress function that prints a line now and then."""
        due = interval

        def tick(sample: Sample) -> None:
            nonlocal due
            if interval and sample.seconds >= due:
                due = (sample.seconds // interval + 1) * interval
                self._output.line(
                    f"{sample.seconds:10.1f} s{sample.sent:>12} sent{sample.received:>12} received"
                    f"{sample.duplicates:>8} twice{sample.reordered:>8} out of order"
                    f"{seconds_text(sample.latency_max):>12} at most"
                )

        return tick

    def cut_short(self) -> None:
        """Note that Ctrl-C ended it."""
        self.interrupted = True

    def must_lose_nothing(self, *, endless: bool) -> None:
        """Fail where a frame was lost; Ctrl-C is how an endless one ends."""
        self._ended_as_meant = endless
        self._failed |= any(result.lost for _, result in self._results)

    def html(self) -> str:
        """Return the report as one HTML file."""
        title = f"virtnic measure {self._kind}: {self._netdevs[0]} to {self._netdevs[-1]}"
        return page(title, self._results, self._throughputs)

    def finish(self) -> int:
        """Print the JSON; return the exit status."""
        if self.interrupted:
            self._output.after_ctrl_c()
        self._output.result(
            {
                "kind": self._kind,
                "netdevs": self._netdevs,
                "throughput": [_throughput_dict(each) for each in self._throughputs],
                "results": [
                    {"label": name, "result": result.to_dict()} for name, result in self._results
                ],
                "interrupted": self.interrupted,
            }
        )
        if self._failed:
            return Status.FAILED
        if self.interrupted and not self._ended_as_meant:
            return Status.INTERRUPTED
        return Status.OK


def _throughput_dict(found: Throughput) -> dict[str, Any]:
    return {
        "size": found.size,
        "pps": found.pps,
        "l1_bps": found.l1_bps,
        "limit": None if found.limit == float("inf") else found.limit,
        "by_generator": found.by_generator,
        "method": found.method,
        "trials": [dataclasses.asdict(trial) for trial in found.trials],
    }


def _remarks(result: Result) -> list[str]:
    """Return what else there is to say of a run."""
    found = []
    for count, words in (
        (result.duplicates, "frames arrived more than once"),
        (result.reordered, "frames arrived behind later ones of their flow"),
        (result.corrupt, "frames had wrong bits"),
        (result.foreign, "frames were not of this run"),
        (result.untaken, "frames were never taken by the peer"),
        (result.stale, "frames arrived too late to say whether they had come before"),
        (result.unsent, "frames were due and not sent: the peer or this machine could not keep up"),
    ):
        if count:
            found.append(f"{count} {words}")
    if result.late:
        found.append(
            f"{result.late} frames were sent more than 10 µs after they were due, at most "
            f"{seconds_text(result.latest)}"
        )
    return found
