"""`Qemu` and `Port`, the classes that users hold. What is behind them is in the other modules.

They share this file because each names the other in its interface: `Qemu.attach` returns a `Port`,
and `Port.qemu` a `Qemu`. In two files they would import each other.
"""

from __future__ import annotations

import atexit
import weakref
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal, Self, TypedDict, cast, overload

from virtnic.arguments import check_names, suggest_options
from virtnic.limits import descriptors
from virtnic.memory import Memory
from virtnic.nic.host import Host
from virtnic.nic.options import PortRequest, QemuOptions
from virtnic.nic.queue import NetQueue
from virtnic.nic.ready import Readiness
from virtnic.nic.receiving import Receiving
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

#: Called with the port when its link goes up or down, in one of virtnic's threads.
LinkCallback = Callable[["Port"], None]


class PortOptions(TypedDict, total=False):
    """Options of :meth:`virtnic.Qemu.attach` besides the netdev; see there."""

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
    statistics: Literal["basic", "sizes", "extended"]
    timestamps: bool
    offload: bool | None
    recover: bool | Recovery | None


class Port(Closing, SendAll, Receiving):
    """A virtio-net device driven by this process.

    Made by :func:`virtnic.open` and :meth:`virtnic.Qemu.attach`. ``send``, ``recv`` and ``fileno``
    are those of the first queue pair; :meth:`queue` returns any of them. All methods may be called
    from any thread. As a context manager it closes itself.
    """

    def __new__(cls, *, qemu: Qemu, attachment: Attachment) -> Self:  # noqa: ARG004
        """Make a port for a started device; for :meth:`virtnic.Qemu.attach` only."""
        return super().__new__(cls, attachment.driver)

    def __init__(self, *, qemu: Qemu, attachment: Attachment) -> None:
        self._qemu, self._attachment = qemu, attachment
        self._begin(attachment)

    def _begin(self, driven: Driven) -> None:
        """Set the driven device, of QEMU or not."""
        self._driven = driven

    @property
    def qemu(self) -> Qemu:
        """The QEMU that the device belongs to. Raises QemuError if there is none."""
        return self._qemu

    @property
    def frontend(self) -> Literal["qemu", "direct"]:
        """What drives the netdev: QEMU, or this process directly (:func:`virtnic.open`)."""
        return "qemu"

    @property
    def memory(self) -> Memory:
        """The memory that holds its frames."""
        return self._qemu.memory

    @property
    def interrupts(self) -> Interrupts:
        """How the device signals: ``msix``, ``intx``, ``none`` or ``eventfd``."""
        return self._driven.interrupts

    def queue(self, index: int) -> NetQueue:
        """Return a queue pair by number, from 0. Raises ValueError if there is none."""
        return NetQueue(self, index)

    def wait_ready(self, timeout: float | None = 10.0) -> None:
        """Wait until frames pass in both directions, as far as that can be determined.

        A port is open as soon as its device runs; its peer may take longer, and frames sent
        meanwhile are lost, as on a wire. What is waited for depends on the netdev (see
        docs/netdevs.md): a stream's peer, a TAP that is up and known to be open, a vhost-user
        backend that takes frames. For the latter a frame with type 0x9000 is sent to the port's own
        address: a learning switch keeps it, a forwarder of everything forwards it, and an echoing
        backend returns it. If nothing can be determined, the call does not wait.

        Raises TimeoutError with the reason, PortClosed, QemuDied, DeviceError.
        """
        Readiness(self, self._driven).wait(timeout)

    def on_link(self, callback: LinkCallback) -> Callable[[], None]:
        """Call ``callback(port)`` when the link goes up or down (``port.link`` says which).

        Returns a function that stops it. The callback runs in one of virtnic's threads, which has
        other work: it must be quick, and must not attach, detach or close; use
        :meth:`virtnic.Qemu.watch` for that. Raises ValueError if the port has no interrupts, or its
        device does not report its link.
        """
        return self._driven.add_link_callback(callback)

    def close(self) -> None:
        """Stop the device, take every buffer back, and unplug it.

        A port of :func:`virtnic.open` also ends its QEMU. Waiting calls raise PortClosed; bursts
        remain readable. Closing twice is allowed. In a forked child it does nothing: the port
        belongs to the parent.
        """
        if self._attachment.machine.is_forked:
            return  # a lock may be held by a thread that does not exist here
        loop.check_outside()  # a lock's holder may be waiting for this thread
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
    """A QEMU that runs no guest, for its devices.

    Started here or elsewhere: see :meth:`connect`. As a context manager it closes itself and all
    its ports. It ends with :meth:`close`, at the end of the interpreter, and when this process is
    killed.
    """

    @descriptors()
    def __init__(
        self,
        memory: Memory | None = None,
        *,
        recover: bool | Recovery = False,
        **options: Unpack[QemuOptions],
    ) -> None:
        """Start QEMU.

        Parameters
        ----------
        memory
            The memory to share; 32 MiB by default.
        recover
            Whether to restart a QEMU that dies, with all its ports: True, or a
            :class:`virtnic.Recovery` that says how often.
        qemu
            Path or command line of the binary; by default ``VIRTNIC_QEMU``, then the one in PATH.
        accel
            ``"auto"`` (default) uses qtest if QEMU has it, else tcg with a parked processor.
        machine
            ``"pc"`` (default) or ``"q35"``.
        shmem
            ``"doorbell"`` (default) provides interrupts by eventfd and shares only a socket;
            ``"plain"`` shares the memory's file by path, without interrupts.
        sandbox
            True (default) denies QEMU everything it does not need, ``"spawn"`` allows helpers and
            scripts, False disables the sandbox.
        timeout
            Seconds for the start and for each reply; 10 by default.
        directory
            Directory for its sockets, which stay there; by default a private one that is removed
            once all are connected.
        extra
            Additional QEMU options, word by word.
        connect
            The directory of a QEMU started elsewhere; can only be combined with ``timeout``.

        Raises QemuNotFound, QemuError quoting QEMU, MemoryUnavailable, ValueError, TypeError,
        TimeoutError, OSError if a system limit is reached.

        """
        check_names(
            "virtnic.Qemu()", {*QemuOptions.__optional_keys__, "memory", "recover"}, options
        )
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
    @suggest_options
    def connect(
        cls,
        directory: str | os.PathLike[str],
        memory: Memory | None = None,
        *,
        timeout: float = 10.0,
    ) -> Self:
        """Use a QEMU that was started elsewhere, for instance in another container.

        It must have been started as ``virtnic qemu-args --directory`` says, and shares only the
        directory with its sockets. Closing removes our devices from QEMU, which then waits for the
        next program. Devices left by a killed program are removed.

        Parameters
        ----------
        directory
            The directory as seen by this process; QEMU may see it at another path.
        memory
            The memory to share; 32 MiB by default.
        timeout
            Seconds to wait for QEMU, and for each reply.

        Raises FileNotFoundError without the directory, QemuNotFound if there is no QEMU in time,
        PermissionError if it may not be connected to, TimeoutError if another program uses it,
        QemuError if it was not started with these options or is too old, QemuDied.

        """
        return cls(memory, connect=directory, timeout=timeout)

    @property
    def ports(self) -> tuple[Port, ...]:
        """The attached ports, in order of attachment."""
        return tuple(cast("Port", port) for _, port in self._host.devices.attached)

    @property
    def memory(self) -> Memory:
        """The memory that its devices see; another QEMU can share it."""
        return self._host.memory

    @property
    def recovery(self) -> Recoveries | None:
        """How often QEMU was recovered; None without ``recover``."""
        supervisor = self._host.supervisor
        return None if supervisor is None else supervisor.record

    @property
    def version(self) -> Version:
        """QEMU's version, as it reports itself."""
        return self._host.machine.version

    @property
    def machine(self) -> MachineType:
        """The machine type."""
        return self._host.machine.machine

    @property
    def accel(self) -> Accel:
        """The accelerator in use; never ``auto``."""
        return self._host.machine.accel

    @property
    def command(self) -> str | None:
        """The command line that was started; None if QEMU was started elsewhere."""
        binary = self._host.machine.binary
        return None if binary is None else str(binary)

    @property
    def directory(self) -> Path | None:
        """The directory of its sockets, if the caller named one."""
        return self._host.machine.directory

    @property
    def pid(self) -> int:
        """The process number of QEMU, or of the command that wraps it.

        Changes on recovery. Raises QemuError if QEMU was started elsewhere.
        """
        return self._host.machine.process.pid

    @property
    def stderr(self) -> str:
        """The last 16 KiB of its stderr; empty if it was started elsewhere."""
        return self._host.machine.process.stderr

    @property
    def bus(self) -> PciBus:
        """Its PCI bus and the functions on it."""
        return self._host.devices.bus

    @property
    def closed(self) -> bool:
        """Whether :meth:`close` was called."""
        return self._host.machine.closed

    def execute(self, name: str, /, *, timeout: float | None = None, **arguments: Any) -> Any:
        """Execute a command of QEMU's monitor (QMP) and return the result.

        Dashes in argument names are written as underscores. ``timeout`` in seconds is by default
        that of the Qemu. Raises QemuError quoting QEMU, QemuDied, TimeoutError.
        """
        return self._host.machine.execute(name, timeout=timeout, **arguments)

    @descriptors()
    @suggest_options
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
        """Plug in a NIC and start it.

        Parameters
        ----------
        netdev
            A QEMU netdev in QEMU's syntax (``"tap,ifname=tap0"``), or a dict.
        mac
            Its MAC address; by default a random one in QEMU's range, 52:54:00.
        queues
            Number of queue pairs (receive and transmit), each usable from its own thread; see
            :meth:`Port.queue`. By default as many as the netdev names (``tap,queues=4``), else 1.
            The backend must have as many.
        queue_size
            Entries of each queue, a power of two. 0 means 256; with a vhost-user backend, the
            legacy interface, or a size in ``properties``, it means the device's own size, at most
            1,024.
        ring
            ``"packed"`` or ``"split"``; by default packed if a vhost-user backend offers it, else
            split.
        interrupts
            ``"msix"`` (default), ``"intx"``, or ``"none"`` for polling only.
        spin
            Microseconds for which a waiting ``recv`` polls before it sleeps, while waits are that
            short; see :meth:`Port.set_polling`.
        notify
            How to kick a vhost-user backend: by its ``"eventfd"`` (default, without QEMU), or
            through QEMU by ``"qtest"``, as all other devices are.
        features
            By name (``"MRG_RXBUF"``): True requires, False refuses, None prefers.
        properties
            Additional properties of QEMU's ``virtio-net-pci``, by name.
        on_link
            Called with the port when its link goes up or down.
        legacy
            Use the device's legacy interface (virtio 0.9.5) even if it has a modern one. A device
            that has no other (``properties={"disable-modern": True}``) always uses it. QEMU then
            chooses the queue size.
        statistics
            ``"sizes"`` counts frames by length, ``"extended"`` by length and destination; see
            :meth:`Port.xstats`.
        timestamps
            Record when received bursts were taken from the ring: :attr:`Burst.timestamp`.
        offload
            True: received frames may lack checksums and be up to 64 KiB long, as ``burst.offload``
            says; needs a memory with jumbo buffers. None: only sent frames may have offloads
            (``send(…, offload=…)``), with a vhost-user backend not even these. False: no offloads.
            ``features`` overrides this for single features.
        recover
            None: a recovered QEMU gets this port again, and a lost vhost-user backend is looked for
            every 0.1 s for ever. False: the port ends with its QEMU or backend. A
            :class:`virtnic.Recovery` says how often, and after which pauses, to look for the
            backend; after that calls raise DeviceError. True: as None, but a ValueError if the port
            could not be recovered.

        Raises QemuError quoting QEMU if it refuses the netdev or a property, ValueError for wrong
        arguments, DeviceError, MemoryUnavailable, QemuDied.

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
        """Stop a port and unplug its device. Detaching twice is allowed.

        Waiting calls of the port raise PortClosed; bursts remain readable.

        Raises TypeError for anything but a port, ValueError for a port of another Qemu,
        RuntimeError in a link callback, which must not wait for QEMU.
        """
        if not isinstance(port, Port):
            raise TypeError(f"detach needs a port, not {port!r}")
        if port.qemu is not self:
            raise ValueError(f"{port!r} is a port of another Qemu; use port.close()")
        self._host.detach(port)

    def events(self) -> Events[Port]:
        """Return an iterator over the events of this QEMU and its ports from now on.

        For threads (``for event in qemu.events()``, or ``wait(timeout)``), asyncio, trio and anyio
        (``async for``) and ``select``. It ends when this QEMU is closed. A port without interrupts
        has no link events. A backend is watched if it is kicked by eventfd.
        """
        return self._host.feed.subscribe()

    def watch(self, callback: Callable[[Event[Port]], object]) -> Callable[[], None]:
        """Call ``callback(event)`` for each event of :meth:`events`; return what stops it.

        Callbacks run one after another in their own thread, so they may be slow, and may attach,
        detach and close. Their exceptions are logged. Stopping does not wait for a running
        callback.
        """
        if not callable(callback):
            raise TypeError(f"callback must accept an event, {callback!r} is not callable")
        return self._host.feed.call(callback, self._host.watchers)

    def close(self) -> None:
        """Stop all ports and end QEMU. Closing twice is allowed.

        After an interruption the next call does what is left. In a forked child it does nothing:
        QEMU belongs to the parent. Raises RuntimeError in a link callback.
        """
        self._host.close()

    def __del__(self) -> None:
        host: Host | None = getattr(self, "_host", None)
        if host is None:
            return
        over = False
        try:
            over = host.machine.is_over or host.machine.is_forked
            if not over and not host.closing:
                self._warn_unclosed()  # may raise, if warnings are errors
        finally:
            if not over:
                close_later(self.close)

    def __repr__(self) -> str:
        return f"<Qemu {self._host.machine.state}>"


def host_of(qemu: Qemu) -> Host:
    """Return the Host behind a Qemu, for virtnic's own use."""
    return qemu._host


@overload
def attachment_of(port: Port) -> Attachment: ...
@overload
def attachment_of(port: object) -> Attachment | None: ...
def attachment_of(port: object) -> Attachment | None:
    """Return the Attachment behind a port or a fake's wrapped port, for virtnic's own use."""
    while port is not None and not isinstance(port, Port):
        port = getattr(port, "port", None)
    return None if port is None else port._attachment


@overload
def driven_of(port: Port) -> Driven: ...
@overload
def driven_of(port: object) -> Driven | None: ...
def driven_of(port: object) -> Driven | None:
    """Return the driven device behind a port, whether it has a QEMU or not."""
    while port is not None and not isinstance(port, Port):
        port = getattr(port, "port", None)
    return None if port is None else port._driven


@atexit.register
def _close_all() -> None:
    finish_forgotten()
    for qemu in list(_live):
        qemu.close()
