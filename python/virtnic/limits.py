"""Errors at system limits that name the limit."""

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
    """Explain an error for lack of descriptors: which limit it is, and what to do."""
    try:
        yield
    except OSError as error:
        if error.errno != errno.EMFILE or "RLIMIT_NOFILE" in str(error):
            raise
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        most = "" if hard == resource.RLIM_INFINITY else f", up to {hard}"
        raise OSError(
            errno.EMFILE,
            f"{error.strerror}: all {soft} descriptors of the process are in use (RLIMIT_NOFILE): "
            f"raise the limit with ulimit -n{most}, or attach several ports to one virtnic.Qemu",
        ) from None
