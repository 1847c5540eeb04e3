"""Captures as iterators."""

from __future__ import annotations

import contextlib
import functools
import stat
from pathlib import Path
from typing import TYPE_CHECKING

from virtnic import _native
from virtnic.arguments import suggest_options
from virtnic.capture.filters import Filter

if TYPE_CHECKING:
    import os
    from collections.abc import Iterator

    from virtnic._native import CapturedFrame

__all__ = ["is_pipe", "read"]


def is_pipe(path: str | os.PathLike[str]) -> bool:
    """Return whether a path leads to a pipe."""
    with contextlib.suppress(OSError):
        return stat.S_ISFIFO(Path(path).stat().st_mode)
    return False


@suggest_options
def read(
    path: str | os.PathLike[str],
    *,
    filter: str | None = None,  # noqa: A002 - what tcpdump calls it
) -> Iterator[CapturedFrame]:
    """Read the frames of a capture: pcapng or classic pcap, optionally compressed (gzip, zstd).

    Both byte orders, all time resolutions and all link types are supported (``.link_type``; 1 is
    Ethernet). Each frame unpacks as ``timestamp, frame``; :class:`CapturedFrame` lists its other
    attributes. The file is read while it is iterated over, in a constant amount of memory.
    ``filter``: a filter in tcpdump's language.

    Raises OSError, ValueError for a file that is not a capture or an invalid filter, and
    FileNotFoundError for a filter without libpcap; while iterating, ValueError where the file is
    cut or malformed, after the frames before that.
    """
    reader = _native.CaptureReader(path)
    if filter is None:
        return iter(reader)
    Filter(filter)  # raises at once if it is invalid
    compiled = functools.cache(functools.partial(Filter, filter))
    return (
        captured
        for captured in reader
        if compiled(captured.link_type)(captured.frame, captured.length)
    )
