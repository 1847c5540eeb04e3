"""Timeouts, all by one rule: seconds, 0 or more; None means no limit.

Values beyond the range of a clock, such as infinity, also mean no limit. Negative numbers and
``nan`` are a ValueError, as for :meth:`socket.socket.settimeout`. The core applies the same rule
(``rust/python/src/time.rs``).
"""

from __future__ import annotations

import threading
import time

__all__ = ["LONGEST", "Deadline", "bounded", "seconds"]

#: Seconds; a longer timeout means no limit.
LONGEST = threading.TIMEOUT_MAX


def seconds(timeout: float | None) -> float | None:
    """Normalise a timeout; None means no limit.

    Raises ValueError, and TypeError for a non-number.
    """
    if timeout is None:
        return None
    try:
        valid = timeout >= 0  # false for nan, too
    except TypeError:
        raise TypeError(
            f"the timeout must be a number of seconds or None, not {timeout!r}"
        ) from None
    if not valid:
        raise ValueError(
            f"the timeout must be a number of seconds, 0 or more, or None, not {timeout}"
        )
    return None if timeout >= LONGEST else float(timeout)


def bounded(timeout: float | None) -> float:
    """Return a timeout as a number; :data:`LONGEST` if it has no limit.

    Raises as :func:`seconds`.
    """
    length = seconds(timeout)
    return LONGEST if length is None else length


class Deadline:
    """The end of a timeout."""

    __slots__ = ("at",)

    def __init__(self, timeout: float | None) -> None:
        """Start the timeout. Raises as :func:`seconds`."""
        length = seconds(timeout)
        #: The time of :func:`time.monotonic` at which it ends; None for no limit.
        self.at = None if length is None else time.monotonic() + length

    @property
    def left(self) -> float | None:
        """Seconds left, 0 or more; None for no limit."""
        return None if self.at is None else max(0.0, self.at - time.monotonic())

    @property
    def is_over(self) -> bool:
        """Whether no time is left."""
        return self.left == 0.0
