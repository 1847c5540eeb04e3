"""The first of several connections that succeeds (RFC 8305, "Happy Eyeballs"), awaited."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from virtnic.net.racing import DELAY

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Sequence
    from typing import Any

    from virtnic.net.socket import Socket

__all__ = ["race"]


async def race(attempts: Sequence[Callable[[], Coroutine[Any, Any, Socket]]]) -> Socket:
    """Return the first socket that connects; raise the last error if none does.

    Each attempt starts a while after the one before, or when that has failed.
    """
    if len(attempts) == 1:
        return await attempts[0]()
    waiting = list(attempts)
    running: list[asyncio.Task[Socket]] = []
    winner: Socket | None = None
    last: BaseException | None = None
    try:
        while winner is None and (waiting or running):
            if waiting:
                running.append(asyncio.create_task(waiting.pop(0)()))
            delay = DELAY if waiting else None
            done, _ = await asyncio.wait(
                running, timeout=delay, return_when=asyncio.FIRST_COMPLETED
            )
            for task in [task for task in running if task in done]:
                last = task.exception()
                if last is None:
                    winner = task.result()
                    running.remove(task)
                    break
                running.remove(task)
    finally:
        for task in running:
            task.cancel()
        for ended in await asyncio.gather(*running, return_exceptions=True):
            if not isinstance(ended, BaseException):
                ended.close()
    if winner is None:
        raise last or OSError("there is no address to connect to")
    return winner
