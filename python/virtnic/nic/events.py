"""Events of a QEMU and its ports.

Each subscriber has its own queue and an eventfd that is readable while the queue is not empty:
threads wait in :meth:`Events.wait`; asyncio, trio and ``select`` wait for the descriptor. Only
callbacks have a thread.
"""

from __future__ import annotations

import collections
import contextlib
import logging
import os
import threading
import time
import weakref
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Generic, Literal, Self

from virtnic._native import EventFd, PortClosed
from virtnic.async_library import readable
from virtnic.deadline import Deadline
from virtnic.teardown import Closing

if TYPE_CHECKING:
    from collections.abc import Callable

    from typing_extensions import TypeVar

    from virtnic._native import QemuDied

    #: The ports of a QEMU: :class:`virtnic.Port`.
    P = TypeVar("P", default=Any)
else:
    from typing import TypeVar

    P = TypeVar("P")

__all__ = ["Event", "EventKind", "Events", "Feed"]

_log = logging.getLogger(__name__)

#: Kinds of events. A backend belongs to a vhost-user port, a peer to a stream.
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

#: Most unread events of a subscriber; then the oldest are dropped and counted.
_CAPACITY = 4096


@dataclass(frozen=True, slots=True, weakref_slot=True)
class Event(Generic[P]):
    """One event.

    Attributes
    ----------
    kind
        What happened: ``attached``, ``link-down``, ``qemu-died``, … (:data:`EventKind`).
    port
        The port; None for events of QEMU.
    time
        The time, in seconds since 1970 (:func:`time.time`).
    detail
        Details: how QEMU died, which backend was lost, who connected.

    """

    kind: EventKind
    port: P | None = None
    time: float = field(default_factory=time.time)
    detail: str = ""


class Events(Closing, Generic[P]):
    """The events of one QEMU, from :meth:`virtnic.Qemu.events`; a normal and an async iterator.

    It gets events from its creation on, in order, and ends when the QEMU is closed. For one thread
    or task at a time; others need their own.
    """

    def __init__(self, feed: Feed[P]) -> None:
        self._feed = feed
        self._lock = feed.lock
        self._queue: collections.deque[Event[P]] = collections.deque()
        self._event = EventFd()
        self._owner = os.getpid()
        self._ended = False
        self._awaited = False
        # The last event, which may already have been taken.
        self._latest: Callable[[], Event[P] | None] = lambda: None
        #: Number of events that were dropped because they were not read.
        self.missed = 0

    @property
    def ended(self) -> bool:
        """Whether no more events will come; earlier ones can still be read."""
        return self._ended

    def fileno(self) -> int:
        """Return a descriptor that is readable while :meth:`wait` would not block.

        It stays open as long as this iterator exists, even after its end.
        """
        return self._event.lend()

    def wait(self, timeout: float | None = None) -> Event[P] | None:
        """Return the next event; None after the timeout, or if it has ended.

        ``timeout`` in seconds: 0 does not wait, None waits for ever. Raises PortClosed in a forked
        child.
        """
        deadline = Deadline(timeout)
        while True:
            event, ended = self._take()
            if event is not None or ended:
                return event
            if not self._event.wait(deadline.left):
                return None

    def close(self) -> None:
        """End it: waiters get the remaining events, then the end. Closing twice is allowed."""
        if os.getpid() == self._owner:
            self._feed.unsubscribe(self)

    def _take(self) -> tuple[Event[P] | None, bool]:
        """Return the next event, or None and whether it has ended."""
        if os.getpid() != self._owner:
            raise PortClosed(
                "events are delivered to the process that subscribed, not to a forked child"
            )
        with self._lock:
            event = self._queue.popleft() if self._queue else None
            if not self._queue and not self._ended:
                self._event.drain()
            return event, self._ended

    def _put(self, event: Event[P]) -> None:
        """Queue an event; the caller holds the lock."""
        if event is self._latest():
            return  # a repeated call after an interruption
        self._latest = weakref.ref(event)
        if len(self._queue) >= _CAPACITY:
            self._queue.popleft()
            self.missed += 1
        self._queue.append(event)
        self._event.signal()

    def _end(self) -> None:
        """End it after the queued events; the caller holds the lock."""
        self._ended = True
        self._event.close()  # wakes the waiters

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Event[P]:
        event = self.wait()
        if event is None:
            raise StopIteration
        return event

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Event[P]:
        while True:
            event, ended = self._take()
            if event is not None:
                return event
            if ended:
                raise StopAsyncIteration
            if self._awaited:
                raise RuntimeError(
                    "another task is waiting for these events; call events() for each task"
                )
            self._awaited = True
            try:
                await readable(self._event.borrow)
            finally:
                self._awaited = False


class _Watcher(Generic[P]):
    """A callback. Its thread does not keep it alive, as it may refer to what it watches."""

    def __init__(self, callback: Callable[[Event[P]], object]) -> None:
        self.callback = callback


class Feed(Generic[P]):
    """The source of one QEMU's events."""

    def __init__(self) -> None:
        #: Held while an event is reported, so that it is seen only once its consequences are
        #: complete.
        self.lock = threading.RLock()
        # A forgotten iterator has ended.
        self._subscribers: weakref.WeakSet[Events[P]] = weakref.WeakSet()
        self._ended = False

    def subscribe(self) -> Events[P]:
        """Return a new subscriber, already ended if the feed has."""
        events = Events(self)
        with self.lock:
            if self._ended:
                events._end()
            else:
                self._subscribers.add(events)
        return events

    def unsubscribe(self, events: Events[P]) -> None:
        """Remove a subscriber."""
        with self.lock:
            events._end()  # first: once removed, it would not end with the feed
            self._subscribers.discard(events)

    def put(self, kind: EventKind, port: P | None = None, detail: str = "") -> None:
        """Report an event to all subscribers."""
        self.tell(Event(kind, port, detail=detail))

    def tell(self, event: Event[P]) -> None:
        """Report an event to all subscribers; a repeated call skips those already told."""
        # As text: a kept log record would keep the port.
        _log.debug("%s %s %s", event.kind, str(event.port), event.detail)
        with self.lock:
            for events in list(self._subscribers):
                events._put(event)

    def died(self, error: QemuDied) -> None:
        """Report that QEMU died."""
        self.put("qemu-died", None, str(error))

    def end(self) -> None:
        """End the feed."""
        with self.lock:
            self._ended = True
            for events in list(self._subscribers):
                events._end()
            self._subscribers.clear()

    def call(
        self, callback: Callable[[Event[P]], object], keep: list[object]
    ) -> Callable[[], None]:
        """Call back for each event in its own thread; return a function that stops it.

        Calls continue as long as ``keep`` exists.
        """
        events = self.subscribe()
        stopped = threading.Event()
        kept = _Watcher(callback)
        keep.append(kept)
        weak = weakref.ref(kept)

        def deliver() -> None:
            # The only name for the event: while waiting for the next one, its port is not kept.
            while (event := events.wait()) is not None and not stopped.is_set():
                watcher = weak()
                if watcher is None:
                    return
                try:
                    watcher.callback(event)
                except BaseException:
                    _log.exception("a callback for the event %s failed", event.kind)
                event = watcher = None

        def stop() -> None:
            stopped.set()
            events.close()
            with contextlib.suppress(ValueError):
                keep.remove(kept)

        threading.Thread(target=deliver, name="virtnic-watch", daemon=True).start()
        return stop
