"""Whose words those on QEMU's stderr are."""

import subprocess
import threading
from collections.abc import Iterator

import pytest

from virtnic.qemu import loop
from virtnic.qemu.words import Words


@pytest.fixture
def where() -> Iterator[loop.LoopThread]:
    hold = loop.Hold()
    try:
        yield hold.take()
    finally:
        hold.release()


def test_a_helper_that_ends_before_it_is_heard(where: loop.LoopThread) -> None:
    """Nothing but the command under way says whose it was: the parent cannot be asked for."""
    asked, other = Words(), Words()
    held, ended = threading.Event(), threading.Event()

    def hold_up() -> None:
        held.set()
        ended.wait(30.0)

    try:
        stderr = asked.open(where)
        other.open(where)
        asked.mark()
        other.mark()
        with asked.asked():
            where.later(0.0, hold_up)  # it is not read meanwhile
            assert held.wait(30.0)
            subprocess.run(["sh", "-c", "echo denied >&2"], stderr=stderr, check=True)
            ended.set()
        assert asked.since_mark() == "denied\n"
        assert other.since_mark() == ""
    finally:
        ended.set()
        asked.close()
        other.close()
