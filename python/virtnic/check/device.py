"""`Device`: a started virtio-net device. `Wire`: where frames go in, and where they come out."""

from __future__ import annotations

import functools
import time
from typing import TYPE_CHECKING, TypedDict

import virtnic
from virtnic.check.clause import (
    PROTOCOL_FEATURES,
    RING_PACKED,
    USED,
    VERSION_1,
    NotApplicable,
    NotOffered,
    Wrong,
    bits,
)
from virtnic.check.packed import PackedRing
from virtnic.check.ring import Chain, Piece, Ring, Used
from virtnic.check.space import Space
from virtnic.check.split import SplitRing

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Iterable, Sequence
    from typing import Unpack

    from virtnic.check.clause import Bench
    from virtnic.vhost_user import Frontend, ProtocolFeature

__all__ = ["EVENT_IDX", "HEADER", "INDIRECT_DESC", "IN_ORDER", "MRG_RXBUF", "Device", "Wire"]

MRG_RXBUF, INDIRECT_DESC, EVENT_IDX, IN_ORDER = 1 << 15, 1 << 28, 1 << 29, 1 << 35
#: A header without offloads: VERSION_1 makes it 12 bytes long.
HEADER = bytes(12)
#: The EtherType of test frames (IEEE 802: local experiments), and of frames that find the way.
_TEST, _WARM = b"\x88\xb5", b"\x88\xb6"
_HOME, _AWAY = b"\x52\x54\x00\x00\x00\x01", b"\x52\x54\x00\x00\x00\x02"


# Shapes: how to lay out the bytes of a buffer in pieces of certain lengths.


def whole(length: int) -> list[int]:
    """Return a shape of one descriptor."""
    return [length]


def apart(length: int) -> list[int]:
    """Return a shape whose header has a descriptor of its own."""
    return [12, length - 12]


def byte_by_byte(length: int) -> list[int]:
    """Return a shape with a descriptor for each byte."""
    return [1] * length


def cut_after(at: int) -> Callable[[int], list[int]]:
    """Return a shape of two descriptors, the first of that length."""
    return lambda length: [at, length - at]


def in_pieces(count: int) -> Callable[[int], list[int]]:
    """Return a shape of that many descriptors."""

    def shape(length: int) -> list[int]:
        each = length // count
        return [each] * (count - 1) + [length - each * (count - 1)]

    return shape


class Options(TypedDict, total=False):
    """What a :class:`Device` may be asked for."""

    packed: bool
    size: int
    pairs: int
    want: int
    bases: Sequence[int]
    regions: int
    memory: int | str
    silent: bool
    use: ProtocolFeature


class BufferOptions(TypedDict, total=False):
    """How buffers lie in memory."""

    shape: Callable[[int], Sequence[int]]
    indirect: bool


class FrameOptions(BufferOptions, total=False):
    """How frames are sent."""

    header: bytes


class PostOptions(BufferOptions, total=False):
    """How receive buffers are made."""

    length: int
    kick: bool


