"""A port without QEMU: a vhost-user backend or the kernel serves the rings.

What QEMU would have done is done in the core (``vhost_user::frontend``, ``vhost_kernel``):
features, memory, rings and eventfds go to a backend over its socket, and to the next one when it
went; or to the kernel's vhost-net, by ioctls on its device.
See the "Vhost-user Protocol" in QEMU's documentation (docs/interop).
"""

from __future__ import annotations

import atexit
import functools
import logging
import os
import re
import threading
import weakref
from typing import TYPE_CHECKING, Any, Literal, NoReturn, Self

from virtnic import background
from virtnic._native import EventFd, FrontEnd, NetPort, PortClosed, PortDriver, VirtnicError
from virtnic.errors import NetdevUnavailable, QemuError, message_of
from virtnic.nic.attachment import Driven
from virtnic.nic.backend import RING_PACKED, retry_of
from virtnic.nic.callbacks import Callbacks
from virtnic.nic.options import (
    offload_features,
    one_of,
    order_features,
    unicast,
    with_queues,
)
from virtnic.nic.port import Port
from virtnic.nic.vhost_net import check_tap, opened_pairs
from virtnic.qemu import loop, parse
from virtnic.qemu.backends import process_of, queue_size_for
from virtnic.qemu.loop import SharedWatch
from virtnic.teardown import close_later

if TYPE_CHECKING:
    from collections.abc import Mapping

    from virtnic.memory import Memory
    from virtnic.nic.options import Interrupts, PortRequest
    from virtnic.qemu import Spec

__all__ = ["DirectPort", "open_direct"]

_log = logging.getLogger(__name__)

#: Seconds that a backend may take to set the device up, or to stop it: as long as beside a QEMU.
_TIMEOUT = 5.0

#: What is open, to be closed with the interpreter.
_live: weakref.WeakSet[DirectPort] = weakref.WeakSet()


class DirectPort(Port):
    """A :class:`virtnic.Port` that needs no QEMU: ``virtnic.open(…, frontend="direct")``."""

    def __new__(cls, *, driven: Driven) -> Self:
        """Make one of a device that was started; for :func:`open_direct` only."""
        return NetPort.__new__(cls, driven.driver)

    def __init__(self, *, driven: Driven) -> None:
        self._begin(driven)
        self._pid = os.getpid()
        self._remember_caller()
        _live.add(self)

    @property
    def qemu(self) -> NoReturn:
        """There is none: raises QemuError."""
        raise QemuError('this port has no QEMU: it was opened with frontend="direct"')

    @property
    def frontend(self) -> Literal["qemu", "direct"]:
        """Who speaks to the backend or the kernel: this process."""
        return "direct"

    @property
    def memory(self) -> Memory:
        """The memory that its frames lie in."""
        return self._driven.memory

    def close(self) -> None:
        """Have the backend stop, take every buffer back, and hang up. Closing twice is fine."""
        if os.getpid() != self._pid:
            return
        loop.check_outside()
        if self._driven.undo and self._driven.started is not None:
            # Without the lock of the rest: this may wait for a change of the port, which a signal
            # handler has interrupted that closes it, too.
            self._driven.stop()
        self._driven.undo.run()
        _live.discard(self)

    def __del__(self) -> None:
        driven = getattr(self, "_driven", None)
        if driven is None or not driven.undo or os.getpid() != self._pid:
            return
        try:
            self._warn_unclosed()  # may raise, if warnings are errors
        finally:
            close_later(driven.undo.run)


