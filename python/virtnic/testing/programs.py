"""Programs that tests start: found, run, and ended with the tests."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

__all__ = [
    "ProgramNotFound",
    "find_program",
    "free_hugepages",
    "mortal",
    "private_directory",
    "run",
    "short_directory",
]

#: Directories of system programs, which the PATH of ordinary users leaves out.
_SYSTEM = ("/usr/local/sbin", "/usr/sbin", "/sbin")
#: Bytes of a private directory's path: 107 are for a socket in it (unix(7)).
_LONGEST = 70


class ProgramNotFound(RuntimeError):
    """A program is not installed; the message says how to get it."""


def find_program(name: str, package: str) -> str:
    """Return the path of a program, in ``PATH`` or where system programs are.

    Raises ProgramNotFound, which names Debian's and Ubuntu's ``package``.
    """
    path = os.pathsep.join((os.environ.get("PATH", os.defpath), *_SYSTEM))
    found = shutil.which(name, path=path)
    if found is None:
        raise ProgramNotFound(
            f"no {name} in PATH or {', '.join(_SYSTEM)}; `apt-get install {package}`"
        )
    return found


def run(argv: Sequence[str], timeout: float = 30.0) -> str:
    """Run a command to its end and return its output; a RuntimeError quotes it."""
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


def free_hugepages() -> int:
    """Return how many 2 MiB hugepages are free."""
    file = Path("/sys/kernel/mm/hugepages/hugepages-2048kB/free_hugepages")
    return int(file.read_text()) if file.exists() else 0


def short_directory(prefix: str) -> Path:
    """Make a private directory whose path leaves room for the names of sockets.

    It is where ``tempfile`` makes its own, or in ``/tmp`` if that is too deep. Raises OSError.
    """
    parent = tempfile.gettempdir()
    return Path(
        tempfile.mkdtemp(prefix=prefix, dir="/tmp" if len(parent) > _LONGEST else parent)  # noqa: S108
    )


@contextmanager
def private_directory(prefix: str) -> Iterator[Path]:
    """Make such a directory, and remove it with its contents at the end of the block."""
    made = short_directory(prefix)
    try:
        yield made
    finally:
        shutil.rmtree(made, ignore_errors=True)