class Device:
    """A connection whose rings are set up and started, in memory with guard bytes.

    ``want`` are feature bits beyond VERSION_1 (and RING_PACKED). Raises NotOffered without them.
    """

    def __init__(
        self,
        bench: Bench,
        *,
        path: str | os.PathLike[str] | None = None,
        packed: bool = False,
        size: int = 256,
        pairs: int = 1,
        want: int = 0,
        bases: Sequence[int] | None = None,
        regions: int = 1,
        pinned: int | None = None,
        memory: int | str = "4M",
        start: bool = True,
        silent: bool = True,
        use: ProtocolFeature = USED,
    ) -> None:
        self.bench = bench
        frontend, offered, self.protocol = bench.meet(path, use=use)
        self.frontend: Frontend = frontend
        self.features = offered & PROTOCOL_FEATURES | VERSION_1 | want
        if packed:
            self.features |= RING_PACKED
        if missing := self.features & ~offered:
            raise NotOffered(f"feature bits {bits(missing)} are not offered")
        self.packed, self.size = packed, size
        self.space = Space(virtnic.Memory(memory, hugepages=None), regions=regions)
        frontend.set_features(self.features)
        self.space.pinned = pinned
        shared = self.space.regions if pinned is None else [self.space.regions[pinned]]
        frontend.set_mem_table(shared)
        make = PackedRing if packed else SplitRing
        self.rings: list[Ring] = []
        for number in range(2 * pairs):
            ring = make(
                self.space,
                size,
                bases[number] if bases else None,
                in_order=bool(want & IN_ORDER),
                events=bool(want & EVENT_IDX),
            )
            bench.closes(ring.close)
            self.rings.append(ring)
            if silent:
                ring.silence()
        if start:
            for number in range(2 * pairs):
                self.start(number)
            for number in range(2 * pairs):
                self.enable(number)

    def start(self, number: int, base: int | None = None, *, log: bool = False) -> None:
        """Describe a ring to the backend, and start it."""
        ring, frontend = self.rings[number], self.frontend
        frontend.set_vring_num(number, ring.size)
        frontend.set_vring_base(number, ring.base if base is None else base)
        descriptor, used, available = (self.space.user(area) for area in ring.areas)
        if log:
            guest = self.space.guest(ring.areas[0 if self.packed else 1])
            frontend.set_vring_addr(number, descriptor, used, available, flags=1, log=guest)
        else:
            frontend.set_vring_addr(number, descriptor, used, available)
        frontend.set_vring_call(number, ring.call.fileno())
        frontend.set_vring_kick(number, ring.kick.fileno())

    def enable(self, number: int, on: bool = True) -> None:
        """Enable a ring; without protocol features it is enabled from the start."""
        if self.features & PROTOCOL_FEATURES:
            self.frontend.set_vring_enable(number, on)

    def stop(self) -> list[int]:
        """Stop all rings; return their bases."""
        return [self.frontend.get_vring_base(number) for number in range(len(self.rings))]

    @property
    def tx(self) -> Ring:
        """The first transmit ring."""
        return self.rings[1]

    @property
    def rx(self) -> Ring:
        """The first receive ring."""
        return self.rings[0]

    # Buffers.

    def add(
        self,
        ring: Ring,
        frame: bytes,
        *,
        header: bytes = HEADER,
        shape: Callable[[int], Sequence[int]] = whole,
        indirect: bool = False,
    ) -> Chain:
        """Add a frame to a transmit ring, in pieces that lie apart from one another."""
        data, at, pieces = header + frame, 0, []
        for length in shape(len(data)):
            offset = self.space.take(length)
            self.space.put(offset, data[at : at + length])
            pieces.append(Piece(offset, length))
            at += length
        return ring.add(pieces, indirect=indirect)

    def shared(self, frame: bytes) -> Piece:
        """Return a buffer with a frame that many descriptors may have at once."""
        data = HEADER + frame
        offset = self.space.take(len(data))
        self.space.put(offset, data)
        return Piece(offset, len(data))

    def post(
        self,
        ring: Ring,
        count: int = 1,
        *,
        length: int = 12 + 1514,
        shape: Callable[[int], Sequence[int]] = whole,
        indirect: bool = False,
        kick: bool = True,
    ) -> None:
        """Make empty buffers available in a receive ring."""
        for _ in range(count):
            pieces = [
                Piece(self.space.take(each, device=True), each, True) for each in shape(length)
            ]
            ring.add(pieces, indirect=indirect)
        ring.publish()
        if kick:
            ring.kick.signal()

    def send(
        self,
        frames: Iterable[bytes],
        *,
        ring: Ring | None = None,
        header: bytes = HEADER,
        shape: Callable[[int], Sequence[int]] = whole,
        indirect: bool = False,
    ) -> list[Chain]:
        """Make frames available, all at once, and kick."""
        ring = ring or self.tx
        chains = [
            self.add(ring, frame, header=header, shape=shape, indirect=indirect) for frame in frames
        ]
        ring.publish()
        ring.kick.signal()
        return chains

    def sent(self, count: int, *, ring: Ring | None = None, settle: float = 0.0) -> list[Used]:
        """Wait until frames were used, and give their memory back. Raises Wrong."""
        ring = ring or self.tx
        used = ring.wait(count, self.bench.timeout, settle=settle)
        for entry in used:
            ring.give(entry.chain)
        return used

    def content(self, used: Used) -> bytes:
        """Return what the device wrote into a buffer, as far as its length says. Raises Wrong."""
        if used.length > used.chain.room:
            raise Wrong(f"a buffer of {used.chain.room} bytes was used with {used.length} bytes")
        data, left = b"", used.length
        for piece in used.chain.pieces:
            part = min(left, piece.length)
            data += self.space.read(piece.offset, part)
            left -= part
        return data

    def untouched(self) -> None:
        """Raise Wrong if the device wrote where it must not."""
        if (found := self.space.intruded()) is not None:
            raise Wrong(found)


@functools.lru_cache(maxsize=256)
def _pattern(number: int) -> bytes:
    return bytes((number * 7 + at * 13) & 0xFF for at in range(251))


