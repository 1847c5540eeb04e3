"""`Host`: one QEMU with its devices and their recovery. Ports come and go."""

from __future__ import annotations

import contextlib
import functools
import logging
import threading
import weakref
from typing import TYPE_CHECKING

from virtnic._native import PortBusy, PortClosed, PortDriver, QemuError, VirtnicError
from virtnic.nic.attachment import Attachment
from virtnic.nic.backend import Backend, Backends
from virtnic.nic.callbacks import Callbacks
from virtnic.nic.devices import Devices
from virtnic.nic.events import Event, Feed
from virtnic.nic.interrupts import vectors_of
from virtnic.nic.options import (
    Interrupts,
    PortRequest,
    device_request,
    merge_features,
    offload_features,
    one_of,
    order_features,
    usual_size,
    with_queues,
)
from virtnic.nic.policy import Recovery, policy
from virtnic.nic.ready import trouble_at_open
from virtnic.nic.supervisor import Supervisor
from virtnic.nic.watch import follow_backend, follow_configuration, follow_peer, tell_link
from virtnic.qemu import Machine, loop, parse
from virtnic.qemu.descriptors import Copies
from virtnic.teardown import Owner

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Unpack

    from virtnic._native import NetPort
    from virtnic.memory import Memory
    from virtnic.nic.options import QemuOptions

__all__ = ["Host"]

_log = logging.getLogger(__name__)

#: Errors that describe how a call ended, even if the Qemu was closed meanwhile.
_SPEAKING = (VirtnicError, OSError, KeyboardInterrupt, SystemExit, GeneratorExit)


