"""A scapy socket on a port: ``VirtnicSocket(port)`` (extra ``scapy``)."""

from __future__ import annotations

import contextlib
import select
import threading
import time
from collections import deque
from typing import TYPE_CHECKING, Any

from scapy.config import conf
from scapy.error import log_runtime
from scapy.layers.l2 import Ether
from scapy.supersocket import SuperSocket
from scapy.utils import EDecimal

import virtnic
from virtnic.arguments import suggest_options

if TYPE_CHECKING:
    from collections.abc import Sequence

    from scapy.packet import Packet

__all__ = ["VirtnicSocket"]

#: Port counters that count dropped frames.
_DROPS = (
    *("rx_bad_length", "rx_bad_chain", "rx_no_buffer"),
    *("tx_lost", "tx_no_backend", "tx_bad_length", "tx_no_offload", "tx_bad_offload"),
)
#: Seconds between polls of a port without interrupts.
_LOOK = 0.001
_NANOSECONDS = EDecimal(10**9)


class VirtnicSocket(SuperSocket):
    """A scapy layer 2 socket on a port.

    ``sr``, ``sr1``, ``sniff``, ``AsyncSniffer(opened_socket=)``, ``bridge_and_sniff``, answering
    machines, automatons and scapy's ``select`` work as with scapy's own sockets. The time of a
    received packet is when the port took it from its ring; VLAN tags stay in the frame. While
    scapy is busy, up to ``backlog`` frames are kept. Further frames stay in the port's ring; when
    that is full, the sender drops frames.

    ``recv`` does not wait; it returns None if there is no packet. Closing the port ends ``sniff``
    like the end of a file. If QEMU died, scapy logs a warning with the cause. After either,
    ``send`` raises PortClosed or QemuDied.

    Closing the socket does not close the port.
    """

    desc = "send and receive layer 2 packets by a virtnic port"

    @suggest_options
    def __init__(
        self, port: virtnic.Port, *, backlog: int = 65_536, send_timeout: float | None = 1.0
    ) -> None:
        """Create the socket.

        ``send_timeout``: seconds that ``send`` waits for room in the transmit ring before it drops
        and counts the packet (``drops``); None waits without limit.
        """
        if backlog < 1:
            raise ValueError(f"backlog must be 1 or more frames, not {backlog}")
        self.port = port
        self.iface = conf.iface
        self.promisc = True
        self._backlog = backlog
        self._send_timeout = send_timeout
        self._frames: deque[tuple[bytes, int | None]] = deque()
        self._lock = threading.RLock()  # a signal handler may close it
        self._unsent = 0
        self._before = port.stats()
        port.set_timestamps()
        #: Readable while the backlog has frames; the port's descriptor does not cover those.
        self._kept = virtnic.EventFd()
        self._both: select.epoll | None = None
        if port.interrupts == "none":
            self.nonblocking_socket = True
            self.select = _look_at  # type: ignore[method-assign]
        else:
            self._both = select.epoll()
            self._both.register(port.fileno(), select.EPOLLIN)
            self._both.register(self._kept.fileno(), select.EPOLLIN)

    def fileno(self) -> int:
        """Return a descriptor that is readable when there is a packet or the port has ended.

        Raises ValueError if the port has no interrupts; ``select`` then polls.
        """
        if self._both is None:
            raise ValueError("a port with interrupts='none' has nothing to wait on; use select")
        return self._both.fileno()

    def send(self, x: Packet) -> int:
        """Send a packet; return its length, or 0 if it was dropped for lack of room.

        Raises PortClosed, QemuDied, DeviceError, PortBusy, and ValueError for a frame that is
        longer than the largest buffer of the port's memory (``jumbo_buffers``).
        """
        frame = bytes(x)
        with contextlib.suppress(AttributeError):  # plain bytes
            x.sent_time = time.time()
        if self.port.send_all([frame], timeout=self._send_timeout):
            return len(frame)
        self._unsent += 1
        if self._unsent == 1:
            log_runtime.warning(
                "%s: no room in the transmit ring for %s s: packet dropped; later drops are only "
                "counted, in .drops",
                repr(self),  # not the socket itself: a log record may keep it alive
                self._send_timeout,
            )
        return 0

    def recv_raw(self, x: int | None = None) -> tuple[type[Packet] | None, bytes | None, Any]:
        """Return class, bytes (at most ``x``) and time of the next packet, or three Nones.

        Raises EOFError if the port is closed, QemuDied, DeviceError, PortBusy.
        """
        with self._lock:
            if self.closed:
                raise EOFError("the socket was closed")
            try:
                self._take()
            except virtnic.PortClosed as error:
                if not self._frames:
                    raise EOFError(str(error)) from error
            except virtnic.VirtnicError:
                if not self._frames:
                    raise
            if self.closed:
                raise EOFError("the socket was closed")
            if not self._frames:
                return None, None, None
            frame, taken = self._frames.popleft()
            if not self._frames:
                self._kept.drain()
        when = None if taken is None else EDecimal(taken) / _NANOSECONDS
        return Ether, frame[:x], when

    def _take(self) -> None:
        """Move frames from the ring to the backlog, to keep room in the ring."""
        room = self._backlog - len(self._frames)
        if room <= 0:
            return
        burst = self.port.recv(min(room, 4096))
        if not burst or self.closed:
            return
        if not self._frames:
            self._kept.signal()
        taken = burst.timestamp
        self._frames.extend((frame, taken) for frame in burst.tobytes())
        burst.release()

    @property
    def pending(self) -> bool:
        """Whether ``recv`` would return a packet or raise."""
        with self._lock:
            try:
                if not self.closed:
                    self._take()
            except virtnic.VirtnicError:
                return True
            return self.closed or bool(self._frames)

    @property
    def drops(self) -> dict[str, int]:
        """Nonzero counts of the frames dropped since the socket was created, by reason.

        ``tx_no_room`` counts those of this socket; the others are the port's counters. Frames that
        a peer drops at a full receive ring are counted by the peer, e.g. a TAP's ``tx_dropped``.
        """
        now = self.port.stats()
        counts = {name: now[name] - self._before.get(name, 0) for name in _DROPS if name in now}
        counts["tx_no_room"] = self._unsent
        return {name: count for name, count in counts.items() if count}

    def close(self) -> None:
        """Release the descriptors, and warn about dropped frames. Idempotent."""
        if self.closed or not hasattr(self, "_kept"):
            return
        with self._lock:
            self.closed = True
            self._kept.signal()  # wake threads in select
            if self._both is not None:
                self._both.close()
            self._kept.close()
            self._frames.clear()
        drops = self.drops
        if drops:
            log_runtime.warning("%s was closed", repr(self))

    def __repr__(self) -> str:
        drops = "".join(f", {count} {name}" for name, count in self.drops.items())
        return f"<VirtnicSocket {self.port.mac}{drops}>"


def _look_at(
    sockets: Sequence[SuperSocket], remain: float | None = conf.recv_poll_rate
) -> list[SuperSocket]:
    """Return the sockets that are ready, by polling."""
    until = time.monotonic() + (conf.recv_poll_rate if remain is None else remain)
    while True:
        ours = [sock for sock in sockets if isinstance(sock, VirtnicSocket) and sock.pending]
        others = [sock for sock in sockets if not isinstance(sock, VirtnicSocket)]
        ready = ours + (SuperSocket.select(others, 0) if others else [])
        if ready or time.monotonic() >= until:
            return ready
        time.sleep(_LOOK)
