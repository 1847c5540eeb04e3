"""`Qemu` and `Port`: what users hold. What is behind them is in the other files of this room."""

from __future__ import annotations

import atexit
import logging
import threading
import weakref
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Literal, Self, TypedDict, cast, overload

from virtnic import _native
from virtnic._native import CommandRefused
from virtnic.limits import descriptors
from virtnic.memory import Memory
from virtnic.nic.host import Host
from virtnic.nic.options import PortRequest, QemuOptions, check_names
from virtnic.nic.queue import NetQueue
from virtnic.nic.ready import Readiness
from virtnic.nic.rss import DEFAULT_KEY, Rss, RssLimits, names_of, types_of
from virtnic.nic.sending import SendAll
from virtnic.qemu import loop
from virtnic.teardown import Closing, close_later, finish_forgotten

if TYPE_CHECKING:
    import os
    from collections.abc import Mapping
    from pathlib import Path
    from typing import Unpack

    from virtnic.nic.attachment import Attachment, Driven
    from virtnic.nic.events import Event, Events
    from virtnic.nic.options import Interrupts, Notify, Ring
    from virtnic.nic.policy import Recoveries, Recovery
    from virtnic.pci import PciBus
    from virtnic.qemu import Netdev, Version
    from virtnic.qemu.command import Accel, MachineType

__all__ = ["LinkCallback", "Port", "PortOptions", "Qemu", "attachment_of", "driven_of", "host_of"]

_log = logging.getLogger(__name__)

#: Called with the port when its link went up or down, from a thread of virtnic's.
LinkCallback = Callable[["Port"], None]


class PortOptions(TypedDict, total=False):
    """What :meth:`virtnic.Qemu.attach` takes beside the netdev; its documentation says what."""

    mac: str | None
    queues: int | None
    queue_size: int
    ring: Ring | None
    interrupts: Interrupts | None
    spin: float
    notify: Notify | None
    features: Mapping[str, bool | None] | None
    properties: Mapping[str, Any] | None
    on_link: LinkCallback | None
    legacy: bool
    statistics: Literal["basic", "extended"]
    timestamps: bool
    offload: bool | None
    recover: bool | Recovery | None


