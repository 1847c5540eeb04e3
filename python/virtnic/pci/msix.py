"""MSI-X: the table that defines each interrupt of a function as a memory write.

If the address is the doorbell register of an ivshmem device, the write signals one of our eventfds
(QEMU: docs/specs/ivshmem-spec).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from virtnic._native import DeviceError
from virtnic.pci.bars import BarKind
from virtnic.pci.capabilities import MsixCapability

if TYPE_CHECKING:
    from virtnic.pci.config import ConfigSpace
    from virtnic.pci.function import Function

__all__ = ["MmioWrite", "MsixTable", "doorbell_message"]

_ENTRY = 16
_ADDRESS_LOW, _ADDRESS_HIGH, _DATA, _VECTOR_CONTROL = 0, 4, 8, 12
_MASKED = 1
_ENABLE = 1 << 15
_DOORBELL = 12


class MmioWrite(Protocol):
    """The part of :class:`virtnic._native.QTest` that the table needs."""

    def writel(self, address: int, value: int, /) -> None:
        """Write 32 bits; does not wait."""


class MsixTable:
    """The MSI-X table of a placed and enabled function. No method waits.

    Raises ValueError if the function has no MSI-X or is not placed, DeviceError if the table is not
    inside its BAR.
    """

    def __init__(self, mmio: MmioWrite, config: ConfigSpace, function: Function) -> None:
        capability = function.capability(MsixCapability)
        if capability is None:
            raise ValueError(f"{function} has no MSI-X; QEMU's option vectors=0 disables it")
        try:
            bar = function.bar(capability.table_bar)
        except ValueError as missing:
            raise DeviceError(f"the MSI-X table is in a missing BAR: {missing}") from None
        if bar.kind is BarKind.IO:
            raise DeviceError(f"the MSI-X table of {function} is in I/O BAR {bar.index}")
        if capability.table_offset + capability.size * _ENTRY > bar.size:
            raise DeviceError(
                f"the MSI-X table of {function}, {capability.size} entries at offset "
                f"{capability.table_offset:#x}, exceeds BAR {bar.index} ({bar.size:#x})"
            )
        if bar.address is None:
            raise ValueError(f"{function} is not placed; its MSI-X table has no address")
        self._mmio = mmio
        self._config = config
        self._bdf = function.bdf
        self._control = capability.position + 2
        self._table = bar.address + capability.table_offset
        #: Entries of the table.
        self.size = capability.size

    def enable(self) -> None:
        """Send interrupts by MSI-X; the interrupt pin is no longer used."""
        self._config.write16(self._bdf, self._control, _ENABLE)

    def set(self, vector: int, address: int, data: int) -> None:
        """Make an interrupt write 32 bits of data to an address, and unmask it.

        Raises ValueError for an invalid vector, address or data.
        """
        entry = self._entry(vector)
        if not 0 <= address < 1 << 64 or address % 4:
            raise ValueError(
                f"the address of an MSI-X message must be a multiple of 4, not {address:#x}"
            )
        if not 0 <= data < 1 << 32:
            raise ValueError(f"the data of an MSI-X message must fit 32 bits, not {data:#x}")
        self._mmio.writel(entry + _VECTOR_CONTROL, _MASKED)
        self._mmio.writel(entry + _ADDRESS_LOW, address & 0xFFFFFFFF)
        self._mmio.writel(entry + _ADDRESS_HIGH, address >> 32)
        self._mmio.writel(entry + _DATA, data)
        self._mmio.writel(entry + _VECTOR_CONTROL, 0)

    def _entry(self, vector: int) -> int:
        if not 0 <= vector < self.size:
            raise ValueError(f"MSI-X vector {vector}: the table has {self.size} entries, from 0")
        return self._table + vector * _ENTRY


def doorbell_message(ivshmem: Function, value: int) -> tuple[int, int]:
    """Return address and data of the message that rings an ivshmem doorbell.

    ``value``: peer and vector, as :meth:`virtnic._native.IvshmemServer.take_vector` says.
    Raises ValueError when the ivshmem device is not placed.
    """
    address = ivshmem.bar(0).address
    if address is None:
        raise ValueError(f"{ivshmem} is not placed; its doorbell has no address")
    return address + _DOORBELL, value
