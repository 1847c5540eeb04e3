"""`Space`: memory shared with the backend, with guard bytes around everything in it."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

from virtnic.vhost_user import Region

if TYPE_CHECKING:
    import virtnic

__all__ = ["GUEST", "Space"]

#: The address at which descriptors see the memory: not that at which this process has mapped it.
GUEST = 1 << 30
#: The fill byte of memory that is not given out, and how much of it follows each part.
_GUARD, _GAP = 0xA5, 32
_WORD = struct.Struct("<H")


class Space:
    """Parts of one memory. What the driver writes is remembered, to find what else was written.

    ``regions`` divides the memory into that many regions with gaps between their guest addresses.
    A part is inside one region: the one that ``pinned`` names, or each in turn.
    """

    def __init__(self, memory: virtnic.Memory, *, regions: int = 1) -> None:
        self.memory = memory
        self.pinned: int | None = None
        size = memory.size // regions & ~0xFFF
        #: The regions, for SET_MEM_TABLE.
        self.regions = [
            Region(
                GUEST + 2 * size * number,
                size,
                memory.address + size * number,
                size * number,
                memory.fileno(),
            )
            for number in range(regions)
        ]
        self._step = size
        self._next = [number * size + _GAP for number in range(regions)]
        self._turn = 0
        self._end = regions * size
        self._written = bytearray([_GUARD]) * self._end
        memory.write(0, bytes(self._written))
        #: The room of each part with its guard bytes, the free parts of each room, the parts for
        #: the device with their sizes, and what was wrong with a part that is free again.
        self._rooms: dict[int, int] = {}
        self._free: dict[tuple[int, int | None], list[int]] = {}
        self._devices: dict[int, int] = {}
        self._pending: tuple[int, int] | None = None
        self._wrong: str | None = None

    # Addresses.

    def guest(self, offset: int) -> int:
        """Return the address that descriptors use."""
        return offset + GUEST + self._step * (offset // self._step)

    def user(self, offset: int) -> int:
        """Return the address that SET_VRING_ADDR uses."""
        return self.memory.address + offset

    # Parts.

    def take(self, size: int, *, align: int = 64, device: bool = False) -> int:
        """Return the offset of a new part; ``device``: the device may write all of it."""
        room = -(-(size + _GAP) // 64) * 64
        free = self._free.get((room, self.pinned))
        offset = free.pop() if free and align <= 64 else self._grow(room, align)
        self._rooms[offset] = room
        if device:
            self._devices[offset] = size
        return offset

    def _grow(self, room: int, align: int) -> int:
        for _ in self._next:
            turn, self._turn = self._turn, (self._turn + 1) % len(self._next)
            turn = turn if self.pinned is None else self.pinned
            offset = -(-self._next[turn] // align) * align
            if offset + room <= (turn + 1) * self._step:
                self._next[turn] = offset + room
                return offset
        raise MemoryError(f"no {room} bytes are left for a buffer of the check")

    def give(self, offset: int) -> None:
        """Return a part, which is filled with the guard pattern."""
        room = self._rooms.pop(offset)
        kept = offset + self._devices.pop(offset, 0)
        self.flush()
        if self.memory.read(kept, offset + room - kept) != self._written[kept : offset + room]:
            self._wrong = self._wrong or self._named(kept, offset + room)
        self.put(offset, bytes([_GUARD]) * room)
        region = None if self.pinned is None else offset // self._step
        self._free.setdefault((room, region), []).append(offset)

    # Bytes.

    def put(self, offset: int, data: bytes) -> None:
        """Write bytes; they reach the memory with :meth:`flush` at the latest."""
        end = offset + len(data)
        self._written[offset:end] = data
        if self._pending is not None and self._pending[1] == offset:
            self._pending = self._pending[0], end
            return
        self.flush()
        self._pending = offset, end

    def flush(self) -> None:
        """Write what was put."""
        if self._pending is not None:
            start, end = self._pending
            self._pending = None
            self.memory.write(start, bytes(self._written[start:end]))

    def store(self, offset: int, value: int) -> None:
        """Write a 16-bit number at once, after all that was put."""
        self.flush()
        word = _WORD.pack(value & 0xFFFF)
        self._written[offset : offset + 2] = word
        self.memory.write(offset, word)

    def load(self, offset: int) -> int:
        """Read a 16-bit number."""
        return int(_WORD.unpack(self.memory.read(offset, 2))[0])

    def read(self, offset: int, size: int) -> bytes:
        """Read bytes."""
        return self.memory.read(offset, size)

    def intruded(self) -> str | None:
        """Return what was written that is not the device's; None if nothing was."""
        self.flush()
        if self._wrong is not None:
            return self._wrong
        now = bytearray(self.memory.read(0, self._end))
        for offset, size in self._devices.items():
            now[offset : offset + size] = self._written[offset : offset + size]
        return None if now == self._written else self._named(0, self._end, now)

    def _named(self, start: int, end: int, now: bytes | bytearray | None = None) -> str:
        """Describe how bytes differ from what was written."""
        now = self.memory.read(start, end - start) if now is None else now
        changed = [at for at in range(start, end) if now[at - start] != self._written[at]]
        if not changed:
            return "bytes that are not the device's were written, and written back"
        parts = [*self._rooms, start]
        before = max((offset for offset in parts if offset <= changed[0]), default=0)
        return (
            f"bytes that are not the device's were written: {len(changed)}, the first "
            f"{changed[0] - before} bytes after the beginning of a part at offset {before:#x}"
        )
