"""Whichever of asyncio and trio runs the caller; anyio runs on one of the two.

Neither is chosen here, and trio is not imported: who runs in it has it already.
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
    """It is open for as long as this object lives."""

    def fileno(self) -> int: ...


class Library(Protocol):
    """What we need of an event loop."""

    def lock(self) -> Lock:
        """Return a lock that is given in the order in which it was asked for."""

    async def readable(self, fd: int) -> None:
        """Wait until a descriptor is readable."""

    async def finished(self, fd: int) -> BaseException | None:
        """Do the same whatever happens; a cancellation that came meanwhile is returned."""

    async def checkpoint(self) -> None:
        """Let others run."""

    async def sleep(self, seconds: float) -> None:
        """Pause."""


@contextlib.contextmanager
def _reader(fd: int) -> Iterator[asyncio.Future[None]]:
    """Have a future that is done when a descriptor is readable."""
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
            # anyio cancels again and again, so the future must outlive each time.
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
        return None  # a cancellation is still there at the next checkpoint

    async def checkpoint(self) -> None:
        await self._trio.lowlevel.checkpoint()

    async def sleep(self, seconds: float) -> None:
        await self._trio.sleep(seconds)


async def readable(borrow: Callable[[], Descriptor], library: Library | None = None) -> None:
    """Wait until a descriptor is readable, which is open for as long as that takes.

    The event loop looks at it after others had their turn, who may have closed what it is of.
    """
    borrowed = borrow()
    await (library or running()).readable(borrowed.fileno())


def running() -> Library:
    """Return the library that runs the caller; trio first, which can be a guest in asyncio."""
    trio = sys.modules.get("trio")
    if trio is not None:
        with contextlib.suppress(RuntimeError):
            trio.lowlevel.current_task()
            return _Trio(trio)
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        raise RuntimeError("virtnic waits inside asyncio, trio or anyio only") from None
    return _Asyncio()