class Port(Closing, SendAll, _native.NetPort):
    """A virtio-net device that this process drives.

    ``send``, ``recv`` and ``fileno`` are those of its first queue pair; :meth:`queue` has them all.
    Made by :func:`virtnic.open` and :meth:`virtnic.Qemu.attach`. The data path, ``send``,
    ``recv``, ``fileno`` and ``stats``, is that of the Rust core; all methods may be called
    from any thread. As a context manager it closes itself.
    """

    def __new__(cls, *, qemu: Qemu, attachment: Attachment) -> Self:  # noqa: ARG004
        """Make one of a device that was started; for :meth:`virtnic.Qemu.attach` only."""
        return super().__new__(cls, attachment.driver)

    def __init__(self, *, qemu: Qemu, attachment: Attachment) -> None:
        self._qemu, self._attachment = qemu, attachment
        self._begin(attachment)

    def _begin(self, driven: Driven) -> None:
        """Begin with what drives the device, whose ever it is."""
        self._driven = driven
        self._close_lock = threading.RLock()  # a signal handler may close, too
        self._filters_warned = False

    @property
    def qemu(self) -> Qemu:
        """The QEMU whose device it is. Raises QemuError where there is none."""
        return self._qemu

    @property
    def frontend(self) -> Literal["qemu", "direct"]:
        """Who drives the netdev: QEMU, or this process itself (:func:`virtnic.open`)."""
        return "qemu"

    @property
    def memory(self) -> Memory:
        """The memory that its frames lie in."""
        return self._qemu.memory

    @property
    def interrupts(self) -> Interrupts:
        """How the device tells us."""
        return self._driven.interrupts

    def queue(self, index: int) -> NetQueue:
        """Return a queue pair, from 0. Raises ValueError where there is none."""
        return NetQueue(self, index)

    def wait_ready(self, timeout: float | None = 10.0) -> None:
        """Wait until frames pass in both directions, as far as that can be known.

        A port is open as soon as its device runs; what is behind it may take longer, and what is
        sent meanwhile vanishes, as on any wire. What is waited for depends on the netdev, see
        docs/netdevs.md: a stream's peer, a TAP that is up and known to be open, a vhost-user
        backend that takes frames. For that a frame is sent to the port's own address, with the type
        0x9000: a learning switch keeps it, what passes all on passes it on too, and an echoing
        backend gives it back. Where nothing can be known, nothing is waited for.

        Raises TimeoutError, which says what is missing, PortClosed, QemuDied, DeviceError.
        """
        Readiness(self, self._driven).wait(timeout)

    def set_promiscuous(self, on: bool = True) -> None:
        """Receive everything, or only what the filters let through.

        QEMU's devices start promiscuous, and filter nothing (VLANs neither) while they are. Where
        frames pass QEMU by (vhost-user, vhost-vdpa, ``tap,vhost=on``) filters are accepted
        without effect; a warning says so.
        Raises CommandRefused, PortClosed, QemuDied.
        """
        self.set_receive_mode("promiscuous", on)

    def set_allmulticast(self, on: bool = True) -> None:
        """Receive all multicast frames. Raises as :meth:`set_promiscuous`."""
        self.set_receive_mode("all-multicast", on)

    def set_receive_mode(self, mode: str, on: bool = True) -> None:
        """As for :class:`NetPort`; warns where filters have no effect."""
        super().set_receive_mode(mode, on)
        # What lets more through is the state that such a netdev is in anyway.
        self._warn_of_filters(on == mode.startswith("no-"))

    def set_mac_filter(self, unicast: Sequence[str] = (), multicast: Sequence[str] = ()) -> None:
        """As for :class:`NetPort`; warns where filters have no effect."""
        super().set_mac_filter(unicast, multicast)
        self._warn_of_filters(True)

    def remove_vlan(self, vlan: int) -> None:
        """As for :class:`NetPort`; warns where filters have no effect."""
        super().remove_vlan(vlan)
        self._warn_of_filters(True)

    def _warn_of_filters(self, narrower: bool) -> None:
        """Say once that a filter, which the device took, filters nothing."""
        spec = self._attachment.handle.spec
        if narrower and not spec.kind.moves_frames(spec.options) and not self._filters_warned:
            self._filters_warned = True
            _log.warning(
                "the device takes filters but they have no effect: the frames of this %s netdev "
                "pass QEMU by, so look at each frame's address yourself",
                spec.type,
            )

    @property
    def rss(self) -> Rss | None:
        """How the device steers, as it was told by :meth:`set_rss`; None where it was not."""
        config = self._driven.driver.rss_config()
        if config is None:
            return None
        key, table, types, unclassified = config
        return Rss(bytes(key), tuple(table), names_of(types), unclassified)

    @property
    def rss_limits(self) -> RssLimits | None:
        """What the device can steer by; None where it does not hash (``rss=on``)."""
        limits = self._driven.driver.rss_limits
        if limits is None:
            return None
        key, table, types = limits
        return RssLimits(key, table, names_of(types))

    def set_rss(
        self,
        key: bytes | None = None,
        table: Sequence[int] | None = None,
        types: Sequence[str] | None = None,
        *,
        unclassified: int = 0,
    ) -> None:
        """Steer received packets by a hash; with an empty table only report hashes.

        ``key``: the Toeplitz key, Microsoft's without it. ``table``: a queue for each value of
        the hash's low bits, a power of two of entries; all queues in turn without it.
        ``types``: names such as ``"TCPV4"`` (:data:`virtnic.nic.rss.HASH_TYPES`); all that the
        device can do without it. ``unclassified``: the queue of packets without a hash.

        The device must have been given ``rss=on`` (``properties={"rss": True}``; ``"hash": True``
        for :attr:`Burst.hashes`). :meth:`set_queues` ends it.
        Raises CommandRefused, ValueError, PortClosed, QemuDied.
        """
        limits = self.rss_limits
        if limits is None:
            raise CommandRefused(
                "set_rss: the device does not hash; QEMU's property rss=on makes it "
                "(properties={'rss': True})"
            )
        if table is None:
            table = [i % self.queues for i in range(min(limits.table, 128))]
        if not all(0 <= queue < 1 << 16 for queue in (*table, unclassified)):
            raise ValueError(f"the table leads to a queue that cannot be; {self.queues} are in use")
        self._driven.driver.set_rss_config(
            list(DEFAULT_KEY if key is None else key),
            list(table),
            types_of(list(limits.types if types is None else types)),
            unclassified,
        )

    def on_link(self, callback: LinkCallback) -> Callable[[], None]:
        """Have ``callback(port)`` called when the link goes up or down (``port.link`` says which).

        Returns what ends that. It is called in a thread of virtnic's that does other things too: it
        must be quick, and must not attach, detach or close; :meth:`virtnic.Qemu.watch` is for that.
        Raises ValueError when the port has no interrupts, or its device does not say whether its
        link is up.
        """
        return self._driven.add_link_callback(callback)

    def close(self) -> None:
        """Stop the device, take every buffer back, and unplug it.

        A port of :func:`virtnic.open` takes its QEMU down with it. Calls that wait raise
        PortClosed; bursts stay readable. Closing twice is fine. A forked child closes nothing:
        the port is its parent's.
        """
        if self._attachment.machine.is_forked:
            return  # and somebody who is not here may have the lock
        loop.check_outside()  # and who has the lock may wait for this very thread
        with self._close_lock:
            if self._attachment.owns_qemu:
                self._qemu.close()
            else:
                self._qemu.detach(self)

    def __repr__(self) -> str:
        if self.closed:
            return f"<virtnic.Port {self.mac}: closed>"
        return f"<virtnic.Port {self.mac}: {self.ring} rings of {self.queue_size}>"


