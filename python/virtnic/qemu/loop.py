"""One background thread with an asyncio loop, shared by everything that waits for QEMU.

It starts with the first :class:`Hold` on it and is gone after the last.
Callbacks run in that thread: they must be quick and must not wait for QEMU.
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

#: Seconds until somebody who waits for the thread looks whether it is still there.
_LOOK = 1.0

DEAF = (
    "descriptors of virtnic were closed by somebody else (os.closerange, a library that turns the "
    "program into a daemon): nothing is heard of QEMU any more; open what is needed after that"
)

_INSIDE = "a callback of virtnic must not wait for QEMU; do that in another thread"


class _Call(Generic[T]):
    """One call from another thread into the loop's.

    What it waits with is a plain lock: Python's own futures and conditions lose their own locks
    where a signal handler raises inside of them.
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
        """Start the coroutine; in the loop's thread."""
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
        """Stop it; in the loop's thread."""
        self._cancelled = True
        if self._task is not None:
            self._task.cancel()

    def wait(self, timeout: float | None) -> bool:
        """Wait for its end; False after the timeout."""
        for_ever = timeout is None or timeout >= threading.TIMEOUT_MAX
        return self._done.acquire(timeout=-1 if for_ever else max(0.0, timeout or 0.0))

    def outcome(self) -> T:
        """Return what it returned, or raise what it raised."""
        if self._errors:
            error = self._errors.pop()
            try:
                if isinstance(error, asyncio.CancelledError):
                    raise EOFError("the connection was closed") from None
                raise error
            finally:
                del error  # its traceback has this frame: nothing shall need the collector
        return self._results.pop()


class Watch:
    """A callback for each time that a descriptor is readable, until it is closed.

    The descriptor is level-triggered: the callback drains it or closes this. Made first and
    begun then: who is interrupted meanwhile has something to close.
    """

    def __init__(self, loop: LoopThread, fd: int, callback: Callable[[], object]) -> None:
        self._loop = loop
        self._fd = fd
        self._callback = callback
        self._closed = False

    def begin(self) -> None:
        """Call back from now on. Raises TimeoutError where the loop's thread is held up."""
        self._loop.here(self._add)

    def close(self) -> None:
        """Call back no more. Afterwards the descriptor may be closed; twice is fine."""
        self._closed = True
        self._loop.here(self._remove)
        self._callback = _nothing  # which may refer to this object, and to descriptors

    def settle(self) -> None:
        """Wait for the end of a callback that may be under way."""
        self._loop.here(_nothing)

    def _add(self) -> None:
        loop, watches = asyncio.get_running_loop(), self._loop.watches
        # One that was closed without a word would make the selector refuse the number for ever.
        loop.remove_reader(self._fd)
        if not self._closed:
            watches[self._fd] = self
            loop.add_reader(self._fd, self._readable)

    def _remove(self) -> None:
        # By now the number may be that of another descriptor, which is not ours to forget.
        if self._loop.watches.get(self._fd) is self:
            del self._loop.watches[self._fd]
            asyncio.get_running_loop().remove_reader(self._fd)

    def _readable(self) -> None:
        if self._closed:
            return
        try:
            self._callback()
        except BaseException:  # such as SystemExit, which would end the thread for all
            _log.exception("a callback of descriptor %d failed; it is watched no more", self._fd)
            self.close()


def _nothing() -> None:
    pass


class SharedWatch:
    """One eventfd that is watched for several: it tells all of them to look.

    It is watched while there is somebody to tell. Whoever is added beside others looks once at
    what may have happened before: they may have taken the news.
    """

    def __init__(self, event: EventFd) -> None:
        self.event = event
        # Never held while the loop's thread is waited for, which may want it.
        self._lock = threading.RLock()
        self._looks: dict[object, Callable[[], object]] = {}
        self._watch: Watch | None = None

    def add(self, loop: LoopThread, who: object, look: Callable[[], object]) -> None:
        """Have ``look`` called in the loop's thread. Raises TimeoutError where that is held up."""
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
        """Tell somebody no more; he is not told after this. Twice is fine."""
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
        except BaseException:  # such as SystemExit, which would end the thread for all
            _log.exception("a callback failed; it is told no more")
            self._looks.pop(who, None)


