"""`Qemu`: one QEMU whose devices are ours. Ports are attached and detached."""

from __future__ import annotations

import contextlib
import functools
import logging
import threading
import weakref
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Self, TypedDict

from virtnic._native import PortClosed, QemuError, VirtnicError
from virtnic.limits import descriptors
from virtnic.memory import Memory
from virtnic.nic.attachment import Attachment
from virtnic.nic.backend import Backend, Backends
from virtnic.nic.devices import Devices
from virtnic.nic.events import Event, Events, Feed
from virtnic.nic.interrupts import vectors_of
from virtnic.nic.options import (
    Interrupts,
    Notify,
    Ring,
    check_names,
    device_request,
    merge_features,
    offload_features,
    one_of,
    usual_size,
    with_queues,
)
from virtnic.nic.policy import Recovery, policy
from virtnic.nic.port import Host, LinkCallback, Port
from virtnic.nic.ready import trouble_at_open
from virtnic.nic.supervisor import Supervisor
from virtnic.nic.watch import follow_backend, follow_configuration, follow_peer, tell_link
from virtnic.qemu import Netdev, loop, parse
from virtnic.qemu.descriptors import Copies

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Mapping, Sequence
    from typing import Unpack

    from virtnic.pci import Function, PciBus
    from virtnic.qemu.command import Accel, MachineType, Sandbox, Shmem

__all__ = ["Qemu", "QemuOptions", "StartOptions"]

_log = logging.getLogger(__name__)

#: What says itself how a call ended, also where the Qemu was closed meanwhile.
_SPEAKING = (VirtnicError, OSError, KeyboardInterrupt, SystemExit, GeneratorExit)


@dataclass(slots=True, eq=False)
class _Attached(Attachment):
    """The device of a port, and what is told of the port."""

    #: The port, from when all is in its place until it is detached.
    port: Port | None = None
    made: Callable[[], Port | None] = lambda: None
    #: Whether it was told that it is attached; and what is told when it is detached, once.
    announced: bool = False
    farewell: Event[Port] | None = None


class StartOptions(TypedDict, total=False):
    """How QEMU is started: see :class:`virtnic.qemu.Machine`."""

    qemu: str | os.PathLike[str] | None
    accel: Accel
    machine: MachineType
    shmem: Shmem
    sandbox: Sandbox
    timeout: float
    connect: str | os.PathLike[str] | None
    extra: Sequence[str]


class QemuOptions(StartOptions, total=False):
    """What :class:`virtnic.Qemu` takes besides the memory and ``recover``."""

    directory: str | os.PathLike[str] | None


