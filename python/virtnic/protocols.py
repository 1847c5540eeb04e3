"""What a port, one of its queues, and the fakes of :mod:`virtnic.testing` have in common."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol, runtime_checkable

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from typing import SupportsBytes

    from typing_extensions import Buffer

    #: One frame: an object that shows its bytes, or that ``bytes()`` takes, as a scapy packet.
    Frame = Buffer | SupportsBytes

__all__ = ["PacketPort", "ReceivedFrames"]


class ReceivedFrames(Protocol):
    """What ``recv`` returns: frames, in the order in which they came."""

    def __len__(self) -> int:
        """How many frames there are; 0 when none came in time."""

    def __getitem__(self, index: int, /) -> memoryview:
        """Return one frame, without a copy."""

    def __iter__(self) -> Iterator[memoryview]:
        """Yield the frames."""

    def tobytes(self) -> list[bytes]:
        """Return copies of all."""

    def release(self) -> None:
        """Give the buffers back; frames that somebody still looks at keep theirs."""


@runtime_checkable
class PacketPort(Protocol):
    """Whatever frames are sent by and received from: the verbs that a program or a fake needs."""

    def send(self, frames: Iterable[Frame], offload: None = None) -> int:
        """Queue as many frames as fit, in order, without waiting; return how many."""

    def send_all(
        self, frames: Iterable[Frame], timeout: float | None = None, offload: None = None
    ) -> int:
        """Queue all frames, in order, waiting for room; return how many were queued in time.

        Waits up to ``timeout`` seconds: 0 does not wait, None waits for ever.
        """

    def recv(self, maximum: int = 256, timeout: float | None = 0.0) -> ReceivedFrames:
        """Return up to ``maximum`` received frames.

        Waits up to ``timeout`` seconds for the first: 0 looks once, None waits for ever.
        """

    def fileno(self) -> int:
        """Return a descriptor that is readable when there may be frames."""

    def stats(self) -> dict[str, int]:
        """Return the counters by name; ``rx_packets`` and ``tx_packets`` are among them."""
