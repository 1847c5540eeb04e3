"""One device, from when QEMU is told of it until it is unplugged."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from virtnic.pci import speaks_modern, virtio_legacy, virtio_registers
from virtnic.teardown import Teardown

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from virtnic._native import EventFd, NetPort, QTest
    from virtnic.nic.backend import Backend
    from virtnic.nic.options import Interrupts
    from virtnic.pci import Function
    from virtnic.qemu import Machine, NicHandle, Spec

__all__ = ["Attachment"]


@dataclass(slots=True, eq=False)
class Attachment:
    """What a port has of its QEMU, and what it takes to plug it in again."""

    machine: Machine
    qtest: QTest
    interrupts: Interrupts
    #: Whether it is being undone: what an interruption left of it is undone by the next call.
    leaving: bool = False
    #: The thread that attaches it.
    thread: int = field(default_factory=threading.get_ident)
    #: The device, as QEMU knows it, from when QEMU is told of it.
    plugged: NicHandle | None = None
    #: The vhost-user backend, where there is an interposer in front of it.
    backend: Backend | None = None
    #: Waits for whoever plugs it in anew in a thread, and lets nobody begin; before QEMU is closed.
    settle: Callable[[], object] = lambda: None
    #: The device on the PCI bus, once it was found there.
    function: Function | None = None
    #: The port from when it was made, but not kept alive.
    made: Callable[[], NetPort | None] = lambda: None
    #: Undoes, last first, all that attaching did.
    undo: Teardown = field(default_factory=Teardown)
    # What it takes to attach it again, to another QEMU.
    spec: Spec | None = None
    properties: Mapping[str, Any] = field(default_factory=dict)
    legacy: bool = False
    #: What the device writes to the ivshmem doorbell for each MSI-X vector.
    messages: list[int] = field(default_factory=list)
    #: The ivshmem vectors that are reserved for it.
    vectors: list[int] = field(default_factory=list)
    #: What the interrupt line signals.
    line: EventFd | None = None
    #: Whether its peer was there when that was last told; None where nobody can know.
    peer_known: bool | None = None
    #: Whether it is attached again to the QEMU that takes the place of one that died.
    returns: bool = False

    def plugging(self, handle: NicHandle) -> None:
        """Remember the device that QEMU is about to be told of."""
        self.plugged = handle

    @property
    def handle(self) -> NicHandle:
        """The device, as QEMU knows it; for one that was plugged in."""
        assert self.plugged is not None
        return self.plugged

    @property
    def is_lost(self) -> bool:
        """Whether its QEMU is gone, with the device: there may be another QEMU by now."""
        if self.machine.closed or self.qtest.death is not None:
            return True
        return self.qtest is not self.machine.qtest

    @property
    def by_legacy(self) -> bool:
        """Whether the device is driven by its legacy interface."""
        assert self.function is not None
        return self.legacy or not speaks_modern(self.function)

    def registers(self) -> dict[str, Any]:
        """Return where a port finds the device's registers: its arguments."""
        assert self.function is not None
        if self.by_legacy:
            return {"legacy_io": (*virtio_legacy(self.function), self.interrupts == "msix")}
        return {"registers": tuple(virtio_registers(self.function))}
