"""Shared by the commands that run a loop: when it ends, its live table, its summary."""

from __future__ import annotations

import contextlib
import signal
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from virtnic.cli.live import (
    Live,
    Traffic,
    burst_text,
    drops_of,
    drops_text,
    l2_bits,
    occupancy_text,
    rate_text,
)
from virtnic.cli.session import opened_ports
from virtnic.cli.status import Status
from virtnic.cli.text import seconds_text
from virtnic.units import L1_OVERHEAD

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable, Iterator, Sequence
    from types import FrameType

    import virtnic
    from virtnic.cli.output import Output
    from virtnic.loops.engine import Result

__all__ = ["Loop", "Outcome", "line_rates", "looping"]

#: How long to wait for frames to leave after the loop, while some do.
_STALLED = 0.2


class Stop:
    """Makes the loop end on Ctrl-C and SIGTERM, so that its summary is printed."""

    def __init__(self) -> None:
        #: The signal received.
        self.signal: signal.Signals | None = None

    @contextlib.contextmanager
    def noticed(self) -> Iterator[None]:
        """Handle the two signals, once: a second signal ends a hanging command."""
        before: dict[signal.Signals, Any] = {}

        def restore() -> None:
            for number, handler in before.items():
                signal.signal(number, handler)

        def notice(number: int, _frame: FrameType | None) -> None:
            self.signal = signal.Signals(number)
            restore()

        with contextlib.suppress(ValueError):  # only the main thread can set handlers
            for number in (signal.SIGINT, signal.SIGTERM):
                if signal.getsignal(number) is not signal.SIG_IGN:
                    before[number] = signal.signal(number, notice)
        try:
            yield
        finally:
            restore()


@dataclass(slots=True)
class Outcome:
    """The result of a loop."""

    result: Result
    traffic: Traffic
    ports: list[dict[str, Any]]
    #: Frames that the device had not taken at the end.
    unfinished: int = 0
    signal: signal.Signals | None = None


