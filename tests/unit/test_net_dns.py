"""Responses of name servers, valid and invalid."""

import contextlib
import random
import struct

import pytest

from virtnic.net.dns import AAAA, A, Answer, Malformed, decode, encode

NAME = "www.example.org"
#: Where the question's name is.
POINTER = b"\xc0\x0c"


def message(*records: bytes, ident: int = 7, flags: int = 0x8180, kind: int = A) -> bytes:
    """Return an answer to the question for NAME."""
    question = encode(NAME, kind, ident)[12:]
    return (
        struct.pack(">HHHHHH", ident, flags, 1, len(records), 0, 0) + question + b"".join(records)
    )


def record(data: bytes, kind: int = A, owner: bytes = POINTER, length: int | None = None) -> bytes:
    """Return a resource record."""
    size = len(data) if length is None else length
    return owner + struct.pack(">HHIH", kind, 1, 60, size) + data


ADDRESS = record(bytes([192, 0, 2, 1]))


def test_a_question() -> None:
    assert encode("a.bc", AAAA, 0x1234) == (
        b"\x12\x34\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00\x01a\x02bc\x00\x00\x1c\x00\x01"
    )
    for wrong in ("", ".", "a..b", "a" * 64, ".".join(["abc"] * 64)):
        with pytest.raises(Malformed):
            encode(wrong, A, 1)


def test_addresses_and_other_names() -> None:
    two = message(ADDRESS, record(bytes([192, 0, 2, 2])))
    assert decode(two, NAME, A, 7) == Answer(0, False, ("192.0.2.1", "192.0.2.2"), None)
    six = message(record(bytes(15) + b"\1", AAAA), kind=AAAA)
    assert decode(six, NAME.upper(), AAAA, 7).addresses == ("::1",)
    alias = record(b"\1x\xc0\x10", 5)
    assert decode(message(alias), NAME, A, 7).alias == "x.example.org"
    both = message(alias, record(bytes([192, 0, 2, 3]), owner=b"\1x\xc0\x10"))
    assert decode(both, NAME, A, 7).addresses == ("192.0.2.3",)
    # A loop of aliases ends.
    circle = message(alias, record(POINTER, 5, b"\1x\xc0\x10"))
    assert decode(circle, NAME, A, 7).addresses == ()
    assert decode(message(flags=0x8183), NAME, A, 7).code == 3
    assert decode(message(flags=0x8380), NAME, A, 7).truncated


@pytest.mark.parametrize(
    "wrong",
    [
        b"",
        message(ADDRESS)[:11],
        message(ADDRESS, ident=8),
        message(ADDRESS, flags=0x0100),
        message(ADDRESS, kind=AAAA),
        message(ADDRESS).replace(b"\x03www", b"\x03wwx"),
        message(ADDRESS)[:-1],
        message(record(b"\1\2\3")),
        message(record(b"\1\2\3\4", length=400)),
        message(record(b"\1\2\3\4", owner=b"\xc0\x1f" * 2)),
        message(record(b"\xff", 5)),
        message(record(b"\x80a", 5)),
        struct.pack(">HHHHHH", 7, 0x8180, 1, 65535, 0, 0) + b"\xc0\x0c" + b"\0\1\0\1",
    ],
)
def test_what_is_no_answer(wrong: bytes) -> None:
    with pytest.raises(Malformed):
        decode(wrong, NAME, A, 7)


def test_nothing_but_an_answer_or_malformed_comes_of_random_bytes() -> None:
    draw = random.Random(7)
    right = message(ADDRESS, record(b"\1x\xc0\x10", 5), record(POINTER, 5))
    for _ in range(3000):
        bytes_ = bytearray(right[: draw.randrange(len(right) + 1)])
        for _ in range(draw.randrange(4)):
            if bytes_:
                bytes_[draw.randrange(len(bytes_))] = draw.randrange(256)
        with contextlib.suppress(Malformed):
            assert isinstance(decode(bytes(bytes_), NAME, A, 7), Answer)
