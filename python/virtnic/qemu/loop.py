"""One background thread with an asyncio loop, shared by everything that waits for QEMU.

It starts with the first :class:`Hold` and ends with the last. Callbacks run in that thread: they
must be quick and must not wait for QEMU.
"""

from __future__ import annotations

import _thread
import asyncio
import contextvars
import errno
import logging
import os
import select
import selectors
import socket
import threading
import time
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from virtnic import background
from virtnic.errors import PortClosed
from virtnic.qemu import patched
from virtnic.qemu.identity import Identity
from virtnic.streams import keep_standard_streams

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    from virtnic._native import EventFd

__all__ = ["Hold", "LoopThread", "SharedWatch", "Watch", "check_outside"]

_log = logging.getLogger(__name__)

T = TypeVar("T")

#: Seconds between checks by a waiting caller that the thread still exists.
_LOOK = 1.0

DEAF = (
    "descriptors of virtnic were closed from outside (os.closerange, or a library that daemonises "
    "the program): QEMU can no longer be reached; open what is needed after that"
)

_INSIDE = "a callback of virtnic must not wait for QEMU; do that in another thread"


class _Call(Generic[T]):
    """A call from another thread into the loop's.

    It waits with a plain lock: a signal handler that raises inside Python's futures or conditions
    leaves their locks taken.
    """

    def __init__(self, make: Callable[[], Coroutine[Any, Any, T]]) -> None:
        # Taken out where it is called: who has its result need not wait until the loop lets go.
        self._make = [make]
        self._done = _thread.allocate_lock()
        self._done.acquire()
        self._task: asyncio.Task[None] | None = None
        self._cancelled = False
        self._results: list[T] = []
        self._errors: list[BaseException] = []

    def begin(self, loop: LoopThread) -> None:
        """Start the coroutine, in the loop's thread."""
        if self._cancelled:
            return
        self._task = loop.begin(self._run())

    async def _run(self) -> None:
        try:
            self._results.append(await self._make.pop()())
        except BaseException as error:
            self._errors.append(error)
        finally:
            self._task = None
            self._done.release()

    def cancel(self) -> None:
        """Stop it, in the loop's thread."""
        self._cancelled = True
        if self._task is not None:
            self._task.cancel()

    def wait(self, timeout: float | None) -> bool:
        """Wait for its end; False after the timeout."""
        for_ever = timeout is None or timeout >= threading.TIMEOUT_MAX
        return self._done.acquire(timeout=-1 if for_ever else max(0.0, timeout or 0.0))

    def outcome(self) -> T:
        """Return its result, or raise its exception."""
        if self._errors:
            error = self._errors.pop()
            try:
                if isinstance(error, asyncio.CancelledError):
                    raise EOFError("the connection was closed") from None
                raise error
            finally:
                del error  # its traceback refers to this frame: avoid a reference cycle
        return self._results.pop()


class Watch:
    """A callback while a descriptor is readable, until it is closed.

    The descriptor is level-triggered: the callback drains it or closes this object. Creating and
    starting it are separate steps, so that an interruption in between leaves something to close.
    """

    def __init__(self, loop: LoopThread, fd: int, callback: Callable[[], object]) -> None:
        self._loop = loop
        self._fd = fd
        self._callback = callback
        self._closed = False

    def begin(self) -> None:
        """Start calling back. Raises TimeoutError if the loop's thread is blocked."""
        self._loop.here(self._add)

    def close(self) -> None:
        """Stop calling back. The descriptor may be closed afterwards; closing twice is allowed."""
        self._closed = True
        self._loop.here(self._remove)
        self._callback = _nothing  # the callback may refer to this object and to descriptors

    def settle(self) -> None:
        """Wait for a running callback to end."""
        self._loop.here(_nothing)

    def _add(self) -> None:
        loop, watches = asyncio.get_running_loop(), self._loop.watches
        # After an unannounced close, the selector would refuse the same number for ever.
        loop.remove_reader(self._fd)
        if not self._closed:
            watches[self._fd] = self
            loop.add_reader(self._fd, self._readable)

    def _remove(self) -> None:
        # The number may now be another descriptor's, which must stay registered.
        if self._loop.watches.get(self._fd) is self:
            del self._loop.watches[self._fd]
            asyncio.get_running_loop().remove_reader(self._fd)

    def _readable(self) -> None:
        if self._closed:
            return
        try:
            self._callback()
        except BaseException:  # even SystemExit must not end the shared thread
            _log.exception("a callback for descriptor %d failed; it is no longer watched", self._fd)
            self.close()


