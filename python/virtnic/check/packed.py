"""`PackedRing`: the driver's side of a packed virtqueue (VIRTIO 1.3, 2.8)."""

from __future__ import annotations

import struct
from collections import deque
from typing import TYPE_CHECKING

from virtnic.check.ring import DESCRIPTOR, INDIRECT, NEXT, WRITE, Chain, Piece, Ring, Used

if TYPE_CHECKING:
    from collections.abc import Sequence

    from virtnic.check.space import Space

__all__ = ["PackedRing"]

AVAIL, USED = 1 << 7, 1 << 15
WRAP = 1 << 15
_ENABLE, _DISABLE, _AT_DESCRIPTOR = 0, 1, 2
_TAIL = struct.Struct("<IHH")


class PackedRing(Ring):
    """A packed ring. ``base``: the position of the next available and of the next used buffer.

    Each has a wrap counter in its bit 15; the used position is in the upper 16 bits. By default
    both are the start, with wrap counters of 1.
    """

    def __init__(
        self,
        space: Space,
        size: int,
        base: int | None = None,
        *,
        in_order: bool = False,
        events: bool = False,
    ) -> None:
        base = WRAP << 16 | WRAP if base is None else base
        super().__init__(space, size, base, in_order=in_order, events=events)
        self._table = space.take(16 * size, device=True)
        self._driver = space.take(4)
        self._device = space.take(4, device=True)
        self.areas = self._table, self._device, self._driver
        at, wrap = base & (WRAP - 1), bool(base & WRAP)
        # Neither available nor used: both flags differ from the wrap counter of their slot.
        for slot in range(size):
            lap = wrap if slot >= at else not wrap
            flags = 0 if lap else AVAIL | USED
            space.put(self._table + 16 * slot, DESCRIPTOR.pack(0, 0, 0, flags))
        space.put(self._driver, bytes(4))
        space.put(self._device, bytes(4))
        space.flush()
        #: The free buffer ids, in the order in which they are taken.
        self.free = deque(range(size))
        self._room = size
        self._at, self._wrap = at, wrap
        self._seen, self._seen_wrap = at, wrap
        #: The flags of the first descriptor that is not published, and where they go.
        self._head: tuple[int, int] | None = None

    @property
    def room(self) -> int:
        """How many descriptors are free."""
        return self._room

    @property
    def position(self) -> int:
        """The position of the next buffer, for both halves of the base."""
        half = self._seen | (WRAP if self._seen_wrap else 0)
        return half << 16 | half

    def add(self, pieces: Sequence[Piece], *, indirect: bool = False) -> Chain:
        """Describe a buffer; the device does not see it before :meth:`publish`."""
        self.need(1 if indirect else len(pieces))
        ident = self.free.popleft()
        if indirect:
            table: int | None = self.table_of(pieces, packed=True)
            assert table is not None
            entries = [(table, 16 * len(pieces), INDIRECT)]
        else:
            table = None
            last = len(pieces) - 1
            entries = [
                (offset, length, (WRITE if write else 0) | (NEXT if number < last else 0))
                for number, (offset, length, write) in enumerate(pieces)
            ]
        for offset, length, flags in entries:
            self.describe(self.space.guest(offset), length, ident, flags)
        chain = Chain(ident, pieces, range(len(entries)), table)
        self.outstanding[ident] = chain
        self.added += 1
        return chain

    def describe(self, address: int, length: int, ident: int, flags: int) -> None:
        """Write the next descriptor."""
        flags |= AVAIL if self._wrap else USED
        slot = self._table + 16 * self._at
        shown = flags
        if self._head is None:
            # Until it is published, the first descriptor looks as if it were used.
            self._head = slot + 14, flags
            shown = flags ^ AVAIL
        self.space.put(slot, DESCRIPTOR.pack(address, length, ident, shown))
        self._room -= 1
        self._at += 1
        if self._at == self.size:
            self._at, self._wrap = 0, not self._wrap

    def publish(self) -> None:
        """Make everything that was added available."""
        if self._head is not None:
            self.space.store(*self._head)
            self._head = None

    def pop(self) -> list[Used]:
        """Return the buffers that the device has used since. Raises Wrong."""
        found: list[Used] = []
        while self.outstanding:
            slot = self._table + 16 * self._seen
            flags = self.space.load(slot + 14)
            if bool(flags & AVAIL) != self._seen_wrap or bool(flags & USED) != self._seen_wrap:
                break
            length, ident, flags = _TAIL.unpack(self.space.read(slot + 8, 8))
            for each in self.batch(ident):
                entry = self.returned(each, length if each == ident else 0, flags)
                self.free.append(each)
                self._room += len(entry.chain.taken)
                self._seen += len(entry.chain.taken)
                if self._seen >= self.size:
                    self._seen, self._seen_wrap = self._seen - self.size, not self._seen_wrap
                found.append(entry)
        return found

    def spurious(self) -> str | None:
        """Return what is wrong with the descriptor after the last used one; None if nothing is."""
        if self.outstanding:
            return None
        flags = self.space.load(self._table + 16 * self._seen + 14)
        if bool(flags & AVAIL) == bool(flags & USED) == self._seen_wrap:
            return f"descriptor {self._seen} is marked used, and was not available"
        return None

    def _event(self, flags: int, where: int = 0) -> None:
        # The device reads both words at once or the flags first: they are changed last.
        self.space.store(self._driver, where)
        self.space.store(self._driver + 2, flags)

    def silence(self) -> None:
        """Ask the device for no calls."""
        self._event(_DISABLE)

    def ask_for_call(self, after: int = 0) -> None:
        """Ask for a call: for any buffer, or with event indices for that many buffers from now.

        With event indices, each buffer must be of one descriptor.
        """
        if not self.events:
            self._event(_ENABLE)
            return
        at, wrap = self._seen + after, self._seen_wrap
        if at >= self.size:
            at, wrap = at - self.size, not wrap
        self._event(_AT_DESCRIPTOR, at | (WRAP if wrap else 0))

    def wants_kick(self, added: int) -> bool:
        """Return whether the device wants a kick for the ``added`` buffers published last."""
        where, flags = self.space.load(self._device), self.space.load(self._device + 2)
        if flags != _AT_DESCRIPTOR or not self.events:
            return flags != _DISABLE
        event = where & (WRAP - 1)
        if bool(where & WRAP) != self._wrap:
            event -= self.size
        return (self._at - event - 1) & 0xFFFF < added
