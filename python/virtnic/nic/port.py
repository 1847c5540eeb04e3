"""`Port`: what users hold. `Host`: what a port needs of the QEMU whose device it is."""

from __future__ import annotations

import logging
import threading
import time
from abc import abstractmethod
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Literal, Self, TypedDict

from virtnic import _native
from virtnic._native import CommandRefused
from virtnic.deadline import Deadline
from virtnic.nic.ready import Readiness
from virtnic.nic.rss import DEFAULT_KEY, Rss, RssLimits, names_of, types_of
from virtnic.nic.sending import BACKOFF, Pending
from virtnic.qemu import Machine, loop
from virtnic.teardown import Owner

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from types import TracebackType
    from typing import Unpack

    from virtnic.memory import Memory
    from virtnic.nic.attachment import Attachment
    from virtnic.nic.devices import Devices
    from virtnic.nic.events import Event, Events, Feed
    from virtnic.nic.options import Interrupts, Notify, Ring
    from virtnic.nic.policy import Recoveries, Recovery
    from virtnic.protocols import Frame
    from virtnic.qemu import Netdev

__all__ = ["Host", "LinkCallback", "Port", "PortOptions"]

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
    statistics: Literal["basic", "sizes", "extended"]
    timestamps: bool
    offload: bool | None
    recover: bool | Recovery | None


class Host(Machine):
    """A QEMU whose devices are ours: see :class:`virtnic.Qemu`, which is the only one."""

    #: What its devices see; another can have the same.
    memory: Memory
    #: Its bus and what is on it.
    devices: Devices
    #: Who wants to know of its ports.
    feed: Feed[Port]

    @property
    @abstractmethod
    def ports(self) -> tuple[Port, ...]:
        """The attached ports, in the order in which they came."""

    @property
    @abstractmethod
    def recovery(self) -> Recoveries | None:
        """What replaces QEMU, and how often it has; None where nothing does."""

    @abstractmethod
    def attach(self, netdev: Netdev = "user", **options: Unpack[PortOptions]) -> Port:
        """Plug a NIC in and start it."""

    @abstractmethod
    def detach(self, port: Port) -> None:
        """Stop a port and unplug its device."""

    @abstractmethod
    def events(self) -> Events[Port]:
        """Return an iterator over what happens from now on."""

    @abstractmethod
    def watch(self, callback: Callable[[Event[Port]], object]) -> Callable[[], None]:
        """Call back for what happens from now on."""