def _nothing() -> None:
    pass


class SharedWatch:
    """One eventfd watched for several users, all of whom check when it is signalled.

    It is watched while there are users. A user who joins others checks once at the start, as the
    event may already have been consumed.
    """

    def __init__(self, event: EventFd) -> None:
        self.event = event
        # Never held while waiting for the loop's thread, which may need it.
        self._lock = threading.RLock()
        self._looks: dict[object, Callable[[], object]] = {}
        self._watch: Watch | None = None

    def add(self, loop: LoopThread, who: object, look: Callable[[], object]) -> None:
        """Call ``look`` in the loop's thread. Raises TimeoutError if that is blocked."""
        with self._lock:
            several = bool(self._looks)
            self._looks[who] = look
            if self._watch is None:
                self._watch = Watch(loop, self.event.fileno(), self._all)
            watch = self._watch
        watch.begin()
        if several:
            loop.later(0.0, lambda: self._tell(who))

    def remove(self, who: object) -> None:
        """Remove a user, who is not called after this. Repeated calls are allowed."""
        with self._lock:
            watch = self._watch
            if self._looks.pop(who, None) is None or watch is None:
                return
            if last := not self._looks:
                self._watch = None
        if last:
            watch.close()
        else:
            watch.settle()

    def _all(self) -> None:
        self.event.drain()
        for who in list(self._looks):
            self._tell(who)

    def _tell(self, who: object) -> None:
        look = self._looks.get(who)
        if look is None:
            return
        try:
            look()
        except BaseException:  # even SystemExit must not end the shared thread
            _log.exception("a callback failed; it is not called again")
            self._looks.pop(who, None)


