"""The part of a guest's firmware and kernel in hotplug.

QEMU asks the guest to release a device and waits; no guest runs, so virtnic answers. Where the
request appears depends on the machine:

- ``pc``: the ACPI registers at port 0xAE00 (QEMU: docs/specs/acpi_pci_hotplug).
- ``q35`` since QEMU 6.1: the same registers at 0xCC0, for the slots of PCIe root ports.
- ``q35`` before, or with ``ICH9-LPC.acpi-pci-hotplug-with-bridge-support=off``: the slot control of
  the root port (PCIe Base 5.0, section 7.5.3.10). QEMU removes the device when the power of its
  slot is switched *off*, so it must be on first; since 7.0 a device in an unpowered slot does not
  even respond. A port with ``power_controller_present=off`` is always powered, and takes the same
  write as the answer.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from virtnic._native import QemuError
from virtnic.pci.capabilities import PcieCapability

if TYPE_CHECKING:
    from virtnic.pci.chipset import Chipset
    from virtnic.pci.config import ConfigSpace, PortIO
    from virtnic.pci.function import Function

__all__ = ["acpi_hotplug", "eject_acpi", "eject_native", "power_on"]

# ACPI registers, relative to the chipset's base.
_DOWN = 0x04
_EJECT = 0x08
_SELECT = 0x10

_SLOT_CONTROL = 0x18
# Attention indicator off; power indicator on and power on, or both off.
_POWER_ON = 0x00C0 | 0x0100
_POWER_OFF = 0x00C0 | 0x0300 | 0x0400


def acpi_hotplug(ports: PortIO, chipset: Chipset) -> bool:
    """Whether the machine has the ACPI hotplug registers."""
    selector = chipset.acpi_hotplug + _SELECT
    return ports.indexed_in(selector, 0, selector, 4) == 0


def eject_acpi(ports: PortIO, chipset: Chipset, function: Function, buses: int) -> None:
    """Eject the slot of a function after QMP's ``device_del`` has requested it.

    ``buses``: the number of buses. QEMU numbers the hotpluggable ones in its own order, so the one
    with a request for this slot is searched. All requests for this slot number are answered; each
    is genuine.

    Raises QemuError if there is no request for the slot.
    """
    base = chipset.acpi_hotplug
    slot = 1 << function.bdf.slot
    answered = False
    for bus in range(buses):
        if ports.indexed_in(base + _SELECT, bus, base + _DOWN, 4) & slot:
            ports.indexed_out(base + _SELECT, bus, base + _EJECT, 4, slot)
            answered = True
    if not answered:
        raise QemuError(
            f"QEMU has not requested the removal of {function}; send device_del by QMP first, "
            "and check that the device is in a hotpluggable slot"
        )


def eject_native(config: ConfigSpace, port: Function) -> None:
    """Release the device in a PCIe port after ``device_del`` has requested it.

    The slot is powered again afterwards, ready for the next device.

    Raises QemuError if it is not a port with a slot.
    """
    pcie = port.capability(PcieCapability)
    if pcie is None or not pcie.has_slot:
        raise QemuError(f"{port} is not a PCIe port with a slot; nothing behind it can be removed")
    config.write16(port.bdf, pcie.position + _SLOT_CONTROL, _POWER_OFF)
    config.write16(port.bdf, pcie.position + _SLOT_CONTROL, _POWER_ON)


def power_on(config: ConfigSpace, port: Function) -> None:
    """Power the slot of a PCIe port, if it has one."""
    pcie = port.capability(PcieCapability)
    if pcie and pcie.power_control:
        config.write16(port.bdf, pcie.position + _SLOT_CONTROL, _POWER_ON)
