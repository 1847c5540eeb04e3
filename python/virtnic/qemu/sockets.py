"""The sockets between us and one QEMU: their names, the same in every directory."""

from __future__ import annotations

import os
from pathlib import Path

from virtnic.qemu.text import check_word

__all__ = ["Sockets"]

#: Longest path of a UNIX socket: ``sun_path`` is 108 bytes with its NUL (unix(7)).
_LONGEST_PATH = 107


class Sockets:
    """The places of one QEMU's sockets in a directory, as somebody sees it."""

    #: Whether the directory was made here, for this QEMU alone.
    private = False

    def __init__(self, path: str | os.PathLike[str]) -> None:
        check_word(os.fspath(path), "the directory")
        self.path = Path(path)

    @property
    def qmp(self) -> Path:
        """QEMU's monitor socket (QEMU listens)."""
        return self.path / "qmp.sock"

    @property
    def qtest(self) -> Path:
        """QEMU's QTest socket (QEMU listens)."""
        return self.path / "qtest.sock"

    @property
    def shmem(self) -> Path:
        """The ivshmem server's socket (we listen)."""
        return self.path / "shmem.sock"

    @property
    def lock(self) -> Path:
        """What a QEMU that was started elsewhere keeps locked: its process number."""
        return self.path / "qemu.pid"

    def vhost_user(self, number: int | str = 1) -> Path:
        """Return a vhost-user interposer's socket (we listen), one for each port."""
        return self.path / f"vhost-{number}.sock"

    def check_length(self, advice: str) -> None:
        """Raise ValueError, with what to do, when sockets cannot have such long paths."""
        longest = self.vhost_user(999_999)
        length = len(os.fsencode(longest))
        if length > _LONGEST_PATH:
            raise ValueError(
                f"the directory {self.path} is too long for a UNIX socket: {longest} has "
                f"{length} bytes, {_LONGEST_PATH} fit; {advice}"
            )
