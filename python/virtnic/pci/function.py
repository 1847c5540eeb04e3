"""What the scan found out about one function of the bus."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from virtnic.pci.bars import Bar
    from virtnic.pci.capabilities import Capability
    from virtnic.pci.config import Bdf

__all__ = ["BusNumbers", "Function"]

_C = TypeVar("_C", bound="Capability")


@dataclass(frozen=True, slots=True)
class BusNumbers:
    """The buses behind a bridge: the one right behind it, and the last one below."""

    secondary: int
    subordinate: int


@dataclass(frozen=True, slots=True)
class Function:
    """One PCI function, as it was when it was scanned or placed last.

    It is a snapshot: :class:`virtnic.pci.PciBus` returns a new one when something changes.
    """

    bdf: Bdf
    #: The bridges above, from the root bus down; empty on the root bus itself.
    path: tuple[Bdf, ...]
    vendor: int
    device: int
    #: 0 for bridges, which have no subsystem in their header.
    subsystem_vendor: int
    subsystem: int
    #: Class, subclass and programming interface in 24 bits.
    class_code: int
    revision: int
    #: 0 for a device, 1 for a bridge to another PCI bus.
    header_type: int
    #: Whether functions 1 to 7 of its slot may be there too; told by function 0.
    multifunction: bool
    #: Interrupt pin: 0 for none, 1 for INTA to 4 for INTD.
    pin: int
    bars: tuple[Bar, ...]
    capabilities: tuple[Capability, ...]
    #: Rules of PCI or VIRTIO that it breaks; such parts were left out.
    problems: tuple[str, ...] = ()
    #: The buses behind it, where it is a bridge.
    buses: BusNumbers | None = None

    @property
    def is_bridge(self) -> bool:
        """Whether it leads to another PCI bus."""
        return self.header_type == 1

    def bar(self, index: int) -> Bar:
        """Return a BAR by its number. Raises ValueError when it has none of that number."""
        for bar in self.bars:
            if bar.index == index:
                return bar
        have = ", ".join(str(bar.index) for bar in self.bars) or "none"
        raise ValueError(f"{self} has no BAR {index} (it has: {have})")

    def capability(self, kind: type[_C]) -> _C | None:
        """Return its first capability of a class, e.g. :class:`MsixCapability`."""
        return next(iter(self.capabilities_of(kind)), None)

    def capabilities_of(self, kind: type[_C]) -> list[_C]:
        """Return all its capabilities of a class, in the order of its list."""
        return [found for found in self.capabilities if isinstance(found, kind)]

    def __str__(self) -> str:
        return f"PCI function {self.bdf} ({self.vendor:04x}:{self.device:04x})"
