"""The traffic of one port: a thread that keeps a window of frames in flight."""

import queue
import threading
import time
from collections.abc import Callable
from typing import Any

import virtnic

from .ledger import Ledger, Unbalanced
from .wire import Echo, Ping

#: Frames on the way at once, and in one burst.
WINDOW, BURST = 64, 16
#: Seconds that a frame may be on the way while nothing is wrong.
STALLED = 15.0


_UP = {True: "up", False: "down"}


class Flow:
    """Sends and receives by whatever port it has at the moment."""

    def __init__(self, name: str, wire: Echo | Ping) -> None:
        self.name = name
        self.wire = wire
        self.ledger = Ledger()
        self.port: Any = None
        #: What ended the thread.
        self.failure: BaseException | None = None
        #: How the end of a life is booked, by exception.
        self._kinds = {virtnic.QemuDied: "QEMU killed", virtnic.PortClosed: "detached"}
        self._number = 0
        self._sending = True
        self._progress = time.monotonic()
        self._changed = threading.Condition()
        self._orders: queue.SimpleQueue[tuple[Callable[[], object], threading.Event]]
        self._orders = queue.SimpleQueue()
        self._stop = False
        self._thread = threading.Thread(target=self._run, name=f"soak-{name}", daemon=True)
        self._thread.start()

    # What the conductor calls.

    def begin(self, port: Any) -> None:
        """Go on with this port."""
        with self._changed:
            self.ledger.begin()
            self._progress = time.monotonic()
            self.port = port
            self._changed.notify_all()

    def wait_for_end(self, seconds: float = 10.0) -> None:
        """Wait until the port has ended and its accounts are closed."""
        self._wait(lambda: self.port is None, seconds, "noticed that its port is gone")

    def wait_for_traffic(self, frames: int = 20, seconds: float = 20.0) -> None:
        """Wait until so many more frames came."""
        enough = self.ledger.received + frames
        self._wait(lambda: self.ledger.received >= enough, seconds, f"received {frames} frames")

    def wait_for_link(self, *, up: bool, seconds: float = 10.0) -> None:
        """Wait until the port's link is up, or down."""
        self._wait(lambda: self.port.link is up, seconds, f"seen the link go {_UP[up]}")

    def do(self, order: Callable[[], object], seconds: float = 20.0) -> None:
        """Have something done in the flow's thread, between two bursts."""
        done = threading.Event()
        self._orders.put((order, done))
        deadline = time.monotonic() + seconds
        while not done.wait(0.05):
            self.check()
            if time.monotonic() > deadline:
                raise Unbalanced(f"{self.name} did not get to its order in {seconds:g} s")
        self.check()

    def settle(self, seconds: float = STALLED) -> None:
        """Send no more, and wait until nothing is on the way."""
        self._sending = False
        self._wait(
            lambda: not self.ledger.on_the_way or self.port is None, seconds, "got all it had sent"
        )
        if self.port is not None:
            self.do(lambda: self.ledger.check(self.port.stats()))

    def stop(self) -> None:
        """End the thread."""
        with self._changed:
            self._stop = True
            self._changed.notify_all()
        self._thread.join()

    def check(self) -> None:
        """Raise what went wrong in the thread."""
        if self.failure is not None:
            raise Unbalanced(f"{self.name}: {self.failure!r}") from self.failure

    def _wait(self, condition: Callable[[], bool], seconds: float, what: str) -> None:
        deadline = time.monotonic() + seconds
        with self._changed:
            while not condition():
                self.check()
                if not self._changed.wait(0.05) and time.monotonic() > deadline:
                    raise Unbalanced(
                        f"{self.name} has not {what} in {seconds:g} s: "
                        f"{len(self.ledger.on_the_way)} on the way, {self._stats()}"
                    )

    def _stats(self) -> object:
        return None if self.port is None else self.port.stats()

    # What is done in the thread.

    def _run(self) -> None:
        try:
            while self._turn():
                pass
        except BaseException as error:
            self.failure = error

    def _turn(self) -> bool:
        with self._changed:
            if self.port is None:
                self._changed.wait_for(lambda: self._stop or self.port is not None)
            if self._stop:
                return False
        try:
            if not self._orders.empty():
                order, done = self._orders.get()
                try:
                    order()
                finally:
                    done.set()
            if self.ledger.entered == 0:
                self.ledger.entered += self._put(self.wire.first())
            room = WINDOW - len(self.ledger.on_the_way)
            sent = self.send(min(room, BURST)) if self._sending and room > 0 else 0
            self.receive(0.0 if sent and room > BURST else 0.005)
        except tuple(self._kinds) as error:
            self._end(self._kinds[type(error)])
        if self.ledger.on_the_way and time.monotonic() - self._progress > 2 * STALLED:
            raise Unbalanced(f"nothing came for {2 * STALLED:g} s: {self._stats()}")
        return True

    def send(self, count: int) -> int:
        """Send up to ``count`` new frames; return how many fitted."""
        life = self.ledger.life
        numbers = range(self._number, self._number + count)
        before = self.ledger.entered
        sent = 0
        try:
            sent = self._put([self.wire.frame(life, number) for number in numbers])
        except tuple(self._kinds):
            # Some may have entered the ring before it found that nobody is there.
            sent = self.port.stats()["tx_packets"] - before
            raise
        finally:
            for number in numbers[:sent]:
                self.ledger.send(number)
            self._number += count
        return sent

    def _put(self, frames: list[bytes]) -> int:
        return int(self.port.send(frames)) if frames else 0

    def receive(self, timeout: float = 0.0) -> int:
        """Receive once; return how many of the numbered frames came."""
        burst = self.port.recv(64, timeout=timeout)
        frames = burst.tobytes()
        burst.release()
        self.ledger.came += len(frames)
        ours = 0
        for frame in frames:
            found = self.wire.parse(frame)
            if found is not None:
                self.ledger.receive(*found)
                ours += 1
        if ours:
            self._progress = time.monotonic()
            with self._changed:
                self._changed.notify_all()
        return ours

    def write_off(self, kind: str) -> int:
        """Account for frames that the device took and will never answer; those in the ring stay."""
        came = -1
        while came != self.ledger.came:
            came = self.ledger.came
            self.receive()
        self.port.reclaim()
        self._progress = time.monotonic()
        return self.ledger.lose(kind, self.port.stats()["tx_completed"])

    def _end(self, kind: str) -> None:
        stats = self.port.stats()
        if self.ledger.entered == 0:  # nobody was there for the very first frame
            self.ledger.entered = stats["tx_packets"]
        self.ledger.check(stats)
        with self._changed:
            self.ledger.lose(kind)
            self.port = None
            self._changed.notify_all()