class LoopThread:
    """The thread and its loop, obtained from a :class:`Hold`."""

    def __init__(self) -> None:
        #: Whether it is ending or has ended; another one then takes its place.
        self.ending = False
        #: Watches by descriptor; used only in the loop's thread.
        self.watches: dict[int, Watch] = {}
        # asyncio does not keep tasks alive, and warns of one that is collected while waiting.
        self._tasks: set[asyncio.Task[Any]] = set()
        self._forked = False
        self._ident = 0
        #: The descriptors that the thread depends on, and the files they refer to.
        self._vital: list[Identity] = []
        self._deaf = False
        #: Set before the thread closes those descriptors itself.
        self._closes = False
        self._selector: selectors.EpollSelector | None = None
        self._loop: asyncio.SelectorEventLoop | None = None
        self._failure: BaseException | None = None
        # Its holder is the loop's thread; an interrupted start may leave two threads.
        self._claim = _thread.allocate_lock()
        # Locked until the loop exists; a plain lock, as in `_Call`.
        self._starting = _thread.allocate_lock()
        self._starting.acquire()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Start the thread if necessary, and wait until it accepts calls.

        Raises OSError without descriptors, BlockingIOError if no more threads can be started,
        RuntimeError if the interpreter supports none.
        """
        if self._starting.locked():
            try:
                threading.Thread(target=self._run, name="virtnic-qemu", daemon=True).start()
            except RuntimeError as error:
                if str(error) != "can't start new thread":
                    raise RuntimeError(
                        f"virtnic needs a thread to talk to QEMU, and cannot start one: {error}"
                    ) from None
                raise BlockingIOError(
                    errno.EAGAIN,
                    f"{error}: the limit of processes and threads is reached (ulimit -u, or that "
                    "of the container)",
                ) from None
            with self._starting:
                pass
        if self._failure is not None:
            self.ending = True
            # A new exception each time, so that no frames are kept.
            raise type(self._failure)(*self._failure.args)

    def _run(self) -> None:
        # Signals are for the program's own threads, which may wait for them.
        background.begin()
        # No signal handler runs in this thread, so nothing here needs protection from Ctrl-C.
        if not self._claim.acquire(blocking=False):
            return
        self._ident, self._thread = threading.get_ident(), threading.current_thread()
        try:
            self._serve()
        finally:
            self._ident = 0  # a later thread may get the same number

    def _serve(self) -> None:
        """Make the loop and run it until the end."""
        try:
            self._selector = selectors.EpollSelector()
            # An event loop that cannot create its socket pair complains when it is collected.
            for end in socket.socketpair():
                end.close()
            self._loop = asyncio.SelectorEventLoop(self._selector)
            # So far it has one descriptor, by which other threads wake it.
            vital = [self._selector.fileno(), *(k.fd for k in self._selector.get_map().values())]
            self._vital = [Identity.of(fd) for fd in vital]
        except BaseException as error:
            self._failure = error.with_traceback(None)
            if self._selector is not None:
                self._selector.close()
            return
        finally:
            self._starting.release()
        asyncio.set_event_loop(self._loop)
        self._loop.set_exception_handler(self._failed)
        try:
            try:
                self._loop.run_forever()
            except OSError:
                if self.is_deaf:
                    self._rest()
                raise
            left = asyncio.all_tasks(self._loop)
            for task in left:
                task.cancel()
            if left:
                self._loop.run_until_complete(asyncio.gather(*left, return_exceptions=True))
        finally:
            asyncio.set_event_loop(None)
            self._closes = True
            self._loop.close()

    def _failed(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        """Log asyncio's complaints, except that descriptors are gone, which is reported already."""
        if not self.is_deaf:
            loop.default_exception_handler(context)

    def _rest(self) -> None:
        """Sleep for ever, keeping the loop: closing it would cause complaints."""
        assert self._loop is not None
        kept = asyncio.all_tasks(self._loop)
        for_ever = _thread.allocate_lock()
        while kept is not None:
            for_ever.acquire()

    @property
    def inside(self) -> bool:
        """Whether the caller is the loop's thread, which must never wait for itself."""
        return threading.get_ident() == self._ident

    def call(self, make: Callable[[], Coroutine[Any, Any, T]], timeout: float | None = None) -> T:
        """Run the coroutine that ``make`` returns in the loop, and wait for it.

        Raises TimeoutError (the coroutine is cancelled), EOFError if the thread has ended,
        PortClosed in a forked child, and the coroutine's exceptions.
        """
        if self._forked:
            raise PortClosed("QEMU belongs to the process that opened it; this is a forked child")
        if self.inside:
            raise RuntimeError(_INSIDE)
        # The coroutine is created in the loop: one that is never run causes a warning.
        call = _Call(make)
        try:
            if not self._post(lambda: call.begin(self)):
                raise EOFError("the connection was closed")
            deadline = None if timeout is None else time.monotonic() + timeout
            while not call.wait(_LOOK if deadline is None else self._slice(deadline)):
                if self.is_deaf:
                    raise EOFError(DEAF)
                if deadline is not None and time.monotonic() >= deadline:
                    raise TimeoutError
        except BaseException:
            self._post(call.cancel)
            raise
        return call.outcome()

    def start_call(self, make: Callable[[], Coroutine[Any, Any, Any]]) -> None:
        """Run a coroutine in the loop without waiting for it."""
        call = _Call(make)
        self._post(lambda: call.begin(self))

    def begin(self, coroutine: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        """Start a task and keep it until it is done; called in the loop's thread."""
        task = asyncio.get_running_loop().create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    def here(self, function: Callable[[], object]) -> None:
        """Run a function in the loop's thread; wait for it unless called in that thread.

        Does nothing if that thread has ended. Raises TimeoutError if it is blocked.
        """
        if self._forked:
            return
        if self.inside:
            function()
            return
        done = _thread.allocate_lock()
        done.acquire()
        errors: list[BaseException] = []
        called = [function]  # as in `_Call`

        def run() -> None:
            try:
                called.pop()()
            except BaseException as error:
                errors.append(error)
            finally:
                done.release()

        if not self._post(run):
            return
        deadline = time.monotonic() + 10.0
        while not done.acquire(timeout=self._slice(deadline)):
            if self.is_deaf:
                return
            if time.monotonic() >= deadline:
                raise TimeoutError(
                    "the thread that talks to QEMU is blocked, perhaps by a callback"
                )
        if errors:
            try:
                raise errors[0]
            finally:
                errors.clear()

    def later(self, seconds: float, function: Callable[[], object]) -> None:
        """Call a function in the loop's thread after a delay, if the loop still exists."""
        self._post(lambda: asyncio.get_running_loop().call_later(seconds, function))

    def _post(self, function: Callable[[], object]) -> bool:
        """Schedule a function in the loop's thread; False if that has ended."""
        if self._forked or self._loop is None or self.is_deaf:
            return False
        try:
            # In a new context: the caller's may hold references.
            self._loop.call_soon_threadsafe(function, context=contextvars.Context())
        except RuntimeError:
            return False
        return True

    @staticmethod
    def _slice(deadline: float) -> float:
        """Return the time to wait before the next check."""
        return max(0.0, min(_LOOK, deadline - time.monotonic()))

    @property
    def is_deaf(self) -> bool:
        """Whether the thread is cut off because its descriptors were closed from outside.

        It then sleeps for ever without using the processor; another one takes its place.
        """
        if not self._deaf and not all(known.is_still for known in self._vital):
            # Only now: a thread that ends says so first, and closes them then.
            if self._closes:
                return False
            self._deaf = self.ending = True
            _log.error("%s", DEAF)
        return self._deaf

    def end(self) -> None:
        """End the thread; for :class:`Hold` only. Repeated calls are allowed."""
        self.ending = True
        if self._forked or self._claim.acquire(blocking=False):
            return  # it never ran and will not
        if not self.inside:
            with self._starting:
                pass
        loop = self._loop
        if loop is not None:
            self._post(loop.stop)

    def join(self) -> None:
        """Wait for the end of the thread, unless called in it."""
        away = self.inside or self._forked or self.is_deaf
        if self._thread is not None and not away:
            self._thread.join(5.0)

    def leave_to_parent(self) -> None:
        """Abandon it: this is a forked child's copy, without the thread.

        The epoll instance is shared with the parent: when the child's copies of connections
        unregister themselves at their end, they would do so in the parent's loop. So it is
        replaced.
        """
        self._forked = True
        if self._loop is not None:
            for task in asyncio.all_tasks(self._loop):
                task._log_destroy_pending = False  # type: ignore[attr-defined] # nobody ends it
        if self._selector is not None:
            with select.epoll() as own:
                os.dup2(own.fileno(), self._selector.fileno(), inheritable=False)


class _Shared:
    """The single loop and its users."""

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self.loop: LoopThread | None = None
        self.users: set[Hold] = set()


class Hold:
    """A user's hold on the loop, whose thread exists as long as there is one."""

    def take(self) -> LoopThread:
        """Return the loop, starting it for the first user.

        Raises OSError; RuntimeError under a library that has replaced Python's threads.
        """
        with _shared.lock:
            _shared.users.add(self)
            if _shared.loop is None or _shared.loop.ending:
                patched.check()
                keep_standard_streams()  # the first descriptors are opened here
                _shared.loop = LoopThread()
            loop = _shared.loop
        loop.start()
        return loop

    def release(self) -> None:
        """Release it; the thread ends with the last user. Repeated calls are allowed."""
        with _shared.lock:
            _shared.users.discard(self)
            last = _shared.loop
            if _shared.users or last is None:
                return
            last.end()
            _shared.loop = None
        last.join()


_shared = _Shared()


def check_outside() -> None:
    """Raise RuntimeError in the loop's thread, which must not wait for QEMU."""
    current = _shared.loop
    if current is not None and current.inside:
        raise RuntimeError(_INSIDE)


def _after_fork_in_child() -> None:
    """Start again without a thread: a forked child has none."""
    global _shared
    inherited, _shared = _shared.loop, _Shared()
    if inherited is not None:
        inherited.leave_to_parent()


os.register_at_fork(after_in_child=_after_fork_in_child)
