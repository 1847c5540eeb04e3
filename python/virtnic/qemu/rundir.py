"""The private directory that holds the sockets of one QEMU."""

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
#: A file system in memory, which is there and writable even where the root is read-only.
_LAST_RESORT = "/dev/shm"  # noqa: S108 - what is made in it is private


class RunDirectory(Sockets):
    """A directory of mode 0700, removed with all that is in it by :meth:`close`.

    Made under ``XDG_RUNTIME_DIR``, else where ``tempfile`` makes its own (``TMPDIR``, ``/tmp``),
    else, on a root that is read-only, in ``/dev/shm``.
    It is locked as long as it is in use; what a killed process left there is removed by the
    next one that makes its own.
    A directory that the caller names is used, made when it is missing, and only the
    sockets in it are removed.
    """

    def __init__(self, given: str | os.PathLike[str] | None = None) -> None:
        """Choose its name, and make nothing yet. Raises ValueError for one that is too long."""
        self.private = given is None
        self._lock: Identity | None = None
        self._over = False
        if given is None:
            super().__init__(Path(_parent()) / (_PREFIX + os.urandom(6).hex()))
        else:
            super().__init__(Path(given).absolute())
        self.check_length("name a shorter one with directory=, or set XDG_RUNTIME_DIR or TMPDIR")

    def make(self) -> None:
        """Make it. Raises OSError. Whoever is interrupted closes it."""
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
        """Remove it. Raises OSError where it cannot be; a second call does nothing.

        What we have no right to by now, because privileges were dropped, is left to the next one
        that has it.
        """
        if self._over:
            return
        try:
            uninterrupted(self._remove)
        except PermissionError as error:
            _log.warning("%s is left: %s", self.path, error.strerror)
            uninterrupted(self._unlock)
        self._over = True

    def _remove_files(self) -> None:
        # Each by its name: to look what is there takes a descriptor, and there may be none left.
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
                shutil.rmtree(self.path)  # there is more in it
        self._unlock()

    def _unlock(self) -> None:
        lock, self._lock = self._lock, None
        if lock is not None and lock.is_still:
            os.close(lock.fd)


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
    try:
        return tempfile.gettempdir()
    except FileNotFoundError as error:
        if os.access(_LAST_RESORT, os.W_OK | os.X_OK):
            return _LAST_RESORT
        raise FileNotFoundError(
            error.errno,
            f"{error.strerror}, and {_LAST_RESORT} is not writable: no place for QEMU's sockets; "
            "mount a tmpfs at one of them, or name a directory with directory= or TMPDIR",
        ) from None
