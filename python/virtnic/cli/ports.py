"""A command's options for one port."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import virtnic

if TYPE_CHECKING:
    import argparse

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
    frontend: str | None = None

    def otherwise(self, arguments: argparse.Namespace) -> PortArguments:
        """Fill in what the options of :func:`virtnic.cli.options.add_device` say for every port."""
        names = ("interrupts", "queue_size", "ring", "notify", "queues", "frontend")
        missing: dict[str, Any] = {
            name: getattr(arguments, name, None) for name in names if getattr(self, name) is None
        }
        return replace(self, **missing)

    @property
    def direct(self) -> bool:
        """Whether the port needs no QEMU."""
        return self.frontend == "direct"

    def open(self, memory: virtnic.Memory, recover: bool) -> virtnic.Port:
        """Open the NIC without QEMU. Raises ValueError for an interrupt line: QEMU has them."""
        if self.interrupts == "intx":
            raise ValueError("an interrupt line is QEMU's: leave frontend='direct' out")
        # What the backend signals is an eventfd: the equivalent of a message.
        interrupts = None if self.interrupts == "msix" else self.interrupts
        options: dict[str, Any] = {**self._options, "interrupts": interrupts}
        if recover:
            options["recover"] = True
        return virtnic.open(self.netdev, memory=memory, frontend="direct", **options)

    def attach(self, qemu: virtnic.Qemu) -> virtnic.Port:
        """Plug in and start the NIC."""
        if self.direct:
            raise ValueError("this command shows a QEMU's ports: leave frontend=direct out")
        return qemu.attach(self.netdev, **self._options)

    @property
    def _options(self) -> dict[str, Any]:
        return {
            "mac": self.mac,
            "interrupts": self.interrupts,
            "queue_size": self.queue_size or 0,
            "ring": self.ring,
            "notify": self.notify,
            "queues": self.queues,
        }
