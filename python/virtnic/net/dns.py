"""Questions to name servers, and their answers (RFC 1035)."""

from __future__ import annotations

import ipaddress
import struct
from dataclasses import dataclass

__all__ = ["AAAA", "A", "Answer", "Malformed", "decode", "encode"]

A, CNAME, AAAA = 1, 5, 28
_IN = 1
_HEADER = struct.Struct(">HHHHHH")
_RECORD = struct.Struct(">HHIH")
_RESPONSE, _TRUNCATED, _RECURSION = 0x8000, 0x0200, 0x0100
#: A name has at most 255 bytes, each label at most 63 (section 2.3.4).
_NAME, _LABEL = 255, 63
#: More pointers than this lead in a circle: each label takes two bytes at least.
_JUMPS = 127


class Malformed(ValueError):
    """What came is no answer to the question."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What a server answered to one question."""

    #: 0 for success, 3 for a name that there is not.
    code: int
    #: The answer is longer than a datagram: ask again by TCP.
    truncated: bool
    #: The addresses of the name, and of what it is another name for.
    addresses: tuple[str, ...]
    #: Another name whose addresses the answer does not have.
    alias: str | None


def _labels(name: str) -> bytes:
    try:
        text = name.rstrip(".").encode("ascii")
    except UnicodeEncodeError:
        text = name.rstrip(".").encode("idna")
    labels = text.split(b".")
    if any(not 1 <= len(label) <= _LABEL for label in labels) or len(text) + 2 > _NAME:
        raise Malformed(f"{name!r} is no name: labels have 1 to 63 bytes, a name up to 253")
    return b"".join(bytes([len(label)]) + label for label in labels) + b"\0"


def encode(name: str, kind: int, ident: int) -> bytes:
    """Return a question for the records of one kind."""
    head = _HEADER.pack(ident, _RECURSION, 1, 0, 0, 0)
    return head + _labels(name) + struct.pack(">HH", kind, _IN)


def _name(message: bytes, at: int) -> tuple[str, int]:
    """Return the name at a place, in small letters, and the place behind it."""
    labels: list[bytes] = []
    behind = None
    jumps = length = 0
    while True:
        if at >= len(message):
            raise Malformed("a name goes beyond the end")
        size = message[at]
        if size & 0xC0 == 0xC0:
            if at + 1 >= len(message):
                raise Malformed("a name goes beyond the end")
            behind = at + 2 if behind is None else behind
            at = (size & 0x3F) << 8 | message[at + 1]
            jumps += 1
            if jumps > _JUMPS:
                raise Malformed("a name refers to itself")
        elif size > _LABEL:
            raise Malformed(f"a label of type {size >> 6}")
        elif size == 0:
            text = b".".join(labels).decode("ascii", "backslashreplace").lower()
            return text, at + 1 if behind is None else behind
        else:
            labels.append(message[at + 1 : at + 1 + size])
            length += size + 1
            if len(labels[-1]) != size or length > _NAME:
                raise Malformed("a name is too long")
            at += size + 1


def decode(message: bytes, name: str, kind: int, ident: int) -> Answer:
    """Return what a message answers to a question; Malformed where it is not its answer."""
    if len(message) < _HEADER.size:
        raise Malformed("it is too short")
    number, flags, questions, answers, _, _ = _HEADER.unpack_from(message)
    if number != ident or not flags & _RESPONSE or questions != 1:
        raise Malformed("it is no answer to the question")
    wanted = _name(_labels(name), 0)[0]
    asked, at = _name(message, _HEADER.size)
    if asked != wanted or message[at : at + 4] != struct.pack(">HH", kind, _IN):
        raise Malformed("it answers another question")
    at += 4
    aliases: dict[str, str] = {}
    found: dict[str, list[str]] = {}
    truncated = bool(flags & _TRUNCATED)
    for _ in range(answers):
        owner, at = _name(message, at)
        if at + _RECORD.size > len(message):
            raise Malformed("a record goes beyond the end")
        type_, class_, _, length = _RECORD.unpack_from(message, at)
        at += _RECORD.size
        data = message[at : at + length]
        if len(data) != length:
            raise Malformed("a record goes beyond the end")
        if class_ == _IN and type_ == kind:
            if length != (4 if kind == A else 16):
                raise Malformed("an address has a wrong length")
            found.setdefault(owner, []).append(str(ipaddress.ip_address(data)))
        elif class_ == _IN and type_ == CNAME:
            aliases[owner] = _name(message, at)[0]
        at += length
    # Each name is left once: a circle ends.
    name = wanted
    while name not in found and name in aliases:
        name = aliases.pop(name)
    addresses = tuple(found.get(name, ()))
    alias = name if not addresses and name != wanted else None
    return Answer(flags & 0xF, truncated, addresses, alias)
