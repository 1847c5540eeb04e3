"""Sending frames to a transmit queue that may be full."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, Protocol

from virtnic._native import Burst, Offload, as_frames
from virtnic.deadline import Deadline

if TYPE_CHECKING:
    from collections.abc import Iterable

    from virtnic._native import Offloads
    from virtnic.protocols import Frame

__all__ = ["BACKOFF", "Pending", "SendAll"]

#: Frames passed to one call of ``send``, so that the rest is not copied repeatedly.
_GROUP = 1024
#: Pause in seconds if a queue has room but the memory no free buffer, which is not signalled.
BACKOFF = 0.001


class _Sender(Protocol):
    """Something that sends frames."""

    @property
    def send(self) -> Any:
        """Queue as many as fit."""

    def wait_writable(self, timeout: float | None = None) -> bool:
        """Wait for room."""


class SendAll:
    """``send_all`` for classes with ``send`` and ``wait_writable``."""

    __slots__ = ()

    def send_all(
        self: _Sender,
        frames: Burst | Iterable[Frame],
        timeout: float | None = None,
        offload: Offload | Offloads | Iterable[Offload | None] | None = None,
    ) -> int:
        """Queue all frames in order, waiting for room; return how many were queued in time.

        ``timeout`` in seconds; None waits for ever. ``offload`` as for ``send``. Raises as
        ``send``; a port without interrupts polls.
        """
        deadline = Deadline(timeout)
        pending = Pending(self, frames, offload)
        while not pending.push():
            left = deadline.left
            if not self.wait_writable(left):
                break
            if pending.stuck:
                if left == 0.0:
                    break
                time.sleep(BACKOFF)
        return pending.queued


class Pending:
    """Frames, some of which may have been queued."""

    def __init__(
        self,
        port: Any,
        frames: Burst | Iterable[Frame],
        offload: Offload | Offloads | Iterable[Offload | None] | None = None,
    ) -> None:
        self._port = port
        self._frames = as_frames(frames)
        #: One for all frames, or a list with one for each.
        self._offload: Offload | list[Offload | None] | None
        if offload is None or isinstance(offload, Offload):
            self._offload = offload
        else:
            self._offload = list(offload)
            if len(self._offload) != len(self._frames):
                count = len(self._frames)
                raise ValueError(
                    f"{count} frames need {count} offloads, or one for all; "
                    f"not {len(self._offload)}"
                )
        #: Number of queued frames.
        self.queued = 0
        #: Whether the last :meth:`push` made no progress.
        self.stuck = False

    def push(self) -> bool:
        """Queue what fits now; True when all is queued. Raises as ``Port.send``."""
        before = self.queued
        done = self._push_burst() if isinstance(self._frames, Burst) else self._push_frames()
        self.stuck = not done and self.queued == before
        return done

    def _push_burst(self) -> bool:
        assert isinstance(self._frames, Burst)
        at = self.queued
        try:
            self.queued += self._port.send(self._frames, self._of(at, at + len(self._frames)))
        except ValueError as error:
            _count_from(error, at)
            raise
        return not self._frames

    def _of(self, start: int, end: int) -> Offload | list[Offload | None] | None:
        """Return the offloads of some of the frames."""
        if isinstance(self._offload, list):
            return self._offload[start:end]
        return self._offload

    def _push_frames(self) -> bool:
        assert not isinstance(self._frames, Burst)
        frames, at = self._frames, self.queued
        while True:
            group = frames if at == 0 and len(frames) <= _GROUP else frames[at : at + _GROUP]
            try:
                sent = self._port.send(group, self._of(at, at + len(group)))
            except (ValueError, TypeError) as error:
                _count_from(error, at)
                raise
            at += sent
            self.queued = at
            if sent < len(group):
                return False
            if at >= len(frames):
                return True


def _count_from(error: Exception, at: int) -> None:
    """Correct the progress in an error: the frames before ``at`` were queued as well."""
    if at and hasattr(error, "queued"):
        error.add_note(f"counted from frame {at}; the frames before it were queued as well")
        error.queued += at
