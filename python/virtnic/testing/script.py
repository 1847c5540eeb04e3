"""A port without a QEMU, whose device follows a script."""

from __future__ import annotations

import collections
import logging
import threading
from collections.abc import Callable, Generator, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from virtnic._native import (
    DeviceError,
    EventFd,
    PortClosed,
    QemuDied,
    VirtnicError,
    as_frames,
)
from virtnic.arguments import suggest_options
from virtnic.deadline import Deadline, seconds
from virtnic.teardown import Closing
from virtnic.testing.frames import Frames, send_all

if TYPE_CHECKING:
    from virtnic.protocols import Frame

__all__ = [
    "Deliver",
    "Die",
    "Expect",
    "Lie",
    "Link",
    "Pause",
    "Refuse",
    "ScriptedPort",
    "Step",
    "Unplug",
]

_log = logging.getLogger(__name__)

#: Bytes of the longest frame: the largest packet buffer of a :class:`virtnic.Memory`.
_LONGEST = 65600


class Step:
    """What a scripted device does next."""


class Deliver(Step):
    """Frames arrive."""

    def __init__(self, *frames: Frame) -> None:
        self.frames = [memoryview(frame).tobytes() for frame in as_frames(frames)]


@dataclass(frozen=True)
class Expect(Step):
    """Wait until the program has sent this many more frames, the value of the generator's yield.

    With ``where``, only frames for which it returns true count; others are skipped.
    """

    count: int = 1
    where: Callable[[bytes], bool] | None = None


@dataclass(frozen=True)
class Pause(Step):
    """Do nothing for some seconds."""

    seconds: float


@dataclass(frozen=True)
class Link(Step):
    """The link goes up or down, and the ``on_link`` callbacks are called."""

    up: bool


@dataclass(frozen=True)
class Refuse(Step):
    """The ring is full: this many calls of ``send`` take nothing."""

    sends: int = 1


@dataclass(frozen=True)
class Lie(Step):
    """The device violates the specification: from now on every call raises DeviceError.

    This step and the next two take effect once the program has received everything delivered
    before.
    """

    rule: str = "used id 65520 is out of range for a queue of 256"


@dataclass(frozen=True)
class Die(Step):
    """QEMU is killed: from now on every call raises QemuDied."""

    how: str = "QEMU (pid 1) was killed by SIGKILL and printed nothing"


@dataclass(frozen=True)
class Unplug(Step):
    """The device is removed: from now on every call raises PortClosed."""


#: Steps; a generator gets the awaited frames from each ``yield Expect(…)``.
Script = Iterable[Step] | Generator[Step, list[bytes], object]


