"""PCI probing over QTest: scan the bus, place BARs, find virtio-net and ivshmem.

No firmware or kernel runs in the machine, so this package does their part: bus numbers, addresses,
interrupt routing, and answers to hotplug requests. :class:`PciBus` is the entry point; each other
module holds one idea and keeps no state.
"""

from virtnic.pci.bars import AddressSpace, Bar, BarKind, Range
from virtnic.pci.bus import PciBus
from virtnic.pci.capabilities import (
    Capability,
    MsixCapability,
    PcieCapability,
    VirtioCapability,
    VirtioStructure,
)
from virtnic.pci.config import Bdf, ConfigSpace, PortIO
from virtnic.pci.function import BusNumbers, Function
from virtnic.pci.identify import (
    LegacyRegisters,
    VirtioRegisters,
    find_ivshmems,
    find_virtio_nets,
    is_ivshmem,
    is_virtio_net,
    speaks_modern,
    virtio_legacy,
    virtio_registers,
)
from virtnic.pci.msix import MsixTable, doorbell_message
from virtnic.pci.names import capability_name, class_name, device_name, vendor_name

__all__ = [  # noqa: RUF022 - by importance
    "PciBus",
    "Function",
    "Bar",
    "BarKind",
    "Bdf",
    "BusNumbers",
    "find_virtio_nets",
    "find_ivshmems",
    "is_virtio_net",
    "is_ivshmem",
    "speaks_modern",
    "virtio_registers",
    "VirtioRegisters",
    "virtio_legacy",
    "LegacyRegisters",
    "MsixTable",
    "doorbell_message",
    "Capability",
    "VirtioCapability",
    "VirtioStructure",
    "MsixCapability",
    "PcieCapability",
    "Range",
    "AddressSpace",
    "ConfigSpace",
    "PortIO",
    "vendor_name",
    "device_name",
    "class_name",
    "capability_name",
]
