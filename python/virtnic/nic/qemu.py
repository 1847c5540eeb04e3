"""Ports come and go: a QEMU with its PCI bus taken over."""

from __future__ import annotations

import contextlib
import functools
import logging
import threading
import weakref
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, Self

from virtnic._native import EventFd, PortClosed, QemuDied, QemuError, VirtnicError
from virtnic.limits import descriptors
from virtnic.memory import Memory
from virtnic.nic.backend import Backend, Backends
from virtnic.nic.events import Event, Events, Feed, tell_link
from virtnic.nic.interrupts import ConfigVector, InterruptRouting, Wires, vectors_of
from virtnic.nic.options import (
    device_request,
    merge_features,
    offload_features,
    one_of,
    usual_size,
    with_queues,
)
from virtnic.nic.policy import Recovery, policy
from virtnic.nic.port import Interrupts, LinkCallback, Port
from virtnic.nic.ready import trouble_at_open
from virtnic.nic.supervisor import Recoverer
from virtnic.pci import (
    Function,
    PciBus,
    find_ivshmems,
    find_virtio_nets,
    speaks_modern,
    virtio_legacy,
    virtio_registers,
)
from virtnic.qemu import Machine, Netdev, NicHandle, Spec, loop, parse
from virtnic.qemu.descriptors import Copies
from virtnic.qemu.machine import present
from virtnic.qemu.netdevs import not_started
from virtnic.teardown import Teardown

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Mapping

    from virtnic._native import QTest
    from virtnic.nic.renegotiation import Renegotiation

__all__ = ["Attachment", "Qemu"]

_log = logging.getLogger(__name__)

#: BAR of an ivshmem device that is the shared memory (QEMU: docs/specs/ivshmem-spec).
_SHARED_MEMORY_BAR = 2
#: What says itself how a call ended, also where the Qemu was closed meanwhile.
_SPEAKING = (VirtnicError, OSError, KeyboardInterrupt, SystemExit, GeneratorExit)


@dataclass(slots=True, eq=False)
class Attachment:
    """What a port has of its QEMU."""

    qemu: Qemu
    qtest: QTest
    interrupts: Interrupts
    #: The port, from when all is in its place until it is detached.
    port: Port | None = None
    #: The same from when it was made, but not kept alive.
    device: Callable[[], Port | None] = lambda: None
    #: Whether it is being undone: what an interruption left of it is undone by the next call.
    leaving: bool = False
    #: The thread that attaches it.
    thread: int = field(default_factory=threading.get_ident)
    #: The device, as QEMU knows it, from when QEMU is told of it.
    plugged: NicHandle | None = None
    #: The vhost-user backend, where there is an interposer in front of it.
    backend: Backend | None = None
    #: Has it go on with a backend that came back with fewer features.
    renegotiation: Renegotiation | None = None
    #: The device on the PCI bus, once it was found there.
    function: Function | None = None
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
    #: Whether it was told that it is attached; and what is told when it is detached, once.
    announced: bool = False
    farewell: Event | None = None

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
        if self.qemu.closed or self.qtest.death is not None:
            return True
        return self.qtest is not self.qemu.qtest

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