class _Connection:
    """What a direct port has of the system, besides its driver."""

    def __init__(self, driven: Driven) -> None:
        self._driven = driven
        self.front_end: FrontEnd
        self.events: list[tuple[EventFd, EventFd]] = []
        self.config, self.changed = SharedWatch(EventFd()), SharedWatch(EventFd())
        driven.undo.add(self._close_events)

    def _close_events(self) -> None:
        own = [event for pair in self.events for event in pair]
        for event in (*own, self.config.event, self.changed.event):
            event.close()

    def meet(self, spec: Spec, mac: str, pairs: int, mtu: int | None, recover: Any) -> None:
        """Connect to the backend. Raises as :func:`open_direct`."""
        if self._driven.interrupts != "none":
            self.events = [(EventFd(), EventFd()) for _ in range(pairs)]
        memory, socket = self._driven.memory, spec.socket
        common: dict[str, Any] = {
            "mtu": mtu,
            "calls": [event for pair in self.events for event in pair],
            "config": self.config.event,
            "reply_timeout": _TIMEOUT,
            "changed": self.changed.event,
        }
        if socket is None:
            with opened_pairs(spec, pairs) as fds:
                name = str(spec.options.get("ifname", "a TAP"))
                self.front_end = FrontEnd.kernel(memory, fds, mac, name=name, **common)
        else:
            common |= {"server": socket.server, "wait": socket.wait, "retry": retry_of(recover)}
            try:
                self.front_end = FrontEnd(memory, socket.path, mac, pairs=pairs, **common)
            except (FileNotFoundError, ConnectionRefusedError) as error:
                raise NetdevUnavailable(message_of(error)) from None
        self._driven.undo.add(self.front_end.close)

    @property
    def longest_queue(self) -> int:
        """Return the most entries that a queue is to have for which nobody asked; 0 for any."""
        fd = self.front_end.take_first()  # none of the kernel's
        if fd is None:
            return 0
        try:
            return queue_size_for(process_of(fd))
        finally:
            os.close(fd)


def open_direct(wanted: PortRequest, memory: Memory, owned: bool) -> Port:
    """Open a port without QEMU: see :func:`virtnic.open`."""
    loop.check_outside()
    one_of("interrupts", wanted.interrupts, ("eventfd", "none", None))
    one_of("notify", wanted.notify, ("eventfd", None))
    spec, pairs = with_queues(parse(wanted.netdev), wanted.queues)
    _check_netdev(spec)
    if wanted.legacy:
        raise ValueError("frontend='direct' has no legacy interface: leave legacy= out")
    interrupts: Interrupts = wanted.interrupts or "eventfd"
    if interrupts == "none" and wanted.on_link is not None:
        raise ValueError("a port without interrupts cannot tell of its link; ask port.link")
    mtu = _mtu(wanted.properties or {})
    mac = _address(wanted.mac)
    driven = Driven(memory=memory, interrupts=interrupts)
    undo = driven.undo
    if owned:
        undo.add(memory.forget_file)
    try:
        connection = _Connection(driven)
        connection.meet(spec, mac, pairs, mtu, wanted.recover)
        features: dict[str, bool | None] = order_features(spec)
        if spec.socket is None:
            features["MRG_RXBUF"] = None  # else frames longer than a buffer are lost silently
        else:
            # A backend that polls looks at no event index; one write less to a shared line.
            features["EVENT_IDX"] = False
        if wanted.ring is not None:
            features["RING_PACKED"] = wanted.ring == "packed"
        features |= offload_features(spec, wanted.offload)
        driven.spec = spec
        driven.started = PortDriver(
            memory=memory,
            front_end=connection.front_end,
            queues=pairs,
            queue_size=wanted.queue_size or connection.longest_queue or spec.kind.queue_size,
            events=(connection.events, connection.config.event) if connection.events else None,
            features={**features, **(wanted.features or {})},
            ended=lambda: "there is no QEMU",
        )
        driven.callbacks = Callbacks(driven.driver.link)
        undo.add(driven.stop)
        port = DirectPort(driven=driven)
        driven.made = weakref.ref(port)
        _follow(driven, connection)
        port.set_polling(wanted.spin)
        port.set_statistics(wanted.statistics)
        port.set_timestamps(wanted.timestamps)
        if wanted.on_link is not None:
            port.on_link(wanted.on_link)
    except BaseException:
        undo.run()
        raise
    if spec.socket is not None and wanted.ring is None and port.ring != "packed":
        offers = connection.front_end.features >> RING_PACKED & 1
        who = "the port" if offers else "the backend"
        _log.warning("%s does not offer packed rings: split ones are used, which are slower", who)
    return port


