"""Checks that text can be sent to QEMU: its reply to anything else ends QMP.

QMP is JSON (RFC 8259). QEMU accepts text without NUL, surrogates and noncharacters
(``util/unicode.c``), finite numbers, and objects and lists up to a limit of nesting. To anything
else it replies with an error that belongs to no command.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Mapping
from typing import Any

__all__ = ["check", "check_word", "check_words"]

#: QEMU allows 1,024 levels (``MAX_NESTING``), Python's encoder fewer.
_DEEPEST = 100
#: Range of a JSON integer: signed or unsigned 64 bits.
_LEAST, _MOST = -(1 << 63), (1 << 64) - 1
#: NUL; surrogates, by which Python represents non-UTF-8 bytes; the noncharacters of Unicode.
_UNSAYABLE = re.compile(
    "[\0\ud800-\udfff\ufdd0-\ufdef"
    + "".join(
        f"{chr(plane + 0xFFFE)}{chr(plane + 0xFFFF)}" for plane in range(0, 0x110000, 0x10000)
    )
    + "]"
)


def check(value: Any, what: str, depth: int = 0) -> None:
    """Raise ValueError or TypeError for a value that QMP cannot carry; ``what`` names it."""
    if isinstance(value, str):
        _check_text(value, what)
    elif isinstance(value, bool) or value is None:
        return
    elif isinstance(value, int):
        if not _LEAST <= value <= _MOST:
            raise ValueError(f"{what} is a number of more than 64 bits")
    elif isinstance(value, float):
        if not math.isfinite(value):
            raise ValueError(f"{what}={value} is not a finite number, as QMP requires")
    elif depth == _DEEPEST:
        raise ValueError(f"{what} has lists and objects nested more than {_DEEPEST} levels deep")
    elif isinstance(value, (dict, Mapping)):
        for key, item in value.items():
            if not isinstance(key, str):
                raise TypeError(f"{what} has the key {key!r}; keys of QMP objects must be strings")
            _check_text(key, f"the name {key!r} in {what}")
            check(item, f"{what}.{key}" if depth else key, depth + 1)
    elif isinstance(value, (list, tuple)):
        for item in value:
            check(item, what, depth + 1)
    else:
        raise TypeError(
            f"{what}={value!r} is of a type that QMP does not have; use strings, numbers, "
            "True and False, lists and dicts"
        )


def _check_text(text: str, what: str) -> None:
    found = _UNSAYABLE.search(text)
    if found is not None:
        raise ValueError(
            f"{what}: {text!r} cannot be passed to QEMU, it contains {_name(found[0])}"
        )


def _name(character: str) -> str:
    if character == "\0":
        return "a NUL character"
    if "\ud800" <= character <= "\udfff":
        return f"{character!r}: it is not UTF-8"
    return f"{character!r}, which is not a Unicode character"


def check_words(words: Any, what: str) -> tuple[str, ...]:
    """Check words for a command line, which may have any bytes but NUL.

    Raises TypeError and ValueError.
    """
    if isinstance(words, (str, bytes)) or not hasattr(type(words), "__iter__"):
        raise TypeError(
            f"{what} must be a list of strings, such as ['-object', '…'], not {words!r}"
        )
    checked = tuple(words)
    for word in checked:
        if not isinstance(word, str):
            raise TypeError(f"{what} contains {word!r}, which is not a string")
        check_word(word, what)
    return checked


def check_word(word: str, what: str) -> None:
    """Raise ValueError for a path or argument that cannot be passed to the system."""
    try:
        wrong = b"\0" in os.fsencode(word)
    except UnicodeEncodeError:
        wrong = True  # a surrogate that represents no byte
    if wrong:
        raise ValueError(f"{what}: {word!r} cannot be a path or command-line argument")
