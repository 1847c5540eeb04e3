"""Names of the sockets between virtnic and one QEMU, the same in every directory."""

from __future__ import annotations

import os
from pathlib import Path

from virtnic.qemu.text import check_word

__all__ = ["LONGEST_PATH", "Sockets"]

#: Longest path of a UNIX socket: ``sun_path`` has 108 bytes including the NUL (unix(7)).
LONGEST_PATH = 107


class Sockets:
    """Paths of one QEMU's sockets in a directory, in one side's view."""

    #: Whether the directory was created here for this QEMU only.
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
        """The lock file of a QEMU started elsewhere, with its process number."""
        return self.path / "qemu.pid"

    def vhost_user(self, number: int | str = 1) -> Path:
        """Return the path of a vhost-user interposer's socket (we listen), one for each port."""
        return self.path / f"vhost-{number}.sock"

    def check_length(self, advice: str) -> None:
        """Raise ValueError, with advice, if the sockets' paths are too long."""
        longest = self.vhost_user(999_999)
        length = len(os.fsencode(longest))
        if length > LONGEST_PATH:
            raise ValueError(
                f"the directory {self.path} is too long for a UNIX socket: {longest} has "
                f"{length} bytes, {LONGEST_PATH} fit; {advice}"
            )
