"""Ports come and go: a QEMU with its PCI bus taken over."""

from __future__ import annotations

import dataclasses
import functools
import logging
import os
import threading
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from virtnic._native import EventFd, IvshmemServer, PortClosed, QemuError
from virtnic.memory import Memory
from virtnic.pci import (
    Function,
    MsixTable,
    PciBus,
    doorbell_message,
    find_ivshmems,
    find_virtio_nets,
    speaks_modern,
    virtio_legacy,
    virtio_registers,
)
from virtnic.port import Interrupts, LinkCallback, Port
from virtnic.qemu import Machine, Netdev, NicHandle, Spec, parse
from virtnic.vhost_user import Backend

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

__all__ = ["Attachment", "Qemu"]

_log = logging.getLogger(__name__)

#: BAR of an ivshmem device that is the shared memory (QEMU: docs/specs/ivshmem-spec).
_SHARED_MEMORY_BAR = 2
#: Queue pairs that there can be: vhost-user numbers 256 queues.
_MAX_QUEUES = 128
#: Netdevs that take the number of their queue pairs; the others have one.
_SEVERAL_QUEUES = frozenset({"tap", "vhost-user", "vhost-vdpa", "af-xdp", "netmap"})
#: The MSI-X vector that means none (VIRTIO 1.3, section 4.1.5.1.2).
_NO_VECTOR = 0xFFFF
#: Entries of a vhost-user device's queues: what QEMU allows.
_VHOST_USER_QUEUE = 1024


@dataclass(slots=True)
class Attachment:
    """What a port has of its QEMU."""

    qemu: Qemu
    handle: NicHandle
    interrupts: Interrupts
    #: The vhost-user backend, where there is an interposer in front of it.
    backend: Backend | None = None
    #: The device on the PCI bus, once it was found there.
    function: Function | None = None
    #: Undoes, last first, all that attaching did.
    undo: ExitStack = field(default_factory=ExitStack)


@dataclass(frozen=True, slots=True)
class _Wiring:
    """How a device's interrupts reach us: the arguments of a port."""

    vectors: tuple[list[tuple[int, int]], int] | None = None
    events: tuple[list[tuple[EventFd, EventFd]], EventFd] | None = None
    intx: EventFd | None = None