class ScriptedPort(Closing):
    """A port whose device follows a script, step by step, in its own thread.

    ``send``, ``recv``, ``fileno``, ``stats``, ``link``, ``on_link`` and ``close`` are those of a
    :class:`virtnic.Port`, and raise the same exceptions.

    >>> def script():
    ...     request, = yield Expect(1)
    ...     yield Deliver(reply_to(request))
    ...     yield Link(up=False)
    ...     yield Die()
    >>> with ScriptedPort(script()) as port:
    ...     program(port)
    ...     port.finish()
    """

    @suggest_options
    def __init__(
        self, script: Script, *, mac: str = "52:54:00:00:00:01", mtu: int = 1500, room: int = 256
    ) -> None:
        """Start the script. ``room`` is the number of frames that the transmit ring holds.

        Sent frames stay in the ring until the script expects them; once it has ended, they are
        discarded.
        """
        self.mac, self.mtu = mac, mtu
        self._room = room
        self._event = EventFd()
        self._room_event = EventFd()
        self._room_event.signal()
        self._changed = threading.Condition()
        self._arrived: collections.deque[bytes] = collections.deque()
        self._sent: collections.deque[bytes] = collections.deque()
        self._link = True
        self._refusals = 0
        self._failure: VirtnicError | None = None
        self._closed = self._ended = False
        self._at = "its first step"
        self._error: BaseException | None = None
        self._callbacks: list[Callable[[Any], None]] = []
        self._counters = dict.fromkeys(
            ("rx_packets", "rx_bytes", "tx_packets", "tx_bytes", "tx_ring_full"), 0
        )
        self._thread = threading.Thread(
            target=self._play, args=(script,), name="virtnic-script", daemon=True
        )
        self._thread.start()

    def send(self, frames: Iterable[Frame], offload: None = None) -> int:
        """Queue frames and return how many fitted the ring; see :meth:`virtnic.Port.send`.

        This device has no offloads: an ``offload`` is a ValueError.
        """
        if offload is not None:
            raise ValueError("a scripted device has no offloads: send finished frames")
        copies: list[bytes] = []
        wrong: Exception | None = None
        for number, frame in enumerate(as_frames(frames)):
            before = f"the {number} frames before it were queued"
            try:
                data = memoryview(frame).tobytes()
            except TypeError as error:
                wrong = TypeError(f"frame {number}: {error}; {before}")
                break
            if not 0 < len(data) <= _LONGEST:
                wrong = ValueError(f"frame {number} has {len(data)} bytes; {before}")
                break
            copies.append(data)
        with self._changed:
            self._check()
            room = self._room - len(self._sent)
            if self._refusals:
                self._refusals -= 1
                room = 0
            taken = copies[: max(0, room)]
            if not self._ended:
                self._sent.extend(taken)
            self._counters["tx_packets"] += len(taken)
            self._counters["tx_bytes"] += sum(map(len, taken))
            self._counters["tx_ring_full"] += len(copies) - len(taken)
            self._changed.notify_all()
        if wrong is not None:
            raise wrong
        if isinstance(frames, Frames):
            frames.keep(copies[len(taken) :])  # sent frames leave the burst
        return len(taken)

    def send_all(
        self, frames: Iterable[Frame], timeout: float | None = None, offload: None = None
    ) -> int:
        """Queue all frames, waiting for room; see :meth:`virtnic.Port.send_all`."""
        return send_all(self, frames, timeout, offload)

    def wait_writable(self, timeout: float | None = None) -> bool:
        """Wait for room in the ring; False after the timeout."""
        timeout = seconds(timeout)
        with self._changed:
            self._check()
            self._changed.wait_for(
                lambda: self._closed or self._failure or len(self._sent) < self._room, timeout
            )
            self._check()
            return len(self._sent) < self._room

    def tx_fileno(self) -> int:
        """Return a descriptor that is always readable; only ``send`` shows if there is room."""
        return self._room_event.lend()

    def recv(self, maximum: int = 256, timeout: float | None = 0.0) -> Frames:
        """Return up to ``maximum`` frames that arrived; see :meth:`virtnic.Port.recv`."""
        deadline = Deadline(timeout)
        while True:
            with self._changed:
                if not self._arrived:
                    self._check()
                found = [self._arrived.popleft() for _ in range(min(maximum, len(self._arrived)))]
                self._counters["rx_packets"] += len(found)
                self._counters["rx_bytes"] += sum(map(len, found))
                if not self._arrived:
                    self._event.drain()
                self._changed.notify_all()
            if found or not self._event.wait(deadline.left):
                return Frames(found)

    def fileno(self) -> int:
        """Return a descriptor that is readable when :meth:`recv` would find something."""
        return self._event.lend()

    def stats(self) -> dict[str, int]:
        """Return the counters of packets, bytes, and frames that did not fit the ring."""
        with self._changed:
            return dict(self._counters)

    @property
    def link(self) -> bool:
        """Whether the link is up."""
        return self._link

    def on_link(self, callback: Callable[[Any], None]) -> None:
        """Call ``callback(port)`` when the link goes up or down."""
        self._callbacks.append(callback)

    @property
    def closed(self) -> bool:
        """Whether it was closed."""
        return self._closed

    def finish(self, timeout: float = 5.0) -> None:
        """Wait for the end of the script; raise what it raised.

        Raises AssertionError after ``timeout`` seconds, naming the current step: the program did
        not do what the script expects.
        """
        self._thread.join(seconds(timeout))
        with self._changed:
            if self._error is not None:
                raise self._error
            if not self._ended:
                waiting = f"; {len(self._sent)} frames were sent, {len(self._arrived)} not received"
                raise AssertionError(
                    f"after {timeout:g} s the script is still at {self._at}{waiting}"
                )

    def close(self) -> None:
        """End the script and the port. Closing twice is allowed."""
        with self._changed:
            self._closed = True
            self._arrived.clear()
            self._changed.notify_all()
            self._event.signal()
        if self._thread is not threading.current_thread():
            self._thread.join()
        self._event.close()
        self._room_event.close()

    def _check(self) -> None:
        """Raise what ended the port; the caller holds the lock."""
        if self._closed:
            raise PortClosed("the port is closed")
        if self._failure is not None:
            raise type(self._failure)(*self._failure.args)

    def _play(self, script: Script) -> None:
        steps = iter(script)
        answer: list[bytes] | None = None
        error: BaseException | None = None
        try:
            while True:
                step = steps.send(answer) if isinstance(steps, Generator) else next(steps)
                with self._changed:
                    self._at = repr(step)
                answer = self._do(step)
        except (StopIteration, _Stopped):
            pass
        except BaseException as raised:
            _log.debug("the script failed", exc_info=True)
            error = raised
        finally:
            if isinstance(steps, Generator):
                steps.close()
        with self._changed:
            self._error = error
            self._ended = not self._closed or error is not None
            self._sent.clear()
            self._changed.notify_all()

    def _do(self, step: Step) -> list[bytes] | None:
        match step:
            case Deliver():
                with self._changed:
                    self._arrived.extend(step.frames)
                    self._event.signal()
            case Expect():
                return self._expect(step)
            case Pause():
                with self._changed:
                    self._until(lambda: False, step.seconds)
            case Refuse():
                with self._changed:
                    self._refusals += step.sends
            case Link():
                self._link = step.up
                for callback in list(self._callbacks):
                    callback(self)
            case Lie():
                broken = f"the port is broken: {step.rule}; close it and open a new one"
                self._fail(DeviceError(broken))
            case Die():
                self._fail(QemuDied(step.how))
            case Unplug():
                self._fail(PortClosed("the port is closed"))
            case _:
                raise TypeError(f"{step!r} is not a step of a script")
        return None

    def _expect(self, step: Expect) -> list[bytes]:
        found: list[bytes] = []
        with self._changed:
            while len(found) < step.count:
                self._until(lambda: bool(self._sent))
                frame = self._sent.popleft()
                if step.where is None or step.where(frame):
                    found.append(frame)
        return found

    def _fail(self, error: VirtnicError) -> None:
        with self._changed:
            self._until(lambda: not self._arrived)
            self._failure = error
            self._event.signal()

    def _until(self, condition: Callable[[], bool], seconds: float | None = None) -> None:
        """Wait for a condition or a time; the caller holds the lock."""
        self._changed.wait_for(lambda: self._closed or condition(), seconds)
        if self._closed:
            raise _Stopped

    def __repr__(self) -> str:
        state = "closed" if self._closed else f"at {self._at}"
        return f"<ScriptedPort {self.mac}: {state}>"


class _Stopped(Exception):
    """The port was closed before the end of the script."""
