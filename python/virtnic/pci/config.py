"""PCI configuration space through I/O ports 0xCF8 and 0xCFC (PCI Local Bus 3.0, section 3.2.2.3.2).

Writes are passed to QTest and not waited for; a read is one round trip (20 to 50 µs) and so also
waits for earlier writes. Bulk reads should therefore use 32-bit words.
"""

from __future__ import annotations

import contextlib
import math
import threading
import time
from typing import TYPE_CHECKING, NamedTuple, Protocol

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = [
    "COMMAND_INTX_DISABLE",
    "COMMAND_IO",
    "COMMAND_MASTER",
    "COMMAND_MEMORY",
    "Bdf",
    "ConfigSpace",
    "PortIO",
]

_ADDRESS_PORT = 0xCF8
_DATA_PORT = 0xCFC
_ENABLE = 1 << 31

COMMAND_IO = 1 << 0
COMMAND_MEMORY = 1 << 1
COMMAND_MASTER = 1 << 2
COMMAND_INTX_DISABLE = 1 << 10


class PortIO(Protocol):
    """Port I/O as :class:`virtnic._native.QTest` offers it: input waits, output does not."""

    def inb(self, port: int, /) -> int:
        """Read 8 bits."""

    def inw(self, port: int, /) -> int:
        """Read 16 bits."""

    def inl(self, port: int, /) -> int:
        """Read 32 bits."""

    def outb(self, port: int, value: int, /) -> None:
        """Write 8 bits."""

    def outw(self, port: int, value: int, /) -> None:
        """Write 16 bits."""

    def outl(self, port: int, value: int, /) -> None:
        """Write 32 bits."""


class Bdf(NamedTuple):
    """The address of a function: bus, device ("slot") and function number."""

    bus: int
    slot: int
    function: int

    def __str__(self) -> str:
        return f"{self.bus:02x}:{self.slot:02x}.{self.function}"


class ConfigSpace:
    """The first 256 bytes of every function's configuration space.

    Selecting a register and accessing it are two port accesses; a lock keeps each pair together.
    """

    def __init__(self, ports: PortIO) -> None:
        self._ports = ports
        self._lock = threading.RLock()
        self._deadline = math.inf

    @contextlib.contextmanager
    def within(self, seconds: float) -> Iterator[None]:
        """Make accesses raise TimeoutError after this time in total.

        QTest limits the time of each access. This limits the sum, where a peer decides the number.
        """
        self._deadline = time.monotonic() + seconds
        try:
            yield
        finally:
            self._deadline = math.inf

    def read16(self, bdf: Bdf, offset: int) -> int:
        """Read 16 bits at an even offset."""
        with self._lock:
            return self._ports.inw(self._select(bdf, offset, 2))

    def read32(self, bdf: Bdf, offset: int) -> int:
        """Read 32 bits at an offset divisible by four."""
        with self._lock:
            return self._ports.inl(self._select(bdf, offset, 4))

    def write16(self, bdf: Bdf, offset: int, value: int) -> None:
        """Write 16 bits at an even offset; does not wait."""
        _check(value, 2)
        with self._lock:
            self._ports.outw(self._select(bdf, offset, 2), value)

    def write32(self, bdf: Bdf, offset: int, value: int) -> None:
        """Write 32 bits at an offset divisible by four; does not wait."""
        _check(value, 4)
        with self._lock:
            self._ports.outl(self._select(bdf, offset, 4), value)

    def _select(self, bdf: Bdf, offset: int, width: int) -> int:
        """Select the register's word; return the data port of its first byte."""
        if time.monotonic() > self._deadline:
            raise TimeoutError(
                "QEMU answers too slowly: its PCI bus could not be scanned in reasonable time"
            )
        bus, slot, function = bdf
        if not (0 <= bus <= 0xFF and 0 <= slot <= 0x1F and 0 <= function <= 7):
            raise ValueError(f"there is no PCI address {bus:#x}:{slot:#x}.{function}")
        if not 0 <= offset <= 0x100 - width or offset % width:
            raise ValueError(
                f"{width} bytes at offset {offset:#x} are not an aligned part of the "
                "256 bytes of configuration space"
            )
        self._ports.outl(
            _ADDRESS_PORT, _ENABLE | bus << 16 | slot << 11 | function << 8 | offset & 0xFC
        )
        return _DATA_PORT + (offset & 3)


def _check(value: int, width: int) -> None:
    if not 0 <= value < 1 << 8 * width:
        raise ValueError(f"{value:#x} does not fit {8 * width} bits")
