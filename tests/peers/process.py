"""Start helper processes that cannot outlive the tests."""

import os
import signal
import time
from pathlib import Path

from virtnic.testing.programs import mortal, run

__all__ = ["freeze", "gone", "mortal", "run"]


def freeze(pid: int, seconds: float = 20.0) -> None:
    """Stop a process (SIGSTOP), and wait until each of its threads stands still."""
    os.kill(pid, signal.SIGSTOP)
    deadline = time.monotonic() + seconds
    for stat in Path(f"/proc/{pid}/task").glob("*/stat"):
        while stat.read_text().rpartition(")")[2].split()[0] != "T":
            if time.monotonic() > deadline:
                raise RuntimeError(f"process {pid} does not stop")
            time.sleep(0.001)


def gone(pid: int, seconds: float = 20.0) -> bool:
    """Wait until a process has ended; False when it has not in time.

    A zombie has ended: an orphan waits for init to reap it, and a container's first
    process often never does.
    """
    deadline = time.monotonic() + seconds
    while True:
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except (FileNotFoundError, ProcessLookupError):
            return True
        if state in "ZX":
            return True
        if time.monotonic() > deadline:
            return False
        time.sleep(0.01)
