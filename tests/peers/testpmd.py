"""DPDK's testpmd, as users of virtnic have it."""

import contextlib
import threading
from collections.abc import Iterator

from virtnic.testing import Testpmd, TestpmdError
from virtnic.testing.testpmd import answer_to

__all__ = ["Testpmd", "TestpmdError", "answer_to", "drained"]


@contextlib.contextmanager
def drained(pmd: Testpmd) -> Iterator[Testpmd]:
    """Read what testpmd prints all the time: it blocks once the pipe is full."""
    over = threading.Event()

    def drain() -> None:
        while not over.wait(0.02):
            pmd.drain()

    thread = threading.Thread(target=drain)
    thread.start()
    try:
        yield pmd
    finally:
        over.set()
        thread.join()
