"""A wire between two ports, in this process: datagrams of QEMU, through a bad one.

It notes what it has put out, so that a test can count by hand what a receiver should have found.
"""

import socket
import threading
from collections.abc import Iterable, Sequence
from types import TracebackType
from typing import Any, Self

from virtnic.errors import PortClosed
from virtnic.testing import FaultyPort, Frames


class Socket:
    """A port whose frames are datagrams: received from one socket, sent to another."""

    def __init__(self) -> None:
        self._there, self.outlet = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._back, self.inlet = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
        #: Frames in the order in which they were put out.
        self.out: list[bytes] = []
        self.closed = False
        self.memory = None

    def netdevs(self) -> tuple[str, str]:
        """The netdevs of the port that sends and of the one that receives."""
        return tuple(
            f"dgram,local.type=fd,local.str={end.fileno()}" for end in (self.outlet, self.inlet)
        )  # type: ignore[return-value]

    def send(self, frames: Iterable[Any], offload: None = None) -> int:
        """Put frames out; a full socket is waited for."""
        count = 0
        for frame in frames:
            self.out.append(bytes(frame))
            self._back.send(frame)
            count += 1
        return count

    def recv(self, maximum: int = 256, timeout: float | None = 0.0) -> Frames:
        """Take what has come in."""
        found: list[bytes] = []
        self._there.settimeout(timeout or 0.0)
        try:
            while len(found) < maximum:
                found.append(self._there.recv(65536))
                self._there.setblocking(False)
        except (BlockingIOError, TimeoutError):
            pass
        return Frames(found)

    def fileno(self) -> int:
        """Readable when something has come in."""
        return self._there.fileno()

    def stats(self) -> dict[str, int]:
        """None."""
        return {}

    def close(self) -> None:
        """Close all sockets."""
        self.closed = True
        for end in (self._there, self._back, self.outlet, self.inlet):
            end.close()


class BadWire:
    """Frames from one port to another, with faults; a thread moves them."""

    def __init__(self, between: Sequence[bytes] = (), **faults: Any) -> None:
        """``between``: frames of others, of which one is put out after each hundred frames."""
        self.socket = Socket()
        self.faulty = FaultyPort(self.socket, on="tx", **faults)  # type: ignore[arg-type]
        self.others = 0
        self._between = [*between]
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._move, name="bad-wire")

    def _move(self) -> None:
        moved = 0
        while not self._over.is_set():
            frames = self.socket.recv(64, timeout=0.02).tobytes()
            if not frames:
                continue
            try:
                self.faulty.send_all(frames, timeout=10)
            except (PortClosed, OSError):
                return
            moved += len(frames)
            if self._between and moved // 100 > self.others:
                self.socket.send([self._between[self.others % len(self._between)]])
                self.others += 1

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        where: TracebackType | None,
    ) -> None:
        self._over.set()
        self._thread.join()
        self.faulty.close()