class Qemu(Machine):
    """A QEMU that runs no guest: its devices are ours.

    Takes the arguments of :class:`virtnic.qemu.Machine`. As a context manager it closes
    itself and all its ports.
    """

    def __init__(self, memory: Memory | None = None, **options: Any) -> None:
        self._ports: list[Port] = []
        self._attach_lock = threading.RLock()
        self._intercepted = False
        super().__init__(Memory() if memory is None else memory, **options)
        try:
            self.bus = PciBus(self.qtest, self.machine)
            self.bus.scan()
            found = find_ivshmems(self.bus.functions)
            if len(found) != 1:
                raise QemuError(
                    f"QEMU has {len(found)} ivshmem devices where one was asked for; "
                    "without it there is no shared memory"
                )
            placed = self.bus.place(found[0], {_SHARED_MEMORY_BAR: self.memory.iova})
            self._ivshmem = self.bus.enable(placed)
        except BaseException:
            self.close()
            raise

    @property
    def ports(self) -> tuple[Port, ...]:
        """The attached ports, in the order in which they came."""
        with self._attach_lock:
            return tuple(self._ports)

    @property
    def ivshmem(self) -> Function:
        """The device through which QEMU sees the memory."""
        return self._ivshmem

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
            Entries of each queue, a power of two; 0 for what the device has, at most 1,024.
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

        Raises QemuError quoting QEMU when it refuses the netdev or a property, ValueError
        for bad arguments, DeviceError, MemoryUnavailable, QemuDied.

        """
        _one_of("interrupts", interrupts, ("msix", "intx", "none", None))
        _one_of("notify", notify, ("eventfd", "qtest", None))
        _one_of("ring", ring, ("split", "packed", None))
        if queue_size and (queue_size not in range(1, 32769) or queue_size & (queue_size - 1)):
            raise ValueError(f"queue_size is a power of two up to 32768, not {queue_size}")
        spec, pairs = _with_queues(parse(netdev), queues)
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
        with self._attach_lock, ExitStack() as undo:
            backend = None
            if spec.socket is not None and notify != "qtest":
                backend = Backend(spec, undo, pairs, interrupts=chosen != "none")
                spec = backend.spec
            device, wishes = _device(spec, backend, mac, pairs, queue_size, ring)
            if legacy:
                device["disable-legacy"] = "off"  # behind a PCIe port it is on otherwise
            handle = self.add_nic(spec, {**device, **(properties or {})})
            if chosen == "msix" and backend is None and not handle.queue_vectors:
                chosen = "intx"  # this QEMU would crash (quirk vhost-user-msix-crash)
            attachment = Attachment(self, handle, chosen, backend)
            undo.callback(self._unplug, attachment)
            attachment.function = self._find_new()
            function = self.bus.enable(self.bus.place(attachment.function))
            wiring = self._wire(function, chosen, pairs, undo, backend)
            port = Port(
                attachment=attachment,
                memory=self.memory,
                qtest=self.qtest,
                **_registers(function, legacy=legacy, msix=chosen == "msix"),
                queues=pairs,
                queue_size=queue_size,
                vectors=wiring.vectors,
                events=wiring.events,
                intx=wiring.intx,
                kicks=None if backend is None else backend.interposer,
                features={**wishes, **(features or {})},
            )
            undo.callback(port.stop)
            port.set_polling(spin)
            if ring is None and backend is not None and port.ring != "packed":
                _log.warning(
                    "%s does not offer packed rings: split ones are used, which are slower",
                    "QEMU" if backend.offers_packed_rings else "the backend",
                )
            if wiring.events is not None:
                undo.callback(self._watch_configuration(port, wiring.events[1]))
            if on_link is not None:
                port.on_link(on_link)
            self._ports.append(port)
            attachment.undo = undo.pop_all()
        return port

    def detach(self, port: Port) -> None:
        """Stop a port and unplug its device. Detaching twice is fine.

        Calls that wait on the port raise PortClosed; bursts stay readable.
        """
        if self._is_forked:
            return
        with self._attach_lock:
            if port not in self._ports:
                port.stop()
                return
            self._ports.remove(port)
            port._attachment.undo.close()

    def close(self) -> None:
        """Stop all ports, end QEMU, and leave nothing behind. Closing twice is fine.

        A forked child closes nothing: QEMU is its parent's.
        """
        if self._is_forked:
            return
        ports, self._ports = self._ports, []
        for port in ports:
            port.stop()
        super().close()
        # With QEMU gone there is nothing left to unplug, but other things to give back.
        for port in ports:
            port._attachment.undo.close()

    def _find_new(self) -> Function:
        new = find_virtio_nets(self.bus.rescan())
        if len(new) != 1:
            raise QemuError(
                f"QEMU accepted the device, but {len(new)} new virtio-net devices are on the bus"
            )
        return new[0]

    def _unplug(self, attachment: Attachment) -> None:
        """Remove the device; that it cannot be removed from a dead QEMU is no error."""
        function = attachment.function
        eject = None if function is None else functools.partial(self.bus.eject, function)
        try:
            self.remove_nic(attachment.handle, eject)
        except (QemuError, TimeoutError, OSError, PortClosed) as error:
            _log.debug("unplugging %s: %s", attachment.handle, error)

    def _wire(
        self,
        function: Function,
        interrupts: Interrupts,
        pairs: int,
        undo: ExitStack,
        backend: Backend | None,
    ) -> _Wiring:
        """Lead the device's interrupts to eventfds. A backend of ours signals its own."""
        if interrupts == "none":
            return _Wiring()
        if interrupts == "intx":
            line = EventFd()
            number = self.bus.route_intx(function)
            if not self._intercepted:
                self.qtest.intercept("ioapic")
                self._intercepted = True
            self.qtest.on_irq(number, line)
            several = _pairs_of_events(pairs) if backend is None else backend.events
            return _Wiring(events=(several, EventFd()), intx=line)
        assert self.server is not None
        table = MsixTable(self.qtest, self.bus.config, function)
        # Receive and transmit for each pair, and configuration; the control queue has none.
        wanted = 1 if backend is not None else 2 * pairs + 1
        if table.size < wanted:
            raise QemuError(
                f"the device has {table.size} MSI-X vectors, {wanted} are needed; "
                f"give it vectors={wanted + 1}, or use interrupts='intx'"
            )
        events = []
        for entry in range(wanted):
            vector, value, event = self.server.take_vector()
            undo.callback(_give_vector, self.server, vector)
            table.set(entry, *doorbell_message(self._ivshmem, value))
            events.append(event)
        table.enable()
        config = events.pop()
        if backend is not None:
            return _Wiring(([(_NO_VECTOR, _NO_VECTOR)] * pairs, 0), (backend.events, config))
        signalled = list(zip(events[::2], events[1::2], strict=True))
        numbers = [(2 * pair, 2 * pair + 1) for pair in range(pairs)]
        return _Wiring((numbers, 2 * pairs), (signalled, config))

    def _watch_configuration(self, port: Port, event: EventFd) -> Callable[[], None]:
        def changed() -> None:
            event.drain()
            if self.qtest.death is not None or port.closed:
                unwatch()
                port.ended()
                return
            port.configuration_changed()

        unwatch = self.watch_fd(event.fileno(), changed)
        return unwatch


