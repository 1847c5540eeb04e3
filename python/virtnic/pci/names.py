"""Names of the devices that a virtnic QEMU usually has on its bus."""

from __future__ import annotations

__all__ = ["capability_name", "class_name", "device_name", "vendor_name", "virtio_structure_name"]

_VENDORS = {
    0x1022: "AMD",
    0x10EC: "Realtek",
    0x1234: "QEMU (Bochs)",
    0x1AF4: "Red Hat (virtio)",
    0x1B36: "Red Hat (QEMU)",
    0x8086: "Intel",
}

_DEVICES = {
    (0x1234, 0x1111): "standard VGA",
    (0x1AF4, 0x1110): "ivshmem shared memory",
    (0x1B36, 0x0001): "PCI-PCI bridge",
    (0x1B36, 0x000B): "PCIe expander bridge",
    (0x1B36, 0x000C): "PCIe root port",
    (0x1B36, 0x000E): "PCIe-PCI bridge",
    (0x8086, 0x100E): "82540EM Ethernet (e1000)",
    (0x8086, 0x10D3): "82574L Ethernet (e1000e)",
    (0x8086, 0x1237): "440FX host bridge",
    (0x8086, 0x2918): "ICH9 LPC bridge",
    (0x8086, 0x2922): "ICH9 SATA (AHCI)",
    (0x8086, 0x2930): "ICH9 SMBus",
    (0x8086, 0x29C0): "Q35 host bridge",
    (0x8086, 0x7000): "PIIX3 ISA bridge",
    (0x8086, 0x7010): "PIIX3 IDE",
    (0x8086, 0x7020): "PIIX3 USB",
    (0x8086, 0x7110): "PIIX4 ISA bridge",
    (0x8086, 0x7113): "PIIX4 power management",
}

# VIRTIO 1.3, section 5: a modern device is 0x1040 plus this; a transitional one has this
# as its subsystem.
_VIRTIO_TYPES = {
    1: "network",
    2: "block",
    3: "console",
    4: "entropy",
    5: "balloon",
    8: "SCSI",
    9: "9P",
    16: "GPU",
    18: "input",
    19: "socket",
    20: "crypto",
    26: "file system",
}

_CLASSES = {
    0x0101: "IDE controller",
    0x0106: "SATA controller",
    0x0200: "Ethernet controller",
    0x0300: "VGA controller",
    0x0500: "memory controller",
    0x0600: "host bridge",
    0x0601: "ISA bridge",
    0x0604: "PCI bridge",
    0x0680: "other bridge",
    0x0C03: "USB controller",
    0x0C05: "SMBus controller",
}

_CAPABILITIES = {
    0x01: "power management",
    0x03: "vital product data",
    0x04: "slot identification",
    0x05: "MSI",
    0x07: "PCI-X",
    0x08: "HyperTransport",
    0x09: "vendor specific",
    0x0C: "hotplug (SHPC)",
    0x0D: "subsystem",
    0x10: "PCI Express",
    0x11: "MSI-X",
    0x12: "SATA",
    0x13: "advanced features",
    0x14: "enhanced allocation",
}

_VIRTIO_STRUCTURES = {
    1: "common",
    2: "notify",
    3: "ISR",
    4: "device",
    5: "PCI configuration access",
    8: "shared memory",
    9: "vendor",
}


def vendor_name(vendor: int) -> str:
    """Return the vendor's name."""
    return _VENDORS.get(vendor, f"vendor {vendor:04x}")


def device_name(vendor: int, device: int, subsystem: int) -> str:
    """Return the device's name, for a virtio device with its type and interface."""
    if vendor == 0x1AF4 and 0x1000 <= device <= 0x107F:
        transitional = device < 0x1040
        number = subsystem if transitional else device - 0x1040
        kind = _VIRTIO_TYPES.get(number, f"device of type {number}")
        return f"virtio {kind} ({'transitional' if transitional else 'modern'})"
    return _DEVICES.get((vendor, device), f"device {device:04x}")


def class_name(class_code: int) -> str:
    """Return the name of a 24-bit class code."""
    return _CLASSES.get(class_code >> 8, f"class {class_code >> 8:04x}")


def capability_name(identity: int) -> str:
    """Return the name of a capability's identity byte."""
    return _CAPABILITIES.get(identity, f"capability {identity:02x}")


def virtio_structure_name(kind: int) -> str:
    """Return the name of a virtio structure type (VIRTIO 1.3, section 4.1.4)."""
    return _VIRTIO_STRUCTURES.get(kind, f"structure of type {kind}")
