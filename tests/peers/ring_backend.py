"""A vhost-user backend whose rings a test drives step by step.

It answers QEMU as :class:`peers.vhost_backend.ScriptedBackend` does and leaves
the rings alone: a test takes buffers, finishes them in whatever order it likes, and dies when
it wants to. Like many a real one it is driven by kicks, if it is told to be, and never writes to
a ring's device event area.
"""

import contextlib
import mmap
import os
import select
import socket
import struct
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from peers.vhost_backend import Connection, ScriptedBackend
from peers.vhost_user import PROTOCOL_FEATURES, RING_PACKED, VERSION_1, Message, Request

NEXT, AVAIL, USED = 1, 1 << 7, 1 << 15
WRAP = 1 << 15

#: Bytes of the header in front of each frame; num_buffers is 1.
HEADER = bytes(10) + b"\1\0"


@dataclass
class Region:
    """A part of the memory, by its addresses for the device and in QEMU."""

    guest: int
    size: int
    user: int
    bytes: mmap.mmap
    offset: int


@dataclass
class Buffer:
    """An available buffer: its id or head, and where it lies (address, length)."""

    ident: int
    parts: list[tuple[int, int]]


@dataclass
class Vring:
    """A ring as QEMU described it, and the backend's position in it."""

    number: int
    size: int = 0
    #: Addresses in QEMU: descriptors, device area, driver area.
    areas: tuple[int, int, int] = (0, 0, 0)
    enabled: bool = False
    kick: int | None = None
    call: int | None = None
    kicks: int = 0
    #: Where the next available and the next used descriptor is, and the wrap counter there.
    available: tuple[int, bool] = (0, True)
    used: tuple[int, bool] = (0, True)
    #: Taken and not finished.
    taken: list[Buffer] = field(default_factory=list)

    def close(self) -> None:
        """Forget the eventfds."""
        for fd in (self.kick, self.call):
            if fd is not None:
                os.close(fd)
        self.kick = self.call = None
        self.enabled = False


def place(packed: int) -> tuple[int, bool]:
    """Return an index and its wrap counter."""
    return packed & ~WRAP, bool(packed & WRAP)


