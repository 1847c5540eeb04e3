"""BARs: their sizes and their addresses.

Sizes come from the device and are not trusted: an invalid BAR is left out and described as a
problem.
"""

from __future__ import annotations

from bisect import insort
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING

from virtnic._native import QemuError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from virtnic.pci.config import Bdf, ConfigSpace

__all__ = ["AddressSpace", "Bar", "BarKind", "Range", "io_space", "memory_space", "size_bars"]

BAR0 = 0x10
_MIB = 1 << 20
_GIB = 1 << 30
_ONES = 0xFFFFFFFF


class BarKind(Enum):
    """Which address space a BAR is in, and how wide its address is."""

    IO = "io"
    MEMORY32 = "memory32"
    MEMORY64 = "memory64"


@dataclass(frozen=True, slots=True)
class Bar:
    """A base address register; ``address`` is None until it is placed."""

    index: int
    kind: BarKind
    size: int
    prefetchable: bool = False
    address: int | None = None

    @property
    def register(self) -> int:
        """Its offset in configuration space."""
        return BAR0 + 4 * self.index

    def write(self, config: ConfigSpace, bdf: Bdf, address: int) -> None:
        """Put an address into the register, or into both of a 64-bit BAR."""
        config.write32(bdf, self.register, address & _ONES)
        if self.kind is BarKind.MEMORY64:
            config.write32(bdf, self.register + 4, address >> 32)

    def read(self, config: ConfigSpace, bdf: Bdf) -> int:
        """Return the address that the register holds."""
        low = config.read32(bdf, self.register)
        if self.kind is BarKind.IO:
            return low & ~0x3
        high = config.read32(bdf, self.register + 4) if self.kind is BarKind.MEMORY64 else 0
        return high << 32 | low & ~0xF


def size_bars(config: ConfigSpace, bdf: Bdf, count: int) -> tuple[tuple[Bar, ...], tuple[str, ...]]:
    """Return the BARs of a disabled function, and what is wrong with them.

    Writes all ones and checks which bits stick (PCI Local Bus 3.0, section 6.2.5.1); the BARs hold
    0 afterwards.
    """
    for index in range(count):
        config.write32(bdf, BAR0 + 4 * index, _ONES)
    masks = [config.read32(bdf, BAR0 + 4 * index) for index in range(count)]
    for index in range(count):
        config.write32(bdf, BAR0 + 4 * index, 0)
    if masks and all(mask == _ONES for mask in masks):
        return (), ("all BARs read as ones: the device does not respond",)

    bars: list[Bar] = []
    problems: list[str] = []
    index = 0
    while index < count:
        mask = masks[index]
        wide = mask & 1 == 0 and mask >> 1 & 3 == 2
        if wide and index + 1 == count:
            problems.append(f"BAR {index} is 64 bits wide, but is the last one")
        elif mask:
            bar = _decode(index, mask, masks[index + 1] if wide else _ONES)
            if isinstance(bar, Bar):
                bars.append(bar)
            else:
                problems.append(f"BAR {index} {bar}")
        index += 2 if wide else 1
    return tuple(bars), tuple(problems)


def _decode(index: int, mask: int, upper: int) -> Bar | str:
    """Return the BAR whose registers keep these bits, or what is wrong with them."""
    if mask & 1:
        # The upper half of an I/O BAR need not exist: a PC has 16-bit ports.
        kind, size = BarKind.IO, -(mask & 0xFFFC | 0xFFFF0000) & _ONES
    elif mask >> 1 & 3 == 2:
        kind, size = BarKind.MEMORY64, -(upper << 32 | mask & ~0xF) & (1 << 64) - 1
    elif mask >> 1 & 3 == 0:
        kind, size = BarKind.MEMORY32, -(mask & ~0xF) & _ONES
    else:
        return f"is of the reserved memory type {mask >> 1 & 3}"
    if size == 0 or size & size - 1:
        return f"has the size {size:#x}, which is not a power of two"
    return Bar(index, kind, size, prefetchable=kind is not BarKind.IO and bool(mask & 8))


