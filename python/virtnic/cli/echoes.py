"""Echo requests and their results."""

from __future__ import annotations

import itertools
import math
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from virtnic.cli.text import seconds_text

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from virtnic.net import Stack

__all__ = ["Echoes", "percentile"]

_SEQUENCES = 1 << 16


@dataclass(slots=True)
class Echoes:
    """Results of echo requests."""

    #: Seconds until each reply; None if there was none.
    times: list[float | None] = field(default_factory=list)
    #: Total seconds.
    seconds: float = 0.0
    #: Whether Ctrl-C ended it.
    interrupted: bool = False

    def send(
        self,
        stack: Stack,
        target: str,
        *,
        count: int,
        interval: float = 0.0,
        size: int = 56,
        timeout: float = 1.0,
        each: Callable[[int, float | None], None] | None = None,
    ) -> None:
        """Send requests and report each; Ctrl-C ends it early and is not raised."""
        start = time.monotonic()
        try:
            for number in itertools.count() if count == 0 else range(count):
                pause = start + number * interval - time.monotonic()
                if interval and pause > 0:
                    time.sleep(pause)
                try:
                    reply = stack.ping(target, number % _SEQUENCES, size, timeout)
                    seconds: float | None = reply.seconds
                except TimeoutError:
                    seconds = None
                self.times.append(seconds)
                if each is not None:
                    each(number, seconds)
        except KeyboardInterrupt:
            self.interrupted = True
        finally:
            self.seconds = time.monotonic() - start

    def summary(self) -> dict[str, Any]:
        """Return the figures; times are None without replies."""
        replies = sorted(seconds for seconds in self.times if seconds is not None)
        sent, received = len(self.times), len(replies)
        return {
            "sent": sent,
            "received": received,
            "loss": 1 - received / sent if sent else 0.0,
            "seconds": self.seconds,
            "min": replies[0] if replies else None,
            "avg": sum(replies) / received if replies else None,
            "max": replies[-1] if replies else None,
            "p50": percentile(replies, 50) if replies else None,
            "p99": percentile(replies, 99) if replies else None,
        }

    def text(self) -> list[str]:
        """Return the figures as text lines."""
        numbers = self.summary()
        lines = [
            (
                f"{numbers['sent']} sent, {numbers['received']} received, "
                f"{numbers['loss'] * 100:.3g} % lost, in {seconds_text(self.seconds)}"
            )
        ]
        if numbers["received"]:
            names = ("min", "avg", "max", "p50", "p99")
            values = "/".join(f"{numbers[name] * 1e3:.3f}" for name in names)
            lines.append(f"rtt {'/'.join(names)} = {values} ms")
        return lines


def percentile(ordered: Sequence[float], percent: float) -> float:
    """Return the smallest value that is not below ``percent`` per cent of the values."""
    return ordered[max(math.ceil(percent / 100 * len(ordered)), 1) - 1]
