"""`Host`: one QEMU, what is plugged into it, and what brings it back. Ports come and go."""

from __future__ import annotations

import contextlib
import functools
import logging
import threading
import weakref
from typing import TYPE_CHECKING

from virtnic._native import PortClosed, PortDriver, QemuError, VirtnicError
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

#: What says itself how a call ended, also where the Qemu was closed meanwhile.
_SPEAKING = (VirtnicError, OSError, KeyboardInterrupt, SystemExit, GeneratorExit)


class Host(Owner):
    """What is behind a :class:`virtnic.Qemu`: the machine, its devices, and what tells of them.

    Holds nothing until :meth:`start`. Whoever makes one closes it, whatever interrupted that.
    """

    def __init__(
        self, memory: Memory, recover: bool | Recovery, **options: Unpack[QemuOptions]
    ) -> None:
        policy(recover)
        if recover and options.get("connect") is not None:
            raise ValueError("a QEMU that somebody else started is not started again here: recover")
        self._recover = recover
        #: What its devices see; another QEMU can have the same.
        self.memory = memory
        #: Whether nobody else has the memory: its file goes with this QEMU.
        self.owns_memory = False
        self.machine = Machine(memory, restartable=bool(recover), **options)
        #: What is on its bus.
        self.devices = Devices(self.machine)
        #: Who wants to know of its ports.
        self.feed: Feed = Feed()
        #: What is called back: kept here, not by the threads that call it.
        self.watchers: list[object] = []
        #: What brings QEMU back, where something does.
        self.supervisor: Supervisor | None = None
        #: Whether somebody has begun to close it; an interruption may have ended that.
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
        """Plug a NIC in, start it, and make a port of it: see :meth:`virtnic.Qemu.attach`."""
        loop.check_outside()
        machine = self.machine
        if self.machine.closed:
            raise QemuError("this Qemu is closed: nothing can be attached to it any more")
        one_of("interrupts", wanted.interrupts, ("msix", "intx", "none", None))
        chosen, notify, properties = wanted.interrupts, wanted.notify, wanted.properties
        spec, pairs = with_queues(parse(wanted.netdev), wanted.queues)
        if notify == "eventfd" and spec.socket is None:
            raise ValueError(
                "only a vhost-user backend can be kicked by eventfd, and only one that is "
                "given as vhost-user,path=SOCKET"
            )
        if chosen == "msix" and machine.server is None:
            raise ValueError("MSI-X needs shmem='doorbell': nothing else carries a message to us")
        interrupts: Interrupts = chosen or ("intx" if machine.server is None else "msix")
        if interrupts == "none" and wanted.on_link is not None:
            raise ValueError("a port without interrupts cannot tell of its link; ask port.link")
        interposed = spec.socket is not None and notify != "qtest"
        if wanted.recover and self.supervisor is None and not interposed:
            raise ValueError(
                f"recover={wanted.recover!r}: nothing brings this port back; that is for QEMU to "
                "do, virtnic.Qemu(recover=True), or for a vhost-user backend given by its path"
            )
        with self.devices.lock:
            self._finish_detaching()
            attachment = Attachment(
                machine=machine,
                qtest=machine.qtest,
                memory=self.memory,
                interrupts=interrupts,
                legacy=wanted.legacy,
                returns=self.supervisor is not None and wanted.recover is not False,
            )
            self.devices.attachments.append(attachment)
            undo = attachment.undo
            try:
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
                        # A backend that hangs is let go before it is QEMU that seems to.
                        patience=machine.timeout / 2.0,
                    )
                    spec = backend.spec
                    queue_size = queue_size or backend.queue_size
                if attachment.returns:
                    # It is attached again, when the caller's descriptors may be closed.
                    copies = Copies()
                    undo.add(copies.close)
                    spec = copies.of(spec)
                device, preferences = device_request(
                    spec, backend, wanted.mac, pairs, queue_size, wanted.ring
                )
                if wanted.legacy:
                    device["disable-legacy"] = "off"  # behind a PCIe port it is on otherwise
                device.update(properties or {})
                attachment.spec, attachment.properties = spec, device
                undo.add(functools.partial(self.devices.unplug, attachment))
                function = self.devices.plug(attachment)
                vectors = attachment.handle.queue_vectors
                if interrupts == "msix" and backend is None and not vectors:
                    # This QEMU would crash (quirk vhost-user-msix-crash).
                    attachment.interrupts = interrupts = "intx"
                lacks = chosen is None and self._lacks_vectors(pairs, backend)
                if interrupts == "msix" and lacks:
                    attachment.interrupts = interrupts = "intx"  # QEMU was started for one port
                wires = self.devices.routing.connect(attachment, function, pairs)
                before = machine.process.stderr_position()
                entries = queue_size or usual_size(spec, device, attachment.by_legacy)
                preferences |= merge_features(spec, self.memory, entries) | offload_features(
                    spec, wanted.offload
                )
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
                        "%s does not offer packed rings: split ones are used, which are slower",
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
            except BaseException as error:
                attachment.leaving = True
                self._let_go(attachment)
                if machine.closed and not isinstance(error, _SPEAKING):
                    # By a signal handler in the middle of this, perhaps: it can look like anything.
                    raise QemuError("this Qemu was closed while a port was attached") from error
                raise
        if (trouble := trouble_at_open(attachment)) is not None:
            _log.warning("%s", trouble)
        return port

    def detach(self, port: NetPort) -> None:
        """Stop a port and unplug its device. Twice is fine."""
        if self.machine.is_forked:
            return
        loop.check_outside()
        with self.devices.lock:
            for attachment in self.devices.attachments:
                if attachment.port is port:
                    self._let_go(attachment)
                    return

    def close(self) -> None:
        """Stop all ports, end QEMU, and leave nothing behind: see :meth:`virtnic.Qemu.close`."""
        machine = self.machine
        if machine.is_forked:
            return
        loop.check_outside()
        self.closing = True
        if self.supervisor is not None:
            self.supervisor.close()
        attachments = self.devices.attachments
        for attachment in attachments.copy():
            attachment.settle()
        me = threading.get_ident()
        # One that another thread is about to attach fails there, and is undone there.
        going = [a for a in attachments if a.port is not None or a.leaving or a.thread == me]
        for attachment in going:
            attachment.leaving = True
            if attachment.port is not None:
                attachment.driver.refuse()
        answers = self._answers()
        if not answers:
            machine.hang_up()  # else each port would wait for it, one after another
        for attachment in going:
            if attachment.port is not None:
                attachment.stop()
            self._tell_detached(attachment)
        self.feed.end()
        if machine.shared is not None:
            if answers:
                self._leave(going)
            # What that did not undo is undone without QEMU, and before the next program may come.
            machine.hang_up()
            for attachment in going:
                self._let_go(attachment)
        machine.close()
        # With QEMU gone there is nothing left to unplug, but other things to give back.
        for attachment in going:
            self._let_go(attachment)
        self.devices.forget()
        if self.owns_memory:
            self.memory.forget_file()

    def _let_go(self, attachment: Attachment) -> None:
        """Undo all that attaching did; what an interruption leaves of it, the next call undoes."""
        attachment.leaving = True
        attachment.undo.run()
        if not attachment.undo:
            attachment.port = attachment.farewell = None  # what refers to the port it belongs to
            with contextlib.suppress(ValueError):
                self.devices.attachments.remove(attachment)

    def _finish_detaching(self) -> None:
        """Undo what interrupted calls left; the caller has the lock."""
        for attachment in self.devices.attachments.copy():
            if attachment.leaving or attachment.port is None:
                self._let_go(attachment)

    def _tell_detached(self, attachment: Attachment) -> None:
        """Tell that a port is detached, once, where it was told that it was attached."""
        if not attachment.announced:
            return
        if attachment.farewell is None:
            attachment.farewell = Event("detached", attachment.port or attachment.made())
        self.feed.tell(attachment.farewell)
        attachment.announced = False

    def _answers(self) -> bool:
        """Whether QEMU is not stopped or blocked: what is gone says so at once."""
        try:
            self.machine.execute("query-status", timeout=min(2.0, self.machine.timeout))
        except TimeoutError:
            return False
        except QemuError as error:
            _log.debug("closing %r: %s", self.machine, error)
        return True

    def _leave(self, going: list[Attachment]) -> None:
        """Take everything of ours out of a QEMU that goes on without us."""
        try:
            for attachment in going:
                attachment.undo.run()
            self.machine.unplug_memory(self.devices.eject_slot)
        except (QemuError, TimeoutError, OSError, PortClosed) as error:
            _log.debug("leaving %r: %s", self.machine, error)

    def _lacks_vectors(self, pairs: int, backend: Backend | None) -> bool:
        """Whether there are too few interrupt vectors for one more port, and will be no more."""
        server = self.machine.server
        left = None if server is None else server.left
        return left is not None and left < vectors_of(pairs, backend, self.devices.config)

    def _replacer(self, attachment: Attachment) -> Callable[[], bool]:
        """Return what begins to replace a QEMU that is gone, and is False where nobody does."""
        if self.supervisor is None or not attachment.returns:
            return lambda: False
        weak = weakref.ref(self.supervisor)

        def replaced() -> bool:
            supervisor = weak()
            return supervisor is not None and supervisor.lost()

        return replaced


def _stop(attachment: Attachment) -> None:
    """Stop a device that was started."""
    if attachment.started is not None:
        attachment.stop()


def _ended(machine: Machine) -> Callable[[], str]:
    """Return what says how QEMU ended; the port does not keep it."""
    weak = weakref.ref(machine)

    def how() -> str:
        machine = weak()
        return "QEMU is gone" if machine is None else machine.death()

    return how