def _check_netdev(spec: Spec) -> None:
    """Raise ValueError for a netdev that is not a vhost backend, or for options of QEMU's."""
    if spec.type == "tap":
        check_tap(spec)
    elif spec.socket is None:
        raise ValueError(
            "frontend='direct' is for vhost-user,path=SOCKET and tap,ifname=NAME,vhost=on; a "
            f"netdev of type {spec.type!r} is QEMU's: leave frontend='direct' out"
        )
    elif left := spec.options.keys() - {"queues"}:
        raise ValueError(f"frontend='direct' knows no {', '.join(sorted(left))} of the netdev")


def _mtu(properties: Mapping[str, Any]) -> int | None:
    """Return the MTU that is asked for. Raises ValueError for other properties of QEMU's."""
    if left := properties.keys() - {"host_mtu"}:
        raise ValueError(
            f"frontend='direct' has no QEMU whose property {', '.join(sorted(left))} could be set: "
            "host_mtu is the only one that it knows"
        )
    mtu = properties.get("host_mtu")
    if mtu is None:
        return None
    if not str(mtu).isdecimal() or not 68 <= int(mtu) <= 65535:
        raise ValueError(f"host_mtu is 68 to 65535, not {mtu!r}")
    return int(mtu)


def _address(mac: str | None) -> str:
    """Return a MAC address with colons; a random one of QEMU's range without it."""
    if mac is None:
        return f"52:54:00:{os.urandom(3).hex(':')}"
    digits = re.sub(r"[:.-]", "", unicast(mac))
    if not re.fullmatch(r"[0-9a-fA-F]{12}", digits):
        raise ValueError(f"mac={mac!r}: an address is written as 52:54:00:12:34:56")
    return bytes.fromhex(digits).hex(":")


def _follow(driven: Driven, connection: _Connection) -> None:
    """Look after the backend, and tell the port of it."""
    undo, front_end = driven.undo, connection.front_end
    hold = loop.Hold()
    undo.add(hold.release)
    thread = hold.take()
    weak = weakref.ref(driven)  # a port that is forgotten is collected

    def configuration() -> None:
        if (driven := weak()) is not None:
            driven.configuration_changed()

    def backend() -> None:
        driven = weak()
        port = None if driven is None else driven.made()
        if driven is None or port is None or port.closed:
            return
        if (why := front_end.given_up) is not None:
            driven.abandon(f"{why}; open the port anew")
        elif front_end.held is not None and not port.away:
            negotiation = functools.partial(_negotiate_anew, weak, front_end)
            threading.Thread(target=negotiation, name="virtnic-renegotiate", daemon=True).start()

    front_end.spare(driven.driver)
    for watch, look in ((connection.config, configuration), (connection.changed, backend)):
        undo.add(functools.partial(watch.remove, look))
        watch.add(thread, look, look)
    front_end.watch()


def _negotiate_anew(weak: weakref.ref[Driven], front_end: FrontEnd) -> None:
    """Continue with a backend that offers fewer features than the one before."""
    background.begin()
    driven = weak()
    if driven is None:
        return
    try:
        driven.driver.suspend()
        driven.driver.reattach(front_end=front_end)
        front_end.spare(driven.driver)
    except PortClosed:
        return
    except (VirtnicError, OSError, ValueError) as error:
        _log.warning(
            "the vhost-user backend came back with fewer features, and %s", message_of(error)
        )
        driven.abandon(f"the backend came back with fewer features, and {message_of(error)}")


@atexit.register
def _close_all() -> None:
    for port in list(_live):
        port.close()