class Port(Owner, _native.NetPort):
    """A virtio-net device that this process drives.

    ``send``, ``recv`` and ``fileno`` are those of its first queue pair; :meth:`queue` has them all.
    Made by :func:`virtnic.open` and :meth:`virtnic.Qemu.attach`. The data path, ``send``,
    ``recv``, ``fileno`` and ``stats``, is that of the Rust core; all methods may be called
    from any thread. As a context manager it closes itself.
    """

    def __new__(cls, *, host: Host, attachment: Attachment, **options: Any) -> Self:  # noqa: ARG004
        """Start the device; for :meth:`virtnic.Qemu.attach` only."""
        return super().__new__(cls, **options)

    def __init__(self, *, host: Host, attachment: Attachment, **_options: Any) -> None:
        self._host, self._attachment = host, attachment
        self._callbacks: list[LinkCallback] = []
        self._endings: list[Callable[[], object]] = []
        #: What the callbacks know; somebody else may have asked the device meanwhile.
        self._link_told = super().link
        self._close_lock = threading.RLock()  # a signal handler may close, too
        self._owns_qemu = False
        self._filters_warned = False
        self._long_frames_told = False

    @property
    def qemu(self) -> Host:
        """The :class:`virtnic.Qemu` whose device it is."""
        return self._host

    @property
    def memory(self) -> Memory:
        """The memory that its frames lie in."""
        return self.qemu.memory

    @property
    def interrupts(self) -> Interrupts:
        """How the device tells us."""
        return self._attachment.interrupts

    @property
    def link(self) -> bool:
        """Whether the link is up. Without interrupts this asks the device (some 50 µs)."""
        if self.interrupts == "none" and not self.closed:
            return self.refresh_link()
        return super().link

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
        Readiness(self).wait(timeout)

    @property
    def tells_link(self) -> bool:
        """Whether the device interrupts when its link goes up or down."""
        accepted = any(feature.name == "STATUS" and feature.accepted for feature in self.features)
        return accepted and self.interrupts != "none"

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
        config = self.rss_config()
        if config is None:
            return None
        key, table, types, unclassified = config
        return Rss(bytes(key), tuple(table), names_of(types), unclassified)

    @property
    def rss_limits(self) -> RssLimits | None:
        """What the device can steer by; None where it does not hash (``rss=on``)."""
        limits = self._rss_limits
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
        self.set_rss_config(
            list(DEFAULT_KEY if key is None else key),
            list(table),
            types_of(list(limits.types if types is None else types)),
            unclassified,
        )

    def on_link(self, callback: LinkCallback) -> None:
        """Have ``callback(port)`` called when the link goes up or down (``port.link`` says which).

        It is called in a thread of virtnic's that does other things too: it must be quick, and must
        not attach, detach or close; :meth:`virtnic.Qemu.watch` is for that.
        Raises ValueError when the port has no interrupts, or its device does not say whether its
        link is up.
        """
        if not callable(callback):
            raise TypeError(f"a link callback takes a port, {callback!r} takes none")
        if self.interrupts == "none":
            raise ValueError("a port without interrupts cannot tell of its link; ask port.link")
        if not self.tells_link:
            raise ValueError(
                "the device does not say whether its link is up: STATUS was refused "
                "(features=) or is not offered (properties={'status': False})"
            )
        self._callbacks.append(callback)

    def subscribe(self, changed: LinkCallback, ended: Callable[[], object]) -> Callable[[], None]:
        """Add a link callback, and one for the end of the port; return what takes both back.

        ``ended`` is called, once or more, when the port was stopped or its QEMU died.
        Raises ValueError when the port has no interrupts.
        """
        self.on_link(changed)
        self._endings.append(ended)
        callbacks, endings = self._callbacks, self._endings  # and not the port

        def unsubscribe() -> None:
            callbacks.remove(changed)
            endings.remove(ended)

        return unsubscribe

    def ended(self) -> None:
        """Tell those who want to know that there is nothing to wait for any more."""
        for ending in list(self._endings):
            try:
                ending()
            except Exception:  # the port has to end all the same
                _log.exception("a callback for the end of a port failed")

    def abandon(self, why: str) -> None:
        """Give the device up; calls say why from now on, and the link is down."""
        super().abandon(why)
        if self._link_told and not super().link:
            self.link_changed()
        self.ended()

    def stop(self) -> None:
        """Reset the device and take every buffer back; waiting calls raise PortClosed."""
        super().stop()
        if self.withholds:
            _log.warning(
                "the device of %s was not reset in time: it may still write to its buffers, which "
                "are kept until it is gone",
                self.mac,
            )
        self._tell_of_long_frames()  # where there are no interrupts
        self.ended()

    def send_all(
        self,
        frames: _native.Burst | Iterable[Frame],
        timeout: float | None = None,
        offload: _native.Offload
        | _native.Offloads
        | Iterable[_native.Offload | None]
        | None = None,
    ) -> int:
        """Queue all frames, in order, waiting for room; return how many were queued in time.

        ``offload`` as for ``send``.
        Raises as ``send``; a port without interrupts waits by polling.
        """
        deadline = Deadline(timeout)
        pending = Pending(self, frames, offload)
        while not pending.push():
            left = deadline.left
            if not self.wait_writable(left):
                break
            if pending.stuck:
                if left == 0.0:
                    break
                time.sleep(BACKOFF)
        return pending.queued

    def configuration_changed(self) -> None:
        """Look at the device's configuration; called when its interrupt came."""
        self._tell_of_long_frames()
        if self.away:
            return  # who brings it back tells of the link
        try:
            self.restart_if_needed()
            now = self.refresh_link()
        except (_native.VirtnicError, OSError, TimeoutError) as error:
            _log.debug("the link was not read: %s", error)
            return
        if now != self._link_told:
            self.link_changed()

    def _tell_of_long_frames(self) -> None:
        """Say once that received frames were dropped for their length."""
        if self._long_frames_told or not self.drops_long_frames:
            return
        self._long_frames_told = True
        _log.warning(
            "received frames of more than %d bytes, which no buffer holds, are dropped and counted "
            "(rx_bad_length): make the memory with jumbo_buffers=64 or so, or with a larger "
            "buffer_size, or lower the MTU of the sender",
            self.memory.largest_frame,
        )

    def link_changed(self) -> None:
        """Call back those who want to know of the link."""
        self._link_told = super().link
        for callback in list(self._callbacks):
            try:
                callback(self)
            except BaseException:  # such as SystemExit, which would end the thread for all
                _log.exception("a link callback failed")

    def _how_qemu_ended(self) -> str:
        """Say how QEMU ended; called when the data path finds that it has."""
        return self.qemu.process.death()

    def close(self) -> None:
        """Stop the device, take every buffer back, and unplug it.

        A port of :func:`virtnic.open` takes its QEMU down with it. Calls that wait raise
        PortClosed; bursts stay readable. Closing twice is fine. A forked child closes nothing:
        the port is its parent's.
        """
        if self.qemu._is_forked:
            return  # and somebody who is not here may have the lock
        loop.check_outside()  # and who has the lock may wait for this very thread
        with self._close_lock:
            if self._owns_qemu:
                self.qemu.close()
            else:
                self.qemu.detach(self)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        if self.closed:
            return f"<virtnic.Port {self.mac}: closed>"
        return f"<virtnic.Port {self.mac}: {self.ring} rings of {self.queue_size}>"
