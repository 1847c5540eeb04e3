"""The device's side of virtqueues, for a backend in Python: split and packed, all chain shapes.

Independent of the driver's side in ``virtnic.check``. Every address, length and index of the driver
is checked: :class:`Broken` is raised where it breaks the specification.
"""

from __future__ import annotations

import mmap
import os
import struct
from dataclasses import dataclass, field

DESCRIPTOR = struct.Struct("<QIHH")
NEXT, WRITE, INDIRECT = 1, 2, 4
AVAIL, USED, WRAP = 1 << 7, 1 << 15, 1 << 15
PAGE = 0x1000


class Broken(Exception):
    """The driver broke the rules."""


class Memory:
    """The regions of a front-end, and the log of pages that are written."""

    def __init__(self) -> None:
        self.regions: list[tuple[int, int, int, mmap.mmap, int, int]] = []
        self.log: mmap.mmap | None = None
        self.log_all = False
        #: Faults that a test wants: bytes that are not logged, or written beside.
        self.forget = self.beside = False

    def add(self, guest: int, size: int, user: int, offset: int, fd: int) -> None:
        """Map a region. Raises Broken."""
        if not size or os.fstat(fd).st_size < offset + size or (guest | user) + size >> 64:
            raise Broken("the region is not inside its file")
        mine = os.dup(fd)
        try:
            mapped = mmap.mmap(mine, offset + size)
        except (OSError, ValueError) as error:
            os.close(mine)
            raise Broken(str(error)) from None
        self.regions.append((guest, size, user, mapped, offset, mine))

    def remove(self, guest: int, size: int, user: int) -> None:
        """Unmap a region. Raises Broken if there is none."""
        for region in self.regions:
            if region[:3] == (guest, size, user):
                self.regions.remove(region)
                self._unmap(region)
                return
        raise Broken("no such region")

    @staticmethod
    def _unmap(region: tuple[int, int, int, mmap.mmap, int, int]) -> None:
        region[3].close()
        os.close(region[5])

    def clear(self) -> None:
        """Unmap everything."""
        for region in self.regions:
            self._unmap(region)
        self.regions = []

    def find(self, address: int, size: int, *, user: bool = False) -> tuple[mmap.mmap, int]:
        """Return where bytes are. Raises Broken unless they are in one region of a whole file."""
        for guest, length, at, mapped, offset, fd in self.regions:
            start = at if user else guest
            if start <= address and address + size <= start + length:
                if os.fstat(fd).st_size < offset + length:
                    raise Broken("the file was truncated")
                return mapped, address - start + offset
        raise Broken(f"{size} bytes at {address:#x} are not in the memory")

    def read(self, address: int, size: int) -> bytes:
        """Read bytes at a guest address."""
        mapped, at = self.find(address, size)
        return mapped[at : at + size]

    def write(self, address: int, data: bytes) -> None:
        """Write bytes at a guest address, and log their pages."""
        mapped, at = self.find(address, len(data))
        mapped[at : at + len(data)] = data
        if self.beside:
            mapped[at + len(data) : at + len(data) + 1] = b"!"
        if self.log_all:
            self.dirty(address, len(data))

    def dirty(self, address: int, size: int) -> None:
        """Mark the pages of a write."""
        if self.log is None or self.forget:
            return
        for page in range(address // PAGE, (address + size - 1) // PAGE + 1):
            if page // 8 < len(self.log):
                self.log[page // 8] |= 1 << page % 8


@dataclass
class Chain:
    """An available buffer."""

    ident: int
    #: Address, length, and whether the device writes it.
    parts: list[tuple[int, int, bool]]
    #: Descriptors of the ring.
    taken: int

    @property
    def room(self) -> int:
        """Bytes that the device may write."""
        return sum(length for _, length, write in self.parts if write)


@dataclass
class Ring:
    """One virtqueue, and the device's position in it."""

    number: int
    memory: Memory
    packed: bool = False
    events: bool = False
    in_order: bool = False
    indirect: bool = False
    size: int = 0
    #: Descriptors, device area, driver area; the guest address of the used ring in the log.
    areas: tuple[int, int, int] = (0, 0, 0)
    log: int | None = None
    enabled: bool = False
    kick: int | None = None
    call: int | None = None
    started: bool = False
    polled: bool = False
    broken: bool = False
    next: int = 0
    wrap: bool = True
    used: int = 0
    used_wrap: bool = True
    #: Entries used since the last call.
    uncalled: int = 0
    faults: set[str] = field(default_factory=set)

    def close(self) -> None:
        """Close the eventfds."""
        for fd in (self.kick, self.call):
            if fd is not None:
                os.close(fd)
        self.kick = self.call = None
        self.started = self.enabled = self.polled = False

    def set_base(self, base: int) -> None:
        """Start at a base."""
        if self.packed:
            self.next, self.wrap = base & 0x7FFF, bool(base & WRAP)
            # Some front-ends leave the upper half out: all buffers are used then.
            half = base >> 16 or base & 0xFFFF
            self.used, self.used_wrap = half & 0x7FFF, bool(half & WRAP)
        else:
            self.next = self.used = base & 0xFFFF

    @property
    def base(self) -> int:
        """The base at which another start would go on."""
        if not self.packed:
            return self.next
        low = self.next | (WRAP if self.wrap else 0)
        return low | (self.used | (WRAP if self.used_wrap else 0)) << 16

    # Areas of the ring.

    def _word(self, area: int, offset: int) -> int:
        mapped, at = self.memory.find(self.areas[area] + offset, 2, user=True)
        return int.from_bytes(mapped[at : at + 2], "little")

    def _store(self, area: int, offset: int, value: int) -> None:
        mapped, at = self.memory.find(self.areas[area] + offset, 2, user=True)
        with memoryview(mapped) as view, view[at : at + 2].cast("H") as word:
            word[0] = value & 0xFFFF
        self._logged(area, offset, 2)

    def _bytes(self, area: int, offset: int, size: int) -> bytes:
        mapped, at = self.memory.find(self.areas[area] + offset, size, user=True)
        return mapped[at : at + size]

    def _put(self, area: int, offset: int, data: bytes) -> None:
        mapped, at = self.memory.find(self.areas[area] + offset, len(data), user=True)
        mapped[at : at + len(data)] = data
        self._logged(area, offset, len(data))

    def _logged(self, area: int, offset: int, size: int) -> None:
        # The log's address is that of the used ring; a packed ring's is its descriptors.
        if self.log is not None and area == (0 if self.packed else 1):
            self.memory.dirty(self.log + offset, size)

    # Available buffers.

    def take(self) -> Chain | None:
        """Take the next buffer; None if there is none. Raises Broken."""
        return self._take_packed() if self.packed else self._take_split()

    def waiting(self) -> int:
        """Return how many buffers of a split ring are available. Raises Broken."""
        count = (self._word(2, 2) - self.next) & 0xFFFF
        if count > self.size:
            raise Broken(f"the available index jumped by {count}")
        return count

    def _take_split(self) -> Chain | None:
        if not self.waiting():
            return None
        head = self._word(2, 4 + 2 * (self.next % self.size))
        parts: list[tuple[int, int, bool]] = []
        at, taken = head, 0
        while True:
            if at >= self.size:
                raise Broken(f"descriptor {at} of {self.size}")
            address, length, flags, following = DESCRIPTOR.unpack(self._bytes(0, 16 * at, 16))
            taken += 1
            if taken > self.size:
                raise Broken("the chain is a loop")
            if flags & INDIRECT:
                parts += self._table(address, length, flags)
                if flags & NEXT:
                    raise Broken("INDIRECT and NEXT")
            else:
                parts.append((address, length, bool(flags & WRITE)))
            if not flags & NEXT:
                break
            at = following
        self.next = (self.next + 1) & 0xFFFF
        return self._checked(Chain(head, parts, taken))

    def _take_packed(self) -> Chain | None:
        parts: list[tuple[int, int, bool]] = []
        at, wrap, taken = self.next, self.wrap, 0
        while True:
            address, length, ident, flags = DESCRIPTOR.unpack(self._bytes(0, 16 * at, 16))
            if bool(flags & AVAIL) != wrap or bool(flags & USED) == wrap:
                if taken:
                    raise Broken("a chain ends before its last descriptor")
                return None
            taken += 1
            if taken > self.size:
                raise Broken("the chain is longer than the ring")
            if flags & INDIRECT:
                parts += self._table(address, length, flags)
            else:
                parts.append((address, length, bool(flags & WRITE)))
            at, wrap = (0, not wrap) if at + 1 == self.size else (at + 1, wrap)
            if not flags & NEXT:
                break
        if ident >= self.size:
            raise Broken(f"buffer id {ident}")
        self.next, self.wrap = at, wrap
        return self._checked(Chain(ident, parts, taken))

    def _table(self, address: int, length: int, flags: int) -> list[tuple[int, int, bool]]:
        if not self.indirect or not length or length % 16 or length > 16 * self.size:
            raise Broken(f"an indirect table of {length} bytes")
        table = [*DESCRIPTOR.iter_unpack(self.memory.read(address, length))]
        parts: list[tuple[int, int, bool]] = []
        at = 0
        while True:
            if at >= len(table) or len(parts) > len(table):
                raise Broken("the indirect table is a loop or ends early")
            place, size, bits, following = table[at]
            if self.packed:
                bits, following = following, at + 1
                bits = bits & (WRITE | INDIRECT) | (NEXT if at + 1 < len(table) else 0)
            if bits & INDIRECT:
                raise Broken("an indirect table in an indirect table")
            parts.append((place, size, bool(bits & WRITE)))
            if not bits & NEXT:
                return parts
            at = following

    def _checked(self, chain: Chain) -> Chain:
        directions = [write for _, _, write in chain.parts]
        if directions != sorted(directions):
            raise Broken("a buffer to read comes after one to write")
        if any(write != (self.number % 2 == 0) for write in directions):
            raise Broken("a descriptor has the wrong direction")
        for address, length, _ in chain.parts:
            if length:
                self.memory.find(address, length)
        return chain

    # Used buffers.

    def finish(self, chain: Chain, length: int = 0, *, write: bool | None = None) -> None:
        """Return a buffer with so many bytes written."""
        if self.packed:
            flags = AVAIL | USED if self.used_wrap else 0
            if (length > 0) if write is None else write:
                flags |= WRITE
            self._put(0, 16 * self.used + 8, struct.pack("<IH", length, chain.ident))
            self._store(0, 16 * self.used + 14, flags)
            self.used += chain.taken
            if self.used >= self.size:
                self.used, self.used_wrap = self.used - self.size, not self.used_wrap
            self.uncalled += chain.taken
        else:
            entry = 4 + 8 * (self.used % self.size)
            self._put(1, entry, struct.pack("<II", chain.ident, length))
            self.used = (self.used + 1) & 0xFFFF
            self._store(1, 2, self.used)
            self.uncalled += 1

    def finish_batch(self, chains: list[Chain]) -> None:
        """Return several buffers by one used entry (IN_ORDER)."""
        if self.packed:
            last, taken = chains[-1], sum(chain.taken for chain in chains)
            self.finish(Chain(last.ident, last.parts, taken))
        else:
            entry = 4 + 8 * (self.used % self.size)
            self._put(1, entry, struct.pack("<II", chains[-1].ident, 0))
            self.used = (self.used + len(chains)) & 0xFFFF
            self._store(1, 2, self.used)
            self.uncalled += len(chains)

    # Notifications.

    def ask_for_kick(self, *, never: bool = False) -> None:
        """Ask for a kick when the next buffer is available."""
        if self.packed:
            if self.events and not never:
                self._store(1, 0, self.next | (WRAP if self.wrap else 0))
                self._store(1, 2, 2)
            else:
                self._store(1, 2, int(never))
        elif self.events:
            self._store(1, 4 + 8 * self.size, self.next - (1 if never else 0))
        else:
            self._store(1, 0, int(never))

    def wants_call(self) -> bool:
        """Return whether the driver wants a call for what was used since the last."""
        count, self.uncalled = self.uncalled, 0
        if not count:
            return False
        if self.packed:
            where, flags = self._word(2, 0), self._word(2, 2)
            if flags != 2 or not self.events:
                return flags != 1
            event = where & 0x7FFF
            if bool(where & WRAP) != self.used_wrap:
                event -= self.size
            return (self.used - event - 1) & 0xFFFF < count
        if self.events:
            event = self._word(2, 4 + 2 * self.size)
            return (self.used - event - 1) & 0xFFFF < count
        return not self._word(2, 0) & 1

    def signal(self) -> None:
        """Call."""
        if self.call is not None:
            os.write(self.call, (1).to_bytes(8, "little"))
