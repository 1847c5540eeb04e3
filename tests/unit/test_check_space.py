"""The memory that `virtnic.check` shares with a backend: words, parts and guard bytes."""

import contextlib

import pytest

import virtnic
from virtnic.check import Wrong
from virtnic.check.packed import PackedRing
from virtnic.check.ring import Piece
from virtnic.check.space import GUEST, Space
from virtnic.check.split import SplitRing


def test_words_at_every_offset() -> None:
    """Aligned words are one access, all others bytes: the memory holds the same."""
    memory = virtnic.Memory("1M", hugepages=None)
    for length in range(1, 18):
        for offset in range(16):
            data = bytes(range(length + offset, 2 * length + offset))
            memory.write(0, bytes(64))
            memory.write(offset, data)
            assert memory.read(offset, length) == data
            assert memory.read(0, 64) == bytes(offset) + data + bytes(64 - offset - length)
    memory.write(0, memoryview(bytearray(b"abcd")))
    assert memory.read(0, 4) == b"abcd"
    with pytest.raises(ValueError, match="not inside"):
        memory.write(memory.size - 1, b"ab")


def test_writes_that_nobody_may_do_are_found() -> None:
    space = Space(virtnic.Memory("1M", hugepages=None), regions=2)
    ours, theirs = space.take(100), space.take(100, device=True)
    space.put(ours, b"x" * 100)
    space.memory.write(theirs, b"y" * 100)
    assert space.intruded() is None
    for place in (ours, theirs + 100, ours + 100, space.memory.size - 1):
        before = space.read(place, 1)
        space.memory.write(place, b"!")
        assert "are not the device's were written: 1," in (space.intruded() or "")
        space.memory.write(place, before)
    space.memory.write(theirs + 100, b"!")
    space.give(theirs)  # what was beside it is remembered
    assert space.intruded() is not None


@pytest.mark.parametrize("kind", [SplitRing, PackedRing])
def test_a_backend_that_keeps_everything(kind: type[SplitRing | PackedRing]) -> None:
    """A full ring is the backend's fault, and said so."""
    space = Space(virtnic.Memory("1M", hugepages=None))
    with contextlib.closing(kind(space, 4)) as ring:
        piece = Piece(space.take(64), 64)
        ring.add([piece] * 3)
        with pytest.raises(Wrong, match="keeps 1 buffers of a ring of 4"):
            ring.add([piece] * 2)
        ring.add([piece] * 2, indirect=True)
        with pytest.raises(Wrong, match="keeps 2 buffers"):
            ring.add([piece])


def test_regions_have_gaps() -> None:
    space = Space(virtnic.Memory("1M", hugepages=None), regions=2)
    parts = [space.take(100) for _ in range(4)]
    assert {space.guest(part) - part for part in parts} == {GUEST, GUEST + (1 << 19)}
    space.pinned = 1
    assert all(space.take(100) >= 1 << 19 for _ in range(4))
