"""Formatting of times and sizes."""

from __future__ import annotations

import re

__all__ = ["bytes_text", "seconds_text", "without_long_words"]

#: A very long word: a path or a netdev of excessive length.
_LONG = re.compile(r"\S{600,}")


def seconds_text(seconds: float) -> str:
    """Format a time in a suitable unit: ``43 µs``, ``1.24 ms``, ``2.03 s``."""
    if seconds < 1e-3:
        return f"{seconds * 1e6:.0f} µs"
    if seconds < 1.0:
        return f"{seconds * 1e3:.2f} ms"
    return f"{seconds:.2f} s"


def bytes_text(size: int) -> str:
    """Format a size in the largest binary unit that divides it: ``64 MiB``, ``4 KiB``."""
    for shift, unit in ((30, "GiB"), (20, "MiB"), (10, "KiB")):
        if size >= 1 << shift and size % (1 << shift) == 0:
            return f"{size >> shift} {unit}"
    return f"{size} bytes"


def without_long_words(text: str) -> str:
    """Cut the middle out of very long words of a message."""
    return _LONG.sub(lambda found: f"{found[0][:200]}…{found[0][-100:]}", text)
