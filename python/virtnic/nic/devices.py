"""The virtio-net devices of one QEMU: plugging, finding on the bus, unplugging."""

from __future__ import annotations

import functools
import logging
from contextlib import ExitStack
from typing import TYPE_CHECKING

from virtnic._native import PluggingLock, PortClosed, QemuDied, QemuError
from virtnic.nic.interrupts import ConfigVector, InterruptRouting
from virtnic.pci import PciBus, find_ivshmems, find_virtio_nets
from virtnic.qemu.machine import present
from virtnic.qemu.netdevs import not_started

if TYPE_CHECKING:
    from virtnic._native import NetPort, PortDriver
    from virtnic.nic.attachment import Attachment
    from virtnic.pci import Function
    from virtnic.qemu import Machine
    from virtnic.teardown import Latch

__all__ = ["Devices"]

_log = logging.getLogger(__name__)

#: BAR of an ivshmem device that is the shared memory (QEMU: docs/specs/ivshmem-spec).
_SHARED_MEMORY_BAR = 2
#: Seconds between checks whether a thread that waits is to stop.
_LOOK = 0.05
#: Seconds for the interposer to notice that QEMU is gone.
PARTING = 2.0


class Devices:
    """The PCI bus of one QEMU and the interrupts of its devices."""

    def __init__(self, machine: Machine) -> None:
        self.machine = machine
        #: Attachments of attached, arriving and leaving ports.
        self.attachments: list[Attachment] = []
        #: Held while a device is plugged, unplugged or replaced, which waits for QEMU.
        self.lock = PluggingLock()
        self._routing: InterruptRouting | None = None
        #: The vector of configuration changes, kept from one QEMU to the next.
        self.config = ConfigVector()
        #: Closed ports whose devices could not be removed, and may still write to their buffers.
        self._lingering: list[PortDriver] = []

    def take(self, stop: Latch) -> bool:
        """Take the lock, for a thread that may be told to stop; whether it was taken.

        Who tells it waits for its end, perhaps in a signal handler that has interrupted the lock's
        holder.
        """
        while not self.lock.acquire(timeout=_LOOK):
            if stop.is_set():
                return False
        return True

    @property
    def attached(self) -> list[tuple[Attachment, NetPort]]:
        """The attached ports and their devices, in order of attachment."""
        # Without the lock, which is held while waiting for QEMU: a link callback may call this in
        # the thread that handles QEMU's replies.
        there = list(self.attachments)
        return [(a, a.port) for a in there if a.port is not None and not a.leaving]

    def take_bus(self) -> None:
        """Scan the bus of a QEMU that was just started, and map the shared memory."""
        machine = self.machine
        self.bus = PciBus(machine.qtest, machine.machine)
        self.bus.scan()
        if machine.shared is not None:
            machine.plug_memory(self.eject_slot)
            self.bus.rescan()
        found = find_ivshmems(self.bus.functions)
        if len(found) != 1:
            raise QemuError(
                f"QEMU has {len(found)} ivshmem devices instead of one; "
                "without it there is no shared memory"
            )
        placed = self.bus.place(found[0], {_SHARED_MEMORY_BAR: machine.memory.iova})
        self.ivshmem = self.bus.enable(placed)
        self._routing = InterruptRouting(
            self.bus, machine.qtest, self.ivshmem, machine.server, machine.timeout, self.config
        )

    def forget(self) -> None:
        """Drop everything that belongs to a closed QEMU."""
        self._routing = None
        self.config.give()
        while self._lingering and not self._runs:
            self._lingering[-1].device_gone()
            self._lingering.pop()

    @property
    def _runs(self) -> bool:
        """Whether QEMU still runs."""
        try:
            return self.machine.process.alive
        except QemuError:
            return False  # it is closed

    @property
    def routing(self) -> InterruptRouting:
        """The interrupts. Raises QemuError once QEMU is closed."""
        return present(self._routing)

    def plug(self, attachment: Attachment) -> Function:
        """Make QEMU create the device, find it on the bus and enable it.

        On an interruption, ``attachment`` has what :meth:`unplug` needs. Raises as
        :meth:`virtnic.Qemu.attach`.
        """
        spec, backend = present(attachment.spec), attachment.backend
        made = () if backend is None else (backend.expect_netdev(),)
        self.machine.add_nic(spec, attachment.properties, attachment.plugging, *made)
        new = find_virtio_nets(self.bus.rescan())
        if len(new) != 1:
            raise QemuError(
                f"QEMU accepted the device, but {len(new)} new virtio-net devices are on the bus"
            )
        (attachment.function,) = new  # from here on it can be ejected, whatever fails
        attachment.function = self.bus.enable(self.bus.place(attachment.function))
        return attachment.function

    def replug(self, attachment: Attachment) -> None:
        """Plug in another device in place of one that is gone, and continue with it.

        The caller holds the lock. Raises as :meth:`virtnic.Qemu.attach`; the device is gone in that
        case.
        """
        qtest = self.machine.qtest
        with ExitStack() as undo:
            attachment.function = None
            if attachment.backend is not None:
                attachment.backend.wait(PARTING)
            attachment.qtest, attachment.plugged = qtest, None
            undo.callback(self.unplug, attachment)
            self.routing.lead(attachment, self.plug(attachment))
            before = self.machine.process.stderr_position()
            attachment.driver.reattach(qtest, **attachment.registers())
            self.check_started(attachment, before)
            undo.pop_all()

    def unplug(self, attachment: Attachment) -> None:
        """Remove the device; a dead QEMU is not an error."""
        driver = attachment.started
        if attachment.plugged is None or attachment.is_lost:
            # The same place on another QEMU's bus belongs to another device.
            self._gone(driver, not self._runs or attachment.qtest is not self.machine.qtest)
            return
        try:
            self.remove(attachment)
            self._gone(driver, True)
        except (QemuError, TimeoutError, OSError, PortClosed) as error:
            gone = self.machine.closed or isinstance(error, (QemuDied, PortClosed))
            _log.log(
                logging.DEBUG if gone else logging.WARNING,
                "%s could not be unplugged and keeps its slot: %s",
                attachment.handle.id,
                str(error),  # the error itself would keep references in a kept log record
            )
            self._gone(driver, False)

    def _gone(self, driver: PortDriver | None, surely: bool) -> None:
        """Return a port's buffers, now or once QEMU is gone."""
        if driver is None:
            return
        if surely:
            driver.device_gone()
        elif driver.withholds:
            self._lingering.append(driver)

    def remove(self, attachment: Attachment) -> None:
        """Remove the device. Raises as :meth:`virtnic.qemu.Machine.remove_nic`."""
        self.machine.remove_nic(attachment.handle, functools.partial(self._eject, attachment))

    def _eject(self, attachment: Attachment) -> bool:
        """Let go of a device, of one too that was not found on the bus yet; whether it is gone."""
        if attachment.function is not None:
            return self.bus.eject(attachment.function)
        self.bus.rescan()
        self.eject_slot(attachment.handle.slot)
        return False

    def eject_slot(self, slot: int) -> None:
        """Release whatever is in a slot of the root bus, or behind the root port there."""
        there = self._in_slot(slot)
        if not there:
            # It was plugged in, but the search for it was interrupted.
            self.bus.rescan()
            there = self._in_slot(slot)
        for function in there:
            self.bus.eject(function)

    def _in_slot(self, slot: int) -> list[Function]:
        def top(function: Function) -> tuple[int, int, int]:
            return function.path[0] if function.path else function.bdf

        return [
            function
            for function in self.bus.functions
            if top(function)[:2] == (0, slot) and not function.is_bridge
        ]

    def check_started(self, attachment: Attachment, before: int) -> None:
        """Raise QemuError if QEMU has reported since then that a started device does not run.

        The driver does not notice: the device reports that it is ready. A backend with an
        interposer is monitored by that.
        """
        said = self.machine.process.stderr_since(before)
        if attachment.backend is None and (why := not_started(attachment.handle.spec.kind, said)):
            raise QemuError(why)
