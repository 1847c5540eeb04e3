"""Colour, on a terminal or as the environment says.

``NO_COLOR`` (no-color.org) and ``FORCE_COLOR`` (force-color.org) count if they are not empty, with
the precedence of Python's own tools; a ``dumb`` terminal has no colour.
"""

from __future__ import annotations

import os
import re
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from typing import TextIO

__all__ = ["coloured", "has_colour", "help_in_colour", "is_terminal"]

_CODES = {"red": "1;31", "yellow": "1;33", "green": "32", "heading": "1;32", "option": "36"}
#: In a help text: section titles; the options at the start of a line, and each of them.
_HEADING = re.compile(r"^(?:usage:|[A-Za-z][A-Za-z ]*:$)", re.MULTILINE)
_OPTIONS = re.compile(r"^  -.*?(?=  |$)", re.MULTILINE)
_OPTION = re.compile(r"(?<=[ ])--?[a-zA-Z][\w-]*")


def has_colour(stream: TextIO | None = None) -> bool:
    """Whether output to a stream, stdout by default, is coloured."""
    if os.environ.get("NO_COLOR"):
        return False
    if os.environ.get("FORCE_COLOR"):
        return True
    return is_terminal(sys.stdout if stream is None else stream)


def is_terminal(stream: TextIO) -> bool:
    """Whether a stream is a terminal that can redraw and show colour."""
    try:
        return os.environ.get("TERM", "dumb") != "dumb" and stream.isatty()
    except ValueError:  # closed
        return False


def coloured(text: str, colour: str, stream: TextIO | None = None) -> str:
    """Return the text coloured if the stream shows colour."""
    return _in(text, colour) if text and has_colour(stream) else text


def help_in_colour(text: str) -> str:
    """Return a help text with coloured titles and options."""

    def name(found: re.Match[str]) -> str:
        return _OPTION.sub(lambda option: _in(option[0], "option"), found[0])

    return _OPTIONS.sub(name, _HEADING.sub(lambda found: _in(found[0], "heading"), text))


def _in(text: str, colour: str) -> str:
    return f"\x1b[{_CODES[colour]}m{text}\x1b[0m"
