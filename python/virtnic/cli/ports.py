"""A command's options for one port."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import argparse

    import virtnic

__all__ = ["PortArguments"]


@dataclass(frozen=True, slots=True)
class PortArguments:
    """Options for one port; None if not given."""

    netdev: str
    mac: str | None = None
    interrupts: str | None = None
    queue_size: int | None = None
    ring: str | None = None
    notify: str | None = None
    queues: int | None = None

    def otherwise(self, arguments: argparse.Namespace) -> PortArguments:
        """Fill in what the options of :func:`virtnic.cli.options.add_device` say for every port."""
        names = ("interrupts", "queue_size", "ring", "notify", "queues")
        missing = {name: getattr(arguments, name) for name in names if getattr(self, name) is None}
        return replace(self, **missing)

    def attach(self, qemu: virtnic.Qemu) -> virtnic.Port:
        """Plug in and start the NIC."""
        options: dict[str, Any] = {
            "mac": self.mac,
            "interrupts": self.interrupts,
            "queue_size": self.queue_size or 0,
            "ring": self.ring,
            "notify": self.notify,
            "queues": self.queues,
        }
        return qemu.attach(self.netdev, **options)
