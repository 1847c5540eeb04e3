"""A port on a faulty wire."""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import heapq
import random
import select
import threading
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from virtnic._native import Burst, EventFd, PortClosed, VirtnicError, as_frames
from virtnic.arguments import suggest_options
from virtnic.background import take_no_signals
from virtnic.deadline import Deadline
from virtnic.nic.sending import BACKOFF
from virtnic.teardown import Closing
from virtnic.testing.frames import ClosingPort, Frames, send_all

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from typing_extensions import Buffer

    from virtnic.protocols import Frame, ReceivedFrames

__all__ = ["FaultyPort"]

#: Frames that may be queued in one direction before no more are taken.
_ROOM = 4096
#: A reordered frame is overtaken by at most this many frames, or for at most this many seconds.
_OTHERS, _HOLD = 8, 0.02


@dataclass(frozen=True, slots=True)
class _Faults:
    drop: float
    duplicate: float
    reorder: float
    corrupt: float
    delay: tuple[float, float]


@dataclass(slots=True)
class _Counts:
    """What was done to the frames of one direction."""

    seen: int = 0
    dropped: int = 0
    duplicated: int = 0
    reordered: int = 0
    corrupted: int = 0
    delayed: int = 0
    passed: int = 0


class _Wire:
    """One direction. The caller holds the lock."""

    def __init__(self, seed: str, faults: _Faults) -> None:
        self.lock = threading.RLock()
        self.counts = _Counts()
        self._random = random.Random(seed)  # noqa: S311 - it has to be repeatable
        self._faults = faults
        self._order = 0
        #: Frames that are out.
        self.ready: collections.deque[bytes] = collections.deque()
        #: Delayed frames: (due time, order of arrival, frame).
        self._delayed: list[tuple[float, int, bytes]] = []
        #: Frames held back to be overtaken: (count of frames seen by then, time limit, frame).
        self._held: list[tuple[int, float, bytes]] = []

    @property
    def waiting(self) -> int:
        return len(self.ready) + len(self._delayed) + len(self._held)

    def put(self, frame: bytes, now: float) -> None:
        """Take in a frame. Its fate depends only on the seed and its number."""
        draw = self._random.random
        dropped, doubled, late, damaged, jitter, where, others = (draw() for _ in range(7))
        faults, counts = self._faults, self.counts
        counts.seen += 1
        if dropped < faults.drop:
            counts.dropped += 1
        else:
            if damaged < faults.corrupt:
                counts.corrupted += 1
                frame = _flip(frame, where)
            copies = 1
            if doubled < faults.duplicate:
                counts.duplicated += 1
                copies = 2
            if late < faults.reorder:
                counts.reordered += 1
                until = counts.seen + 1 + int(others * _OTHERS)
                self._held += [(until, now + _HOLD, frame)] * copies
            else:
                low, high = faults.delay
                self._let_go([frame] * copies, now, low + (high - low) * jitter)
        self._pass_held(now)

    def advance(self, now: float) -> None:
        """Let out the frames that are due."""
        while self._delayed and self._delayed[0][0] <= now:
            self.ready.append(heapq.heappop(self._delayed)[2])
        self._pass_held(now)

    def hurry(self) -> None:
        """Let out all frames."""
        self.advance(float("inf"))

    def due(self) -> float | None:
        """Return when the next frame is due."""
        times = [self._delayed[0][0]] if self._delayed else []
        return min([*times, *(held[1] for held in self._held)], default=None)

    def _pass_held(self, now: float) -> None:
        if not self._held:
            return
        gone = [held for held in self._held if held[0] <= self.counts.seen or held[1] <= now]
        if gone:
            self._held = [held for held in self._held if held not in gone]
            self._let_go([frame for _, _, frame in gone], now, 0.0)

    def _let_go(self, frames: list[bytes], now: float, delay: float) -> None:
        if delay <= 0:
            self.ready.extend(frames)
            return
        for frame in frames:
            self.counts.delayed += 1
            self._order += 1
            heapq.heappush(self._delayed, (now + delay, self._order, frame))


