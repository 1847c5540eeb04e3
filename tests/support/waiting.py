"""Bounded waiting for other threads and processes.

`test_conventions.py` refuses tests that sleep in another way, or call what takes a second too long.
"""

import time
from collections.abc import Callable

__all__ = ["PROMPT", "eventually", "pause"]

#: Seconds that a call may take which is not to wait: less than virtnic's own time-outs, which are
#: 10 s where a test gives none, and more than any machine needs that is merely busy.
PROMPT = 8.0


def eventually(condition: Callable[[], object], seconds: float = 20.0) -> bool:
    """Wait until a condition holds; False if it does not in time.

    ``assert eventually(lambda: …)`` stands where a plain ``assert`` would ask whether another
    thread has run yet. The time is for machines that are busy: it is never waited out otherwise.
    """
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return bool(condition())
        time.sleep(0.005)
    return True


def pause(seconds: float) -> None:
    """Give other threads time for something that the test does not rely on.

    For what must not happen, and for moments that are to differ: the verdict must be the same
    where nobody else ran meanwhile. What is to happen is waited for by :func:`eventually`.
    """
    time.sleep(seconds)
