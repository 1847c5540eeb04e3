"""The limits that the system sets us, by their names."""

from __future__ import annotations

import contextlib
import errno
import resource
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["descriptors"]


@contextlib.contextmanager
def descriptors() -> Iterator[None]:
    """Say which limit it is, and what to do, where there are no descriptors left."""
    try:
        yield
    except OSError as error:
        if error.errno != errno.EMFILE or "RLIMIT_NOFILE" in str(error):
            raise
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        most = "" if hard == resource.RLIM_INFINITY else f", up to {hard}"
        raise OSError(
            errno.EMFILE,
            f"{error.strerror}: the process has its {soft} descriptors open (RLIMIT_NOFILE): raise "
            f"it with ulimit -n{most}, or attach several ports to one virtnic.Qemu",
        ) from None
