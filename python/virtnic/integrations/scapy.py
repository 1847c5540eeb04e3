"""scapy's socket on a port: ``VirtnicSocket(port)`` (extra ``scapy``)."""

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

if TYPE_CHECKING:
    from collections.abc import Sequence

    from scapy.packet import Packet

__all__ = ["VirtnicSocket"]

#: Counters of a port that are frames which went nowhere.
_DROPS = (
    *("rx_bad_length", "rx_bad_chain", "rx_no_buffer"),
    *("tx_lost", "tx_no_backend", "tx_bad_length", "tx_no_offload", "tx_bad_offload"),
)
#: Between two looks at a port that has no interrupts.
_LOOK = 0.001
_NANOSECONDS = EDecimal(10**9)


class VirtnicSocket(SuperSocket):
    """A layer 2 socket of scapy's whose wire is a port.

    ``sr``, ``sr1``, ``sniff``, ``AsyncSniffer(opened_socket=)``, ``bridge_and_sniff``, answering
    machines, automatons and scapy's ``select`` work with it as with its own sockets. Received
    packets have the time at which the port took them from its ring, VLAN tags where they were on
    the wire, and any length. What comes while scapy is busy is kept, ``backlog`` frames at most;
    then the rest waits in the port's ring, and what finds that full is dropped by its sender.

    ``recv`` does not wait: it returns None when there is nothing, as after a wake-up by mistake. A
    port that closes ends ``sniff`` as the end of a file does; one whose QEMU died does so with
    scapy's warning, which says how that was. Sending by such a port raises PortClosed or QemuDied.

    The port stays open when the socket is closed: it is whose it was.
    """

    desc = "send and receive layer 2 packets by a virtnic port"

    def __init__(
        self, port: virtnic.Port, *, backlog: int = 65_536, send_timeout: float | None = 1.0
    ) -> None:
        """Make one.

        ``send_timeout``: how many seconds ``send`` waits for room in the transmit ring before it
        drops the packet and counts that (``drops``); None for as long as it takes.
        """
        if backlog < 1:
            raise ValueError(f"backlog is a number of frames, 1 or more, not {backlog}")
        self.port = port
        self.iface = conf.iface
        self.promisc = True
        self._backlog = backlog
        self._send_timeout = send_timeout
        self._frames: deque[tuple[bytes, int | None]] = deque()
        self._lock = threading.Lock()
        self._unsent = 0
        self._before = port.stats()
        port.set_timestamps()
        #: Readable while frames are kept here, which the port's own descriptor does not know of.
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
        """Return a descriptor that is readable when there is a packet, or an end.

        Raises ValueError when the port has no interrupts; ``select`` polls then.
        """
        if self._both is None:
            raise ValueError("a port with interrupts='none' has nothing to wait on; use select")
        return self._both.fileno()

    def send(self, x: Packet) -> int:
        """Send a packet; return its bytes, or 0 where it found no room in time and was dropped.

        Raises PortClosed, QemuDied, DeviceError, PortBusy, and ValueError for a frame that is
        longer than a buffer of the port's memory (``jumbo_buffers``).
        """
        frame = bytes(x)
        with contextlib.suppress(AttributeError):  # plain bytes
            x.sent_time = time.time()
        if self.port.send_all([frame], timeout=self._send_timeout):
            return len(frame)
        self._unsent += 1
        if self._unsent == 1:
            log_runtime.warning(
                "%s: no room in the transmit ring for %s s: the packet is dropped, as later ones "
                "will be; .drops counts them",
                repr(self),  # and not the socket, which a log may keep
                self._send_timeout,
            )
        return 0

    def recv_raw(self, x: int | None = None) -> tuple[type[Packet] | None, bytes | None, Any]:
        """Return the class, the bytes and the time of the next packet, or three times None.

        Its first ``x`` bytes, or all. Raises EOFError when the port is closed, QemuDied,
        DeviceError, PortBusy.
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
            if not self._frames:
                return None, None, None
            frame, taken = self._frames.popleft()
            if not self._frames:
                self._kept.drain()
        when = None if taken is None else EDecimal(taken) / _NANOSECONDS
        return Ether, frame[:x], when

    def _take(self) -> None:
        """Empty the port's ring, so that it has room while scapy looks at a packet."""
        room = self._backlog - len(self._frames)
        if room <= 0:
            return
        burst = self.port.recv(min(room, 4096))
        if not burst:
            return
        if not self._frames:
            self._kept.signal()
        taken = burst.timestamp
        self._frames.extend((frame, taken) for frame in burst.tobytes())
        burst.release()

    @property
    def pending(self) -> bool:
        """Whether ``recv`` would find a packet, or an end."""
        with self._lock:
            try:
                if not self.closed:
                    self._take()
            except virtnic.VirtnicError:
                return True
            return self.closed or bool(self._frames)

    @property
    def drops(self) -> dict[str, int]:
        """Frames that went nowhere since the socket was made, by reason: what is not zero.

        ``tx_no_room`` is of this socket; the others are the port's counters of these names. What
        a peer drops because the receive ring is full it counts itself, as a TAP's ``tx_dropped``.
        """
        now = self.port.stats()
        counts = {name: now[name] - self._before.get(name, 0) for name in _DROPS if name in now}
        counts["tx_no_room"] = self._unsent
        return {name: count for name, count in counts.items() if count}

    def close(self) -> None:
        """Give what it has of the system back, and say what was dropped; twice is fine."""
        if self.closed or not hasattr(self, "_kept"):
            return
        with self._lock:
            self.closed = True
            self._kept.signal()  # whoever waits in select
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
    """Return the sockets that have something, by looking at each again and again."""
    until = time.monotonic() + (conf.recv_poll_rate if remain is None else remain)
    while True:
        ours = [sock for sock in sockets if isinstance(sock, VirtnicSocket) and sock.pending]
        others = [sock for sock in sockets if not isinstance(sock, VirtnicSocket)]
        ready = ours + (SuperSocket.select(others, 0) if others else [])
        if ready or time.monotonic() >= until:
            return ready
        time.sleep(_LOOK)