class LoopThread:
    """The thread and its loop. Get it from a :class:`Hold`."""

    def __init__(self) -> None:
        #: Whether it ends, or has ended: then another takes its place.
        self.ending = False
        #: What is watched, by descriptor; for the loop's thread.
        self.watches: dict[int, Watch] = {}
        # asyncio itself keeps no task alive: one that is collected while it waits is complained of.
        self._tasks: set[asyncio.Task[Any]] = set()
        self._forked = False
        self._ident = 0
        #: The descriptors without which the thread hears nothing, and which files they are.
        self._vital: list[Identity] = []
        self._deaf = False
        self._selector: selectors.EpollSelector | None = None
        self._loop: asyncio.SelectorEventLoop | None = None
        self._failure: BaseException | None = None
        # Who has it is the loop's thread; there may be two where the start was interrupted.
        self._claim = _thread.allocate_lock()
        # Locked until the loop is there; a plain lock, as in `_Call`.
        self._starting = _thread.allocate_lock()
        self._starting.acquire()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Start the thread, if that was not done, and wait until it takes calls.

        Raises OSError without descriptors, BlockingIOError where there can be no more threads,
        RuntimeError where the interpreter has none.
        """
        if self._starting.locked():
            try:
                threading.Thread(target=self._run, name="virtnic-qemu", daemon=True).start()
            except RuntimeError as error:
                if str(error) != "can't start new thread":
                    raise RuntimeError(
                        f"virtnic talks to QEMU in a thread, and can have none here: {error}"
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
            # Another one each time: what is kept shall keep no frames.
            raise type(self._failure)(*self._failure.args)

    def _run(self) -> None:
        # The program's signals are for its own threads, where it may wait for them.
        background.begin()
        # No signal handler runs in here: what this makes needs no protection against Ctrl-C.
        if not self._claim.acquire(blocking=False):
            return
        self._ident, self._thread = threading.get_ident(), threading.current_thread()
        try:
            self._selector = selectors.EpollSelector()
            # An event loop that gets no socket pair of its own complains when it is collected.
            for end in socket.socketpair():
                end.close()
            self._loop = asyncio.SelectorEventLoop(self._selector)
            # It has one descriptor so far, by which other threads wake it.
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
            self._loop.close()

    def _failed(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        """Log what asyncio complains of, but not that its descriptors are gone: that is said."""
        if not self.is_deaf:
            loop.default_exception_handler(context)

    def _rest(self) -> None:
        """Sleep for good, with all that the loop has: it would complain of its end."""
        assert self._loop is not None
        kept = asyncio.all_tasks(self._loop)
        for_ever = _thread.allocate_lock()
        while kept is not None:
            for_ever.acquire()

    @property
    def inside(self) -> bool:
        """Whether the caller is the loop's own thread, which must never wait for it."""
        return threading.get_ident() == self._ident

    def call(self, make: Callable[[], Coroutine[Any, Any, T]], timeout: float | None = None) -> T:
        """Run the coroutine that ``make`` returns in the loop, and wait for it.

        Raises TimeoutError (the coroutine is cancelled), EOFError when the thread has ended,
        PortClosed in a forked child, and what the coroutine raises.
        """
        if self._forked:
            raise PortClosed("QEMU belongs to the process that opened it; this is a forked child")
        if self.inside:
            raise RuntimeError(_INSIDE)
        # The coroutine is made there: one that nobody runs is complained of.
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
        """Start a task that lives until it is done; in the loop's thread."""
        task = asyncio.get_running_loop().create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    def here(self, function: Callable[[], object]) -> None:
        """Run a function in the loop's thread, and wait unless we are in it.

        Does nothing where that thread has ended. Raises TimeoutError where it is held up.
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
                    "the thread that talks to QEMU is held up, by a callback perhaps"
                )
        if errors:
            try:
                raise errors[0]
            finally:
                errors.clear()

    def later(self, seconds: float, function: Callable[[], object]) -> None:
        """Call a function in the loop's thread after a while, if there is one by then."""
        self._post(lambda: asyncio.get_running_loop().call_later(seconds, function))

    def _post(self, function: Callable[[], object]) -> bool:
        """Have a function called in the loop's thread; False where that has ended."""
        if self._forked or self._loop is None or self.is_deaf:
            return False
        try:
            # In a context of its own: that of the caller may hold anything, for as long.
            self._loop.call_soon_threadsafe(function, context=contextvars.Context())
        except RuntimeError:
            return False
        return True

    @staticmethod
    def _slice(deadline: float) -> float:
        """Return how long to wait before the next look at what is waited for."""
        return max(0.0, min(_LOOK, deadline - time.monotonic()))

    @property
    def is_deaf(self) -> bool:
        """Whether the thread hears nothing any more, because somebody closed its descriptors.

        It sleeps for good then, and takes no processor; another takes its place.
        """
        heard = self._loop_is_over or all(known.is_still for known in self._vital)
        if not self._deaf and not heard:
            self._deaf = self.ending = True
            _log.error("%s", DEAF)
        return self._deaf

    @property
    def _loop_is_over(self) -> bool:
        return self._loop is None or self._loop.is_closed()

    def end(self) -> None:
        """Have the thread end; for :class:`Hold` only. Twice is fine."""
        self.ending = True
        if self._forked or self._claim.acquire(blocking=False):
            return  # it never came to run, and will not
        if not self.inside:
            with self._starting:
                pass
        loop = self._loop
        if loop is not None:
            self._post(loop.stop)

    def join(self) -> None:
        """Wait for the end of the thread, unless we are in it."""
        away = self.inside or self._forked or self.is_deaf
        if self._thread is not None and not away:
            self._thread.join(5.0)

    def leave_to_parent(self) -> None:
        """Do nothing more: this is a forked child's copy, and the thread is not in it.

        The epoll instance is shared with the parent. What the child's copies of connections
        take out of it at their end would be taken from the parent's loop, so it is replaced.
        """
        self._forked = True
        if self._loop is not None:
            for task in asyncio.all_tasks(self._loop):
                task._log_destroy_pending = False  # type: ignore[attr-defined] # nobody ends it
        if self._selector is not None:
            with select.epoll() as own:
                os.dup2(own.fileno(), self._selector.fileno(), inheritable=False)


class _Shared:
    """The one loop there is, and who uses it."""

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self.loop: LoopThread | None = None
        self.users: set[Hold] = set()


class Hold:
    """One user's hold on the loop: its thread is there as long as somebody has one."""

    def take(self) -> LoopThread:
        """Return the loop, started when nobody had it.

        Raises OSError; RuntimeError under a library that has replaced Python's threads.
        """
        with _shared.lock:
            _shared.users.add(self)
            if _shared.loop is None or _shared.loop.ending:
                patched.check()
                keep_standard_streams()  # here begins what has descriptors
                _shared.loop = LoopThread()
            loop = _shared.loop
        loop.start()
        return loop

    def release(self) -> None:
        """Give it back; the thread ends with the last user. Twice is fine."""
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
    """Raise RuntimeError in the loop's own thread, in which nobody must wait for QEMU."""
    current = _shared.loop
    if current is not None and current.inside:
        raise RuntimeError(_INSIDE)


def _after_fork_in_child() -> None:
    """Start afresh: there is no such thread here."""
    global _shared
    inherited, _shared = _shared.loop, _Shared()
    if inherited is not None:
        inherited.leave_to_parent()


os.register_at_fork(after_in_child=_after_fork_in_child)
