"""What happens to a QEMU and its ports, told as it happens.

Each subscriber has a queue of its own and an eventfd that is readable while there is
something in it: plain threads wait in :meth:`Events.wait`, asyncio, trio and ``select`` on the
descriptor. Nobody polls, and only callbacks have a thread.
"""

from __future__ import annotations

import collections
import contextlib
import functools
import logging
import os
import threading
import time
import weakref
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, Self

from virtnic._native import EventFd, PortClosed
from virtnic.async_library import readable
from virtnic.deadline import Deadline
from virtnic.nic.backend import quoting
from virtnic.nic.renegotiation import Renegotiation
from virtnic.teardown import Owner

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType

    from virtnic._native import QemuDied
    from virtnic.nic.backend import Backend
    from virtnic.nic.port import Port
    from virtnic.qemu.loop import LoopThread

__all__ = ["Event", "EventKind", "Events", "Feed"]

_log = logging.getLogger(__name__)

#: What can happen. A backend is that of a vhost-user port, a peer that of a stream.
EventKind = Literal[
    "attached",
    "detached",
    "link-up",
    "link-down",
    "backend-lost",
    "backend-back",
    "peer-connected",
    "peer-disconnected",
    "backend-refused",
    "qemu-died",
    "qemu-back",
]

#: Events that a subscriber may leave unread; then the oldest go, and are counted.
_CAPACITY = 4096


@dataclass(frozen=True, slots=True, weakref_slot=True)
class Event:
    """Something that happened."""

    kind: EventKind
    #: The port that it happened to; None where it happened to QEMU.
    port: Port | None = None
    #: When, in seconds since 1970 (:func:`time.time`).
    time: float = field(default_factory=time.time)
    #: More in words: how QEMU died, which backend went, who connected.
    detail: str = ""


class Events(Owner):
    """The events of one QEMU, from :meth:`virtnic.Qemu.events`: an iterator of both kinds.

    It gets what happens after it was made, in the order in which it happened, and ends when
    the QEMU is closed. For one thread or task at a time; others take one of their own.
    """

    def __init__(self, feed: Feed) -> None:
        self._feed = feed
        self._lock = feed.lock
        self._queue: collections.deque[Event] = collections.deque()
        self._event = EventFd()
        self._owner = os.getpid()
        self._ended = False
        self._awaited = False
        # The one that came last, which others may have taken by now.
        self._latest: Callable[[], Event | None] = lambda: None
        #: Events that were dropped because nobody read them.
        self.missed = 0

    @property
    def ended(self) -> bool:
        """Whether nothing more will come. What came before can still be read."""
        return self._ended

    def fileno(self) -> int:
        """Return a descriptor that is readable while :meth:`wait` would not wait.

        It stays open for as long as this iterator lives, also after its end.
        """
        return self._event.lend()

    def wait(self, timeout: float | None = None) -> Event | None:
        """Return the next event; None after the timeout (seconds), or when it has ended.

        0 looks once, None waits for ever. Raises PortClosed in a forked child.
        """
        deadline = Deadline(timeout)
        while True:
            event, ended = self._take()
            if event is not None or ended:
                return event
            if not self._event.wait(deadline.left):
                return None

    def close(self) -> None:
        """End it: who waits gets what is left, then the end. Closing twice is fine."""
        if os.getpid() == self._owner:
            self._feed.unsubscribe(self)

    def _take(self) -> tuple[Event | None, bool]:
        """Return the next event, and whether it has ended where there is none."""
        if os.getpid() != self._owner:
            raise PortClosed("these events go to the process that asked for them, not to its child")
        with self._lock:
            event = self._queue.popleft() if self._queue else None
            if not self._queue and not self._ended:
                self._event.drain()
            return event, self._ended

    def _put(self, event: Event) -> None:
        """Queue an event; the caller has the lock."""
        if event is self._latest():
            return  # who told it was interrupted, and tells it again
        self._latest = weakref.ref(event)
        if len(self._queue) >= _CAPACITY:
            self._queue.popleft()
            self.missed += 1
        self._queue.append(event)
        self._event.signal()

    def _end(self) -> None:
        """Let it end after what is queued; the caller has the lock."""
        self._ended = True
        self._event.close()  # who waits is woken

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Event:
        event = self.wait()
        if event is None:
            raise StopIteration
        return event

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Event:
        while True:
            event, ended = self._take()
            if event is not None:
                return event
            if ended:
                raise StopAsyncIteration
            if self._awaited:
                raise RuntimeError(
                    "another task waits for these events already; take events() for each task"
                )
            self._awaited = True
            try:
                await readable(self._event.borrow)
            finally:
                self._awaited = False

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