@dataclass(slots=True)
class Loop:
    """The loop of a command, over open ports."""

    arguments: argparse.Namespace
    output: Output
    netdevs: Sequence[str]
    ports: Sequence[virtnic.Port]
    _stop: Stop = field(default_factory=Stop)

    def run(self, title: str, body: Callable[..., Result]) -> Outcome:
        """Print the title and run ``body``: it takes the keyword arguments of all loops.

        Once the title is printed, a signal ends the loop with a summary. An exception that ended a
        port is raised after the figures up to then are printed.
        """
        for netdev, port in zip(self.netdevs, self.ports, strict=True):
            if self.arguments.xstats:
                port.set_statistics("extended")
            if not port.link:
                self.output.warning(f"the link of {netdev} is down")
        live = Live(self.netdevs, self._stats, 0 if self.output.json else self.arguments.interval)
        latest: Result | None = None

        def progress(result: Result) -> bool:
            nonlocal latest
            latest = result
            if self._stop.signal is not None:
                return False
            live.show(result)
            return True

        try:
            with self._stop.noticed():
                self.output.line(title)
                result = body(
                    seconds=self.arguments.seconds,
                    packets=self.arguments.packets,
                    progress=progress,
                    cpus=self.arguments.cpus,
                )
        except Exception:
            if latest is not None:
                self._print(self._outcome(latest, 0))
            raise
        if self._stop.signal is signal.SIGINT:
            self.output.after_ctrl_c()
        return self._outcome(result, self._drain())

    def finish(self, outcome: Outcome, **more: Any) -> int:
        """Print the summary once the ports are closed; return the exit status."""
        self._print(outcome)
        result = outcome.result
        turns = result.bursts + result.idle
        l2, l1 = line_rates(result)
        self.output.result(
            {
                **more,
                "packets": result.packets,
                "bytes": l2_bits(result.bytes, result.packets) // 8,
                "seconds": result.seconds,
                "pps": result.pps,
                "l2_bps": l2,
                "l1_bps": l1,
                "received": result.received,
                "sent": result.sent,
                "unfinished": outcome.unfinished,
                "bursts": result.bursts,
                "idle": result.idle,
                "held": result.held,
                "burst_size": result.packets / result.bursts if result.bursts else None,
                "occupancy": result.bursts / turns if turns else 0.0,
                "drops": outcome.traffic.drops,
                "ports": outcome.ports,
                "interrupted": self._cut_short(outcome),
                "signal": outcome.signal.name if outcome.signal else None,
            }
        )
        if not self._cut_short(outcome) or outcome.signal is None:
            return Status.OK
        return 128 + outcome.signal

    def _cut_short(self, outcome: Outcome) -> bool:
        had_an_end = self.arguments.seconds is not None or self.arguments.packets is not None
        return outcome.signal is not None and had_an_end

    def _stats(self) -> list[dict[str, int]]:
        return [port.stats() for port in self.ports]

    def _outcome(self, result: Result, unfinished: int) -> Outcome:
        ports: list[dict[str, Any]] = [
            {
                "netdev": netdev,
                "mac": port.mac,
                "ring": port.ring,
                "queue_size": port.queue_size,
                "interrupts": port.interrupts,
                "counters": port.stats(),
            }
            for netdev, port in zip(self.netdevs, self.ports, strict=True)
        ]
        if self.arguments.xstats:
            for port, counted in zip(self.ports, ports, strict=True):
                counted["xstats"] = port.xstats()
        traffic = Traffic(result, tuple(port["counters"] for port in ports))
        return Outcome(result, traffic, ports, unfinished, self._stop.signal)

    def _drain(self) -> int:
        """Let the device take the queued frames, which closing the port would discard.

        Returns how many it did not take because its peer does not take them.
        """
        left = self._waiting()
        give_up = time.monotonic() + _STALLED
        while left and time.monotonic() < give_up:
            time.sleep(0.001)
            now = self._waiting()
            if now < left:
                give_up = time.monotonic() + _STALLED
            left = now
        return left

    def _waiting(self) -> int:
        for port in self.ports:
            port.reclaim()
        return sum(stats["tx_packets"] - stats["tx_completed"] for stats in self._stats())

    def _print(self, outcome: Outcome) -> None:
        result = outcome.result
        l2, l1 = line_rates(result)
        line = self.output.line
        line(f"--- {self.arguments.command} statistics ---")
        line(
            f"{result.packets} frames, {l2_bits(result.bytes, result.packets) // 8} bytes "
            f"in {seconds_text(result.seconds)}: {rate_text(result.pps, 1e6)} Mpps, "
            f"{rate_text(l2, 1e9)} Gb/s L2, {rate_text(l1, 1e9)} Gb/s L1"
        )
        line(
            f"{result.bursts} burst{'' if result.bursts == 1 else 's'}, "
            f"{burst_text(result.bursts, result.packets)} frames in each on average, "
            f"{occupancy_text(result.bursts, result.idle)} occupied"
        )
        for port in outcome.ports:
            counters = port["counters"]
            line(
                f"{port['netdev']}: {counters['rx_packets']} received, "
                f"{counters['tx_packets']} sent, dropped {drops_text(drops_of(counters))}"
            )
            for name, value in port.get("xstats", {}).items():
                if value and name not in counters:
                    line(f"  {name:<32}{value:>14}")
        if outcome.unfinished:
            line(f"{outcome.unfinished} of the frames sent were not taken by the peer")


@contextlib.contextmanager
def looping(arguments: argparse.Namespace, output: Output) -> Iterator[Loop]:
    """Open the ports that the options name, and return a loop over them."""
    with opened_ports(arguments) as ports:
        yield Loop(arguments, output, list(ports.values()), list(ports))


def line_rates(result: Result) -> tuple[float, float]:
    """Return bits per second in L2, with checksums, and in L1, with preambles and gaps."""
    if not result.seconds:
        return 0.0, 0.0
    bits = l2_bits(result.bytes, result.packets)
    return bits / result.seconds, (bits + 8 * L1_OVERHEAD * result.packets) / result.seconds
