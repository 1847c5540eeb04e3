"""Timeouts, by one rule for all of them: seconds, 0 or more; None is for ever.

So is what is longer than a clock can tell, infinity among it. Negative numbers and ``nan`` are a
ValueError, as for :meth:`socket.socket.settimeout`. The core reads them by the same rule
(``rust/python/src/time.rs``).
"""

from __future__ import annotations

import threading
import time

__all__ = ["LONGEST", "Deadline", "bounded", "seconds"]

#: Seconds; more is for ever.
LONGEST = threading.TIMEOUT_MAX


def seconds(timeout: float | None) -> float | None:
    """Return a timeout as all that waits takes it; None for one without end.

    Raises ValueError, and TypeError for what is no number.
    """
    if timeout is None:
        return None
    if not timeout >= 0:  # true of nan, too
        raise ValueError(f"a timeout is a number of seconds, 0 or more, or None, not {timeout}")
    return None if timeout >= LONGEST else float(timeout)


def bounded(timeout: float | None) -> float:
    """Return a timeout as a number in any case: :data:`LONGEST` for one without end.

    Raises as :func:`seconds`.
    """
    length = seconds(timeout)
    return LONGEST if length is None else length


class Deadline:
    """When a timeout is over."""

    __slots__ = ("at",)

    def __init__(self, timeout: float | None) -> None:
        """Begin to wait. Raises as :func:`seconds`."""
        length = seconds(timeout)
        #: When that is, by :func:`time.monotonic`; None without end.
        self.at = None if length is None else time.monotonic() + length

    @property
    def left(self) -> float | None:
        """The seconds that are left, 0 or more; None without end."""
        return None if self.at is None else max(0.0, self.at - time.monotonic())

    @property
    def is_over(self) -> bool:
        """Whether there are none left."""
        return self.left == 0.0
