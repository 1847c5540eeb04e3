"""A fake PCI bus: configuration space behind the ports 0xCF8 and 0xCFC."""

from __future__ import annotations

import struct
from dataclasses import dataclass, field

ONES = 0xFFFFFFFF


@dataclass
class FakeFunction:
    """A function whose registers a test sets.

    ``bars``: for each BAR register the bits that can be written, and those that are fixed.
    """

    vendor: int = 0x1AF4
    device: int = 0x1041
    class_code: int = 0x020000
    header: int = 0
    subsystem: int = 0x1100
    pin: int = 1
    bars: dict[int, tuple[int, int]] = field(default_factory=dict)
    #: The number of reads after which the function stops answering.
    dies_after: int | None = None
    reads: int = 0
    writes: list[tuple[int, bytes]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.data = bytearray(256)
        self.put(0x00, self.vendor | self.device << 16)
        self.put(0x08, self.class_code << 8)
        self.put(0x0C, self.header << 16)
        if self.header & 0x7F == 0:
            self.put(0x2C, self.vendor | self.subsystem << 16)
        self.put(0x3C, self.pin << 8)
        for index, (_, fixed) in self.bars.items():
            self.put(0x10 + 4 * index, fixed)

    def put(self, offset: int, value: int) -> None:
        """Set a word, read-only or not."""
        struct.pack_into("<I", self.data, offset, value)

    def get(self, offset: int) -> int:
        """Return a word."""
        value: int = struct.unpack_from("<I", self.data, offset)[0]
        return value

    def capability(self, offset: int, body: bytes, *, first: bool = False) -> None:
        """Put a capability somewhere; the first is what the pointer at 0x34 leads to."""
        self.data[offset : offset + len(body)] = body[: 256 - offset]
        if first:
            self.put(0x04, self.get(0x04) | 1 << 20)
            self.put(0x34, offset)

    def read(self, offset: int, width: int) -> int:
        self.reads += 1
        if self.dies_after is not None and self.reads > self.dies_after:
            return (1 << 8 * width) - 1
        return int.from_bytes(self.data[offset : offset + width], "little")

    def write(self, offset: int, width: int, value: int) -> None:
        raw = value.to_bytes(width, "little")
        self.writes.append((offset, raw))
        for position, byte in enumerate(raw, offset):
            mask, fixed = self._writable(position)
            self.data[position] = byte & mask | fixed

    def _writable(self, position: int) -> tuple[int, int]:
        word, shift = position & ~3, 8 * (position & 3)
        bar = (word - 0x10) // 4
        last = 2 if self.header & 0x7F == 1 else 6
        if 0 <= bar < last:
            mask, fixed = self.bars.get(bar, (0, 0))
            return mask >> shift & 0xFF, fixed >> shift & 0xFF
        if word == 0x04 and position < 0x06:
            return 0xFF, 0
        if position >= 0x40 or (last == 2 and 0x18 <= position < 0x34):
            return 0xFF, 0
        return 0, self.data[position]


class FakeBus:
    """Ports of a machine; ``put`` functions on buses, bridges route by their bus numbers."""

    def __init__(self, machine: str = "pc") -> None:
        self.functions: dict[tuple[int, int, int], FakeFunction] = {}
        #: What is behind a bridge: its own functions by (slot, function).
        self.behind: dict[tuple[int, int, int], FakeBus] = {}
        #: Other ports hold what was written to them, but not these.
        self.ports: dict[int, int] = {}
        self.nothing_at: set[int] = set()
        self.reads = 0
        self._address = 0
        if machine == "pc":
            self.put(0, 0, FakeFunction(0x8086, 0x1237, 0x060000, pin=0))
            self.put(1, 0, FakeFunction(0x8086, 0x7000, 0x060100, pin=0))
        elif machine == "q35":
            self.put(0, 0, FakeFunction(0x8086, 0x29C0, 0x060000, pin=0))

    def put(self, slot: int, number: int, function: FakeFunction) -> FakeFunction:
        """Plug a function in."""
        self.functions[0, slot, number] = function
        return function

    def put_bridge(
        self, slot: int, *, port_type: int | None = 4, power_control: bool = True
    ) -> FakeBus:
        """Plug a bridge in, a PCIe port unless told; return the bus behind it."""
        bridge = FakeFunction(0x1B36, 0x000C, 0x060400, header=1)
        if port_type is not None:
            flags, slot_flags = 1 << 8 | port_type << 4, 2 if power_control else 0
            pcie = struct.pack("<BBHIHHIHHI", 0x10, 0, flags, 0, 0, 0, 0, 0, 0, slot_flags)
            bridge.capability(0x54, pcie + bytes(8), first=True)
            bridge.write(0x54 + 0x18, 2, 0x7C0)
        self.put(slot, 0, bridge)
        inside = self.behind[0, slot, 0] = FakeBus(machine="")
        return inside

    def pull(self, slot: int, number: int = 0) -> None:
        """Unplug a function."""
        del self.functions[0, slot, number]

    def find(self, bus: int, slot: int, number: int) -> FakeFunction | None:
        """Return the function that a configuration access reaches."""
        if bus == 0:
            return self.functions.get((0, slot, number))
        for place, inside in self.behind.items():
            bridge = self.functions[place]
            secondary, subordinate = bridge.data[0x19], bridge.data[0x1A]
            if secondary == bus:
                return inside.find(0, slot, number)
            if secondary < bus <= subordinate:
                return inside.find(bus, slot, number)
        return None

    def _in(self, port: int, width: int) -> int:
        self.reads += 1
        if not 0xCFC <= port <= 0xCFF:
            return self.ports.get(port, (1 << 8 * width) - 1)
        function, offset = self._selected(port)
        return function.read(offset, width) if function else (1 << 8 * width) - 1

    def _out(self, port: int, width: int, value: int) -> None:
        if port == 0xCF8:
            self._address = value
        elif 0xCFC <= port <= 0xCFF:
            function, offset = self._selected(port)
            if function:
                function.write(offset, width, value)
        elif port not in self.nothing_at:
            self.ports[port] = value

    def _selected(self, port: int) -> tuple[FakeFunction | None, int]:
        assert self._address & 1 << 31
        a = self._address
        function = self.find(a >> 16 & 0xFF, a >> 11 & 0x1F, a >> 8 & 7)
        return function, (a & 0xFC) + (port & 3)

    def indexed_in(self, selector: int, index: int, port: int, width: int) -> int:
        self._out(selector, 4, index)
        return self._in(port, width)

    def indexed_out(self, selector: int, index: int, port: int, width: int, value: int) -> None:
        self._out(selector, 4, index)
        self._out(port, width, value)


def virtio_capability(
    structure: int, bar: int, offset: int, length: int, *, following: int = 0, size: int = 16
) -> bytes:
    """A virtio structure capability; notify ones have multiplier 4."""
    body = struct.pack("<BBBBBBHII", 9, following, size, structure, bar, 0, 0, offset, length)
    return body + (struct.pack("<I", 4) if structure == 2 else b"")


def memory32(size: int) -> tuple[int, int]:
    """The register of a 32-bit BAR: writable bits and fixed bits."""
    return -size & ONES, 0


def memory64(size: int) -> list[tuple[int, int]]:
    """Both registers of a 64-bit prefetchable BAR."""
    mask = -size & (1 << 64) - 1
    return [(mask & 0xFFFFFFF0, 0xC), (mask >> 32, 0)]


def virtio_net(*, transitional: bool = False) -> FakeFunction:
    """A virtio-net device laid out as QEMU does."""
    low, high = memory64(0x4000)
    bars = {1: memory32(0x1000), 4: low, 5: high}
    if transitional:
        bars[0] = (0xFFE0, 1)
    function = FakeFunction(
        device=0x1000 if transitional else 0x1041,
        subsystem=1 if transitional else 0x1100,
        bars=bars,
    )
    function.capability(0x98, struct.pack("<BBHII", 0x11, 0x84, 2, 1, 0x801), first=True)
    places = [(0x84, 5, 0x70, 0), (0x70, 2, 0x60, 0x3000), (0x60, 4, 0x50, 0x2000)]
    for place, structure, following, offset in places:
        size = 20 if structure in (2, 5) else 16
        body = virtio_capability(structure, 4, offset, 0x1000, following=following, size=size)
        function.capability(place, body)
    function.capability(0x50, virtio_capability(3, 4, 0x1000, 0x1000, following=0x40))
    function.capability(0x40, virtio_capability(1, 4, 0, 0x1000))
    return function


def ivshmem(size: int = 1 << 24) -> FakeFunction:
    """An ivshmem device with a doorbell."""
    low, high = memory64(size)
    bars = {0: memory32(0x100), 1: memory32(0x1000), 2: low, 3: high}
    return FakeFunction(device=0x1110, class_code=0x050000, bars=bars)
