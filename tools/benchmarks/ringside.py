"""A virtio-net device in this process: registers behind a QTest socket, rings moved by hand.

Nothing happens at the device but what the program says, so that the driver does the same work,
instruction for instruction, each time. It follows VIRTIO 1.3, sections 2.7, 2.8 and 4.1.4.
"""

import socket
import struct
import threading
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, Self

from virtnic import Memory
from virtnic._native import NetPort, PortDriver, QTest

VERSION_1, RING_PACKED, IN_ORDER, EVENT_IDX, MRG_RXBUF = 32, 34, 35, 29, 15
#: The structures of the device, as addresses.
COMMON, ISR, DEVICE, NOTIFY = 0x1000, 0x2000, 0x3000, 0x4000
#: Of a packed descriptor's flags: it was used, by the lap's parity; and of a ring's events.
AVAIL, USED, WRITE = 1 << 7, 1 << 15, 2
NO_EVENTS = 1

Format = Literal["split", "packed"]


@dataclass
class Registers:
    """The common configuration, and where the driver put the queues."""

    features: int
    size: int
    selected: int = 0
    word: int = 0
    queues: dict[int, dict[int, int]] = field(default_factory=dict)
    values: dict[int, int] = field(default_factory=dict)

    def read(self, offset: int) -> int:
        match offset:
            case 4:
                return self.features >> 32 * self.word & 0xFFFFFFFF
            case 18:
                return 2
            case 22:
                return self.selected
            case 24:
                return self.size
            case 26 | 16:
                return 0xFFFF
            case 30:
                return self.selected
            case _:
                return self.values.get(offset, 0)

    def write(self, offset: int, value: int) -> None:
        if offset == 0:
            self.word = value
        elif offset == 22:
            self.selected = value
        elif 24 <= offset < 58:
            self.queues.setdefault(self.selected, {})[offset] = value
        else:
            self.values[offset] = value

    def address(self, queue: int, offset: int) -> int:
        """An address that was written as two halves."""
        written = self.queues[queue]
        return written[offset] | written[offset + 4] << 32


def serve(listener: socket.socket, registers: Registers) -> None:
    """Answer a QTest client until it goes."""
    connection, _ = listener.accept()
    with connection, connection.makefile("rb") as lines:
        for line in lines:
            words = line.decode().split()
            reply = "OK"
            if words[0] == "endianness":
                reply = "OK little"
            elif words[0] == "read":
                reply = "OK 0x" + "52" * int(words[2], 0)
            elif words[0].startswith("read"):
                reply = f"OK {registers.read(int(words[1], 0) - COMMON):#x}"
            elif words[0].startswith("write"):
                registers.write(int(words[1], 0) - COMMON, int(words[2], 0))
            connection.sendall(reply.encode() + b"\n")


class DeviceRing:
    """The device's side of one queue: takes and uses buffers when it is told to."""

    def __init__(self, memory: Memory, registers: Registers, queue: int, *, packed: bool) -> None:
        self._memory = memory
        self._size = registers.size
        self._packed = packed
        offsets = (memory.offset_of(registers.address(queue, at)) for at in (32, 40, 48))
        self._descriptors, self._driver, self._device = offsets
        #: Of a split ring modulo 2^16; of a packed one the place, and whether the lap is odd.
        self._next, self._wrap = 0, True
        #: Buffers used so far.
        self.done = 0
        self._quiet()

    def _quiet(self) -> None:
        """Ask for no kicks, however the driver looks."""
        if self._packed:
            self._memory.write(self._device + 2, struct.pack("<H", NO_EVENTS))
            return
        self._memory.write(self._device, struct.pack("<H", NO_EVENTS))
        event = struct.pack("<H", (self._next + 0x8000) & 0xFFFF)
        self._memory.write(self._device + 4 + 8 * self._size, event)

    def use(self, count: int, length: int = 0, *, batch: bool = False, header: bytes = b"") -> None:
        """Use the next buffers, with ``length`` bytes in each of which the first are ``header``.

        With ``batch`` one entry stands for all (sections 2.7.9 and 2.8.9).
        """
        (self._use_packed if self._packed else self._use_split)(count, length, batch, header)
        self.done += count

    def _fill(self, descriptor: int, header: bytes) -> None:
        if header:
            (iova,) = struct.unpack("<Q", self._memory.read(descriptor, 8))
            self._memory.write(self._memory.offset_of(iova), header)

    def _use_split(self, count: int, length: int, batch: bool, header: bytes) -> None:
        memory, size = self._memory, self._size
        (idx,) = struct.unpack("<H", memory.read(self._driver + 2, 2))
        if (idx - self._next) & 0xFFFF < count:
            raise RuntimeError(
                f"the driver gave {(idx - self._next) & 0xFFFF} buffers, not {count}"
            )
        heads = struct.unpack(f"<{size}H", memory.read(self._driver + 4, 2 * size))
        for number in range(self._next, self._next + count):
            self._fill(self._descriptors + 16 * heads[number % size], header)
            if batch and number + 1 != self._next + count:
                continue
            entry = struct.pack("<II", heads[number % size], length)
            at = self._next if batch else number
            memory.write(self._device + 4 + 8 * (at % size), entry)
        self._next = (self._next + count) & 0xFFFF
        memory.write(self._device + 2, struct.pack("<H", self._next))
        self._quiet()

    def _use_packed(self, count: int, length: int, batch: bool, header: bytes) -> None:
        memory = self._memory
        first, lap = self._next, self._wrap
        for done in range(count):
            at = self._descriptors + 16 * self._next
            self._fill(at, header)
            _, _, name, flags = struct.unpack("<QIHH", memory.read(at, 16))
            if (bool(flags & AVAIL), bool(flags & USED)) != (self._wrap, not self._wrap):
                raise RuntimeError(f"the driver gave {done} buffers, not {count}")
            if batch:
                place, parity = (first, lap) if done + 1 == count else (None, lap)
            else:
                place, parity = self._next, self._wrap
            if place is not None:
                used = (AVAIL | USED if parity else 0) | flags & WRITE
                entry = struct.pack("<IHH", length, name, used)
                memory.write(self._descriptors + 16 * place + 8, entry)
            self._next += 1
            if self._next == self._size:
                self._next, self._wrap = 0, not self._wrap


class Ringside:
    """A port and its device: ``rx`` and ``tx`` say what the device does."""

    def __init__(self, ring: Format, size: int, directory: Path, *features: int) -> None:
        packed = ring == "packed"
        offered = sum(1 << bit for bit in (VERSION_1, EVENT_IDX, *features))
        registers = Registers(offered | packed << RING_PACKED, size)
        path = directory / f"{ring}-{len(list(directory.iterdir()))}"
        self.in_order, self.merges = IN_ORDER in features, MRG_RXBUF in features
        self.memory = Memory("16M", hugepages=None)
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(str(path))
            listener.listen()
            threading.Thread(target=serve, args=(listener.dup(), registers), daemon=True).start()
            self._qtest = QTest(str(path))
        self._driver = PortDriver(
            memory=self.memory,
            qtest=self._qtest,
            registers=(COMMON, ISR, DEVICE, NOTIFY, 64, 4),
            features={"MRG_RXBUF": MRG_RXBUF in features, "IN_ORDER": IN_ORDER in features},
            ended=lambda: "it ended",
        )
        self.port = NetPort(self._driver)
        self._qtest.flush()  # all that the driver wrote has come
        self.rx = DeviceRing(self.memory, registers, 0, packed=packed)
        self.tx = DeviceRing(self.memory, registers, 1, packed=packed)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        self._driver.stop()
        self._qtest.close()
