"""Addresses behind bridges: each bridge forwards one window per kind of address.

A window is opened when the first BAR behind the bridge needs it (PCI-PCI bridge 1.2, sections
3.2.5.6 to 3.2.5.10), so empty slots take no addresses.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING

from virtnic.pci.bars import AddressSpace, Bar, BarKind, Range, io_space, memory_space

if TYPE_CHECKING:
    from collections.abc import Iterable

    from virtnic.pci.config import Bdf, ConfigSpace

__all__ = ["Addresses"]

_BELOW_4G = 1 << 32


class _Kind(Enum):
    IO = "I/O"
    MEMORY = "memory"
    PREFETCHABLE = "prefetchable"

    @property
    def granularity(self) -> int:
        return 1 << 12 if self is _Kind.IO else 1 << 20

    def size(self, nested: bool) -> int:
        """Return the size of a new window, with room for a device or for bridges below."""
        if self is _Kind.IO:
            return 4 << 12 if nested else 1 << 12
        return 64 << 20 if nested else 2 << 20


@dataclass(slots=True)
class _Window:
    space: AddressSpace
    taken: Range  # in the space of the bus above


class Addresses:
    """All addresses of a machine, on the root bus and behind bridges, and their owners."""

    def __init__(self, config: ConfigSpace, ram: int, reserved: Iterable[Range] = ()) -> None:
        self._config = config
        self._memory = memory_space(ram, reserved)
        self._io = io_space()
        self._windows: dict[tuple[Bdf, _Kind], _Window] = {}

    def claim(self, path: tuple[Bdf, ...], bar: Bar, address: int, owner: str) -> Range:
        """Claim an exact address for a BAR behind the bridges of ``path``.

        Raises ValueError naming what it overlaps, or the window it is outside of.
        """
        if bar.kind is not BarKind.MEMORY64 and address + bar.size > _BELOW_4G:
            raise ValueError(f"{owner} takes 32-bit addresses only, not {address:#x}")
        if address % bar.size:
            raise ValueError(
                f"{owner} must be at a multiple of its size {bar.size:#x}, not at {address:#x}"
            )
        kind = _kind_of(bar)
        if path:
            self._open_around(path, kind, Range(address, bar.size, owner))
        return self._space(path, kind).claim(address, bar.size, owner)

    def allocate(self, path: tuple[Bdf, ...], bar: Bar, owner: str) -> Range:
        """Allocate any free address for a BAR. Raises QemuError if there is none."""
        kind = _kind_of(bar)
        if path and (path[-1], kind) not in self._windows:
            granule = kind.granularity
            # Twice its size leaves room for the device's other BARs; this is the largest.
            size = max(-(-2 * bar.size // granule) * granule, kind.size(nested=False))
            self._open(path, kind, size, max(bar.size, granule))
        below = 1 << 64 if bar.kind is BarKind.MEMORY64 else _BELOW_4G
        return self._space(path, kind).allocate(bar.size, owner, below=below)

    def free(self, path: tuple[Bdf, ...], bar: Bar, taken: Range) -> None:
        """Free a BAR's addresses and close windows that are now empty."""
        kind = _kind_of(bar)
        self._space(path, kind).free(taken)
        self._close_empty(path, kind)

    def _space(self, path: tuple[Bdf, ...], kind: _Kind) -> AddressSpace:
        if path:
            return self._windows[path[-1], kind].space
        return self._io if kind is _Kind.IO else self._memory

    def _open_around(self, path: tuple[Bdf, ...], kind: _Kind, wanted: Range) -> None:
        """Open a window for exact addresses if there is none yet."""
        if (path[-1], kind) in self._windows:
            return
        if len(path) > 1:
            self._open_around(path[:-1], kind, wanted)
        granule = kind.granularity
        start = wanted.start // granule * granule
        size = -(-wanted.end // granule) * granule - start
        owner = f"the {kind.value} window of bridge {path[-1]} for {wanted.owner}"
        self._install(path, kind, self._space(path[:-1], kind).claim(start, size, owner))

    def _open(self, path: tuple[Bdf, ...], kind: _Kind, size: int, alignment: int) -> None:
        above = path[:-1]
        if above and (above[-1], kind) not in self._windows:
            self._open(above, kind, max(2 * size, kind.size(nested=True)), alignment)
        owner = f"the {kind.value} window of bridge {path[-1]}"
        below = 1 << 64 if kind is _Kind.PREFETCHABLE else _BELOW_4G
        taken = self._space(above, kind).allocate(size, owner, alignment=alignment, below=below)
        self._install(path, kind, taken)

    def _install(self, path: tuple[Bdf, ...], kind: _Kind, taken: Range) -> None:
        self._windows[path[-1], kind] = _Window(AddressSpace(taken), taken)
        self._write(path[-1], kind, taken.start, taken.end - 1)

    def _close_empty(self, path: tuple[Bdf, ...], kind: _Kind) -> None:
        while path:
            window = self._windows[path[-1], kind]
            if window.space.taken:
                return
            del self._windows[path[-1], kind]
            self._write(path[-1], kind, kind.granularity, 0)
            path = path[:-1]
            self._space(path, kind).free(window.taken)

    def _write(self, bridge: Bdf, kind: _Kind, base: int, limit: int) -> None:
        """Program a window; one whose base is above its limit is closed."""
        write16, write32 = self._config.write16, self._config.write32
        if kind is _Kind.IO:
            write16(bridge, 0x1C, base >> 8 & 0xF0 | limit & 0xF000)
            return
        low = base >> 16 & 0xFFF0 | limit & 0xFFF0_0000
        if kind is _Kind.MEMORY:
            write32(bridge, 0x20, low)
            return
        # Old and new halves must never form a window over someone else's addresses.
        write32(bridge, 0x24, 0x0000_FFF0)
        write32(bridge, 0x28, base >> 32)
        write32(bridge, 0x2C, limit >> 32)
        write32(bridge, 0x24, low)


def _kind_of(bar: Bar) -> _Kind:
    """Return which bridge window a BAR goes to."""
    if bar.kind is BarKind.IO:
        return _Kind.IO
    if bar.kind is BarKind.MEMORY64 and bar.prefetchable:
        return _Kind.PREFETCHABLE
    return _Kind.MEMORY
