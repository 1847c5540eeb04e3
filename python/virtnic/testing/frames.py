"""Received frames that are not in packet memory, and what every port can do."""

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

#: Bytes of a row of :attr:`Frames.data`: those of a packet buffer.
_ROW = 2048


class Frames(Sequence[memoryview]):
    """Frames received together: what a :class:`virtnic.Burst` is, in ordinary memory."""

    def __init__(self, frames: Iterable[Frame] = ()) -> None:
        copies = [memoryview(frame).cast("B") for frame in as_frames(frames)]
        self._row = max([_ROW, *map(len, copies)])
        self.keep(copies)

    def keep(self, frames: Sequence[bytes | memoryview]) -> None:
        """Hold these frames instead."""
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
        """The frames' lengths, a read-only view of 32-bit unsigned integers."""
        return memoryview(self._lengths).toreadonly()

    @property
    def ids(self) -> memoryview:
        """A number for each frame, likewise."""
        return memoryview(array.array("I", range(len(self)))).toreadonly()

    @property
    def data(self) -> memoryview:
        """The frames as one two-dimensional view (packet, byte); the lengths say how far each is.

        Raises BufferError when there are none.
        """
        if not self:
            raise BufferError("there are no frames to view")
        return self._rows.cast("B", (len(self), self._row))

    def headers(self, count: int = 64) -> Any:
        """Copy the first ``count`` bytes of every frame into a NumPy array (packet, byte).

        What a shorter frame does not have is zero. Raises ImportError without NumPy.
        """
        import numpy as np

        found = np.zeros((len(self), count), np.uint8)
        for row, frame in zip(found, self, strict=True):
            start = frame[:count]
            row[: len(start)] = start
        return found

    def put_headers(self, headers: Any) -> None:
        """Copy rows of bytes over the starts of the frames, as far as each frame goes.

        Raises ValueError when there is not one row of bytes for each frame.
        """
        rows = memoryview(headers)
        if rows.ndim != 2 or rows.itemsize != 1 or len(headers) != len(self):
            raise ValueError(f"headers is an array of bytes with {len(self)} rows")
        for row, frame in zip(headers, self, strict=True):
            start = bytes(row)[: len(frame)]
            frame[: len(start)] = start

    def tobytes(self) -> list[bytes]:
        """Copy every frame out."""
        return [frame.tobytes() for frame in self]

    def release(self) -> None:
        """Forget the frames; views of them stay."""
        self.keep(())


def send_all(port: Any, frames: Iterable[Frame], timeout: float | None, offload: None) -> int:
    """Do what :meth:`virtnic.Port.send_all` does, for a port that does not say when it has room."""
    deadline = Deadline(timeout)
    pending = Pending(port, frames, offload)
    while not pending.push():
        if deadline.is_over:
            break
        time.sleep(BACKOFF)
    return pending.queued


class ClosingPort(PacketPort, Protocol):
    """What can be wrapped: a port, one of its fakes, or what a program has of its own."""

    @property
    def closed(self) -> bool:
        """Whether it was closed."""
        ...

    def close(self) -> object:
        """Close it."""
        ...
