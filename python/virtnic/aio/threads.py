"""Calls that block, made in threads of their own."""

from __future__ import annotations

import functools
import threading
from typing import TYPE_CHECKING, TypeVar

from virtnic._native import EventFd
from virtnic.background import take_no_signals

if TYPE_CHECKING:
    from collections.abc import Callable

    from virtnic.async_library import Library

__all__ = ["in_thread"]

_T = TypeVar("_T")


async def in_thread(
    library: Library, call: Callable[[], _T], undo: Callable[[_T], object] | None = None
) -> _T:
    """Call in a thread that lives for this call. On cancellation, wait for its end and undo.

    If nobody can wait any more because the event loop itself was ended, the thread undoes it.
    """
    done = EventFd()
    results: list[_T] = []
    errors: list[BaseException] = []
    lock = threading.RLock()
    left = False

    def run() -> None:
        try:
            result = call()
            with lock:
                if not left:
                    results.append(result)
                    return
            if undo is not None:
                undo(result)
        except BaseException as error:
            errors.append(error)
        finally:
            take_no_signals()  # it may be there for a while yet
            done.signal()

    thread = threading.Thread(target=run, name="virtnic-aio")
    try:
        thread.start()
        cancelled = await library.finished(done.fileno())
        thread.join()
    except BaseException:
        with lock:
            left = True
        if results and undo is not None:
            undo(results[0])
        raise
    if cancelled is not None:
        if results and undo is not None:
            await in_thread(library, functools.partial(undo, results[0]))
        raise cancelled
    if errors:
        try:
            raise errors[0]
        finally:
            errors.clear()  # break the cycle of exception and frame
    return results[0]
