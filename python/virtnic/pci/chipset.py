"""Differences between QEMU's PC machines ``pc`` (i440FX and PIIX3) and ``q35`` (ICH9)."""

from __future__ import annotations

from dataclasses import dataclass

from virtnic.pci.config import Bdf

__all__ = ["PC", "Q35", "Chipset", "chipset"]


@dataclass(frozen=True, slots=True)
class Chipset:
    """The fixed addresses of a machine."""

    machine: str
    #: Vendor and device of the host bridge, function 00:00.0.
    host_bridge: tuple[int, int]
    #: The ISA or LPC bridge; on ``pc`` its registers 0x60 to 0x63 route the interrupts.
    south_bridge: Bdf
    #: First I/O port of the ACPI hotplug registers (QEMU: docs/specs/acpi_pci_hotplug).
    acpi_hotplug: int


PC = Chipset("pc", (0x8086, 0x1237), Bdf(0, 1, 0), 0xAE00)
Q35 = Chipset("q35", (0x8086, 0x29C0), Bdf(0, 31, 0), 0x0CC0)


def chipset(machine: str) -> Chipset:
    """Return the chipset of a machine type: ``pc``, ``q35`` or a versioned name of them.

    Raises ValueError for any other machine.
    """
    name = machine.partition(",")[0]
    if name == "q35" or name.startswith("pc-q35-"):
        return Q35
    if name == "pc" or name.startswith("pc-i440fx-"):
        return PC
    raise ValueError(f"machine {machine!r} is not supported; use 'pc' or 'q35'")