def _one_of(name: str, value: object, allowed: tuple[object, ...]) -> None:
    if value not in allowed:
        raise ValueError(f"{name} is one of {', '.join(map(repr, allowed))}, not {value!r}")


def _device(
    spec: Spec,
    backend: Backend | None,
    mac: str | None,
    queues: int,
    queue_size: int,
    ring: Literal["split", "packed"] | None,
) -> tuple[dict[str, Any], dict[str, bool | None]]:
    """Return QEMU's properties of the device, and the features to ask for."""
    device: dict[str, Any] = {}
    wishes: dict[str, bool | None] = {}
    # QEMU's own default is the same in every QEMU, which no switch would stand.
    device["mac"] = mac or f"52:54:00:{os.urandom(3).hex(':')}"
    if queues > 1:
        # Before 6.0 the default was 3. Two for each pair, configuration and control queue.
        device["mq"], device["vectors"] = True, 2 * queues + 2
    if spec.type == "vhost-user":
        size = max(queue_size, 256) if queue_size else _VHOST_USER_QUEUE
        device["rx_queue_size"] = device["tx_queue_size"] = size
        # A backend that polls looks at neither; one write less to a shared line.
        wishes["EVENT_IDX"] = False
    elif queue_size > 256:
        device["rx_queue_size"] = queue_size
    if ring == "packed" or (ring is None and backend is not None):
        device["packed"] = True
    if ring is not None:
        wishes["RING_PACKED"] = ring == "packed"
    return device, wishes


def _with_queues(spec: Spec, queues: int | None) -> tuple[Spec, int]:
    """Return the netdev with so many queue pairs, and how many. Raises ValueError."""
    named = str(spec.options.get("queues", ""))
    if queues is None:
        # What is no number is for QEMU to complain about.
        queues = max(int(named), 1) if named.isascii() and named.isdigit() else 1
    if not 1 <= queues <= _MAX_QUEUES:
        raise ValueError(f"a port has 1 to {_MAX_QUEUES} queue pairs, not {queues}")
    if queues > 1 and not named and spec.type in _SEVERAL_QUEUES:
        spec = dataclasses.replace(spec, options={**spec.options, "queues": queues})
    elif queues > 1 and spec.type not in _SEVERAL_QUEUES:
        raise ValueError(
            f"queues={queues}: a netdev of type {spec.type!r} has 1 queue pair; "
            f"those of type {', '.join(sorted(_SEVERAL_QUEUES))} can have more"
        )
    elif named.isascii() and named.isdigit() and queues > int(named):
        raise ValueError(
            f"queues={queues}: the netdev has {named} queue pairs (its own queues={named})"
        )
    return spec, queues


def _pairs_of_events(count: int) -> list[tuple[EventFd, EventFd]]:
    return [(EventFd(), EventFd()) for _ in range(count)]


def _registers(function: Function, *, legacy: bool, msix: bool) -> dict[str, Any]:
    """Return where a port finds the device's registers: its arguments."""
    if legacy or not speaks_modern(function):
        return {"legacy_io": (*virtio_legacy(function), msix)}
    return {"registers": tuple(virtio_registers(function))}


def _give_vector(server: IvshmemServer, vector: int) -> None:
    server.give_vector(vector)