class Qemu(Host):
    """A QEMU that runs no guest: its devices are ours.

    Takes the arguments of :class:`virtnic.qemu.Machine`, and ``recover``: whether a QEMU that dies
    is started again, with all its ports (True, or a :class:`virtnic.Recovery` that says how
    often). As a context manager it closes itself and all its ports.
    """

    @descriptors()
    def __init__(
        self,
        memory: Memory | None = None,
        *,
        recover: bool | Recovery = False,
        **options: Unpack[QemuOptions],
    ) -> None:
        check_names("virtnic.Qemu()", QemuOptions.__optional_keys__, options)
        policy(recover)
        if recover and options.get("connect") is not None:
            raise ValueError("a QEMU that somebody else started is not started again here: recover")
        self._recover = recover
        self._supervisor: Supervisor | None = None
        #: Of the ports that are there, that come and that go.
        self._attachments: list[_Attached] = []
        self.devices = Devices(self)
        self.feed = Feed()
        #: What is called back: kept here, not by the threads that call it.
        self._watchers: list[object] = []
        self._backends = Backends()
        #: Whether nobody else has the memory: its file goes with this Qemu.
        self._owns_memory = memory is None
        try:
            super().__init__(
                Memory() if memory is None else memory, restartable=bool(recover), **options
            )
        except BaseException:
            if not getattr(self, "_is_over", True):
                self.close()  # it was started, and interrupted before it could be had
            raise

    def _started(self) -> None:
        self.on_death(self.feed.died)
        self.devices.take_bus()
        if self._recover:
            self._supervisor = Supervisor(self, policy(self._recover) or Recovery())
            self.on_death(self._supervisor.lost)

    @property
    def recovery(self) -> Supervisor | None:
        """What brings QEMU back, and how often it has; None without ``recover``."""
        return self._supervisor

    @classmethod
    def connect(
        cls,
        directory: str | os.PathLike[str],
        memory: Memory | None = None,
        *,
        timeout: float = 10.0,
    ) -> Self:
        """Drive a QEMU that somebody else started, in another container perhaps.

        It was started as ``virtnic qemu-args --directory`` says, and has nothing in common with us
        but that directory, in which its sockets are. Everything passes through them; closing
        takes our devices out of QEMU, which then waits for the next to connect. What a program
        before us left in it, because it was killed, is removed.

        Parameters
        ----------
        directory
            The directory as we see it; QEMU may have it at another path.
        memory
            The memory to share; 32 MiB without it.
        timeout
            Seconds to wait for QEMU to be there, and for each of its answers.

        Raises FileNotFoundError without the directory, QemuNotFound when no QEMU is there in time,
        PermissionError when it may not be connected to, TimeoutError when somebody else has it,
        QemuError when it was started otherwise or is too old, QemuDied.

        """
        return cls(memory, connect=directory, timeout=timeout)

    @property
    def ports(self) -> tuple[Port, ...]:
        """The attached ports, in the order in which they came."""
        # Without the lock of attaching, which is held while QEMU is waited for: a link callback may
        # ask, in the thread by which QEMU's answers come.
        there = list(self._attachments)
        return tuple(a.port for a in there if a.port is not None and not a.leaving)

    @property
    def bus(self) -> PciBus:
        """Its PCI bus."""
        return self.devices.bus

    @property
    def ivshmem(self) -> Function:
        """The device through which QEMU sees the memory."""
        return self.devices.ivshmem

    @descriptors()
    def attach(
        self,
        netdev: Netdev = "user",
        *,
        mac: str | None = None,
        queues: int | None = None,
        queue_size: int = 0,
        ring: Ring | None = None,
        interrupts: Interrupts | None = None,
        spin: float = 0.0,
        notify: Notify | None = None,
        features: Mapping[str, bool | None] | None = None,
        properties: Mapping[str, Any] | None = None,
        on_link: LinkCallback | None = None,
        legacy: bool = False,
        statistics: Literal["basic", "sizes", "extended"] = "basic",
        timestamps: bool = False,
        offload: bool | None = None,
        recover: bool | Recovery | None = None,
    ) -> Port:
        """Plug a NIC in and start it.

        Parameters
        ----------
        netdev
            Any QEMU netdev, as QEMU spells it (``"tap,ifname=tap0"``), or a dict.
        mac
            Its MAC address; a random one of QEMU's range, 52:54:00, without it.
        queues
            Queue pairs (receive and transmit), each usable from its own thread; see
            :meth:`Port.queue`. Without it as many as the netdev names (``tap,queues=4``), else 1.
            The backend must have as many.
        queue_size
            Entries of each queue, a power of two. 0 is 256; with a vhost-user backend, by the
            legacy interface, or with ``properties`` that say it, what the device has, at most
            1,024.
        ring
            ``"packed"`` or ``"split"``; without it packed where a vhost-user backend offers
            it, else split.
        interrupts
            ``"msix"`` (default), ``"intx"``, or ``"none"`` for polling only.
        spin
            Microseconds that a waiting ``recv`` polls before it sleeps, while waits are that short;
            see :meth:`Port.set_polling`.
        notify
            How a vhost-user backend is kicked: by its ``"eventfd"`` (default: QEMU has no part in
            it), or through QEMU by ``"qtest"``, as all other devices are.
        features
            By name (``"MRG_RXBUF"``): True insists, False refuses, None prefers.
        properties
            More properties of QEMU's ``virtio-net-pci``, by name.
        on_link
            Called with the port when its link goes up or down.
        legacy
            Drive the device by its legacy interface, that of virtio 0.9.5, even where it has
            the modern one. A device that has no other (``properties={"disable-modern": True}``)
            is driven by it anyway. Its queues have the size that QEMU gives them.
        statistics
            ``"sizes"`` counts frames by length, ``"extended"`` by length and destination; see
            :meth:`Port.xstats`.
        timestamps
            Received bursts say when they were taken from their ring: :attr:`Burst.timestamp`.
        offload
            True: received frames may have checksums that are not calculated and be up to 64 KiB
            long, as ``burst.offload`` says; needs a memory with jumbo buffers. None: only frames
            that are sent may be described (``send(…, offload=…)``), with a vhost-user
            backend neither. False: neither. ``features`` has the last word on each of them.
        recover
            None: a QEMU with ``recover`` that died comes back with this port, and a vhost-user
            backend that went is looked for every 0.1 s, for as long as it takes. False: the port
            ends with its QEMU or backend. A :class:`virtnic.Recovery` says how often, and after
            which pauses, the backend is looked for; then calls raise DeviceError. True: as
            None, and a ValueError where nothing would bring the port back.

        Raises QemuError quoting QEMU when it refuses the netdev or a property, ValueError
        for bad arguments, DeviceError, MemoryUnavailable, QemuDied.

        """
        loop.check_outside()
        if self.closed:
            raise QemuError("this Qemu is closed: nothing can be attached to it any more")
        one_of("interrupts", interrupts, ("msix", "intx", "none", None))
        one_of("notify", notify, ("eventfd", "qtest", None))
        one_of("ring", ring, ("split", "packed", None))
        one_of("statistics", statistics, ("basic", "sizes", "extended"))
        if queue_size and (queue_size not in range(1, 32769) or queue_size & (queue_size - 1)):
            raise ValueError(f"queue_size is a power of two up to 32768, not {queue_size}")
        spec, pairs = with_queues(parse(netdev), queues)
        if notify == "eventfd" and spec.socket is None:
            raise ValueError(
                "only a vhost-user backend can be kicked by eventfd, and only one that is "
                "given as vhost-user,path=SOCKET"
            )
        if interrupts == "msix" and self.server is None:
            raise ValueError("MSI-X needs shmem='doorbell': nothing else carries a message to us")
        chosen: Interrupts = interrupts or ("intx" if self.server is None else "msix")
        if chosen == "none" and on_link is not None:
            raise ValueError("a port without interrupts cannot tell of its link; ask port.link")
        policy(recover, also=None)
        interposed = spec.socket is not None and notify != "qtest"
        if recover and self._supervisor is None and not interposed:
            raise ValueError(
                f"recover={recover!r}: nothing brings this port back; that is for QEMU to do, "
                "virtnic.Qemu(recover=True), or for a vhost-user backend given by its path"
            )
        with self.devices.lock:
            self._finish_detaching()
            attachment = _Attached(
                self,
                self.qtest,
                chosen,
                legacy=legacy,
                returns=self._supervisor is not None and recover is not False,
            )
            self._attachments.append(attachment)
            undo = attachment.undo
            try:
                undo.add(functools.partial(self._tell_detached, attachment))
                backend = None
                if interposed:
                    backend = attachment.backend = Backend(
                        spec,
                        undo,
                        pairs,
                        backends=self._backends,
                        interrupts=chosen != "none",
                        shared=self.shared,
                        recover=recover,
                        # A backend that hangs is let go before it is QEMU that seems to.
                        patience=self.timeout / 2.0,
                    )
                    spec = backend.spec
                    queue_size = queue_size or backend.queue_size
                if attachment.returns:
                    # It is attached again, when the caller's descriptors may be closed.
                    copies = Copies()
                    undo.add(copies.close)
                    spec = copies.of(spec)
                device, preferences = device_request(spec, backend, mac, pairs, queue_size, ring)
                if legacy:
                    device["disable-legacy"] = "off"  # behind a PCIe port it is on otherwise
                device.update(properties or {})
                attachment.spec, attachment.properties = spec, device
                undo.add(functools.partial(self.devices.unplug, attachment))
                function = self.devices.plug(attachment)
                vectors = attachment.handle.queue_vectors
                if chosen == "msix" and backend is None and not vectors:
                    # This QEMU would crash (quirk vhost-user-msix-crash).
                    attachment.interrupts = chosen = "intx"
                if chosen == "msix" and interrupts is None and self._lacks_vectors(pairs, backend):
                    attachment.interrupts = chosen = "intx"  # QEMU was started for one port
                wires = self.devices.routing.connect(attachment, function, pairs)
                before = self.process.stderr_position()
                entries = queue_size or usual_size(spec, device, attachment.by_legacy)
                preferences |= merge_features(spec, self.memory, entries) | offload_features(
                    spec, offload
                )
                port = Port(
                    host=self,
                    attachment=attachment,
                    memory=self.memory,
                    qtest=self.qtest,
                    **attachment.registers(),
                    queues=pairs,
                    queue_size=entries,
                    vectors=wires.vectors,
                    events=wires.events,
                    intx=wires.intx,
                    kicks=None if backend is None else backend.interposer,
                    features={**preferences, **(features or {})},
                )
                attachment.made = weakref.ref(port)
                undo.add(port.stop)
                self.devices.check_started(attachment, before)
                port.set_recoverable(attachment.returns)
                port.set_polling(spin)
                port.set_statistics(statistics)
                port.set_timestamps(timestamps)
                if ring is None and backend is not None and port.ring != "packed":
                    _log.warning(
                        "%s does not offer packed rings: split ones are used, which are slower",
                        "QEMU" if backend.offers_packed_rings else "the backend",
                    )
                if wires.config is not None:
                    follow_configuration(
                        port, wires.config, self.monitor.loop, self._replacer(attachment)
                    )
                if on_link is not None:
                    port.on_link(on_link)
                with self.feed.lock:
                    attachment.announced = True
                    self.feed.put("attached", port)
                    if port.tells_link:
                        port.on_link(tell_link(self.feed))
                if backend is not None:
                    follow_backend(self.feed, port, backend, self.monitor.loop)
                follow_peer(self.feed, port)
                attachment.port = port
            except BaseException as error:
                attachment.leaving = True
                self._let_go(attachment)
                if self._closed and not isinstance(error, _SPEAKING):
                    # By a signal handler in the middle of this, perhaps: it can look like anything.
                    raise QemuError("this Qemu was closed while a port was attached") from error
                raise
        if (trouble := trouble_at_open(attachment)) is not None:
            _log.warning("%s", trouble)
        return port

    def detach(self, port: Port) -> None:
        """Stop a port and unplug its device. Detaching twice is fine.

        Calls that wait on the port raise PortClosed; bursts stay readable.

        Raises TypeError for what is no port, ValueError for a port of another Qemu, RuntimeError
        in a link callback, which must not wait for QEMU.
        """
        if not isinstance(port, Port):
            raise TypeError(f"what is detached is a port, not {port!r}")
        if port.qemu is not self:
            raise ValueError(f"{port!r} is a port of another Qemu: port.close() detaches it there")
        if self._is_forked:
            return
        loop.check_outside()
        with self.devices.lock:
            for attachment in self._attachments:
                if attachment is port._attachment:
                    self._let_go(attachment)
                    return
            port.stop()

    def events(self) -> Events[Port]:
        """Return an iterator over what happens to this QEMU and its ports from now on.

        For plain threads (``for event in qemu.events()``, or ``wait(timeout)``), for asyncio
        (``async for``) and for ``select``. It ends when this QEMU is closed. A port without
        interrupts has no link events. A backend is watched where it is kicked by eventfd.
        """
        return self.feed.subscribe()

    def watch(self, callback: Callable[[Event[Port]], object]) -> Callable[[], None]:
        """Call ``callback(event)`` for what :meth:`events` would give; returns what ends that.

        Callbacks run one after another in a thread of their own, so they may take their time,
        and attach, detach and close. Their exceptions are logged. One that runs when that is
        ended is not waited for.
        """
        if not callable(callback):
            raise TypeError(f"a callback takes an event, {callback!r} takes none")
        return self.feed.call(callback, self._watchers)

    def close(self) -> None:
        """Stop all ports, end QEMU, and leave nothing behind. Closing twice is fine.

        After an interruption the next call goes on with what is left to do.
        A forked child closes nothing: QEMU is its parent's. Raises RuntimeError in a link callback.
        """
        if self._is_forked:
            return
        loop.check_outside()
        self._closing = True
        if self._supervisor is not None:
            self._supervisor.close()
        for attachment in self._attachments.copy():
            attachment.settle()
        me = threading.get_ident()
        # One that another thread is about to attach fails there, and is undone there.
        going = [a for a in self._attachments if a.port is not None or a.leaving or a.thread == me]
        for attachment in going:
            attachment.leaving = True
            if attachment.port is not None:
                attachment.port._refuse()
        answers = self._answers()
        if not answers and self._qtest is not None:
            self._qtest.close()  # else each port would wait for it, one after another
        for attachment in going:
            if attachment.port is not None:
                attachment.port.stop()
            self._tell_detached(attachment)
        self.feed.end()
        if self.shared is not None:
            if answers:
                self._leave(going)
            # What that did not undo is undone without QEMU, and before the next program may come.
            if self._qtest is not None:
                self._qtest.close()
            for attachment in going:
                self._let_go(attachment)
        super().close()
        # With QEMU gone there is nothing left to unplug, but other things to give back.
        for attachment in going:
            self._let_go(attachment)
        self.devices.forget()
        if self._owns_memory:
            self.memory.forget_file()

    def _let_go(self, attachment: _Attached) -> None:
        """Undo all that attaching did; what an interruption leaves of it, the next call undoes."""
        attachment.leaving = True
        attachment.undo.run()
        if not attachment.undo:
            attachment.port = attachment.farewell = None  # what refers to the port it belongs to
            with contextlib.suppress(ValueError):
                self._attachments.remove(attachment)

    def _finish_detaching(self) -> None:
        """Undo what interrupted calls left; the caller has the lock."""
        for attachment in self._attachments.copy():
            if attachment.leaving or attachment.port is None:
                self._let_go(attachment)

    def _tell_detached(self, attachment: _Attached) -> None:
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
            self.execute("query-status", timeout=min(2.0, self.timeout))
        except TimeoutError:
            return False
        except QemuError as error:
            _log.debug("closing %r: %s", self, error)
        return True

    def _leave(self, going: list[_Attached]) -> None:
        """Take everything of ours out of a QEMU that goes on without us."""
        try:
            for attachment in going:
                attachment.undo.run()
            self.unplug_memory(self.devices.eject_slot)
        except (QemuError, TimeoutError, OSError, PortClosed) as error:
            _log.debug("leaving %r: %s", self, error)

    def _lacks_vectors(self, pairs: int, backend: Backend | None) -> bool:
        """Whether there are too few interrupt vectors for one more port, and will be no more."""
        left = None if self.server is None else self.server.left
        return left is not None and left < vectors_of(pairs, backend, self.devices.config)

    def _replacer(self, attachment: _Attached) -> Callable[[], bool]:
        """Return what begins to replace a QEMU that is gone, and is False where nobody does."""
        if self._supervisor is None or not attachment.returns:
            return lambda: False
        weak = weakref.ref(self._supervisor)

        def replaced() -> bool:
            supervisor = weak()
            return supervisor is not None and supervisor.lost()

        return replaced
