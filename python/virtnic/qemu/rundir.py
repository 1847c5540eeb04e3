"""The private directory that holds the sockets of one QEMU."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import tempfile
import time
from pathlib import Path

#: Longest path of a UNIX socket: ``sun_path`` is 108 bytes with its NUL (unix(7)).
SOCKET_PATH_MAX = 107

#: QEMU's monitor and QTest sockets, and the ivshmem server's, in any directory.
QMP_SOCKET = "qmp.sock"
QTEST_SOCKET = "qtest.sock"
SHMEM_SOCKET = "shmem.sock"

#: Longest name that is put into the directory.
_LONGEST_NAME = SHMEM_SOCKET
_PREFIX = "virtnic-"


class RunDirectory:
    """A directory of mode 0700, removed with all that is in it by :meth:`close`.

    Made under ``XDG_RUNTIME_DIR``, else where ``tempfile`` makes its own (``TMPDIR``, ``/tmp``).
    It is locked as long as it is in use; what a killed process left there is removed by the
    next one that makes its own.
    A directory that the caller names is used, made when it is missing, and only the
    sockets in it are removed.
    """

    def __init__(self, given: str | os.PathLike[str] | None = None) -> None:
        self._mine = given is None
        self._lock: int | None = None
        if given is None:
            parent = _parent()
            _sweep(Path(parent))
            self.path = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=parent))
            self._lock = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY)
            fcntl.flock(self._lock, fcntl.LOCK_EX)
        else:
            self.path = Path(given).absolute()
        longest = len(os.fsencode(self.path / _LONGEST_NAME))
        if longest > SOCKET_PATH_MAX:
            self.close()
            raise ValueError(
                f"the directory {self.path} is too long for a UNIX socket: "
                f"{self.path / _LONGEST_NAME} has {longest} bytes, {SOCKET_PATH_MAX} fit; "
                "name a shorter one with directory=, or set XDG_RUNTIME_DIR or TMPDIR"
            )
        if given is not None:
            self.path.mkdir(mode=0o700, parents=True, exist_ok=True)

    @property
    def private(self) -> bool:
        """Whether it was made here."""
        return self._mine

    @property
    def qmp(self) -> Path:
        """QEMU's monitor socket (QEMU listens)."""
        return self.path / QMP_SOCKET

    @property
    def qtest(self) -> Path:
        """QEMU's QTest socket (QEMU listens)."""
        return self.path / QTEST_SOCKET

    @property
    def shmem(self) -> Path:
        """The ivshmem server's socket (we listen)."""
        return self.path / SHMEM_SOCKET

    @property
    def vhost_user(self) -> Path:
        """The vhost-user interposer's socket (we listen)."""
        return self.path / "vhost.sock"

    @property
    def firmware(self) -> Path:
        """The firmware that parks a vCPU."""
        return self.path / "park.bin"

    def close(self) -> None:
        """Remove it. Never raises; a second call does nothing."""
        if self._mine:
            shutil.rmtree(self.path, ignore_errors=True)
            if self._lock is not None:
                os.close(self._lock)
                self._lock = None
            return
        for file in (self.qmp, self.qtest, self.shmem, self.firmware):
            file.unlink(missing_ok=True)


def _sweep(parent: Path) -> None:
    """Remove the directories that nobody has locked: their processes were killed."""
    with contextlib.suppress(OSError):
        for left in parent.glob(_PREFIX + "*"):
            with contextlib.suppress(OSError):
                if left.stat().st_uid != os.geteuid() or _is_new(left):
                    continue
                fd = os.open(left, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
                try:
                    fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    shutil.rmtree(left, ignore_errors=True)
                finally:
                    os.close(fd)


def _is_new(directory: Path) -> bool:
    """Whether it may have been made this moment and not been locked yet."""
    return time.time() - directory.stat().st_mtime < 10.0


def _parent() -> str:
    """Return the directory in which private ones are made."""
    runtime = os.environ.get("XDG_RUNTIME_DIR")
    if runtime and Path(runtime).is_dir() and os.access(runtime, os.W_OK | os.X_OK):
        return runtime
    return tempfile.gettempdir()
