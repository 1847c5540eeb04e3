"""Times and sizes in words."""

from __future__ import annotations

import re

__all__ = ["bytes_text", "seconds_text", "without_long_words"]

#: A word that would fill the screen: a path or a netdev that is wrong in length.
_LONG = re.compile(r"\S{600,}")


def seconds_text(seconds: float) -> str:
    """Return a time in the unit that suits it: ``43 µs``, ``1.24 ms``, ``2.03 s``."""
    if seconds < 1e-3:
        return f"{seconds * 1e6:.0f} µs"
    if seconds < 1.0:
        return f"{seconds * 1e3:.2f} ms"
    return f"{seconds:.2f} s"


def bytes_text(size: int) -> str:
    """Return a size in the largest binary unit that divides it: ``64 MiB``, ``4 KiB``."""
    for shift, unit in ((30, "GiB"), (20, "MiB"), (10, "KiB")):
        if size >= 1 << shift and size % (1 << shift) == 0:
            return f"{size >> shift} {unit}"
    return f"{size} bytes"


def without_long_words(text: str) -> str:
    """Return a message with the middle cut out of words that are longer than some lines."""
    return _LONG.sub(lambda found: f"{found[0][:200]}…{found[0][-100:]}", text)
