"""The private directory for one QEMU's sockets."""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import shutil
import tempfile
import time
from pathlib import Path

from virtnic.qemu.identity import Identity
from virtnic.qemu.sockets import Sockets
from virtnic.teardown import uninterrupted

_log = logging.getLogger(__name__)

_PREFIX = "virtnic-"
#: A memory file system that is present and writable even with a read-only root.
_LAST_RESORT = "/dev/shm"  # noqa: S108 - what is made in it is private


class RunDirectory(Sockets):
    """A directory of mode 0700, removed with its contents by :meth:`close`.

    It is made under ``XDG_RUNTIME_DIR``, else where ``tempfile`` puts its own (``TMPDIR``,
    ``/tmp``), else, on a read-only root, in ``/dev/shm``. It is locked while in use; one left by a
    killed process is removed when the next one is made. A directory named by the caller is created
    if missing, and only the sockets in it are removed.
    """

    def __init__(self, given: str | os.PathLike[str] | None = None) -> None:
        """Choose the path, without creating it. Raises ValueError if it is too long."""
        self.private = given is None
        self._lock: Identity | None = None
        self._over = False
        if given is None:
            super().__init__(Path(_parent()) / (_PREFIX + os.urandom(6).hex()))
        else:
            super().__init__(Path(given).absolute())
        self.check_length("pass a shorter one as directory=, or set XDG_RUNTIME_DIR or TMPDIR")

    def make(self) -> None:
        """Create it. Raises OSError. After an interruption, call :meth:`close`."""
        if self.private:
            uninterrupted(self._make)
        else:
            self.path.mkdir(mode=0o700, parents=True, exist_ok=True)

    def _make(self) -> None:
        _sweep(self.path.parent)
        self.path.mkdir(mode=0o700)
        self._lock = Identity.of(os.open(self.path, os.O_RDONLY | os.O_DIRECTORY))
        fcntl.flock(self._lock.fd, fcntl.LOCK_EX)

    @property
    def firmware(self) -> Path:
        """The firmware that parks a vCPU."""
        return self.path / "park.bin"

    def close(self) -> None:
        """Remove it. Raises OSError if that fails; a second call does nothing.

        What cannot be removed because privileges were dropped is left to the next process that can.
        """
        if self._over:
            return
        try:
            uninterrupted(self._remove)
        except PermissionError as error:
            _log.warning("%s was not removed: %s", self.path, error.strerror)
            uninterrupted(self._unlock)
        self._over = True

    def _remove_files(self) -> None:
        # By name: listing the directory takes a descriptor, and there may be none left.
        for file in (self.qmp, self.qtest, self.shmem, self.firmware):
            file.unlink(missing_ok=True)

    def _remove(self) -> None:
        if not self.private:
            self._remove_files()
            return
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            self._remove_files()
            self.vhost_user().unlink(missing_ok=True)
            try:
                self.path.rmdir()
            except FileNotFoundError:
                raise
            except OSError:
                shutil.rmtree(self.path)  # it has other contents
        self._unlock()

    def _unlock(self) -> None:
        lock, self._lock = self._lock, None
        if lock is not None and lock.is_still:
            os.close(lock.fd)


def _sweep(parent: Path) -> None:
    """Remove unlocked directories: their processes were killed."""
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
    """Whether it may have been created just now and not locked yet."""
    return time.time() - directory.stat().st_mtime < 10.0


def _parent() -> str:
    """Return the directory for private directories."""
    runtime = os.environ.get("XDG_RUNTIME_DIR")
    if runtime and Path(runtime).is_dir() and os.access(runtime, os.W_OK | os.X_OK):
        return runtime
    try:
        return tempfile.gettempdir()
    except FileNotFoundError as error:
        if os.access(_LAST_RESORT, os.W_OK | os.X_OK):
            return _LAST_RESORT
        raise FileNotFoundError(
            error.errno,
            f"{error.strerror}, and {_LAST_RESORT} is not writable: no place for QEMU's sockets; "
            "mount a tmpfs at one of them, or set a directory with directory= or TMPDIR",
        ) from None
