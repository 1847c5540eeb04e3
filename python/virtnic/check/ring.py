"""`Ring`: a virtqueue from the driver's side, with everything that it checks about used buffers."""

from __future__ import annotations

import struct
import time
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import virtnic
from virtnic.check.clause import Wrong

if TYPE_CHECKING:
    from collections.abc import Sequence

    from virtnic.check.space import Space

__all__ = ["DESCRIPTOR", "INDIRECT", "NEXT", "WRITE", "Chain", "Piece", "Ring", "Used"]

DESCRIPTOR = struct.Struct("<QIHH")
#: Flags of a descriptor.
NEXT, WRITE, INDIRECT = 1, 2, 4


class Piece(NamedTuple):
    """One descriptor's buffer: where it is, its length, and whether the device writes it."""

    offset: int
    length: int
    write: bool = False


@dataclass(slots=True)
class Chain:
    """A buffer that was made available."""

    ident: int
    pieces: Sequence[Piece]
    #: Descriptors of the ring that it occupies, and its indirect table.
    taken: Sequence[int]
    table: int | None = None

    @property
    def room(self) -> int:
        """How many bytes the device may write."""
        return sum(piece.length for piece in self.pieces if piece.write)


class Used(NamedTuple):
    """A buffer that the device has returned."""

    chain: Chain
    length: int
    #: The flags of a packed ring's used descriptor.
    flags: int = 0


class Ring(ABC):
    """One ring in a :class:`~virtnic.check.space.Space`.

    ``base`` is what SET_VRING_BASE is told. All state that matters is private; what the device
    writes is checked, and :class:`Wrong` says what is not as it should be.
    """

    def __init__(
        self, space: Space, size: int, base: int, *, in_order: bool = False, events: bool = False
    ) -> None:
        self.space, self.size, self.base = space, size, base
        self.in_order, self.events = in_order, events
        self.kick, self.call = virtnic.EventFd(), virtnic.EventFd()
        #: What is with the device, in the order in which it was made available.
        self.outstanding: dict[int, Chain] = {}
        #: How many buffers were made available and used since the start.
        self.added = self.popped = 0

    def close(self) -> None:
        """Close the eventfds."""
        self.kick.close()
        self.call.close()

    # What differs between split and packed rings.

    #: Offsets of the descriptor table, the used ring or device area, the available ring or driver
    #: area: what SET_VRING_ADDR calls descriptor, used and available.
    areas: tuple[int, int, int]

    @abstractmethod
    def add(self, pieces: Sequence[Piece], *, indirect: bool = False) -> Chain:
        """Describe a buffer; the device does not see it before :meth:`publish`."""

    @abstractmethod
    def publish(self) -> None:
        """Make everything that was added available."""

    @abstractmethod
    def pop(self) -> list[Used]:
        """Return the buffers that the device has used since. Raises Wrong."""

    @property
    @abstractmethod
    def room(self) -> int:
        """How many descriptors are free."""

    @property
    @abstractmethod
    def position(self) -> int:
        """What GET_VRING_BASE must say once all buffers were used."""

    @abstractmethod
    def silence(self) -> None:
        """Ask the device for no calls."""

    @abstractmethod
    def ask_for_call(self, after: int = 0) -> None:
        """Ask for a call: for any buffer, or with event indices for that many buffers from now."""

    @abstractmethod
    def wants_kick(self, added: int) -> bool:
        """Return whether the device wants a kick for the ``added`` buffers published last."""

    # What does not.

    def table_of(self, pieces: Sequence[Piece], *, packed: bool) -> int:
        """Write an indirect table; return its offset."""
        table = self.space.take(16 * len(pieces))
        data = b""
        for number, (offset, length, write) in enumerate(pieces):
            flags = WRITE if write else 0
            following = 0
            if not packed and number + 1 < len(pieces):
                flags, following = flags | NEXT, number + 1
            entry = self.space.guest(offset), length
            last = (0, flags) if packed else (flags, following)
            data += DESCRIPTOR.pack(*entry, *last)
        self.space.put(table, data)
        return table

    def need(self, count: int) -> None:
        """Raise Wrong unless so many descriptors are free."""
        if self.room < count:
            raise Wrong(
                f"the backend keeps {len(self.outstanding)} buffers of a ring of {self.size}, so "
                "there is no descriptor for the next"
            )

    def give(self, chain: Chain) -> None:
        """Return the memory of a used buffer."""
        for piece in chain.pieces:
            self.space.give(piece.offset)

    def returned(self, ident: int, length: int, flags: int = 0) -> Used:
        """Take a buffer back. Raises Wrong if the device does not have it."""
        chain = self.outstanding.pop(ident, None)
        if chain is None:
            raise Wrong(f"id {ident} was used, which the device did not have")
        if chain.table is not None:
            self.space.give(chain.table)
        self.popped += 1
        return Used(chain, length, flags)

    def batch(self, ident: int) -> list[int]:
        """Return the ids that a used entry stands for: several, if they are used in order."""
        if not self.in_order:
            return [ident]
        known = list(self.outstanding)
        if ident not in self.outstanding:
            raise Wrong(f"id {ident} was used, which the device did not have")
        return known[: known.index(ident) + 1]

    def wait(self, count: int, timeout: float, *, settle: float = 0.0) -> list[Used]:
        """Return ``count`` buffers once the device has used them. Raises Wrong if it does not.

        ``settle`` is how long to wait for buffers that are used beyond that.
        """
        found = self.pop()
        deadline = time.monotonic() + timeout
        tries = 0
        while len(found) < count:
            if time.monotonic() > deadline:
                raise Wrong(f"{len(found)} of {count} buffers were used within {timeout:g} s")
            tries += 1
            time.sleep(0 if tries < 50 else 0.0002)
            if more := self.pop():
                found += more
                deadline = time.monotonic() + timeout
        if settle:
            time.sleep(settle)
            found += self.pop()
        return found
