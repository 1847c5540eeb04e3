"""Frames on their way into a transmit queue that may be full."""

from __future__ import annotations

from typing import TYPE_CHECKING

from virtnic._native import Burst

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from typing_extensions import Buffer

    from virtnic._native import NetPort

__all__ = ["BACKOFF", "Pending"]

#: Frames that one call of ``send`` is given: what is left is not copied again and again.
_GROUP = 1024
#: Seconds to pause where a queue has room but the memory no free buffer: nobody tells of those.
BACKOFF = 0.001


class Pending:
    """Frames of which some may be queued already."""

    def __init__(self, port: NetPort, frames: Burst | Iterable[Buffer]) -> None:
        self._port = port
        self._frames: Burst | Sequence[Buffer]
        if isinstance(frames, (Burst, list, tuple, bytes, bytearray, memoryview, str)):
            self._frames = frames  # that a lone frame is a mistake, `send` says itself
        else:
            self._frames = list(frames)
        #: How many were queued.
        self.queued = 0
        #: Whether the last :meth:`push` got nowhere.
        self.stuck = False

    def push(self) -> bool:
        """Queue what fits now; True when all is queued. Raises as ``Port.send``."""
        before = self.queued
        done = self._push_burst() if isinstance(self._frames, Burst) else self._push_frames()
        self.stuck = not done and self.queued == before
        return done

    def _push_burst(self) -> bool:
        assert isinstance(self._frames, Burst)
        self.queued += self._port.send(self._frames)
        return not self._frames

    def _push_frames(self) -> bool:
        assert not isinstance(self._frames, Burst)
        frames, at = self._frames, self.queued
        while True:
            group = frames if at == 0 and len(frames) <= _GROUP else frames[at : at + _GROUP]
            try:
                sent = self._port.send(group)
            except (ValueError, TypeError) as error:
                if at and hasattr(error, "queued"):
                    error.add_note(f"counted from frame {at}: those before it were queued as well")
                    error.queued += at
                raise
            at += sent
            self.queued = at
            if sent < len(group):
                return False
            if at >= len(frames):
                return True
