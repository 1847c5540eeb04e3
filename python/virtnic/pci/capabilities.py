"""The capability list of a function, which is not trusted.

The device may loop the list, leave the configuration space or cut it short. Invalid entries are
left out and described in a list of problems, so that the rest of the device and of the bus remains
usable.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from typing import TYPE_CHECKING

from virtnic.pci.names import capability_name, virtio_structure_name

if TYPE_CHECKING:
    from virtnic.pci.config import Bdf, ConfigSpace

__all__ = [
    "Capability",
    "MsixCapability",
    "PcieCapability",
    "VirtioCapability",
    "VirtioStructure",
    "read_capabilities",
]

_VENDOR_SPECIFIC = 0x09
_PCI_EXPRESS = 0x10
_MSIX = 0x11

_FIRST = 0x40  # the standard header is before it
_END = 0x100


class VirtioStructure(IntEnum):
    """Structure types of virtio capabilities (VIRTIO 1.3, section 4.1.4)."""

    COMMON = 1
    NOTIFY = 2
    ISR = 3
    DEVICE = 4
    PCI_ACCESS = 5
    SHARED_MEMORY = 8
    VENDOR = 9


@dataclass(frozen=True, slots=True)
class Capability:
    """Any capability: its identity and its position in configuration space."""

    identity: int
    position: int

    @property
    def name(self) -> str:
        """Its name."""
        return capability_name(self.identity)


@dataclass(frozen=True, slots=True)
class VirtioCapability(Capability):
    """A virtio structure in part of a BAR (VIRTIO 1.3, section 4.1.4)."""

    #: A :class:`VirtioStructure`, or a number without a name.
    structure: int
    bar: int
    offset: int
    length: int
    #: Distinguishes several of one type; numbers shared memory regions.
    number: int = 0
    #: Bytes between the notification addresses of two queues; notify only.
    notify_multiplier: int = 0

    @property
    def name(self) -> str:
        """Its name."""
        return f"virtio {virtio_structure_name(self.structure)}"


@dataclass(frozen=True, slots=True)
class MsixCapability(Capability):
    """MSI-X (PCI Local Bus 3.0, section 6.8.2)."""

    #: Entries of the table.
    size: int
    table_bar: int
    table_offset: int
    pending_bar: int
    pending_offset: int


@dataclass(frozen=True, slots=True)
class PcieCapability(Capability):
    """PCI Express (PCIe Base 5.0, section 7.5.3)."""

    #: 0 endpoint, 4 root port, 5 upstream and 6 downstream switch port, 7 PCIe-PCI bridge.
    port_type: int
    #: Whether the port has a slot for devices.
    has_slot: bool
    #: Whether the slot's power can be switched.
    power_control: bool = False

    @property
    def leads_to_one_device(self) -> bool:
        """Whether the bus behind it is a link, which has only device 0."""
        return self.port_type in (4, 6)


#: Lengths of capabilities that exceed the common 16 bytes.
_VIRTIO_LENGTHS = {int(VirtioStructure.NOTIFY): 20, int(VirtioStructure.SHARED_MEMORY): 24}


class _BrokenRuleError(Exception):
    pass


def read_capabilities(
    config: ConfigSpace, bdf: Bdf, pointer: int, *, virtio: bool
) -> tuple[tuple[Capability, ...], tuple[str, ...]]:
    """Walk the list from a pointer; return its capabilities and what is wrong with it.

    ``virtio``: whether vendor capabilities have VIRTIO's layout.
    """
    found: list[Capability] = []
    problems: list[str] = []
    seen: set[int] = set()
    position = pointer & 0xFC
    while position:
        if position < _FIRST:
            problems.append(f"the capability list leads into the header, to {position:#x}")
            break
        if position in seen:
            problems.append(f"the capability list loops back to {position:#x}")
            break
        seen.add(position)
        head = config.read32(bdf, position)
        if head == 0xFFFFFFFF:
            problems.append(f"the capability at {position:#x} reads as all ones")
            break
        try:
            found.append(_decode(config, bdf, position, head, virtio))
        except _BrokenRuleError as broken:
            problems.append(f"{capability_name(head & 0xFF)} at {position:#x}: {broken}")
        position = head >> 8 & 0xFC
    return tuple(found), tuple(problems)


def _decode(config: ConfigSpace, bdf: Bdf, position: int, head: int, virtio: bool) -> Capability:
    identity = head & 0xFF
    if identity == _VENDOR_SPECIFIC and virtio:
        return _decode_virtio(config, bdf, position, head)
    if identity == _MSIX:
        return _decode_msix(config, bdf, position, head)
    if identity == _PCI_EXPRESS:
        return _decode_pcie(config, bdf, position, head)
    return Capability(identity, position)


def _need(position: int, length: int) -> None:
    if position + length > _END:
        raise _BrokenRuleError(f"its {length} bytes pass the end of configuration space")


def _decode_virtio(config: ConfigSpace, bdf: Bdf, position: int, head: int) -> VirtioCapability:
    length = head >> 16 & 0xFF
    structure = head >> 24
    if structure == VirtioStructure.VENDOR:
        # Vendor data in its own layout (section 4.1.4.8).
        return VirtioCapability(_VENDOR_SPECIFIC, position, structure, 0, 0, 0)
    needed = _VIRTIO_LENGTHS.get(structure, 16)
    if length < needed:
        raise _BrokenRuleError(f"a virtio structure capability of {length} bytes, not {needed}")
    _need(position, needed)
    if structure == VirtioStructure.PCI_ACCESS:
        # Its fields are registers that the driver sets before each access.
        return VirtioCapability(_VENDOR_SPECIFIC, position, structure, 0, 0, 0)
    where = config.read32(bdf, position + 4)
    offset = config.read32(bdf, position + 8)
    size = config.read32(bdf, position + 12)
    multiplier = 0
    if structure == VirtioStructure.NOTIFY:
        multiplier = config.read32(bdf, position + 16)
    elif structure == VirtioStructure.SHARED_MEMORY:
        offset |= config.read32(bdf, position + 16) << 32
        size |= config.read32(bdf, position + 20) << 32
    return VirtioCapability(
        _VENDOR_SPECIFIC,
        position,
        structure,
        bar=where & 0xFF,
        offset=offset,
        length=size,
        number=where >> 8 & 0xFF,
        notify_multiplier=multiplier,
    )


def _decode_msix(config: ConfigSpace, bdf: Bdf, position: int, head: int) -> MsixCapability:
    _need(position, 12)
    table = config.read32(bdf, position + 4)
    pending = config.read32(bdf, position + 8)
    return MsixCapability(
        _MSIX,
        position,
        size=(head >> 16 & 0x7FF) + 1,
        table_bar=table & 7,
        table_offset=table & ~7,
        pending_bar=pending & 7,
        pending_offset=pending & ~7,
    )


def _decode_pcie(config: ConfigSpace, bdf: Bdf, position: int, head: int) -> PcieCapability:
    port_type = head >> 20 & 0xF
    has_slot = bool(head >> 24 & 1) and port_type in (4, 6)
    power_control = False
    if has_slot:
        _need(position, 0x1C)
        power_control = bool(config.read32(bdf, position + 0x14) & 1 << 1)
    return PcieCapability(_PCI_EXPRESS, position, port_type, has_slot, power_control)