def frame_of(number: int, length: int = 64) -> bytes:
    """Return a test frame with its number, which tells all of its bytes."""
    head = _AWAY + _HOME + _TEST + number.to_bytes(4, "little")
    return (head + _pattern(number & 0xFF) * (length // 251 + 1))[:length]


class Received:
    """A frame that came, with its header and the buffers that it took."""

    __slots__ = ("buffers", "frame", "header", "lengths")

    def __init__(self, data: bytes, lengths: list[int]) -> None:
        self.header, self.frame = data[:12], data[12:]
        self.lengths = lengths
        self.buffers = len(lengths)


def same(sent: bytes, received: bytes) -> bool:
    """Return whether two frames are equal, but for swapped addresses."""
    return sent[12:] == received[12:] and (
        received[:12] == sent[:12] or received[:12] == sent[6:12] + sent[:6]
    )


class Wire:
    """A device that transmits, and the one where its frames come out: with --echo, the same.

    Raises NotApplicable without --echo and --pair. The options are those of :class:`Device`.
    """

    def __init__(self, bench: Bench, *, warm: bool = True, **options: Unpack[Options]) -> None:
        if not bench.echo and bench.pair is None:
            raise NotApplicable("frames must come back for this, and the backend only takes them")
        self.bench = bench
        self._spare: list[Received] = []
        self.merged = bool(options.get("want", 0) & MRG_RXBUF)
        self.out = Device(bench, **options)
        self.back = self.out
        if bench.pair is not None:
            self.back = Device(bench, path=bench.pair, **options)
        if warm:
            self.warm()

    def warm(self) -> None:
        """Send frames until one comes: a switch takes a moment until it knows its ports."""
        deadline = time.monotonic() + max(self.bench.timeout, 3.0)
        frame = _AWAY + _HOME + _WARM + bytes(50)
        sent = came = 0
        while not came:
            if time.monotonic() > deadline:
                raise Wrong(f"none of {sent} frames came back")
            if len(self.back.rx.outstanding) < 8:
                self.back.post(self.back.rx)
            self.out.send([frame])
            self.out.sent(1)
            sent += 1
            came += self._quiet(0.02 if sent < 10 else 0.1)
        while came < sent and (more := self._quiet(0.03)):
            came += more
        # What is still posted stays: the first frames of the check come there.

    def _quiet(self, seconds: float) -> int:
        """Take frames until one or more came, or until the time is over; return how many."""
        ring, came = self.back.rx, 0
        end = time.monotonic() + seconds
        while not came and time.monotonic() < end:
            for entry in ring.pop():
                came += 1
                ring.give(entry.chain)
            time.sleep(0.0002)
        return came

    def posted(self, count: int, **options: Unpack[PostOptions]) -> None:
        """Post until ``count`` buffers are with the device."""
        have = len(self.back.rx.outstanding)
        if count > have:
            self.back.post(self.back.rx, count - have, **options)

    def receive(self, count: int) -> list[Received]:
        """Wait for that many test frames; check the header's number of buffers. Raises Wrong."""
        ring = self.back.rx
        found, self._spare = self._spare, []
        waiting: list[Used] = []
        deadline = time.monotonic() + self.bench.timeout
        tries = 0
        while len(found) < count:
            waiting += (more := ring.pop())
            while waiting and (frame := self._next(waiting)) is not None:
                if frame.frame[12:14] != _WARM:
                    found.append(frame)
            if more:
                deadline = time.monotonic() + self.bench.timeout
            elif time.monotonic() > deadline:
                raise Wrong(f"{len(found)} of {count} frames came within {self.bench.timeout:g} s")
            else:
                tries += 1
                time.sleep(0 if tries < 50 else 0.0002)
        self._spare = found[count:]
        return found[:count]

    def _next(self, waiting: list[Used]) -> Received | None:
        """Take a frame out of used buffers; None if some of its buffers are not used yet."""
        first = self.back.content(waiting[0])
        if len(first) < 12:
            raise Wrong(f"a received frame has {len(first)} bytes, less than its header")
        buffers = int.from_bytes(first[10:12], "little") if self.merged else 1
        if not 1 <= buffers <= self.back.rx.size:
            raise Wrong(f"num_buffers of a received frame is {buffers}")
        if len(waiting) < buffers:
            return None
        parts = [first, *(self.back.content(entry) for entry in waiting[1:buffers])]
        for entry in waiting[:buffers]:
            self.back.rx.give(entry.chain)
        del waiting[:buffers]
        return Received(b"".join(parts), [len(part) for part in parts])

    def pass_on(self, frames: Sequence[bytes], **options: Unpack[FrameOptions]) -> list[Received]:
        """Send frames and return them as they came; they must be the same, in the same order.

        Raises Wrong. The options are those of :meth:`Device.send`. Buffers must be posted.
        """
        self.out.send(frames, **options)
        self.out.sent(len(frames))
        came = self.receive(len(frames))
        for number, (sent, found) in enumerate(zip(frames, came, strict=True)):
            if not same(sent, found.frame):
                raise Wrong(different(number, sent, found.frame))
        return came

    def stop(self) -> None:
        """Stop all rings."""
        self.out.stop()
        if self.back is not self.out:
            self.back.stop()

    def untouched(self) -> None:
        """Raise Wrong if the device wrote where it must not."""
        self.out.untouched()
        if self.back is not self.out:
            self.back.untouched()


def different(number: int, sent: bytes, found: bytes) -> str:
    """Return how a frame differs from the one that was sent."""
    if len(sent) != len(found):
        return f"frame {number} had {len(sent)} bytes, and came with {len(found)}"
    at = next((at for at in range(12, len(sent)) if sent[at] != found[at]), 0)
    return f"frame {number} of {len(sent)} bytes came changed, first in byte {at}"
