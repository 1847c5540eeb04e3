"""Start helper processes that cannot outlive the tests."""

import os
import signal
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path


def run(argv: Sequence[str], timeout: float = 30.0) -> str:
    """Run a command to its end and return its output; an error quotes it."""
    done = subprocess.run(
        argv, check=False, capture_output=True, text=True, timeout=timeout, stdin=subprocess.DEVNULL
    )
    if done.returncode:
        words = (done.stderr or done.stdout).strip()
        raise RuntimeError(f"{' '.join(argv)} ended with {done.returncode}: {words}")
    return done.stdout


def mortal(argv: Sequence[str]) -> list[str]:
    """Return the command line that makes a program die with the thread that starts it."""
    return ["setpriv", "--pdeathsig", "KILL", *argv]


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
