"""Tests marked ``alone`` run exclusively, across the processes of pytest-xdist.

Others share a lock on one file; a test that is to be alone takes it exclusively. Each process
passes through a second lock first, which such a test holds while it waits: nobody overtakes it.
"""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


class Turns:
    """Two lock files in a directory that all the processes know."""

    def __init__(self, directory: Path) -> None:
        """Open them."""
        flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC
        self._door, self._room = (os.open(directory / name, flags) for name in ("door", "room"))

    def close(self) -> None:
        """Close them."""
        os.close(self._door)
        os.close(self._room)

    @contextmanager
    def turn(self, *, alone: bool) -> Iterator[None]:
        """Wait for the test's turn, and hold it until the end of the block."""
        fcntl.flock(self._door, fcntl.LOCK_EX)
        try:
            fcntl.flock(self._room, fcntl.LOCK_EX if alone else fcntl.LOCK_SH)
        finally:
            fcntl.flock(self._door, fcntl.LOCK_UN)
        try:
            yield
        finally:
            fcntl.flock(self._room, fcntl.LOCK_UN)
