"""The stderr output of several QEMUs is kept apart."""

import subprocess
import threading
from collections.abc import Iterator

import pytest

from virtnic.qemu import loop
from virtnic.qemu.stderr import StderrLog


@pytest.fixture
def where() -> Iterator[loop.LoopThread]:
    hold = loop.Hold()
    try:
        yield hold.take()
    finally:
        hold.release()


def test_a_helper_that_ends_before_it_is_read(where: loop.LoopThread) -> None:
    """Only the command in progress identifies its QEMU: its parent cannot be looked up."""
    first, other = StderrLog(), StderrLog()
    held, ended = threading.Event(), threading.Event()

    def hold_up() -> None:
        held.set()
        ended.wait(30.0)

    try:
        stderr = first.open(where)
        other.open(where)
        first.mark()
        other.mark()
        with first.helpers():
            where.later(0.0, hold_up)  # it is not read meanwhile
            assert held.wait(30.0)
            subprocess.run(["sh", "-c", "echo denied >&2"], stderr=stderr, check=True)
            ended.set()
        assert first.since_mark() == "denied\n"
        assert other.since_mark() == ""
    finally:
        ended.set()
        first.close()
        other.close()