@dataclass(frozen=True, slots=True, order=True)
class Range:
    """Addresses ``start`` to ``start + size - 1`` and their owner."""

    start: int
    size: int
    owner: str

    @property
    def end(self) -> int:
        """The first address after it."""
        return self.start + self.size

    def overlaps(self, other: Range) -> bool:
        """Whether the two share an address."""
        return self.start < other.end and other.start < self.end

    def contains(self, other: Range) -> bool:
        """Whether the other lies inside this one."""
        return self.start <= other.start and other.end <= self.end

    def __str__(self) -> str:
        return f"{self.owner} ({self.start:#x} to {self.end - 1:#x})"


class AddressSpace:
    """Hands out ranges that never overlap.

    ``bounds`` is everything that may be claimed; ``zones`` is where :meth:`allocate` looks, in
    order (by default everywhere).
    """

    def __init__(
        self, bounds: Range, zones: Iterable[Range] = (), reserved: Iterable[Range] = ()
    ) -> None:
        self.bounds = bounds
        self._zones = tuple(zones) or (bounds,)
        self._reserved = tuple(sorted(reserved))
        self._taken: list[Range] = []

    @property
    def taken(self) -> tuple[Range, ...]:
        """The claimed and allocated ranges, by address."""
        return tuple(self._taken)

    def claim(self, start: int, size: int, owner: str) -> Range:
        """Claim exactly this range. Raises ValueError naming what it overlaps."""
        wanted = Range(start, size, owner)
        if size <= 0:
            raise ValueError(f"{owner} has the size {size}")
        if not self.bounds.contains(wanted):
            raise ValueError(f"{wanted} does not lie inside {self.bounds}")
        for other in (*self._taken, *self._reserved):
            if wanted.overlaps(other):
                raise ValueError(f"{wanted} overlaps {other}; choose another address")
        insort(self._taken, wanted)
        return wanted

    def allocate(
        self, size: int, owner: str, *, alignment: int | None = None, below: int = 1 << 64
    ) -> Range:
        """Take the first free range that is aligned (by default to its size).

        Raises QemuError when there is none.
        """
        alignment = alignment or size
        for zone in self._zones:
            start = -(-zone.start // alignment) * alignment
            for other in sorted((*self._taken, *self._reserved)):
                if start < other.end and other.start < start + size:
                    start = -(-other.end // alignment) * alignment
            if start + size <= min(zone.end, below):
                return self.claim(start, size, owner)
        raise QemuError(
            f"no room for the {size:#x} bytes of {owner} in {self.bounds.owner}: "
            f"{len(self._taken)} ranges of {sum(r.size for r in self._taken):#x} bytes are in use"
        )

    def free(self, taken: Range) -> None:
        """Give a range back."""
        self._taken.remove(taken)


def memory_space(ram: int, reserved: Iterable[Range] = ()) -> AddressSpace:
    """Return the memory address space of a PC with ``ram`` bytes of RAM.

    BARs go to the hole below 4 GiB while there is room: no host-physical or virtual address of the
    packet memory lies there, so memory placed at its ``pa`` or ``va`` does not collide with them.
    """
    below_4g = min(ram, 0xE000_0000)
    fixed = [
        Range(0, max(below_4g, _MIB), "RAM and the memory of ISA devices"),
        Range(0xFEC0_0000, 0x140_0000, "the IO-APIC, HPET, local APICs and firmware"),
    ]
    if ram > 2 * _GIB:  # where QEMU splits depends on the machine; no split is lower
        fixed.append(Range(4 * _GIB, ram - 2 * _GIB, "RAM above 4 GiB"))
    return AddressSpace(
        Range(0, 1 << 64, "the memory address space"),
        zones=[
            Range(0xE000_0000, 0x1EC0_0000, "the PCI hole below 4 GiB"),
            Range(1 << 44, 1 << 44, "64-bit PCI memory"),
        ],
        reserved=[*fixed, *reserved],
    )


def io_space() -> AddressSpace:
    """Return the I/O ports of a PC that its own devices leave free."""
    return AddressSpace(
        Range(0, 1 << 16, "the I/O address space"),
        zones=[Range(0xC000, 0x4000, "I/O ports"), Range(0x1000, 0x9000, "I/O ports")],
        reserved=[
            Range(0, 0x1000, "the I/O ports of the chipset"),
            Range(0xAE00, 0x200, "the ports of ACPI hotplug"),
        ],
    )
