"""One background thread with an asyncio loop, shared by everything that waits for QEMU.

It starts with the first :func:`acquire` and is gone after the last :func:`release`.
Callbacks run in that thread: they must be quick and must not wait for QEMU.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import logging
import os
import select
import selectors
import threading
from typing import TYPE_CHECKING, Any, TypeVar

from virtnic.errors import PortClosed

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

_log = logging.getLogger(__name__)

T = TypeVar("T")

_INSIDE = "a callback of virtnic must not wait for QEMU; do that in another thread"


class LoopThread:
    """The thread and its loop. Get it from :func:`acquire`."""

    def __init__(self) -> None:
        self._forked = False
        self._selector = selectors.EpollSelector()
        self._loop = asyncio.SelectorEventLoop(self._selector)
        self._thread = threading.Thread(target=self._run, name="virtnic-qemu", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        try:
            self._loop.run_forever()
            left = asyncio.all_tasks(self._loop)
            for task in left:
                task.cancel()
            if left:
                self._loop.run_until_complete(asyncio.gather(*left, return_exceptions=True))
        finally:
            asyncio.set_event_loop(None)
            self._loop.close()

    @property
    def inside(self) -> bool:
        """Whether the caller is the loop's own thread, which must never wait for it."""
        return threading.get_ident() == self._thread.ident

    def call(self, coroutine: Coroutine[Any, Any, T], timeout: float | None = None) -> T:
        """Run a coroutine in the loop and wait for it.

        Raises TimeoutError (the coroutine is cancelled), EOFError when the thread has ended,
        PortClosed in a forked child, and what the coroutine raises.
        """
        if self._forked:
            coroutine.close()
            raise PortClosed("QEMU belongs to the process that opened it; this is a forked child")
        if self.inside:
            coroutine.close()
            raise RuntimeError(_INSIDE)
        try:
            future = asyncio.run_coroutine_threadsafe(coroutine, self._loop)
        except RuntimeError:
            coroutine.close()
            raise EOFError("the connection was closed") from None
        except BaseException:
            coroutine.close()
            raise
        try:
            return future.result(timeout)
        except concurrent.futures.CancelledError:
            raise TimeoutError("cancelled") from None
        except BaseException:
            future.cancel()
            raise

    def start(self, coroutine: Coroutine[Any, Any, Any]) -> None:
        """Run a coroutine in the loop without waiting for it."""
        if self._forked:
            coroutine.close()
            return
        asyncio.run_coroutine_threadsafe(coroutine, self._loop)

    def watch_fd(self, fd: int, callback: Callable[[], object]) -> Callable[[], None]:
        """Call back each time the descriptor is readable; returns what ends that.

        The descriptor is level-triggered: the callback drains it or ends the watch.
        Once the returned function has returned, the descriptor may be closed.
        """

        def guarded() -> None:
            try:
                callback()
            except BaseException:  # such as SystemExit, which would end the thread for all
                _log.exception("a callback of descriptor %d failed; it is watched no more", fd)
                self._loop.remove_reader(fd)

        def unwatch() -> None:
            self._here(lambda: self._loop.remove_reader(fd))

        self._here(lambda: self._loop.add_reader(fd, guarded))
        return unwatch

    def _here(self, function: Callable[[], object]) -> None:
        """Run a function in the loop's thread, and wait unless we are in it."""
        if self._forked or self._loop.is_closed():
            return
        if self.inside:
            function()
            return

        # No coroutine: Ctrl-C between making and scheduling one would leave it unawaited.
        done: concurrent.futures.Future[None] = concurrent.futures.Future()

        def run() -> None:
            try:
                function()
            except BaseException as error:
                done.set_exception(error)
            else:
                done.set_result(None)

        self._loop.call_soon_threadsafe(run)
        done.result(10.0)

    def stop(self) -> None:
        """End the thread; for :func:`release` only."""
        if self._forked:
            return
        self._loop.call_soon_threadsafe(self._loop.stop)
        if not self.inside:
            self._thread.join(5.0)

    def leave_to_parent(self) -> None:
        """Do nothing more: this is a forked child's copy, and the thread is not in it.

        The epoll instance is shared with the parent. What the child's copies of connections
        take out of it at their end would be taken from the parent's loop, so it is replaced.
        """
        self._forked = True
        with select.epoll() as own:
            os.dup2(own.fileno(), self._selector.fileno(), inheritable=False)


class _Shared:
    """The one loop there is, and how many use it."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.loop: LoopThread | None = None
        self.users = 0


_shared = _Shared()


def acquire() -> LoopThread:
    """Return the loop, started when nobody had it. Pair each call with :func:`release`."""
    with _shared.lock:
        if _shared.loop is None:
            _shared.loop = LoopThread()
        _shared.users += 1
        return _shared.loop


def release() -> None:
    """Give the loop back; its thread ends with the last user."""
    with _shared.lock:
        if _shared.users == 0:
            return
        _shared.users -= 1
        if _shared.users > 0 or _shared.loop is None:
            return
        last, _shared.loop = _shared.loop, None
    last.stop()


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
