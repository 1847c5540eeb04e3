"""One device, from before QEMU creates it until it is unplugged."""

from __future__ import annotations

import logging
import threading
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from virtnic._native import VirtnicError
from virtnic.nic.callbacks import Callbacks
from virtnic.pci import speaks_modern, virtio_legacy, virtio_registers
from virtnic.teardown import Teardown

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from virtnic._native import EventFd, NetPort, PortDriver, QTest
    from virtnic.memory import Memory
    from virtnic.nic.backend import Backend
    from virtnic.nic.events import Event
    from virtnic.nic.options import Interrupts
    from virtnic.pci import Function
    from virtnic.qemu import Machine, NicHandle, Spec

__all__ = ["Attachment", "Driven"]

_log = logging.getLogger(__name__)


@dataclass(slots=True, eq=False, weakref_slot=True, kw_only=True)
class Driven:
    """A driven device and its callbacks."""

    memory: Memory
    interrupts: Interrupts
    #: The netdev, as given by the user.
    spec: Spec | None = None
    #: The driver of the device, once it is started.
    started: PortDriver | None = None
    #: The port once it was made, not kept alive.
    made: Callable[[], NetPort | None] = lambda: None
    #: Its callbacks.
    callbacks: Callbacks = field(default_factory=lambda: Callbacks(False))
    #: Whether it was reported that frames are dropped for their length.
    told_of_long_frames: bool = False
    #: Undoes everything in reverse order.
    undo: Teardown = field(default_factory=Teardown)

    @property
    def driver(self) -> PortDriver:
        """The driver of the device; only once it was started."""
        assert self.started is not None
        return self.started

    @property
    def name(self) -> str:
        """The device's name in messages."""
        return f"a {self.bypassing} port"

    @property
    def bypassing(self) -> str | None:
        """The netdev's type if its frames bypass QEMU, and with it the receive filters."""
        return "vhost-user" if self.spec is None else self.spec.type

    @property
    def tells_link(self) -> bool:
        """Whether the device interrupts when its link changes."""
        port = self.made()
        accepted = port is not None and any(
            feature.name == "STATUS" and feature.accepted for feature in port.features
        )
        return accepted and self.interrupts != "none"

    def add_link_callback(
        self, changed: Callable[[Any], object], ended: Callable[[], object] | None = None
    ) -> Callable[[], None]:
        """Call back when the link changes: see :meth:`virtnic.Port.on_link`.

        ``ended`` is called, at least once, when the port was stopped or its QEMU died.
        """
        if not callable(changed):
            raise TypeError(f"a link callback must accept a port, {changed!r} is not callable")
        if self.interrupts == "none":
            raise ValueError("a port without interrupts cannot report link changes; read port.link")
        if not self.tells_link:
            raise ValueError(
                "the device does not report its link: STATUS was refused "
                "(features=) or is not offered (properties={'status': False})"
            )
        return self.callbacks.add(changed, ended)

    def link_changed(self) -> None:
        """Report that the link changed, according to the device's last report."""
        self.callbacks.link_changed(self.made(), self.driver.link)

    def configuration_changed(self) -> None:
        """Read the device's configuration; called on its interrupt."""
        self._tell_of_long_frames()
        port = self.made()
        if port is None or port.away:
            return  # the link is reported when it is restored
        try:
            self.driver.restart_if_needed()
            now = self.driver.refresh_link()
        except (VirtnicError, OSError) as error:  # TimeoutError is an OSError
            _log.debug("the link was not read: %s", error)
            return
        if now != self.callbacks.link:
            self.link_changed()

    def abandon(self, why: str) -> None:
        """Give up the device; calls raise an error with this reason, and the link is down."""
        self.driver.abandon(why)
        if self.callbacks.link and not self.driver.link:
            self.link_changed()
        self.callbacks.ended()

    def stop(self) -> None:
        """Reset the device and take every buffer back; waiting calls raise PortClosed."""
        self.driver.stop()
        if self.driver.withholds:
            _log.warning(
                "the device of %s was not reset in time: it may still write to its buffers, which "
                "are kept until it is gone",
                self.name,
            )
        self._tell_of_long_frames()  # if there are no interrupts
        self.callbacks.ended()

    def _tell_of_long_frames(self) -> None:
        """Warn once that received frames were dropped for their length."""
        if self.told_of_long_frames or not self.driver.drops_long_frames:
            return
        self.told_of_long_frames = True
        _log.warning(
            "received frames of more than %d bytes, which no buffer holds, are dropped and counted "
            "(rx_bad_length): make the memory with jumbo_buffers=64 or so, or with a larger "
            "buffer_size, or lower the MTU of the sender",
            self.memory.largest_frame,
        )