class Qemu(Machine):
    """A QEMU that runs no guest: its devices are ours.

    Takes the arguments of :class:`virtnic.qemu.Machine`, and ``recover``: whether a QEMU that dies
    is started again, with all its ports (True, or a :class:`virtnic.Recovery` that says how
    often). As a context manager it closes itself and all its ports.
    """

    #: What its devices see; another Qemu can have the same.
    memory: Memory

    @descriptors()
    def __init__(
        self, memory: Memory | None = None, *, recover: bool | Recovery = False, **options: Any
    ) -> None:
        policy(recover)
        if recover and options.get("connect") is not None:
            raise ValueError("a QEMU that somebody else started is not started again here: recover")
        self._recover = recover
        self._recoverer: Recoverer | None = None
        #: Of the ports that are there, that come and that go.
        self._attachments: list[Attachment] = []
        self._attach_lock = threading.RLock()
        #: Closed ports whose devices could not be removed.
        self._lingering: list[Port] = []
        self._feed = Feed()
        self._routing: InterruptRouting | None = None
        self._config = ConfigVector()
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
        self.on_death(self._feed.died)
        self._take_bus()
        if self._recover:
            self._recoverer = Recoverer(self, policy(self._recover) or Recovery())
            self.on_death(self._recoverer.lost)

    def _take_bus(self) -> None:
        self.bus = PciBus(self.qtest, self.machine)
        self.bus.scan()
        if self.shared is not None:
            self.plug_memory(self._eject)
            self.bus.rescan()
        found = find_ivshmems(self.bus.functions)
        if len(found) != 1:
            raise QemuError(
                f"QEMU has {len(found)} ivshmem devices where one was asked for; "
                "without it there is no shared memory"
            )
        placed = self.bus.place(found[0], {_SHARED_MEMORY_BAR: self.memory.iova})
        self._ivshmem = self.bus.enable(placed)
        self._routing = InterruptRouting(
            self.bus, self.qtest, self._ivshmem, self.server, self.timeout, self._config
        )

    @property
    def recovery(self) -> Recoverer | None:
        """What brings QEMU back, and how often it has; None without ``recover``."""
        return self._recoverer

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
    def ivshmem(self) -> Function:
        """The device through which QEMU sees the memory."""
        return self._ivshmem

    @descriptors()
    def attach(
        self,
        netdev: Netdev = "user",
        *,
        mac: str | None = None,
        queues: int | None = None,
        queue_size: int = 0,
        ring: Literal["split", "packed"] | None = None,
        interrupts: Interrupts | None = None,
        spin: float = 0.0,
        notify: Literal["eventfd", "qtest"] | None = None,
        features: Mapping[str, bool | None] | None = None,
        properties: Mapping[str, Any] | None = None,
        on_link: LinkCallback | None = None,
        legacy: bool = False,
        statistics: Literal["basic", "extended"] = "basic",
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
            ``"extended"`` counts what kinds of frames there are; see :meth:`Port.xstats`.
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
        one_of("statistics", statistics, ("basic", "extended"))
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
        if recover and self._recoverer is None and not interposed:
            raise ValueError(
                f"recover={recover!r}: nothing brings this port back; that is for QEMU to do, "
                "virtnic.Qemu(recover=True), or for a vhost-user backend given by its path"
            )
        with self._attach_lock:
            self._finish_detaching()
            attachment = Attachment(
                self,
                self.qtest,
                chosen,
                legacy=legacy,
                returns=self._recoverer is not None and recover is not False,
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
                undo.add(functools.partial(self._unplug, attachment))
                made = () if backend is None else (backend.expect_netdev(),)
                handle = self.add_nic(spec, device, attachment.plugging, *made)
                if chosen == "msix" and backend is None and not handle.queue_vectors:
                    # This QEMU would crash (quirk vhost-user-msix-crash).
                    attachment.interrupts = chosen = "intx"
                if chosen == "msix" and interrupts is None and self._lacks_vectors(pairs, backend):
                    attachment.interrupts = chosen = "intx"  # QEMU was started for one port
                wires = present(self._routing).connect(
                    attachment, self._take_new(attachment), pairs
                )
                before = self.process.stderr_position()
                entries = queue_size or usual_size(spec, device, attachment.by_legacy)
                preferences |= merge_features(spec, self.memory, entries) | offload_features(
                    spec, offload
                )
                port = Port(
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
                attachment.device = weakref.ref(port)
                undo.add(port.stop)
                self._check_started(attachment, before)
                port.set_recoverable(attachment.returns)
                port.set_polling(spin)
                port.set_statistics(statistics)
                if ring is None and backend is not None and port.ring != "packed":
                    _log.warning(
                        "%s does not offer packed rings: split ones are used, which are slower",
                        "QEMU" if backend.offers_packed_rings else "the backend",
                    )
                self._watch_configuration(port, wires)
                if on_link is not None:
                    port.on_link(on_link)
                with self._feed.lock:
                    attachment.announced = True
                    self._feed.put("attached", port)
                    if port.tells_link:
                        port.on_link(tell_link(self._feed))
                if backend is not None:
                    self._feed.watch_backend(port, backend, self.monitor.loop)
                self._follow_peer(port)
                attachment.port = port
            except BaseException as error:
                attachment.leaving = True
                self._let_go(attachment)
                if self._closed and not isinstance(error, _SPEAKING):
                    # By a signal handler in the middle of this, perhaps: it can look like anything.
                    raise QemuError("this Qemu was closed while a port was attached") from error
                raise
        if (trouble := trouble_at_open(port)) is not None:
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
        with self._attach_lock:
            if port._attachment in self._attachments:
                self._let_go(port._attachment)
            else:
                port.stop()

    def events(self) -> Events:
        """Return an iterator over what happens to this QEMU and its ports from now on.

        For plain threads (``for event in qemu.events()``, or ``wait(timeout)``), for asyncio
        (``async for``) and for ``select``. It ends when this QEMU is closed. A port without
        interrupts has no link events. A backend is watched where it is kicked by eventfd.
        """
        return self._feed.subscribe()

    def watch(self, callback: Callable[[Event], object]) -> Callable[[], None]:
        """Call ``callback(event)`` for what :meth:`events` would give; returns what ends that.

        Callbacks run one after another in a thread of their own, so they may take their time,
        and attach, detach and close. Their exceptions are logged. One that runs when that is
        ended is not waited for.
        """
        if not callable(callback):
            raise TypeError(f"a callback takes an event, {callback!r} takes none")
        return self._feed.call(callback)

    def close(self) -> None:
        """Stop all ports, end QEMU, and leave nothing behind. Closing twice is fine.

        After an interruption the next call goes on with what is left to do.
        A forked child closes nothing: QEMU is its parent's. Raises RuntimeError in a link callback.
        """
        if self._is_forked:
            return
        loop.check_outside()
        if self._recoverer is not None:
            self._recoverer.close()
        for attachment in self._attachments.copy():
            if attachment.renegotiation is not None:
                attachment.renegotiation.close()
        me = threading.get_ident()
        # One that another thread is about to attach fails there, and is undone there.
        going = [a for a in self._attachments if a.port is not None or a.leaving or a.thread == me]
        for attachment in going:
            attachment.leaving = True
            if attachment.port is not None:
                attachment.port.stop()
            self._tell_detached(attachment)
        self._feed.end()
        if self.shared is not None:
            self._leave(going)
        super().close()
        # With QEMU gone there is nothing left to unplug, but other things to give back.
        for attachment in going:
            self._let_go(attachment)
        self._routing = None
        self._config.give()
        while self._lingering and self._is_over:
            self._lingering[-1].device_gone()
            self._lingering.pop()
        if self._owns_memory:
            self.memory.forget_file()

    def _let_go(self, attachment: Attachment) -> None:
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

    def _tell_detached(self, attachment: Attachment) -> None:
        """Tell that a port is detached, once, where it was told that it was attached."""
        if not attachment.announced:
            return
        if attachment.farewell is None:
            attachment.farewell = Event("detached", attachment.port or attachment.device())
        self._feed.tell(attachment.farewell)
        attachment.announced = False

    def _eject(self, slot: int) -> None:
        """Let go of what is in a slot of the root bus, or behind the root port there."""
        for function in self.bus.functions:
            top = function.path[0] if function.path else function.bdf
            if (top.bus, top.slot) == (0, slot) and not function.is_bridge:
                self.bus.eject(function)

    def _leave(self, going: list[Attachment]) -> None:
        """Take everything of ours out of a QEMU that goes on without us."""
        try:
            self.execute("query-status", timeout=min(2.0, self.timeout))
            for attachment in going:
                attachment.undo.run()
            self.unplug_memory(self._eject)
        except (QemuError, TimeoutError, OSError, PortClosed) as error:
            _log.debug("leaving %r: %s", self, error)

    def _lacks_vectors(self, pairs: int, backend: Backend | None) -> bool:
        """Whether there are too few interrupt vectors for one more port, and will be no more."""
        left = None if self.server is None else self.server.left
        return left is not None and left < vectors_of(pairs, backend, self._config)

    def _take_new(self, attachment: Attachment) -> Function:
        """Find the device that was just plugged in, and make it ours."""
        new = find_virtio_nets(self.bus.rescan())
        if len(new) != 1:
            raise QemuError(
                f"QEMU accepted the device, but {len(new)} new virtio-net devices are on the bus"
            )
        (attachment.function,) = new  # it can be ejected from here on, whatever fails
        attachment.function = self.bus.enable(self.bus.place(attachment.function))
        return attachment.function

    def _unplug(self, attachment: Attachment) -> None:
        """Remove the device; that it cannot be removed from a dead QEMU is no error."""
        port = attachment.device()
        if attachment.plugged is None or attachment.is_lost:
            if port is not None:
                process = self._process
                if process is None or not process.alive or attachment.qtest is not self._qtest:
                    port.device_gone()
                else:
                    self._lingering.append(port)
            return  # what has its place on another QEMU's bus is somebody else's
        eject = functools.partial(self._eject_nic, attachment)
        try:
            self.remove_nic(attachment.handle, eject)
            if port is not None:
                port.device_gone()
        except (QemuError, TimeoutError, OSError, PortClosed) as error:
            gone = self.closed or isinstance(error, (QemuDied, PortClosed))
            if port is not None:
                self._lingering.append(port)  # its device may still write to its buffers
            _log.log(
                logging.DEBUG if gone else logging.WARNING,
                "%s is not unplugged and keeps its slot: %s",
                attachment.handle.id,
                str(error),  # a record that somebody keeps would keep all that the error has
            )

    def _check_started(self, attachment: Attachment, before: int) -> None:
        """Raise QemuError where QEMU said, since then, that a device it started does not run.

        Its driver hears nothing of that: the device reports that it is ready. A backend with an
        interposer tells by itself.
        """
        said = self.process.stderr_since(before)
        if attachment.backend is None and (why := not_started(attachment.handle.spec.kind, said)):
            raise QemuError(why)

    def _follow_peer(self, port: Port) -> None:
        """Tell of the peer's coming and going, where QEMU does."""
        attachment = port._attachment
        peer = attachment.handle.peer
        if peer is None:
            return
        feed, weak = self._feed, weakref.ref(port)  # one that is forgotten is collected

        def told(there: bool, address: str) -> None:
            if (port := weak()) is not None:
                port._attachment.peer_known = there
                feed.put("peer-connected" if there else "peer-disconnected", port, address)

        if attachment.peer_known is None:
            attachment.peer_known = peer.connected
        peer.tell(told, attachment.peer_known)

    def _eject_nic(self, attachment: Attachment) -> None:
        """Let go of a device, of one too that was not found on the bus yet."""
        if attachment.function is not None:
            self.bus.eject(attachment.function)
        else:
            self.bus.rescan()
            self._eject(attachment.handle.slot)

    def _watch_configuration(self, port: Port, wires: Wires) -> None:
        if wires.config is None:
            return
        config = wires.config
        # Neither is kept alive: one that is forgotten is collected, and closed then.
        weak_qemu, weak_port, who = weakref.ref(self), weakref.ref(port), object()

        def changed() -> None:
            qemu, port = weak_qemu(), weak_port()
            if qemu is None or port is None:
                config.remove(who)
                return
            over = port.closed
            if not over and port._attachment.is_lost:
                recoverer = qemu._recoverer if port._attachment.returns else None
                if recoverer is not None and recoverer.lost():
                    return
                over = True
            if over:
                config.remove(who)
                port.ended()
                return
            port.configuration_changed()

        port._attachment.undo.add(functools.partial(config.remove, who))
        config.add(self.monitor.loop, who, changed)
