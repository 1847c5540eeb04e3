"""Output streams whose encoding lacks a character that a command prints."""

from __future__ import annotations

import codecs
import contextlib
import io
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["any_encoding"]


def _replaced(error: UnicodeError) -> tuple[str, int]:
    """Replace what an encoding has not, the few characters of ours by what looks like them."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    text = error.object[error.start : error.end]
    return "".join(_ALIKE.get(character, "?") for character in text), error.end


_ALIKE = {"µ": "u", "…": "...", "→": "->"}
codecs.register_error("virtnic", _replaced)


@contextlib.contextmanager
def any_encoding() -> Iterator[None]:
    """Let stdout and stderr take any text, whatever their encoding (``LC_ALL=C``, an old GBK)."""
    changed = []
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # and not what a test has put there
            changed.append((stream, stream.errors))
            stream.reconfigure(errors="virtnic")
    try:
        yield
    finally:
        for stream, errors in changed:
            with contextlib.suppress(ValueError):  # it was closed
                stream.reconfigure(errors=errors)
