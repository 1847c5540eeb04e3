"""Waiting for what another thread or process does: bounded, and no longer than it takes."""

import time
from collections.abc import Callable

__all__ = ["eventually"]


def eventually(condition: Callable[[], object], seconds: float = 20.0) -> bool:
    """Wait until something is so; False when it is not in time.

    ``assert eventually(lambda: …)`` stands where a plain ``assert`` would ask whether another
    thread has run yet. The time is for machines that are busy: it is never waited out otherwise.
    """
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return bool(condition())
        time.sleep(0.005)
    return True
