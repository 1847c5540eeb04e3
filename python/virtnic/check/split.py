"""`SplitRing`: the driver's side of a split virtqueue (VIRTIO 1.3, 2.7)."""

from __future__ import annotations

import struct
from collections import deque
from typing import TYPE_CHECKING

from virtnic.check.clause import Wrong
from virtnic.check.ring import DESCRIPTOR, INDIRECT, NEXT, WRITE, Chain, Piece, Ring, Used

if TYPE_CHECKING:
    from collections.abc import Sequence

    from virtnic.check.space import Space

__all__ = ["SplitRing"]

_USED = struct.Struct("<II")


class SplitRing(Ring):
    """A split ring. ``base`` is the index at which it starts."""

    def __init__(
        self,
        space: Space,
        size: int,
        base: int | None = None,
        *,
        in_order: bool = False,
        events: bool = False,
    ) -> None:
        base = base or 0
        super().__init__(space, size, base, in_order=in_order, events=events)
        self._table = space.take(16 * size)
        self._driver = space.take(6 + 2 * size)
        self._device = space.take(6 + 8 * size, device=True)
        self.areas = self._table, self._device, self._driver
        space.put(self._table, bytes(16 * size))
        space.put(self._driver, bytes(6 + 2 * size))
        space.put(self._device, bytes(6 + 8 * size))
        space.store(self._driver + 2, base)
        space.store(self._device + 2, base)
        if events:  # as a backend leaves it that has used everything before
            space.store(self._device + 4 + 8 * size, base)
        #: The free descriptors, in the order in which they are taken.
        self.free = deque(range(size))
        self._available = self._seen = base & 0xFFFF

    @property
    def room(self) -> int:
        """How many descriptors are free."""
        return len(self.free)

    @property
    def position(self) -> int:
        """The index of the next buffer."""
        return self._seen

    @property
    def used(self) -> int:
        """The index of the used ring."""
        return self.space.load(self._device + 2)

    @property
    def available(self) -> int:
        """The index of the available ring, with what is not published yet."""
        return self._available

    def add(self, pieces: Sequence[Piece], *, indirect: bool = False) -> Chain:
        """Describe a buffer; the device does not see it before :meth:`publish`."""
        self.need(1 if indirect else len(pieces))
        space = self.space
        taken = [self.free.popleft() for _ in range(1 if indirect else len(pieces))]
        table = None
        if indirect:
            table = self.table_of(pieces, packed=False)
            entry = DESCRIPTOR.pack(space.guest(table), 16 * len(pieces), INDIRECT, 0)
            space.put(self._table + 16 * taken[0], entry)
        else:
            for number, (offset, length, write) in enumerate(pieces):
                flags, following = WRITE if write else 0, 0
                if number + 1 < len(pieces):
                    flags, following = flags | NEXT, taken[number + 1]
                entry = DESCRIPTOR.pack(space.guest(offset), length, flags, following)
                space.put(self._table + 16 * taken[number], entry)
        chain = Chain(taken[0], pieces, taken, table)
        self.offer(chain.ident)
        self.outstanding[chain.ident] = chain
        self.added += 1
        return chain

    def offer(self, head: int) -> None:
        """Put a head into the available ring."""
        slot = self._driver + 4 + 2 * (self._available % self.size)
        self.space.put(slot, head.to_bytes(2, "little"))
        self._available = (self._available + 1) & 0xFFFF

    def publish(self) -> None:
        """Make everything that was added available."""
        self.space.store(self._driver + 2, self._available)

    def pop(self) -> list[Used]:
        """Return the buffers that the device has used since. Raises Wrong."""
        count = (self.used - self._seen) & 0xFFFF
        if count > len(self.outstanding):
            raise Wrong(
                f"the used index went from {self._seen} to {self.used}, with "
                f"{len(self.outstanding)} buffers available"
            )
        found: list[Used] = []
        while count:
            at = self._device + 4 + 8 * (self._seen % self.size)
            ident, length = _USED.unpack(self.space.read(at, 8))
            batch = self.batch(ident)
            if len(batch) > count:
                raise Wrong(
                    f"the used index counts {count} buffers, but id {ident} ends a batch of "
                    f"{len(batch)}"
                )
            for each in batch:
                entry = self.returned(each, length if each == ident else 0)
                self.free.extend(entry.chain.taken)
                found.append(entry)
            self._seen = (self._seen + len(batch)) & 0xFFFF
            count -= len(batch)
        return found

    def silence(self) -> None:
        """Ask the device for no calls."""
        if self.events:
            # The index that was passed last: it comes again after 65,535 buffers.
            self.space.store(self._driver + 4 + 2 * self.size, self._seen - 1)
        else:
            self.space.store(self._driver, 1)

    def ask_for_call(self, after: int = 0) -> None:
        """Ask for a call: for any buffer, or with event indices for that many buffers from now."""
        if self.events:
            self.space.store(self._driver + 4 + 2 * self.size, self._seen + after)
        else:
            self.space.store(self._driver, 0)

    def wants_kick(self, added: int) -> bool:
        """Return whether the device wants a kick for the ``added`` buffers published last."""
        if not self.events:
            return not self.space.load(self._device) & 1
        event = self.space.load(self._device + 4 + 8 * self.size)
        return (self._available - event - 1) & 0xFFFF < added
