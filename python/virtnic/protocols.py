"""Protocols of a port, its queues, and the fakes of :mod:`virtnic.testing`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol, runtime_checkable

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from typing import SupportsBytes

    from typing_extensions import Buffer

    #: One frame: a bytes-like object, or one that ``bytes()`` accepts, such as a scapy packet.
    Frame = Buffer | SupportsBytes

__all__ = ["PacketPort", "ReceivedFrames"]


class ReceivedFrames(Protocol):
    """The result of ``recv``: frames in order of arrival."""

    def __len__(self) -> int:
        """Return the number of frames; 0 if none came in time."""

    def __getitem__(self, index: int, /) -> memoryview:
        """Return one frame, without a copy."""

    def __iter__(self) -> Iterator[memoryview]:
        """Yield the frames."""

    def tobytes(self) -> list[bytes]:
        """Return copies of all frames."""

    def release(self) -> None:
        """Return the buffers to the pool; frames with live views keep theirs."""


@runtime_checkable
class PacketPort(Protocol):
    """Anything that sends and receives frames: what a program or a fake needs of a port."""

    def send(self, frames: Iterable[Frame], offload: None = None) -> int:
        """Queue as many frames as fit, in order, without waiting; return their number."""

    def send_all(
        self, frames: Iterable[Frame], timeout: float | None = None, offload: None = None
    ) -> int:
        """Queue all frames, in order, waiting for room; return how many were queued in time.

        Waits up to ``timeout`` seconds: 0 does not wait, None waits for ever.
        """

    def recv(self, maximum: int = 256, timeout: float | None = 0.0) -> ReceivedFrames:
        """Return up to ``maximum`` received frames.

        Waits up to ``timeout`` seconds for the first one: 0 does not wait, None waits for ever.
        """

    def fileno(self) -> int:
        """Return a descriptor that is readable when there may be frames."""

    def stats(self) -> dict[str, int]:
        """Return the counters by name, ``rx_packets`` and ``tx_packets`` among them."""