class Host(Owner):
    """Behind a :class:`virtnic.Qemu`: the machine, its devices, and their events.

    Holds nothing until :meth:`start`. The creator closes it, even after an interruption.
    """

    def __init__(
        self, memory: Memory, recover: bool | Recovery, **options: Unpack[QemuOptions]
    ) -> None:
        policy(recover)
        if recover and options.get("connect") is not None:
            raise ValueError("recover is not possible for a QEMU that was started elsewhere")
        self._recover = recover
        #: The memory that its devices see; another QEMU can share it.
        self.memory = memory
        #: Whether the memory is used by nobody else: its file is then closed with this QEMU.
        self.owns_memory = False
        self.machine = Machine(memory, restartable=bool(recover), **options)
        #: The devices on its bus.
        self.devices = Devices(self.machine)
        #: The subscribers to events of its ports.
        self.feed: Feed = Feed()
        #: The callbacks: kept here, not by the threads that call them.
        self.watchers: list[object] = []
        #: The supervisor that recovers QEMU, if any.
        self.supervisor: Supervisor | None = None
        #: Whether closing has begun; it may have been interrupted.
        self.closing = False
        self._backends = Backends()

    def start(self) -> None:
        """Start QEMU, or connect to it. Raises as :class:`virtnic.Qemu`."""
        self.machine.start()
        self.machine.on_death(self.feed.died)
        self.devices.take_bus()
        if self._recover:
            supervisor = Supervisor(self.devices, self.feed, policy(self._recover) or Recovery())
            self.supervisor = supervisor
            self.machine.on_death(supervisor.lost)

    def attach(self, make: Callable[[Attachment], NetPort], wanted: PortRequest) -> NetPort:
        """Plug in and start a NIC, and make its port: see :meth:`virtnic.Qemu.attach`."""
        loop.check_outside()
        machine = self.machine
        if self.machine.closed:
            raise QemuError("this Qemu is closed: nothing can be attached to it")
        one_of("interrupts", wanted.interrupts, ("msix", "intx", "none", None))
        chosen, notify, properties = wanted.interrupts, wanted.notify, wanted.properties
        spec, pairs = with_queues(parse(wanted.netdev), wanted.queues)
        if notify == "eventfd" and spec.socket is None:
            raise ValueError(
                "only a vhost-user backend given as vhost-user,path=SOCKET can be kicked by eventfd"
            )
        if chosen == "msix" and machine.server is None:
            raise ValueError(
                "MSI-X needs shmem='doorbell', which is the only way to receive its messages"
            )
        interrupts: Interrupts = chosen or ("intx" if machine.server is None else "msix")
        if interrupts == "none" and wanted.on_link is not None:
            raise ValueError("a port without interrupts cannot report link changes; read port.link")
        interposed = spec.socket is not None and notify != "qtest"
        if wanted.recover and self.supervisor is None and not interposed:
            raise ValueError(
                f"recover={wanted.recover!r}: this port cannot be recovered; that needs "
                "virtnic.Qemu(recover=True), or a vhost-user backend given by its path"
            )
        with self.devices.lock:
            if any(each.port is None and not each.leaving for each in self.devices.attachments):
                raise PortBusy(
                    "this thread is attaching a port already: a signal handler interrupted that; "
                    "call it afterwards"
                )
            self._finish_detaching()
            attachment = Attachment(
                machine=machine,
                qtest=machine.qtest,
                memory=self.memory,
                interrupts=interrupts,
                legacy=wanted.legacy,
                returns=self.supervisor is not None and wanted.recover is not False,
            )
            undo = attachment.undo
            try:
                self.devices.attachments.append(attachment)
                undo.add(functools.partial(self._tell_detached, attachment))
                backend, queue_size = None, wanted.queue_size
                if interposed:
                    backend = attachment.backend = Backend(
                        spec,
                        undo,
                        pairs,
                        backends=self._backends,
                        interrupts=interrupts != "none",
                        shared=machine.shared,
                        recover=wanted.recover,
                        # A hanging backend is given up before QEMU itself seems to hang.
                        reply_timeout=machine.timeout / 2.0,
                    )
                    spec = backend.spec
                    queue_size = queue_size or backend.queue_size
                if attachment.returns:
                    # For a recovery, when the caller's descriptors may be closed.
                    copies = Copies()
                    undo.add(copies.close)
                    spec = copies.of(spec)
                device, preferences = device_request(
                    spec, backend, wanted.mac, pairs, queue_size, wanted.ring
                )
                if wanted.legacy:
                    device["disable-legacy"] = "off"  # the default behind a PCIe port is on
                device.update(properties or {})
                attachment.spec, attachment.properties = spec, device
                undo.add(functools.partial(self.devices.unplug, attachment))
                function = self.devices.plug(attachment)
                vectors = attachment.handle.queue_vectors
                if interrupts == "msix" and backend is None and not vectors:
                    # This QEMU would crash otherwise (quirk vhost-user-msix-crash).
                    attachment.interrupts = interrupts = "intx"
                lacks = chosen is None and self._lacks_vectors(pairs, backend)
                if interrupts == "msix" and lacks:
                    attachment.interrupts = interrupts = (
                        "intx"  # QEMU was started for a single port
                    )
                wires = self.devices.routing.connect(attachment, function, pairs)
                before = machine.process.stderr_position()
                entries = queue_size or usual_size(spec, device, attachment.by_legacy)
                preferences |= merge_features(spec, self.memory, entries)
                preferences |= offload_features(spec, wanted.offload) | order_features(spec)
                undo.add(functools.partial(_stop, attachment))
                driver = attachment.started = PortDriver(
                    memory=self.memory,
                    qtest=machine.qtest,
                    **attachment.registers(),
                    queues=pairs,
                    queue_size=entries,
                    vectors=wires.vectors,
                    events=wires.events,
                    intx=wires.intx,
                    kicks=None if backend is None else backend.interposer,
                    features={**preferences, **(wanted.features or {})},
                    ended=_ended(machine),
                )
                attachment.callbacks = Callbacks(driver.link)
                port = make(attachment)
                attachment.made = weakref.ref(port)
                self.devices.check_started(attachment, before)
                driver.set_recoverable(attachment.returns)
                port.set_polling(wanted.spin)
                port.set_statistics(wanted.statistics)
                port.set_timestamps(wanted.timestamps)
                if wanted.ring is None and backend is not None and port.ring != "packed":
                    _log.warning(
                        "%s does not offer packed rings: using split ones, which are slower",
                        "QEMU" if backend.offers_packed_rings else "the backend",
                    )
                if wires.config is not None:
                    follow_configuration(attachment, wires.config, self._replacer(attachment))
                if wanted.on_link is not None:
                    attachment.add_link_callback(wanted.on_link)
                with self.feed.lock:
                    attachment.announced = True
                    self.feed.put("attached", port)
                    if attachment.tells_link:
                        attachment.add_link_callback(tell_link(self.feed))
                if backend is not None:
                    follow_backend(self.feed, attachment, self.devices, backend)
                follow_peer(self.feed, attachment)
                attachment.port = port
                if attachment.leaving:
                    raise QemuError("this Qemu was closed while a port was attached")
            except BaseException as error:
                attachment.leaving = True
                _stop(attachment)  # it may have been started after a signal handler has closed
                self._let_go(attachment)
                if machine.closed and not isinstance(error, _SPEAKING):
                    # Perhaps by a signal handler in the middle of this; the error can be of any
                    # kind.
                    raise QemuError("this Qemu was closed while a port was attached") from error
                raise
        if (trouble := trouble_at_open(attachment)) is not None:
            _log.warning("%s", trouble)
        return port

    def detach(self, port: NetPort) -> None:
        """Stop a port and unplug its device. Repeated calls are allowed."""
        if self.machine.is_forked:
            return
        loop.check_outside()
        for attachment in self.devices.attachments.copy():
            if attachment.port is port:
                # Without the lock: this may wait for a change of the port, which a signal handler
                # has interrupted that detaches it, too.
                attachment.stop()
        with self.devices.lock:
            for attachment in self.devices.attachments:
                if attachment.port is port:
                    self._let_go(attachment)
                    return

    def close(self) -> None:
        """Stop all ports and end QEMU: see :meth:`virtnic.Qemu.close`."""
        machine = self.machine
        if machine.is_forked:
            return
        loop.check_outside()
        self.closing = True
        for attachment, _port in self.devices.attached:
            # The threads that are waited for below do not wait for a change of a port any more.
            attachment.driver.refuse()
        if self.supervisor is not None:
            self.supervisor.close()
        attachments = self.devices.attachments
        for attachment in attachments.copy():
            attachment.settle()
        me = threading.get_ident()
        # A port that another thread is attaching fails and is undone there.
        going = [a for a in attachments if a.port is not None or a.leaving or a.thread == me]
        for attachment in going:
            attachment.leaving = True
            if attachment.port is not None:
                attachment.driver.refuse()
        answers = self._answers()
        if not answers:
            machine.hang_up()  # otherwise each port would wait for it in turn
        for attachment in going:
            if attachment.port is not None:
                attachment.stop()
            self._tell_detached(attachment)
        self.feed.end()
        if machine.shared is not None:
            if answers:
                self._leave(going)
            # What is left is undone without QEMU, and before the next program can connect.
            machine.hang_up()
            for attachment in going:
                self._let_go(attachment)
        machine.close()
        # Without QEMU there is nothing left to unplug, but there are other resources to free.
        for attachment in going:
            self._let_go(attachment)
        self.devices.forget()
        if self.owns_memory:
            self.memory.forget_file()

    def _let_go(self, attachment: Attachment) -> None:
        """Undo the attaching; what an interruption leaves is undone by the next call."""
        attachment.leaving = True
        attachment.undo.run()
        if not attachment.undo:
            attachment.port = attachment.farewell = None  # these refer to the port
            with contextlib.suppress(ValueError):
                self.devices.attachments.remove(attachment)

    def _finish_detaching(self) -> None:
        """Undo what interrupted calls left; the caller holds the lock."""
        for attachment in self.devices.attachments.copy():
            if attachment.leaving:
                self._let_go(attachment)

    def _tell_detached(self, attachment: Attachment) -> None:
        """Report that a port was detached, once, if its attachment was reported."""
        if not attachment.announced:
            return
        if attachment.farewell is None:
            attachment.farewell = Event("detached", attachment.port or attachment.made())
        self.feed.tell(attachment.farewell)
        attachment.announced = False

    def _answers(self) -> bool:
        """Whether QEMU is not stopped or blocked; a dead one counts as answering."""
        try:
            self.machine.execute("query-status", timeout=min(2.0, self.machine.timeout))
        except TimeoutError:
            return False
        except QemuError as error:
            _log.debug("closing %r: %s", self.machine, error)
        return True

    def _leave(self, going: list[Attachment]) -> None:
        """Remove everything of ours from a QEMU that continues without us."""
        try:
            for attachment in going:
                attachment.undo.run()
            self.machine.unplug_memory(self.devices.eject_slot)
        except (QemuError, TimeoutError, OSError, PortClosed) as error:
            _log.debug("leaving %r: %s", self.machine, error)

    def _lacks_vectors(self, pairs: int, backend: Backend | None) -> bool:
        """Whether there are too few interrupt vectors for another port, and no more can be made."""
        server = self.machine.server
        left = None if server is None else server.left
        return left is not None and left < vectors_of(pairs, backend, self.devices.config)

    def _replacer(self, attachment: Attachment) -> Callable[[], bool]:
        """Return a function that starts to replace a dead QEMU; it returns False if nobody does."""
        if self.supervisor is None or not attachment.returns:
            return lambda: False
        weak = weakref.ref(self.supervisor)

        def replaced() -> bool:
            supervisor = weak()
            return supervisor is not None and supervisor.lost()

        return replaced


def _stop(attachment: Attachment) -> None:
    """Stop a started device."""
    if attachment.started is not None:
        attachment.stop()


def _ended(machine: Machine) -> Callable[[], str]:
    """Return a function that says how QEMU ended, without keeping it alive."""
    weak = weakref.ref(machine)

    def how() -> str:
        machine = weak()
        return "QEMU is gone" if machine is None else machine.death()

    return how
