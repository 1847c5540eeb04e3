"""The IO-APIC line of a function's interrupt pin (``irq_intercept_in ioapic``).

Pins are rotated by the slot number at each bridge and on the root bus. ``pc`` routes the four
resulting links through PIIX3's PIRQ registers to ISA interrupts. ``q35`` also routes eight links,
PIRQA to PIRQH, to IO-APIC lines 16 to 23, and needs no programming; the registers of the LPC bridge
concern only the 8259.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from virtnic.pci.chipset import PC

if TYPE_CHECKING:
    from virtnic.pci.chipset import Chipset
    from virtnic.pci.config import ConfigSpace
    from virtnic.pci.function import Function

__all__ = ["route"]

_PIRQ = 0x60
#: ISA interrupts for PIRQA to PIRQD, unused in a machine without default devices.
_PIIX3_LINES = (5, 7, 10, 11)


def route(config: ConfigSpace, chipset: Chipset, function: Function) -> int:
    """Program the machine's interrupt routing; return the line for this function.

    Functions may share a line. Raises ValueError when the function has no interrupt pin.
    """
    if not function.pin:
        raise ValueError(f"{function} has no interrupt pin; use MSI-X or polling")
    pin = function.pin - 1
    slot = function.bdf.slot
    for bridge in reversed(function.path):
        pin = (pin + slot) % 4
        slot = bridge.slot
    if chipset is PC:
        config.write32(chipset.south_bridge, _PIRQ, int.from_bytes(bytes(_PIIX3_LINES), "little"))
        return _PIIX3_LINES[(pin + slot - 1) % 4]
    return 16 + _ich9_link(slot, pin)


def _ich9_link(slot: int, pin: int) -> int:
    """Return the PIRQ link of a pin on q35's root bus, as it is after reset."""
    if slot < 25:
        return 4 + (slot + pin) % 4
    # The chipset's own slots are routed by registers (Intel ICH9 datasheet, section 10.1.46,
    # D31IR to D25IR), which start as A to A, B to B ...; slot 30 was the PCI bridge.
    return 4 + pin if slot == 30 else pin
