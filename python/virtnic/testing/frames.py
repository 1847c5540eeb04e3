"""Received frames outside packet memory, and what every port can do."""

from __future__ import annotations

import array
import time
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, Protocol, overload

from virtnic._native import as_frames
from virtnic.deadline import Deadline
from virtnic.nic.sending import BACKOFF, Pending
from virtnic.protocols import PacketPort

if TYPE_CHECKING:
    from virtnic.protocols import Frame

__all__ = ["ClosingPort", "Frames", "send_all"]

#: Bytes per row of :attr:`Frames.data`: those of a packet buffer.
_ROW = 2048


class Frames(Sequence[memoryview]):
    """Frames received together: as a :class:`virtnic.Burst`, but in ordinary memory."""

    def __init__(self, frames: Iterable[Frame] = ()) -> None:
        copies = [memoryview(frame).cast("B") for frame in as_frames(frames)]
        self._row = max([_ROW, *map(len, copies)])
        self.keep(copies)

    def keep(self, frames: Sequence[bytes | memoryview]) -> None:
        """Replace the frames."""
        self._lengths = array.array("I", map(len, frames))
        self._rows = memoryview(bytearray(len(frames) * self._row))
        for index, frame in enumerate(frames):
            self[index][:] = frame

    def __len__(self) -> int:
        return len(self._lengths)

    @overload
    def __getitem__(self, index: int, /) -> memoryview: ...
    @overload
    def __getitem__(self, index: slice, /) -> list[memoryview]: ...
    def __getitem__(self, index: int | slice, /) -> memoryview | list[memoryview]:
        if isinstance(index, slice):
            return [self[each] for each in range(*index.indices(len(self)))]
        number = range(len(self))[index]
        start = number * self._row
        return self._rows[start : start + self._lengths[number]]

    @property
    def lengths(self) -> memoryview:
        """The frames' lengths: a read-only view of 32-bit unsigned integers."""
        return memoryview(self._lengths).toreadonly()

    @property
    def ids(self) -> memoryview:
        """A number for each frame, in the same form."""
        return memoryview(array.array("I", range(len(self)))).toreadonly()

    @property
    def data(self) -> memoryview:
        """The frames as one two-dimensional view (frame, byte); ``lengths`` gives their lengths.

        Raises BufferError if there are none.
        """
        if not self:
            raise BufferError("no frames")
        return self._rows.cast("B", (len(self), self._row))

    def headers(self, count: int = 64) -> Any:
        """Copy the first ``count`` bytes of every frame into a NumPy array (frame, byte).

        Shorter frames are padded with zeros. Raises ImportError without NumPy.
        """
        import numpy as np

        found = np.zeros((len(self), count), np.uint8)
        for row, frame in zip(found, self, strict=True):
            start = frame[:count]
            row[: len(start)] = start
        return found

    def put_headers(self, headers: Any) -> None:
        """Copy one row of bytes over the start of each frame, up to the frame's length.

        Raises ValueError unless there is one row of bytes per frame.
        """
        rows = memoryview(headers)
        if rows.ndim != 2 or rows.itemsize != 1 or len(headers) != len(self):
            raise ValueError(f"headers must be an array of bytes with {len(self)} rows")
        for row, frame in zip(headers, self, strict=True):
            start = bytes(row)[: len(frame)]
            frame[: len(start)] = start

    def tobytes(self) -> list[bytes]:
        """Return copies of all frames."""
        return [frame.tobytes() for frame in self]

    def release(self) -> None:
        """Drop the frames; views of them remain valid."""
        self.keep(())


def send_all(port: Any, frames: Iterable[Frame], timeout: float | None, offload: None) -> int:
    """Do as :meth:`virtnic.Port.send_all`, for a port that does not signal room."""
    deadline = Deadline(timeout)
    pending = Pending(port, frames, offload)
    while not pending.push():
        if deadline.is_over:
            break
        time.sleep(BACKOFF)
    return pending.queued


class ClosingPort(PacketPort, Protocol):
    """A port that can be wrapped: a real one, a fake, or a program's own."""

    @property
    def closed(self) -> bool:
        """Whether it was closed."""
        ...

    def close(self) -> object:
        """Close it."""
        ...
