"""Tests marked `alone` run exclusively under pytest-xdist."""

import fcntl
import os
import threading
from pathlib import Path

from peers.turns import Turns
from support.waiting import eventually


def _is_free(path: Path, how: int) -> bool:
    fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    try:
        fcntl.flock(fd, how | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    finally:
        os.close(fd)
    return True


def test_others_run_together_and_one_that_is_alone_waits_first(tmp_path: Path) -> None:
    here, there = Turns(tmp_path), Turns(tmp_path)
    done = threading.Event()

    def alone() -> None:
        with there.turn(alone=True):
            done.set()

    waiter = threading.Thread(target=alone)
    with here.turn(alone=False):
        assert _is_free(tmp_path / "room", fcntl.LOCK_SH)
        assert not _is_free(tmp_path / "room", fcntl.LOCK_EX)
        waiter.start()
        # Whoever comes now has to wait behind it.
        assert eventually(lambda: not _is_free(tmp_path / "door", fcntl.LOCK_EX))
        assert not done.is_set()
    waiter.join(60.0)
    assert done.is_set()
    here.close()
    there.close()
