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
    """Read the frames of a capture: pcapng or classic pcap, also packed by gzip or zstd.

    Of either order of bytes, with times in micro- or nanoseconds or what else an interface
    counts in; frames of any link type (``.link_type``; 1 is Ethernet). Each unpacks as
    ``timestamp, frame`` and has more: see :class:`CapturedFrame`. The file is read as it is
    iterated over, in memory that does not grow with it. ``filter``: only these, in tcpdump's
    language.

    Raises OSError, ValueError for what is no capture or a wrong filter; while iterating, ValueError
    where the file is cut or malformed, after the frames before that. FileNotFoundError where a
    filter is given and there is no libpcap.
    """
    reader = _native.CaptureReader(path)
    if filter is None:
        return iter(reader)
    Filter(filter)  # a wrong one is told at once
    compiled = functools.cache(functools.partial(Filter, filter))
    return (
        captured
        for captured in reader
        if compiled(captured.link_type)(captured.frame, captured.length)
    )
