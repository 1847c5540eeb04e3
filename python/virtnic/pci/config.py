"""PCI configuration space through I/O ports 0xCF8 and 0xCFC (PCI Local Bus 3.0, section 3.2.2.3.2).

Writes are passed to QTest and not waited for; a read is one round trip (20 to 50 µs) and so also
waits for earlier writes. Bulk reads should therefore use 32-bit words.
"""

from __future__ import annotations

import contextlib
import math
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
    """Port I/O as :class:`virtnic._native.QTest` offers it: input waits, output does not.

    Registers are selected first, by writing an index to a 32-bit port. No other access comes
    between the two.
    """

    def indexed_in(self, selector: int, index: int, port: int, width: int, /) -> int:
        """Select a register and read 1, 2 or 4 bytes."""

    def indexed_out(self, selector: int, index: int, port: int, width: int, value: int, /) -> None:
        """Select a register and write 1, 2 or 4 bytes."""


class Bdf(NamedTuple):
    """The address of a function: bus, device ("slot") and function number."""

    bus: int
    slot: int
    function: int

    def __str__(self) -> str:
        return f"{self.bus:02x}:{self.slot:02x}.{self.function}"


class ConfigSpace:
    """The first 256 bytes of every function's configuration space. Usable from any thread.

    It has no lock: a signal handler that runs in the middle of an access makes its own, and may
    wait for a thread that does.
    """

    def __init__(self, ports: PortIO) -> None:
        self._ports = ports
        self._deadline = math.inf

    @contextlib.contextmanager
    def within(self, seconds: float) -> Iterator[None]:
        """Make accesses raise TimeoutError after this time in total.

        QTest limits the time of each access. This limits the sum, where a peer decides the number.
        """
        before = self._deadline
        self._deadline = time.monotonic() + seconds
        try:
            yield
        finally:
            self._deadline = before

    def read16(self, bdf: Bdf, offset: int) -> int:
        """Read 16 bits at an even offset."""
        return self._read(bdf, offset, 2)

    def read32(self, bdf: Bdf, offset: int) -> int:
        """Read 32 bits at an offset divisible by four."""
        return self._read(bdf, offset, 4)

    def write16(self, bdf: Bdf, offset: int, value: int) -> None:
        """Write 16 bits at an even offset; does not wait."""
        self._write(bdf, offset, 2, value)

    def write32(self, bdf: Bdf, offset: int, value: int) -> None:
        """Write 32 bits at an offset divisible by four; does not wait."""
        self._write(bdf, offset, 4, value)

    def _read(self, bdf: Bdf, offset: int, width: int) -> int:
        index = self._index(bdf, offset, width)
        return self._ports.indexed_in(_ADDRESS_PORT, index, _DATA_PORT + (offset & 3), width)

    def _write(self, bdf: Bdf, offset: int, width: int, value: int) -> None:
        index = self._index(bdf, offset, width)
        if not 0 <= value < 1 << 8 * width:
            raise ValueError(f"{value:#x} does not fit {8 * width} bits")
        self._ports.indexed_out(_ADDRESS_PORT, index, _DATA_PORT + (offset & 3), width, value)

    def _index(self, bdf: Bdf, offset: int, width: int) -> int:
        """Return what selects the register's word."""
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
        return _ENABLE | bus << 16 | slot << 11 | function << 8 | offset & 0xFC
