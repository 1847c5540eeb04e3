"""The event loop of the caller: asyncio or trio (anyio runs on one of them).

The running one is detected; trio is imported only if the caller has imported it.
"""

from __future__ import annotations

import asyncio
import contextlib
import sys
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

__all__ = ["Library", "readable", "running"]


class Lock(Protocol):
    async def acquire(self) -> object: ...
    def release(self) -> None: ...


class Descriptor(Protocol):
    """A descriptor that is open as long as this object lives."""

    def fileno(self) -> int: ...


class Library(Protocol):
    """What virtnic needs of an event loop."""

    def lock(self) -> Lock:
        """Return a fair lock: waiters get it in order."""

    async def readable(self, fd: int) -> None:
        """Wait until a descriptor is readable."""

    async def finished(self, fd: int) -> BaseException | None:
        """Do the same despite cancellation, which is returned."""

    async def checkpoint(self) -> None:
        """Let other tasks run."""

    async def sleep(self, seconds: float) -> None:
        """Pause."""


@contextlib.contextmanager
def _reader(fd: int) -> Iterator[asyncio.Future[None]]:
    """Yield a future that is done when a descriptor is readable."""
    loop = asyncio.get_running_loop()
    ready: asyncio.Future[None] = loop.create_future()

    def wake() -> None:
        if not ready.done():
            ready.set_result(None)

    loop.add_reader(fd, wake)
    try:
        yield ready
    finally:
        loop.remove_reader(fd)


class _Asyncio:
    def lock(self) -> Lock:
        return asyncio.Lock()

    async def readable(self, fd: int) -> None:
        with _reader(fd) as ready:
            await ready

    async def finished(self, fd: int) -> BaseException | None:
        cancelled = None
        with _reader(fd) as ready:
            # anyio cancels repeatedly, so the future must survive each cancellation.
            while not ready.done():
                try:
                    await asyncio.shield(ready)
                except asyncio.CancelledError as error:
                    cancelled = error
        return cancelled

    async def checkpoint(self) -> None:
        await asyncio.sleep(0)

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)


class _Trio:
    def __init__(self, trio: Any) -> None:
        self._trio = trio

    def lock(self) -> Lock:
        lock: Lock = self._trio.Lock()
        return lock

    async def readable(self, fd: int) -> None:
        await self._trio.lowlevel.wait_readable(fd)

    async def finished(self, fd: int) -> BaseException | None:
        with self._trio.CancelScope(shield=True):
            await self._trio.lowlevel.wait_readable(fd)
        return None  # a pending cancellation is raised at the next checkpoint

    async def checkpoint(self) -> None:
        await self._trio.lowlevel.checkpoint()

    async def sleep(self, seconds: float) -> None:
        await self._trio.sleep(seconds)


async def readable(borrow: Callable[[], Descriptor], library: Library | None = None) -> None:
    """Wait until a descriptor is readable, keeping it open meanwhile.

    The event loop looks at it after other tasks have run, which may have closed its owner.
    """
    borrowed = borrow()
    await (library or running()).readable(borrowed.fileno())


def running() -> Library:
    """Return the caller's library. Trio is tried first: it can run as a guest of asyncio."""
    trio = sys.modules.get("trio")
    if trio is not None:
        with contextlib.suppress(RuntimeError):
            trio.lowlevel.current_task()
            return _Trio(trio)
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        raise RuntimeError("virtnic.aio can wait only inside asyncio, trio or anyio") from None
    return _Asyncio()