class Feed:
    """Where the events of one QEMU come from."""

    def __init__(self) -> None:
        #: Held while an event is told: nobody sees one while its consequences are being made.
        self.lock = threading.RLock()
        # Who forgets its iterator has ended it.
        self._subscribers: weakref.WeakSet[Events] = weakref.WeakSet()
        self._ended = False

    def subscribe(self) -> Events:
        """Return a new subscriber; one that has ended when the feed has."""
        events = Events(self)
        with self.lock:
            if self._ended:
                events._end()
            else:
                self._subscribers.add(events)
        return events

    def unsubscribe(self, events: Events) -> None:
        """Tell a subscriber nothing more."""
        with self.lock:
            events._end()  # first: one that was forgotten here would not end with the feed
            self._subscribers.discard(events)

    def put(self, kind: EventKind, port: Port | None = None, detail: str = "") -> None:
        """Tell everybody."""
        self.tell(Event(kind, port, detail=detail))

    def tell(self, event: Event) -> None:
        """Tell everybody of an event; who was told it, is not when that is repeated."""
        # Its text: who keeps log records would keep the port.
        _log.debug("%s %s %s", event.kind, str(event.port), event.detail)
        with self.lock:
            for events in list(self._subscribers):
                events._put(event)

    def died(self, error: QemuDied) -> None:
        """Tell that QEMU died."""
        self.put("qemu-died", None, str(error))

    def end(self) -> None:
        """Nothing more will happen."""
        with self.lock:
            self._ended = True
            for events in list(self._subscribers):
                events._end()
            self._subscribers.clear()

    def call(self, callback: Callable[[Event], object]) -> Callable[[], None]:
        """Call back for each event, in a thread of its own; returns what ends that."""
        events = self.subscribe()
        stopped = threading.Event()

        def deliver() -> None:
            # No name for the event but here: while the next is awaited, its port is not kept.
            while (event := events.wait()) is not None and not stopped.is_set():
                try:
                    callback(event)
                except BaseException:
                    _log.exception("a callback for the event %s failed", event.kind)
                event = None

        def stop() -> None:
            stopped.set()
            events.close()

        threading.Thread(target=deliver, name="virtnic-watch", daemon=True).start()
        return stop

    def watch_backend(self, port: Port, backend: Backend, loop: LoopThread) -> None:
        """Tell when a port's backend goes and comes back, and end the port that has none any more.

        It is back when it serves: its rings are started, and it answers. It ends with the port.
        """
        interposer, path = backend.interposer, backend.path
        before = interposer.stats()
        losses, refusals = before["backend_losses"], before["refusals"]
        doubts = 0
        there = True
        told: str | None = None
        weak = weakref.ref(port)  # one that is forgotten is collected

        def failed(why: str) -> None:
            nonlocal told
            if why != told:
                told = why
                _log.warning("the vhost-user backend %s has less, and %s", path, why)
                self.put("backend-refused", weak(), f"{path}: it is there with less, but {why}")

        renegotiation = Renegotiation(port, backend, failed)
        port._attachment.renegotiation = renegotiation

        def look() -> None:
            nonlocal losses, refusals, doubts, there, told
            stats, refusal = interposer.stats(), interposer.refusal
            refused = stats["refusals"] != refusals
            port = weak()
            # A QEMU that went lost its backend too, which is not the backend's doing; one that
            # hangs up and lives does so again.
            doubts += refused
            gone = stats["backend_losses"] != losses or doubts > 1
            losses, refusals = stats["backend_losses"], stats["refusals"]
            if there and gone:
                there = False
                self.put("backend-lost", port, path)
                interposer.changed.signal()  # whether it is back is looked at once more
            elif not there and refused and refusal is not None and refusal != told:
                # One that is there again, and does not serve: why is said once.
                told = refusal
                words = refusal if port is None else quoting(refusal, port.qemu.process.stderr)
                _log.warning("the vhost-user backend %s does not serve: %s", path, words)
                self.put("backend-refused", port, f"{path}: {words}")
            elif interposer.serving and not renegotiation.busy:
                doubts = 0
                if not there:
                    there, told = True, None
                    lost, renegotiation.lost = renegotiation.lost, []
                    less = f" without {', '.join(lost)}" if lost else ""
                    self.put("backend-back", port, path + less)
            if port is not None and interposer.held is not None and not port._attachment.is_lost:
                renegotiation.begin()
            if port is not None and (why := backend.given_up(port.qemu.process.stderr)) is not None:
                port.abandon(why)

        interposer.spare(port)
        port._attachment.undo.add(functools.partial(backend.changed.remove, look))
        # Lost already while it was being attached: it looks at once.
        backend.changed.add(loop, look, look)


def tell_link(feed: Feed) -> Callable[[Port], None]:
    """Return the link callback of a port that tells the feed."""

    def changed(port: Port) -> None:
        with contextlib.suppress(PortClosed):
            feed.put("link-up" if port.link else "link-down", port)

    return changed
