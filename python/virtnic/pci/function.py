"""One PCI function, as found by the scan."""

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
    """The buses behind a bridge: the one directly behind it, and the last one below."""

    secondary: int
    subordinate: int


@dataclass(frozen=True, slots=True)
class Function:
    """One PCI function, as last scanned or placed.

    A snapshot: :class:`virtnic.pci.PciBus` returns a new one when something changes.
    """

    bdf: Bdf
    #: The bridges above it, from the root bus down; empty on the root bus.
    path: tuple[Bdf, ...]
    vendor: int
    device: int
    #: 0 for bridges, whose header has no subsystem.
    subsystem_vendor: int
    subsystem: int
    #: Class, subclass and programming interface in 24 bits.
    class_code: int
    revision: int
    #: 0 for a device, 1 for a bridge to another PCI bus.
    header_type: int
    #: Whether functions 1 to 7 of its slot may exist; valid for function 0.
    multifunction: bool
    #: Interrupt pin: 0 for none, 1 for INTA to 4 for INTD.
    pin: int
    bars: tuple[Bar, ...]
    capabilities: tuple[Capability, ...]
    #: Violations of PCI or VIRTIO; the affected parts were left out.
    problems: tuple[str, ...] = ()
    #: The buses behind it, if it is a bridge.
    buses: BusNumbers | None = None

    @property
    def is_bridge(self) -> bool:
        """Whether it leads to another PCI bus."""
        return self.header_type == 1

    def bar(self, index: int) -> Bar:
        """Return a BAR by number. Raises ValueError if there is none."""
        for bar in self.bars:
            if bar.index == index:
                return bar
        have = ", ".join(str(bar.index) for bar in self.bars) or "none"
        raise ValueError(f"{self} has no BAR {index} (it has: {have})")

    def capability(self, kind: type[_C]) -> _C | None:
        """Return the first capability of a class, e.g. :class:`MsixCapability`."""
        return next(iter(self.capabilities_of(kind)), None)

    def capabilities_of(self, kind: type[_C]) -> list[_C]:
        """Return all capabilities of a class, in the order of the list."""
        return [found for found in self.capabilities if isinstance(found, kind)]

    def __str__(self) -> str:
        return f"PCI function {self.bdf} ({self.vendor:04x}:{self.device:04x})"
