"""What can be said to QEMU: checked before it is, for its answer to anything else ends QMP.

QMP is JSON (RFC 8259), in which QEMU knows text without NUL, surrogates and noncharacters
(``util/unicode.c``), finite numbers, and objects and lists that lie not too deep in each other. To
what is none of these QEMU answers with an error that belongs to no command.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Mapping
from typing import Any

__all__ = ["check", "check_word", "check_words"]

#: QEMU takes 1,024 levels (``MAX_NESTING``), Python's encoder fewer.
_DEEPEST = 100
#: What an integer of JSON may be: signed or unsigned, of 64 bits.
_LEAST, _MOST = -(1 << 63), (1 << 64) - 1
#: NUL; surrogates, by which Python keeps bytes that are not UTF-8; the noncharacters of Unicode.
_UNSAYABLE = re.compile(
    "[\0\ud800-\udfff\ufdd0-\ufdef"
    + "".join(
        f"{chr(plane + 0xFFFE)}{chr(plane + 0xFFFF)}" for plane in range(0, 0x110000, 0x10000)
    )
    + "]"
)


def check(value: Any, what: str, depth: int = 0) -> None:
    """Raise ValueError or TypeError for what QMP cannot carry; ``what`` names it."""
    if isinstance(value, str):
        _check_text(value, what)
    elif isinstance(value, bool) or value is None:
        return
    elif isinstance(value, int):
        if not _LEAST <= value <= _MOST:
            raise ValueError(f"{what} is a number of more than 64 bits")
    elif isinstance(value, float):
        if not math.isfinite(value):
            raise ValueError(f"{what}={value} is no finite number, and QMP knows no other")
    elif depth == _DEEPEST:
        raise ValueError(f"{what} has lists and objects more than {_DEEPEST} deep in each other")
    elif isinstance(value, (dict, Mapping)):
        for key, item in value.items():
            if not isinstance(key, str):
                raise TypeError(f"{what} has the key {key!r}; the keys of QMP's objects are text")
            _check_text(key, f"the name {key!r} in {what}")
            check(item, f"{what}.{key}" if depth else key, depth + 1)
    elif isinstance(value, (list, tuple)):
        for item in value:
            check(item, what, depth + 1)
    else:
        raise TypeError(
            f"{what}={value!r} is of a type that QMP does not know: it has text, numbers, "
            "True and False, lists and dicts"
        )


def _check_text(text: str, what: str) -> None:
    found = _UNSAYABLE.search(text)
    if found is not None:
        raise ValueError(f"{what}: {text!r} cannot be passed to QEMU, it has {_name(found[0])}")


def _name(character: str) -> str:
    if character == "\0":
        return "a NUL character"
    if "\ud800" <= character <= "\udfff":
        return f"{character!r}: it is not UTF-8"
    return f"{character!r}, which is no character of Unicode"


def check_words(words: Any, what: str) -> tuple[str, ...]:
    """Return words for a command line. They may have any bytes but NUL.

    Raises TypeError and ValueError.
    """
    if isinstance(words, (str, bytes)):
        raise TypeError(f"{what} is a list of words, such as ['-object', '…'], not {words!r}")
    checked = tuple(words)
    for word in checked:
        if not isinstance(word, str):
            raise TypeError(f"{what} has {word!r}, which is no text")
        check_word(word, what)
    return checked


def check_word(word: str, what: str) -> None:
    """Raise ValueError for a path or another word that the system cannot be given."""
    try:
        wrong = b"\0" in os.fsencode(word)
    except UnicodeEncodeError:
        wrong = True  # a surrogate that stands for no byte
    if wrong:
        raise ValueError(f"{what}: {word!r} can be no path, and no word of a command line")