class FaultyPort(Closing):
    """A port that drops, duplicates, reorders, corrupts and delays frames, reproducibly by seed.

    ``send``, ``send_all``, ``recv``, ``fileno``, ``stats``, ``on_link`` and ``close`` are those of
    a port, also under :class:`virtnic.aio.Port`; everything else is the wrapped port's. Received
    frames are copies, with complete checksums. What would bypass the wire is refused: queues other
    than the first, frames with offloads, and the loops of the core (:func:`virtnic.forward` and
    others).

    >>> port = FaultyPort(virtnic.open("user"), seed=7, drop=0.01, delay=(0.001, 0.020))

    """

    @suggest_options
    def __init__(
        self,
        port: ClosingPort,
        *,
        seed: int = 0,
        drop: float = 0.0,
        duplicate: float = 0.0,
        reorder: float = 0.0,
        corrupt: float = 0.0,
        delay: float | tuple[float, float] = 0.0,
        on: Literal["both", "rx", "tx"] = "both",
    ) -> None:
        """Wrap a port.

        ``drop``, ``duplicate``, ``reorder`` and ``corrupt`` are probabilities per frame: of being
        lost, of arriving twice, of being overtaken by one to eight later frames (or for 20 ms), and
        of having one bit flipped. ``delay`` is in seconds, fixed or a range to choose from. ``on``
        selects received frames, sent frames, or both. The fate of the n-th frame of a direction
        depends only on the seed and n.

        Raises ValueError.
        """
        for name, value in (
            ("drop", drop),
            ("duplicate", duplicate),
            ("reorder", reorder),
            ("corrupt", corrupt),
        ):
            if not (isinstance(value, (int, float)) and 0.0 <= value <= 1.0):
                raise ValueError(f"{name} must be a probability from 0 to 1, not {value!r}")
        low, high = _range(delay)
        if not 0.0 <= low <= high < float("inf"):
            raise ValueError(
                f"delay must be seconds or a range (low, high) of seconds, not {delay!r}"
            )
        if on not in ("both", "rx", "tx"):
            raise ValueError(f"on must be 'both', 'rx' or 'tx', not {on!r}")
        wanted = _Faults(drop, duplicate, reorder, corrupt, (low, high))
        none = dataclasses.replace(wanted, drop=0, duplicate=0, reorder=0, corrupt=0, delay=(0, 0))
        self._port = port
        self._rx = _Wire(f"{seed} rx", none if on == "tx" else wanted)
        self._tx = _Wire(f"{seed} tx", none if on == "rx" else wanted)
        memory = getattr(port, "memory", None)
        self._longest = float("inf") if memory is None else memory.largest_frame
        self._event = EventFd()
        self._epoll: select.epoll | None = None
        self._pump: threading.Thread | None = None
        self._wake = threading.Condition()
        self._news = False
        self._closed = False

    @property
    def port(self) -> ClosingPort:
        """The wrapped port."""
        return self._port

    def send(self, frames: Iterable[Frame], offload: None = None) -> int:
        """Send frames as a port does, subject to the faults; return how many were taken.

        All are taken, or none while too many are queued. Raises as the wrapped port does, and
        ValueError for frames with an ``offload``.
        """
        self._check()
        if offload is not None:
            raise ValueError("a FaultyPort takes finished frames only: send them without offload")
        several = as_frames(frames)
        with self._tx.lock:
            now = time.monotonic()
            self._transmit(now)
            if self._tx.waiting >= _ROOM:
                return 0
            count = 0
            for frame in several:
                view = memoryview(frame)
                if not 0 < view.nbytes <= self._longest:
                    self._refuse(frame, count)
                self._tx.put(view.tobytes(), now)
                count += 1
            self._transmit(now)
            due = self._tx_due(now)
        release = getattr(frames, "release", None)
        if release is not None:
            release()  # a burst is consumed
        self._expect(due)
        return count

    def send_all(
        self, frames: Iterable[Frame], timeout: float | None = None, offload: None = None
    ) -> int:
        """Send all frames, waiting while too many are queued.

        See :meth:`virtnic.Port.send_all`.
        """
        return send_all(self, frames, timeout, offload)

    def queue(self, index: int) -> Any:
        """Refuse: frames of a queue would bypass the wire."""
        raise ValueError(
            f"queue({index}) is not supported; `.port.queue({index})` is without faults"
        )

    def on_link(self, callback: Callable[[Any], object]) -> None:
        """Call ``callback(port)``, with this port, when the link goes up or down."""
        port: Any = self._port
        port.on_link(lambda _port: callback(self))

    def recv(self, maximum: int = 256, timeout: float | None = 0.0) -> Frames:
        """Receive frames as a port does; return up to ``maximum`` of those that are out.

        Raises as the wrapped port does.
        """
        self._check()
        deadline = Deadline(timeout)
        pause: float | None = 0.0
        while True:
            room = self._rx.waiting < _ROOM
            burst = self._port.recv(maximum, timeout=pause) if room else _rest(pause)
            with self._rx.lock:
                now = time.monotonic()
                for frame in _finished(burst):
                    self._rx.put(frame, now)
                self._rx.advance(now)
                count = min(maximum, len(self._rx.ready))
                found = Frames([self._rx.ready.popleft() for _ in range(count)])
                self._rx.counts.passed += count
                self._event.drain()
                if self._rx.ready:
                    self._event.signal()
                due = self._rx.due()
            burst.release()
            if found or deadline.is_over:
                self._expect(due)
                return found
            ends = [moment for moment in (deadline.at, due) if moment is not None]
            pause = max(0.0, min(ends) - now) if ends else None

    def flush(self) -> None:
        """Let out all delayed or held frames now, in both directions."""
        with self._tx.lock:
            self._tx.hurry()
            self._transmit(time.monotonic())
        with self._rx.lock:
            self._rx.hurry()
            if self._rx.ready:
                self._event.signal()

    def fileno(self) -> int:
        """Return a descriptor that is readable when :meth:`recv` would find frames or an error."""
        self._check()
        if self._epoll is None:
            epoll = select.epoll()
            epoll.register(self._port.fileno(), select.EPOLLIN)
            epoll.register(self._event.lend(), select.EPOLLIN)
            self._epoll = epoll
        return self._epoll.fileno()

    def stats(self) -> dict[str, int]:
        """Return the wrapped port's counters, and those of :meth:`faults` as ``fault_…``."""
        return self._port.stats() | {
            f"fault_{name}": count for name, count in self.faults().items()
        }

    def faults(self) -> dict[str, int]:
        """Return what was done to frames so far, by direction.

        ``rx_seen``, ``rx_dropped``, ``rx_duplicated``, ``rx_reordered``, ``rx_corrupted``,
        ``rx_delayed``, ``rx_passed`` and ``rx_waiting``, and the same for ``tx``: ``seen`` plus
        ``duplicated`` is ``dropped`` plus ``passed`` plus ``waiting``.
        """
        found: dict[str, int] = {}
        for name, wire in (("rx", self._rx), ("tx", self._tx)):
            with wire.lock:
                counts = dataclasses.asdict(wire.counts) | {"waiting": wire.waiting}
            found |= {f"{name}_{key}": count for key, count in counts.items()}
        return found

    def close(self) -> None:
        """Close the wrapped port. Queued frames are lost; :meth:`faults` counts them."""
        with self._wake:
            self._closed = True
            self._wake.notify_all()
            pump = self._pump
        if pump is not None and pump is not threading.current_thread():
            pump.join()
        self._port.close()
        if self._epoll is None:
            self._event.close()  # unless lent: a waiter learns of the end from the port's

    def _check(self) -> None:
        if self._closed or self._port.closed:
            raise PortClosed("the port is closed")

    def _refuse(self, frame: Buffer, before: int) -> None:
        """Let the wrapped port report what is wrong with a frame."""
        try:
            self._port.send([frame])
        except (ValueError, TypeError) as error:
            error.add_note(f"{before} frames before it were taken")
            raise

    def _transmit(self, now: float) -> None:
        """Pass frames that are out to the wrapped port; the caller holds the lock."""
        self._tx.advance(now)
        ready = self._tx.ready
        while ready:
            batch = [ready[index] for index in range(min(256, len(ready)))]
            sent = self._port.send(batch)
            for _ in range(sent):
                ready.popleft()
            self._tx.counts.passed += sent
            if sent < len(batch):
                return

    def _tx_due(self, now: float) -> float | None:
        """Return when to pass frames to the wrapped port next; its ring may have been full."""
        return now + BACKOFF if self._tx.ready else self._tx.due()

    # Frames also come out between calls, so a thread runs while there are any.

    def _expect(self, due: float | None) -> None:
        if due is None:
            return
        with self._wake:
            if self._closed:
                return
            self._news = True
            self._wake.notify_all()
            if self._pump is None:
                pump = threading.Thread(target=self._run, name="virtnic-faults", daemon=True)
                pump.start()  # it waits for the lock; not recorded if it cannot be started
                self._pump = pump

    def _run(self) -> None:
        take_no_signals()
        while True:
            with self._wake:
                self._news = False
            now = time.monotonic()
            times: list[float | None] = []
            with self._tx.lock, contextlib.suppress(VirtnicError, OSError):
                self._transmit(now)  # the next call raises the same error
                times.append(self._tx_due(now))
            with self._rx.lock:
                self._rx.advance(now)
                if self._rx.ready:
                    self._event.signal()
                times.append(self._rx.due())
            due = min((moment for moment in times if moment is not None), default=None)
            with self._wake:
                if self._closed or (due is None and not self._news):
                    self._pump = None
                    return
                if due is not None and not self._news:
                    self._wake.wait(max(0.0, due - time.monotonic()))

    def __getattr__(self, name: str) -> Any:
        if name == "_port":  # not initialised yet
            raise AttributeError(name)
        return getattr(self._port, name)

    def __repr__(self) -> str:
        return f"<FaultyPort on {self._port!r}>"


def _range(delay: Any) -> tuple[float, float]:
    """Return the minimum and maximum delay; NaN for an invalid one."""
    ends = tuple(delay) if isinstance(delay, (tuple, list)) else (delay, delay)
    if len(ends) == 2 and all(isinstance(end, (int, float)) for end in ends):
        return ends
    return (float("nan"),) * 2


def _rest(seconds: float | None) -> Frames:
    """Receive nothing: too much is queued already."""
    time.sleep(_HOLD if seconds is None else seconds)
    return Frames()


def _finished(frames: ReceivedFrames) -> list[bytes]:
    """Return copies with complete checksums, which show what is corrupted afterwards."""
    return frames.tobytes(checksums=True) if isinstance(frames, Burst) else frames.tobytes()


def _flip(frame: bytes, where: float) -> bytes:
    """Flip one bit, at a position from 0 to 1."""
    byte, bit = divmod(int(where * len(frame) * 8), 8)
    return frame[:byte] + bytes([frame[byte] ^ 1 << bit]) + frame[byte + 1 :]
