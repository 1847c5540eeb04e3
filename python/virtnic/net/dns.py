"""DNS messages: encodes queries and decodes responses (RFC 1035)."""

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
#: The most bytes of a name, and of a label (section 2.3.4).
_NAME, _LABEL = 255, 63
#: A label takes at least two bytes of a name, so a name with more pointers than this is a loop.
_JUMPS = 127


class Malformed(ValueError):
    """The message is not a valid response to the query."""


@dataclass(frozen=True, slots=True)
class Answer:
    """A server's response to one query."""

    #: The response code: 0 for success, 3 (NXDOMAIN) if the name does not exist.
    code: int
    #: The response did not fit in a datagram; the query is to be repeated over TCP.
    truncated: bool
    #: The addresses of the name, after CNAME records have been followed.
    addresses: tuple[str, ...]
    #: The target of a CNAME record whose addresses are not in the response.
    alias: str | None


def _labels(name: str) -> bytes:
    try:
        text = name.rstrip(".").encode("ascii")
    except UnicodeEncodeError:
        text = name.rstrip(".").encode("idna")
    labels = text.split(b".")
    if any(not 1 <= len(label) <= _LABEL for label in labels) or len(text) + 2 > _NAME:
        raise Malformed(f"{name!r} is not a name: a label has 1 to 63 bytes, a name up to 253")
    return b"".join(bytes([len(label)]) + label for label in labels) + b"\0"


def encode(name: str, kind: int, ident: int) -> bytes:
    """Return a query for the records of one type."""
    head = _HEADER.pack(ident, _RECURSION, 1, 0, 0, 0)
    return head + _labels(name) + struct.pack(">HH", kind, _IN)


def _name(message: bytes, at: int) -> tuple[str, int]:
    """Return the name at an offset, in lower case, and the offset of what follows it."""
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
            raise Malformed(f"a label has the unknown type {size >> 6}")
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
    """Return the response to the query; raises Malformed if the message is not one."""
    if len(message) < _HEADER.size:
        raise Malformed("the message is too short")
    number, flags, questions, answers, _, _ = _HEADER.unpack_from(message)
    if number != ident or not flags & _RESPONSE or questions != 1:
        raise Malformed("the message is not a response to the query")
    wanted = _name(_labels(name), 0)[0]
    asked, at = _name(message, _HEADER.size)
    if asked != wanted or message[at : at + 4] != struct.pack(">HH", kind, _IN):
        raise Malformed("the response is to another query")
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
                raise Malformed(f"an address has {length} bytes")
            found.setdefault(owner, []).append(str(ipaddress.ip_address(data)))
        elif class_ == _IN and type_ == CNAME:
            aliases[owner] = _name(message, at)[0]
        at += length
    # Each alias is followed once, so a loop of aliases ends.
    name = wanted
    while name not in found and name in aliases:
        name = aliases.pop(name)
    addresses = tuple(found.get(name, ()))
    alias = name if not addresses and name != wanted else None
    return Answer(flags & 0xF, truncated, addresses, alias)
