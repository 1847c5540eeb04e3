"""Devices by identity, and the addresses of their registers."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from virtnic._native import DeviceError
from virtnic.pci.bars import BarKind
from virtnic.pci.capabilities import VirtioCapability, VirtioStructure

if TYPE_CHECKING:
    from collections.abc import Iterable

    from virtnic.pci.function import Function

__all__ = [
    "LegacyRegisters",
    "VirtioRegisters",
    "find_ivshmems",
    "find_virtio_nets",
    "is_ivshmem",
    "is_virtio_net",
    "speaks_modern",
    "virtio_legacy",
    "virtio_registers",
]

_RED_HAT = 0x1AF4
_IVSHMEM = 0x1110
_NET_TRANSITIONAL = 0x1000
_NET_MODERN = 0x1041
_NET_TYPE = 1
#: PCI device numbers from here on are not transitional (VIRTIO 1.3, 4.1.2.1).
_FIRST_MODERN = 0x1040

_LAST_BAR = 5
#: Bytes of the common structure up to and with ``queue_device`` (VIRTIO 1.3, 4.1.4.3).
_COMMON_LENGTH = 0x38
#: Bytes of the legacy registers with those of MSI-X (section 4.1.4.10).
_LEGACY_LENGTH = 24


class VirtioRegisters(NamedTuple):
    """Addresses of a virtio device's structures in memory (VIRTIO 1.3, section 4.1.4)."""

    common: int
    isr: int
    device: int
    notify: int
    #: Bytes of the device structure.
    device_length: int
    #: Bytes between the notification addresses of two queues.
    notify_multiplier: int


class LegacyRegisters(NamedTuple):
    """Address of a virtio device's legacy registers in I/O space (VIRTIO 1.3, 4.1.4.10)."""

    io_base: int
    #: Number of ports of the BAR.
    length: int


def is_virtio_net(function: Function) -> bool:
    """Whether it is a virtio network device, modern or transitional (VIRTIO 1.3, 4.1.2)."""
    if function.vendor != _RED_HAT:
        return False
    transitional = function.device == _NET_TRANSITIONAL and function.subsystem == _NET_TYPE
    return transitional or function.device == _NET_MODERN


def is_ivshmem(function: Function) -> bool:
    """Whether it is an ivshmem device, plain or with a doorbell."""
    return (function.vendor, function.device) == (_RED_HAT, _IVSHMEM)


def find_virtio_nets(functions: Iterable[Function]) -> list[Function]:
    """Return the virtio network devices."""
    return [function for function in functions if is_virtio_net(function)]


def find_ivshmems(functions: Iterable[Function]) -> list[Function]:
    """Return the ivshmem devices."""
    return [function for function in functions if is_ivshmem(function)]


def virtio_registers(function: Function) -> VirtioRegisters:
    """Return the addresses of a placed virtio device's structures.

    Raises DeviceError if one is missing, too short, misaligned or not inside its BAR, and
    ValueError if the function is not placed.
    """
    common = _find(function, VirtioStructure.COMMON, length=_COMMON_LENGTH, alignment=4)
    isr = _find(function, VirtioStructure.ISR, length=1, alignment=1)
    device = _find(function, VirtioStructure.DEVICE, length=1, alignment=4)
    notify = _find(function, VirtioStructure.NOTIFY, length=2, alignment=2)
    multiplier = notify.notify_multiplier
    if multiplier & 1 or multiplier & multiplier - 1:
        raise DeviceError(
            f"{function}: the notify multiplier {multiplier:#x} is neither 0 nor an even "
            "power of 2 (VIRTIO 1.3, section 4.1.4.4.1)"
        )
    return VirtioRegisters(
        common=_address(function, common),
        isr=_address(function, isr),
        device=_address(function, device),
        notify=_address(function, notify),
        device_length=device.length,
        notify_multiplier=multiplier,
    )


def speaks_modern(function: Function) -> bool:
    """Whether to drive a virtio device by the structures of VIRTIO 1.0 and later.

    A transitional device without such structures has only the legacy interface.
    """
    transitional = function.device < _FIRST_MODERN
    return not transitional or bool(function.capabilities_of(VirtioCapability))


def virtio_legacy(function: Function) -> LegacyRegisters:
    """Return the address of a placed virtio device's legacy registers: BAR 0, in I/O space.

    Raises DeviceError if there are none or too few, ValueError if the function is not placed.
    """
    bar = next((bar for bar in function.bars if bar.index == 0), None)
    if function.device >= _FIRST_MODERN or bar is None or bar.kind is not BarKind.IO:
        raise DeviceError(
            f"{function} has no legacy interface, which is an I/O BAR 0 of a transitional "
            "device; QEMU makes one with disable-legacy=off"
        )
    if bar.size < _LEGACY_LENGTH:
        raise DeviceError(
            f"{function}: the legacy registers have {bar.size} ports, too few for the "
            f"{_LEGACY_LENGTH} of a device with MSI-X (VIRTIO 1.3, section 4.1.4.10)"
        )
    if bar.address is None:
        raise ValueError(f"{function} is not placed; its registers have no address")
    return LegacyRegisters(bar.address, bar.size)


def _find(
    function: Function, structure: VirtioStructure, *, length: int, alignment: int
) -> VirtioCapability:
    """Return the first usable capability of a type (VIRTIO 1.3, 4.1.4.1)."""
    name = structure.name.lower()
    candidates = [
        capability
        for capability in function.capabilities_of(VirtioCapability)
        # A reserved BAR number is for later versions and must be ignored.
        if capability.structure == structure and capability.bar <= _LAST_BAR
    ]
    if not candidates:
        why = "; ".join(function.problems)
        raise DeviceError(
            f"{function} has no virtio {name} structure"
            + (
                f" ({why})"
                if why
                else "; a device with disable-modern=on has its legacy interface only"
            )
        )
    found = candidates[0]
    where = f"{function}: the virtio {name} structure"
    try:
        bar = function.bar(found.bar)
    except ValueError as missing:
        raise DeviceError(f"{where} is in a missing BAR: {missing}") from None
    if bar.kind is BarKind.IO:
        raise DeviceError(f"{where} is in I/O BAR {bar.index}, not in memory")
    if found.offset + found.length > bar.size:
        raise DeviceError(
            f"{where}, {found.length:#x} bytes at offset {found.offset:#x}, exceeds "
            f"BAR {bar.index} ({bar.size:#x})"
        )
    if found.length < length:
        raise DeviceError(f"{where} has {found.length} bytes, too few for the {length} it needs")
    if found.offset % alignment:
        raise DeviceError(f"{where} at offset {found.offset:#x} is not aligned to {alignment}")
    return found


def _address(function: Function, capability: VirtioCapability) -> int:
    address = function.bar(capability.bar).address
    if address is None:
        raise ValueError(f"{function} is not placed; its registers have no address")
    return address + capability.offset