class RingBackend(ScriptedBackend):
    """A vhost-user backend that listens at a path, for one QEMU at a time."""

    def __init__(
        self, path: Path, *, packed: bool = False, pairs: int = 1, more_features: int = 0
    ) -> None:
        self.rings: dict[int, Vring] = {}
        #: What is in front of the frames that it delivers.
        self.header = HEADER
        self._regions: list[Region] = []
        self._packed = False
        features = PROTOCOL_FEATURES | VERSION_1 | (RING_PACKED if packed else 0) | more_features
        super().__init__(path, features=features, pairs=pairs)

    # Coming and going.

    def wait_up(self, connections: int = 1, timeout: float = 20.0) -> None:
        """Wait until QEMU has connected ``count`` times and the first pair's rings are started."""

        def up() -> bool:
            rings = [self.rings.get(number) for number in (0, 1)]
            return len(self.connections) >= connections and all(
                ring is not None and ring.enabled and ring.kick is not None for ring in rings
            )

        if not self.wait(up, timeout):
            raise TimeoutError(f"the rings were not started within {timeout} s")

    def die(self) -> None:
        """End the connection at once, as a process that is killed; then listen again."""
        with self._changed:
            for ring in self.rings.values():
                ring.enabled = False
            for connection in self.connections[-1:]:
                connection.close()

    def _serve(self, connection: Connection) -> None:
        with self._changed:
            self.rings, self._regions = {}, []
        try:
            super()._serve(connection)
        finally:
            with self._changed:
                for ring in self.rings.values():
                    ring.close()
                self._forget_memory()

    def _readable(self, what: socket.socket) -> bool:
        """Count kicks until there is input; False when it is to end."""
        while True:
            with self._changed:
                kicks = {ring.kick: ring for ring in self.rings.values() if ring.kick is not None}
            ready, _, _ = select.select([what.fileno(), self._stop_read, *kicks], [], [])
            if self._stop_read in ready:
                return False
            with self._changed:
                for fd in kicks.keys() & set(ready):
                    with contextlib.suppress(BlockingIOError):
                        kicks[fd].kicks += int.from_bytes(os.read(fd, 8), "little")
                self._changed.notify_all()
            if what.fileno() in ready:
                return True

    def _handle(self, connection: Connection, message: Message) -> None:
        with self._changed:
            match message.request:
                case Request.SET_FEATURES:
                    self._packed = bool(message.number & RING_PACKED)
                case Request.SET_MEM_TABLE:
                    self._map(message)
                case Request.SET_VRING_KICK | Request.SET_VRING_CALL:
                    self._set_eventfd(message)
                case Request.SET_VRING_ADDR:
                    descriptors, used, available, _ = struct.unpack_from(
                        "<QQQQ", message.payload, 8
                    )
                    self._ring(message).areas = descriptors, used, available
                case Request.SET_VRING_NUM:
                    self._ring(message).size = message.state[1]
                case Request.SET_VRING_ENABLE:
                    self._ring(message).enabled = bool(message.state[1])
                case Request.SET_VRING_BASE:
                    self._set_base(self._ring(message), message.state[1])
            super()._handle(connection, message)

    def _ring(self, message: Message) -> Vring:
        number = message.payload[0]
        return self.rings.setdefault(number, Vring(number))

    def _set_base(self, ring: Vring, number: int) -> None:
        low, high = (number & 0xFFFF, number >> 16) if self._packed else (number, 0)
        ring.available, ring.used = place(low), place(high)
        if not self._packed:
            ring.available = (low, True)

    def base_of(self, ring: int) -> int:
        """Return the base of a ring that the front-end stops."""
        stopped = self.rings.setdefault(ring, Vring(ring))
        stopped.enabled = False
        at, wrap = stopped.available
        base = at | (WRAP if wrap and self._packed else 0)
        at, wrap = stopped.used
        return base | ((at | (WRAP if wrap else 0)) << 16 if self._packed else 0)

    def _set_eventfd(self, message: Message) -> None:
        ring = self._ring(message)
        fd = os.dup(message.fds[0]) if message.fds else None
        if message.request == Request.SET_VRING_KICK:
            old, ring.kick = ring.kick, fd
        else:
            old, ring.call = ring.call, fd
        if old is not None:
            os.close(old)

    # Memory.

    def _map(self, message: Message) -> None:
        self._forget_memory()
        for index, fd in enumerate(message.fds):
            guest, size, user, offset = struct.unpack_from("<QQQQ", message.payload, 8 + 32 * index)
            self._regions.append(Region(guest, size, user, mmap.mmap(fd, size + offset), offset))

    def _forget_memory(self) -> None:
        for region in self._regions:
            region.bytes.close()
        self._regions = []

    def _at(self, address: int, *, user: bool) -> tuple[mmap.mmap, int]:
        for region in self._regions:
            start = region.user if user else region.guest
            if start <= address < start + region.size:
                return region.bytes, address - start + region.offset
        raise LookupError(f"no memory at {address:#x}")

    def _area(self, ring: Vring, which: int) -> tuple[mmap.mmap, int]:
        return self._at(ring.areas[which], user=True)

    @staticmethod
    def _store(memory: mmap.mmap, at: int, value: int) -> None:
        """One 16-bit store: `pack_into` writes zeros first."""
        with memoryview(memory) as view, view[at : at + 2].cast("H") as word:
            word[0] = value

    # Rings.

    def take(self, number: int) -> Buffer | None:
        """Take the next available buffer of a ring; None when there is none."""
        with self._changed:
            ring = self.rings[number]
            buffer = self._take_packed(ring) if self._packed else self._take_split(ring)
            if buffer is not None:
                ring.taken.append(buffer)
            return buffer

    def _take_split(self, ring: Vring) -> Buffer | None:
        memory, at = self._area(ring, 2)
        index = ring.available[0] & 0xFFFF
        if index == struct.unpack_from("<H", memory, at + 2)[0]:
            return None
        (head,) = struct.unpack_from("<H", memory, at + 4 + 2 * (index % ring.size))
        ring.available = (index + 1) & 0xFFFF, True
        memory, at = self._area(ring, 0)
        parts, ident = [], head
        while True:
            address, length, flags, following = struct.unpack_from("<QIHH", memory, at + 16 * ident)
            parts.append((address, length))
            if not flags & NEXT:
                return Buffer(head, parts)
            ident = following

    def _take_packed(self, ring: Vring) -> Buffer | None:
        memory, at = self._area(ring, 0)
        index, wrap = ring.available
        address, length, ident, flags = struct.unpack_from("<QIHH", memory, at + 16 * index)
        if bool(flags & AVAIL) != wrap or bool(flags & USED) == wrap:
            return None
        ring.available = self._next(ring, index, wrap)
        return Buffer(ident, [(address, length)])

    @staticmethod
    def _next(ring: Vring, index: int, wrap: bool) -> tuple[int, bool]:
        return (0, not wrap) if index + 1 == ring.size else (index + 1, wrap)

    def finish(self, number: int, buffer: Buffer, length: int = 0) -> None:
        """Return a buffer with ``written`` bytes; :meth:`signal` interrupts."""
        with self._changed:
            ring = self.rings[number]
            ring.taken.remove(buffer)
            if self._packed:
                memory, at = self._area(ring, 0)
                index, wrap = ring.used
                at += 16 * index
                struct.pack_into("<IH", memory, at + 8, length, buffer.ident)
                self._store(memory, at + 14, AVAIL | USED if wrap else 0)
                ring.used = self._next(ring, index, wrap)
            else:
                memory, at = self._area(ring, 1)
                (index,) = struct.unpack_from("<H", memory, at + 2)
                entry = at + 4 + 8 * (index % ring.size)
                struct.pack_into("<II", memory, entry, buffer.ident, length)
                self._store(memory, at + 2, index + 1 & 0xFFFF)

    def finish_batch(self, number: int, buffers: list[Buffer]) -> None:
        """Give buffers of a packed ring back by one used descriptor (IN_ORDER)."""
        with self._changed:
            ring = self.rings[number]
            behind = ring.used
            for buffer in buffers:
                behind = self._next(ring, *behind)
                if buffer is not buffers[-1]:
                    ring.taken.remove(buffer)
            self.finish(number, buffers[-1])
            ring.used = behind

    def begin_to_finish(self, number: int, buffer: Buffer, length: int = 0) -> None:
        """Return a buffer of a packed ring, except for the flags that mark it used."""
        with self._changed:
            ring = self.rings[number]
            memory, at = self._area(ring, 0)
            index, wrap = ring.used
            struct.pack_into("<IH", memory, at + 16 * index + 8, length, buffer.ident)
            ring.used = self._next(ring, index, wrap)

    def signal(self, number: int) -> None:
        """Interrupt."""
        with self._changed:
            call = self.rings[number].call
            if call is not None:
                os.write(call, (1).to_bytes(8, "little"))

    def read(self, buffer: Buffer) -> bytes:
        """Return the frame that a buffer of a transmit ring has."""
        with self._changed:
            pieces = []
            for address, length in buffer.parts:
                memory, at = self._at(address, user=False)
                pieces.append(memory[at : at + length])
            return b"".join(pieces)[len(HEADER) :]

    def write(self, number: int, buffer: Buffer, frame: bytes) -> None:
        """Put a frame into a buffer of a receive ring, and give it back."""
        with self._changed:
            (address, length), *_ = buffer.parts
            assert len(HEADER) + len(frame) <= length
            memory, at = self._at(address, user=False)
            memory[at : at + len(HEADER) + len(frame)] = self.header + frame
            self.finish(number, buffer, len(HEADER) + len(frame))

    def deliver(self, frame: bytes, number: int = 0) -> bool:
        """Put a frame into a receive ring and interrupt; False if it has no buffer."""
        buffer = self.take(number)
        if buffer is None:
            return False
        self.write(number, buffer, frame)
        self.signal(number)
        return True

    def available(self, number: int = 1) -> Iterator[Buffer]:
        """Take all that is available in a ring."""
        while (buffer := self.take(number)) is not None:
            yield buffer

    def transmitted(self, number: int = 1) -> list[bytes]:
        """Take all frames of a transmit ring, and finish them."""
        frames = []
        for buffer in self.available(number):
            frames.append(self.read(buffer))
            self.finish(number, buffer)
        if frames:
            self.signal(number)
        return frames

    def kicked(self, number: int, more_than: int, timeout: float = 20.0) -> bool:
        """Wait until a ring has been kicked more often than that."""
        return self.wait_for(lambda: self.rings[number].kicks > more_than, timeout)

    def wait_for(self, condition: Callable[[], bool], timeout: float = 20.0) -> bool:
        """Wait until a condition on the backend holds; return whether it does."""
        deadline = time.monotonic() + timeout
        while time.monotonic() < deadline:
            with self._changed:
                if condition():
                    return True
            time.sleep(0.005)
        return False
