"""What a guest's firmware and kernel would do when a device is plugged in or removed.

QEMU asks the guest to let a device go and waits; no guest runs, so we answer in its place.
Where the question is asked depends on the machine:

- ``pc``: the ACPI registers at port 0xAE00 (QEMU: docs/specs/acpi_pci_hotplug).
- ``q35`` since QEMU 6.1: the same registers at 0xCC0, for the slots of PCIe root ports.
- ``q35`` before, or with ``ICH9-LPC.acpi-pci-hotplug-with-bridge-support=off``: the slot
  control of the root port (PCIe Base 5.0, section 7.5.3.10). QEMU removes the device when
  the power of its slot goes *off*, so it has to be on first; since 7.0 a device in a slot
  without power does not even answer. A port with ``power_controller_present=off`` always
  has power, and takes the same write as the answer.
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
    ports.outl(chipset.acpi_hotplug + _SELECT, 0)
    return ports.inl(chipset.acpi_hotplug + _SELECT) == 0


def eject_acpi(ports: PortIO, chipset: Chipset, function: Function, buses: int) -> None:
    """Let a function's slot go, after QMP's ``device_del`` has asked for it.

    ``buses``: how many buses there are. QEMU numbers those that take hotplug in an order of
    its own, so the one with a request for this slot is looked for. All requests for a slot
    of this number are answered; each was asked for.

    Raises QemuError when QEMU asks for no such slot.
    """
    base = chipset.acpi_hotplug
    slot = 1 << function.bdf.slot
    answered = False
    for bus in range(buses):
        ports.outl(base + _SELECT, bus)
        if ports.inl(base + _DOWN) & slot:
            ports.outl(base + _EJECT, slot)
            answered = True
    if not answered:
        raise QemuError(
            f"QEMU does not ask for {function} to be removed; send device_del by QMP first, "
            "and see that the device is in a slot that can be hotplugged"
        )


def eject_native(config: ConfigSpace, port: Function) -> None:
    """Let go what is plugged into a PCIe port, after ``device_del`` has asked for it.

    The slot has power again afterwards, ready for the next device.

    Raises QemuError when it is no port with a slot.
    """
    pcie = port.capability(PcieCapability)
    if pcie is None or not pcie.has_slot:
        raise QemuError(f"{port} is no PCIe port with a slot; nothing below can be removed")
    config.write16(port.bdf, pcie.position + _SLOT_CONTROL, _POWER_OFF)
    config.write16(port.bdf, pcie.position + _SLOT_CONTROL, _POWER_ON)


def power_on(config: ConfigSpace, port: Function) -> None:
    """Give power to the slot of a PCIe port; nothing happens where there is none."""
    pcie = port.capability(PcieCapability)
    if pcie and pcie.power_control:
        config.write16(port.bdf, pcie.position + _SLOT_CONTROL, _POWER_ON)