@dataclass(slots=True, eq=False, kw_only=True)
class Attachment(Driven):
    """A device of a QEMU: its driver, its callbacks, and what is needed to plug it in again."""

    machine: Machine
    qtest: QTest
    #: Whether it is being detached. After an interruption the next call finishes that.
    leaving: bool = False
    #: The thread that attaches it.
    thread: int = field(default_factory=threading.get_ident)
    #: QEMU's names for the device; set just before QEMU is told to plug it in.
    plugged: NicHandle | None = None
    #: The vhost-user backend, if an interposer is in front of it.
    backend: Backend | None = None
    #: Called before QEMU is closed: waits for a replug in another thread, and prevents another.
    settle: Callable[[], object] = lambda: None
    #: The device on the PCI bus, once it was found there.
    function: Function | None = None
    #: The port, from the end of attaching until it is detached.
    port: NetPort | None = None
    #: Whether QEMU was started for this port alone, and is closed with it.
    owns_qemu: bool = False
    #: Whether the event "attached" was sent, and the event to send once when it is detached.
    announced: bool = False
    farewell: Event | None = None
    # With the netdev, what is needed to attach it again, to another QEMU.
    properties: Mapping[str, Any] = field(default_factory=dict)
    legacy: bool = False
    #: What the device writes to the ivshmem doorbell for each MSI-X vector.
    messages: list[int] = field(default_factory=list)
    #: The ivshmem vectors reserved for it.
    vectors: list[int] = field(default_factory=list)
    #: The eventfd that the interrupt line signals.
    line: EventFd | None = None
    #: Whether its peer was connected at the last report; None if that cannot be known.
    peer_known: bool | None = None
    #: Whether it is attached again to the QEMU that replaces one that died.
    returns: bool = False

    def plugging(self, handle: NicHandle) -> None:
        """Remember the device just before QEMU is told to plug it in."""
        self.plugged = handle

    @property
    def handle(self) -> NicHandle:
        """QEMU's names for the device, once it was plugged in."""
        assert self.plugged is not None
        return self.plugged

    @property
    def name(self) -> str:
        """The device's name in messages."""
        return self.handle.id

    @property
    def bypassing(self) -> str | None:
        """The netdev's type if its frames bypass QEMU, and with it the receive filters."""
        spec = self.handle.spec
        return None if spec.kind.moves_frames(spec.options) else spec.type

    @property
    def is_lost(self) -> bool:
        """Whether the device's QEMU has ended; another one may have replaced it by now."""
        if self.machine.closed or self.qtest.death is not None:
            return True
        return self.qtest is not self.machine.qtest

    @property
    def by_legacy(self) -> bool:
        """Whether the device is driven through its legacy interface."""
        assert self.function is not None
        return self.legacy or not speaks_modern(self.function)

    def registers(self) -> dict[str, Any]:
        """Return the arguments of PortDriver that say where the device's registers are."""
        assert self.function is not None
        if self.by_legacy:
            return {"legacy_io": (*virtio_legacy(self.function), self.interrupts == "msix")}
        return {"registers": tuple(virtio_registers(self.function))}
