"""What happens to a QEMU and its ports, told as it happens.

Each subscriber has a queue of its own and an eventfd that is readable while there is
something in it: plain threads wait in :meth:`Events.wait`, asyncio, trio and ``select`` on the
descriptor. Nobody polls, and only callbacks have a thread.
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
class Event(Generic[P]):
    """Something that happened."""

    kind: EventKind
    #: The port that it happened to; None where it happened to QEMU.
    port: P | None = None
    #: When, in seconds since 1970 (:func:`time.time`).
    time: float = field(default_factory=time.time)
    #: More in words: how QEMU died, which backend went, who connected.
    detail: str = ""


class Events(Closing, Generic[P]):
    """The events of one QEMU, from :meth:`virtnic.Qemu.events`: an iterator of both kinds.

    It gets what happens after it was made, in the order in which it happened, and ends when
    the QEMU is closed. For one thread or task at a time; others take one of their own.
    """

    def __init__(self, feed: Feed[P]) -> None:
        self._feed = feed
        self._lock = feed.lock
        self._queue: collections.deque[Event[P]] = collections.deque()
        self._event = EventFd()
        self._owner = os.getpid()
        self._ended = False
        self._awaited = False
        # The one that came last, which others may have taken by now.
        self._latest: Callable[[], Event[P] | None] = lambda: None
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

    def wait(self, timeout: float | None = None) -> Event[P] | None:
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

    def _take(self) -> tuple[Event[P] | None, bool]:
        """Return the next event, and whether it has ended where there is none."""
        if os.getpid() != self._owner:
            raise PortClosed("these events go to the process that asked for them, not to its child")
        with self._lock:
            event = self._queue.popleft() if self._queue else None
            if not self._queue and not self._ended:
                self._event.drain()
            return event, self._ended

    def _put(self, event: Event[P]) -> None:
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
                    "another task waits for these events already; take events() for each task"
                )
            self._awaited = True
            try:
                await readable(self._event.borrow)
            finally:
                self._awaited = False


class _Watcher(Generic[P]):
    """What is called back. Its thread does not keep it: it may hold what it hears of."""

    def __init__(self, callback: Callable[[Event[P]], object]) -> None:
        self.callback = callback


class Feed(Generic[P]):
    """Where the events of one QEMU come from."""

    def __init__(self) -> None:
        #: Held while an event is told: nobody sees one while its consequences are being made.
        self.lock = threading.RLock()
        # Who forgets its iterator has ended it.
        self._subscribers: weakref.WeakSet[Events[P]] = weakref.WeakSet()
        self._ended = False

    def subscribe(self) -> Events[P]:
        """Return a new subscriber; one that has ended when the feed has."""
        events = Events(self)
        with self.lock:
            if self._ended:
                events._end()
            else:
                self._subscribers.add(events)
        return events

    def unsubscribe(self, events: Events[P]) -> None:
        """Tell a subscriber nothing more."""
        with self.lock:
            events._end()  # first: one that was forgotten here would not end with the feed
            self._subscribers.discard(events)

    def put(self, kind: EventKind, port: P | None = None, detail: str = "") -> None:
        """Tell everybody."""
        self.tell(Event(kind, port, detail=detail))

    def tell(self, event: Event[P]) -> None:
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

    def call(
        self, callback: Callable[[Event[P]], object], keep: list[object]
    ) -> Callable[[], None]:
        """Call back for each event, in a thread of its own; returns what ends that.

        It is called for as long as ``keep`` is there.
        """
        events = self.subscribe()
        stopped = threading.Event()
        kept = _Watcher(callback)
        keep.append(kept)
        weak = weakref.ref(kept)

        def deliver() -> None:
            # No name for the event but here: while the next is awaited, its port is not kept.
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