_live: weakref.WeakSet[Qemu] = weakref.WeakSet()


class Qemu(Closing):
    """A QEMU that runs no guest: its devices are ours.

    Started here, or by somebody else: see :meth:`connect`. As a context manager it closes itself
    and all its ports. It is gone after :meth:`close`, at the end of the interpreter, and when this
    process is killed.
    """

    @descriptors()
    def __init__(
        self,
        memory: Memory | None = None,
        *,
        recover: bool | Recovery = False,
        **options: Unpack[QemuOptions],
    ) -> None:
        """Start it.

        Parameters
        ----------
        memory
            The memory to share; 32 MiB without it.
        recover
            Whether a QEMU that dies is started again, with all its ports: True, or a
            :class:`virtnic.Recovery` that says how often.
        qemu
            Path or command line of the binary; without it ``VIRTNIC_QEMU``, else from PATH.
        accel
            ``"auto"`` (default) is qtest where QEMU has it, else tcg with a parked processor.
        machine
            ``"pc"`` (default) or ``"q35"``.
        shmem
            ``"doorbell"`` (default) gives interrupts by eventfd and shares only a socket;
            ``"plain"`` shares the memory's file by path and gives none.
        sandbox
            True (default) denies QEMU all that can be, ``"spawn"`` lets it run helpers and scripts,
            False is none.
        timeout
            Seconds for the start and for each answer; 10 by default.
        directory
            Where its sockets go and stay; by default they are in a private one that is removed once
            all are connected.
        extra
            More options of QEMU, word by word.
        connect
            The directory of one that was started elsewhere; only ``timeout`` goes with it.

        Raises QemuNotFound, QemuError quoting QEMU, MemoryUnavailable, ValueError, TypeError,
        TimeoutError, OSError where a limit of the system is reached.

        """
        check_names("virtnic.Qemu()", QemuOptions.__optional_keys__, options)
        self._remember_caller()
        self._host = Host(Memory() if memory is None else memory, recover, **options)
        self._host.owns_memory = memory is None
        _live.add(self)
        try:
            self._host.start()
        except BaseException:
            self.close()
            raise

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
        return tuple(cast("Port", port) for _, port in self._host.devices.attached)

    @property
    def memory(self) -> Memory:
        """What its devices see; another can have the same."""
        return self._host.memory

    @property
    def recovery(self) -> Recoveries | None:
        """How often QEMU was brought back; None without ``recover``."""
        supervisor = self._host.supervisor
        return None if supervisor is None else supervisor.record

    @property
    def version(self) -> Version:
        """QEMU's version, as it says itself."""
        return self._host.machine.version

    @property
    def machine(self) -> MachineType:
        """The machine that it is."""
        return self._host.machine.machine

    @property
    def accel(self) -> Accel:
        """The accelerator in use; never ``auto``."""
        return self._host.machine.accel

    @property
    def command(self) -> str | None:
        """The program that was started, with its words; None where somebody else started it."""
        binary = self._host.machine.binary
        return None if binary is None else str(binary)

    @property
    def directory(self) -> Path | None:
        """Where its sockets are, when the caller named that."""
        return self._host.machine.directory

    @property
    def pid(self) -> int:
        """Its process number: of QEMU, or of the command that wraps it.

        Another one after a recovery. Raises QemuError where somebody else started it.
        """
        return self._host.machine.process.pid

    @property
    def stderr(self) -> str:
        """The last 16 KiB that it wrote to stderr; nothing where somebody else started it."""
        return self._host.machine.process.stderr

    @property
    def bus(self) -> PciBus:
        """Its PCI bus, and what is on it."""
        return self._host.devices.bus

    @property
    def closed(self) -> bool:
        """Whether :meth:`close` was called."""
        return self._host.machine.closed

    def execute(self, name: str, /, *, timeout: float | None = None, **arguments: Any) -> Any:
        """Execute a command of QEMU's monitor (QMP), and return its answer.

        Dashes in the names of arguments are written as underscores. ``timeout``: seconds, that of
        this Qemu without it. Raises QemuError quoting QEMU, QemuDied, TimeoutError.
        """
        return self._host.machine.execute(name, timeout=timeout, **arguments)

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
        statistics: Literal["basic", "extended"] = "basic",
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
            ``"extended"`` counts what kinds of frames there are; see :meth:`Port.xstats`.
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
        wanted = PortRequest(
            netdev=netdev,
            mac=mac,
            queues=queues,
            queue_size=queue_size,
            ring=ring,
            interrupts=interrupts,
            spin=spin,
            notify=notify,
            features=features,
            properties=properties,
            on_link=on_link,
            legacy=legacy,
            statistics=statistics,
            timestamps=timestamps,
            offload=offload,
            recover=recover,
        )
        port = self._host.attach(lambda made: Port(qemu=self, attachment=made), wanted)
        return cast("Port", port)

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
        self._host.detach(port)

    def events(self) -> Events[Port]:
        """Return an iterator over what happens to this QEMU and its ports from now on.

        For plain threads (``for event in qemu.events()``, or ``wait(timeout)``), for asyncio
        (``async for``) and for ``select``. It ends when this QEMU is closed. A port without
        interrupts has no link events. A backend is watched where it is kicked by eventfd.
        """
        return self._host.feed.subscribe()

    def watch(self, callback: Callable[[Event[Port]], object]) -> Callable[[], None]:
        """Call ``callback(event)`` for what :meth:`events` would give; returns what ends that.

        Callbacks run one after another in a thread of their own, so they may take their time,
        and attach, detach and close. Their exceptions are logged. One that runs when that is
        ended is not waited for.
        """
        if not callable(callback):
            raise TypeError(f"a callback takes an event, {callback!r} takes none")
        return self._host.feed.call(callback, self._host.watchers)

    def close(self) -> None:
        """Stop all ports, end QEMU, and leave nothing behind. Closing twice is fine.

        After an interruption the next call goes on with what is left to do.
        A forked child closes nothing: QEMU is its parent's. Raises RuntimeError in a link callback.
        """
        self._host.close()

    def __del__(self) -> None:
        host: Host | None = getattr(self, "_host", None)
        if host is None or host.machine.is_over or host.machine.is_forked:
            return
        try:
            if not host.closing:
                self._warn_unclosed()  # which may be an error
        finally:
            close_later(self.close)

    def __repr__(self) -> str:
        return f"<Qemu {self._host.machine.state}>"


def host_of(qemu: Qemu) -> Host:
    """Return what is behind a Qemu, for the rest of virtnic."""
    return qemu._host


@overload
def attachment_of(port: Port) -> Attachment: ...
@overload
def attachment_of(port: object) -> Attachment | None: ...
def attachment_of(port: object) -> Attachment | None:
    """Return what is behind a port, or the one that a fake wraps, for the rest of virtnic."""
    while port is not None and not isinstance(port, Port):
        port = getattr(port, "port", None)
    return None if port is None else port._attachment


@overload
def driven_of(port: Port) -> Driven: ...
@overload
def driven_of(port: object) -> Driven | None: ...
def driven_of(port: object) -> Driven | None:
    """Return the same, whether there is a QEMU or not."""
    while port is not None and not isinstance(port, Port):
        port = getattr(port, "port", None)
    return None if port is None else port._driven


@atexit.register
def _close_all() -> None:
    finish_forgotten()
    for qemu in list(_live):
        qemu.close()
