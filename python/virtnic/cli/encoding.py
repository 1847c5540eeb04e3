"""Output streams whose encoding lacks characters that commands print."""

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
    """Replace characters that an encoding lacks, ours by similar ones."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    text = error.object[error.start : error.end]
    return "".join(_ALIKE.get(character, "?") for character in text), error.end


_ALIKE = {"µ": "u", "…": "...", "→": "->"}
codecs.register_error("virtnic", _replaced)


@contextlib.contextmanager
def any_encoding() -> Iterator[None]:
    """Make stdout and stderr accept any text, whatever their encoding (``LC_ALL=C``, GBK)."""
    changed = []
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # not a test's replacement
            changed.append((stream, stream.errors))
            stream.reconfigure(errors="virtnic")
    try:
        yield
    finally:
        for stream, errors in changed:
            with contextlib.suppress(ValueError):  # closed
                stream.reconfigure(errors=errors)
