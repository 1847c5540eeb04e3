"""Which file a descriptor is of: somebody else may have closed it, and its number be another's."""

from __future__ import annotations

import contextlib
import dataclasses
import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import socket

__all__ = ["Identity", "close_own"]


@dataclasses.dataclass(frozen=True)
class Identity:
    """A descriptor, and the file that it was when this was made."""

    fd: int
    device: int
    inode: int

    @classmethod
    def of(cls, fd: int) -> Identity:
        """Look at a descriptor that is ours. Raises OSError."""
        status = os.fstat(fd)
        return cls(fd, status.st_dev, status.st_ino)

    @property
    def is_still(self) -> bool:
        """Whether the descriptor is the file that it was."""
        try:
            return Identity.of(self.fd) == self
        except OSError:
            return False


def close_own(sock: socket.socket, known: Identity) -> None:
    """Close a socket; where its number is another file's by now, forget it only."""
    if not known.is_still:
        sock.detach()
    with contextlib.suppress(OSError):  # closed between the two looks
        sock.close()
