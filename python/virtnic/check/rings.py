"""Clauses RING-…: a split transmit ring, with one or two descriptors a frame."""

from __future__ import annotations

import struct
import time
from typing import TYPE_CHECKING

from virtnic.check.clause import PROTOCOL_FEATURES, VERSION_1, Bench, Clause, Wrong
from virtnic.vhost_user import Region

if TYPE_CHECKING:
    import virtnic
    from virtnic.vhost_user import Frontend

__all__ = ["CLAUSES"]

_SIZE = 16
_DESCRIPTOR = struct.Struct("<QIHH")
_NEXT = 1
#: The distance between two rings in memory, and of the available and used areas from their table.
_RINGS, _AVAILABLE, _USED = 0x10000, 0x1000, 0x2000
#: Where the frames are, the bytes of each with its header, and the fill byte of unused memory.
_FRAMES, _FRAME, _GUARD = 0x40000, 12 + 64, 0xA5
_ETHERNET = b"\xff" * 6 + b"\x52\x54\x00\x00\x00\x01" + b"\x88\xb5" + bytes(50)


class _Ring:
    """A split transmit ring that a backend serves, beside an empty receive ring."""

    def __init__(self, bench: Bench) -> None:
        frontend, features, _ = bench.meet()
        self.frontend: Frontend = frontend
        self.memory: virtnic.Memory = bench.memory()
        self._timeout = bench.timeout
        self.memory.write(0, bytes([_GUARD]) * 0x80000)
        frontend.set_features(features & (VERSION_1 | PROTOCOL_FEATURES))
        frontend.set_mem_table([Region.of(self.memory)])
        self.kick = bench.event()
        self._available = self._popped = 0
        for ring in (0, 1):
            at = _RINGS * (ring + 1)
            self.memory.write(at, bytes(16 * _SIZE))
            self.memory.write(at + _AVAILABLE, bytes(6 + 2 * _SIZE))
            self.memory.write(at + _USED, bytes(6 + 8 * _SIZE))
            address = self.memory.address + at
            frontend.set_vring_num(ring, _SIZE)
            frontend.set_vring_base(ring, 0)
            frontend.set_vring_addr(ring, address, address + _USED, address + _AVAILABLE)
            frontend.set_vring_call(ring, bench.event().fileno())
            kick = self.kick if ring else bench.event()
            frontend.set_vring_kick(ring, kick.fileno())
        if features & PROTOCOL_FEATURES:
            for ring in (0, 1):
                frontend.set_vring_enable(ring)
        self._at = 2 * _RINGS

    def _word(self, offset: int) -> int:
        return int.from_bytes(self.memory.read(self._at + offset, 2), "little")

    @property
    def used(self) -> int:
        """The index of the used ring."""
        return self._word(_USED + 2)

    def send(self, heads: list[int], *, apart: bool = False) -> None:
        """Make one frame available at each head; ``apart``: the header has its own descriptor."""
        for head in heads:
            offset = _FRAMES + 0x200 * head
            self.memory.write(offset, bytes(12) + _ETHERNET)
            iova = self.memory.iova + offset
            table = self._at + 16 * head
            if apart:
                self.memory.write(table, _DESCRIPTOR.pack(iova, 12, _NEXT, head + 1))
                self.memory.write(table + 16, _DESCRIPTOR.pack(iova + 12, _FRAME - 12, 0, 0))
            else:
                self.memory.write(table, _DESCRIPTOR.pack(iova, _FRAME, 0, 0))
            slot = self._at + _AVAILABLE + 4 + 2 * (self._available % _SIZE)
            self.memory.write(slot, head.to_bytes(2, "little"))
            self._available = (self._available + 1) & 0xFFFF
        self.memory.write(self._at + _AVAILABLE + 2, self._available.to_bytes(2, "little"))
        self.kick.signal()

    def finished(self, count: int) -> list[tuple[int, int]]:
        """Wait for ``count`` used entries; return the id and length of each. Raises Wrong."""
        deadline = time.monotonic() + self._timeout
        wanted = (self._popped + count) & 0xFFFF
        while (self.used - self._popped) & 0xFFFF < count:
            if time.monotonic() > deadline:
                found = (self.used - self._popped) & 0xFFFF
                raise Wrong(f"{found} of {count} frames were used within {self._timeout:g} s")
            time.sleep(0.0005)
        time.sleep(0.002)  # time for a backend to return too many
        if self.used != wanted:
            raise Wrong(f"the used index is {self.used}, the available index {wanted}")
        entries = []
        for _ in range(count):
            at = self._at + _USED + 4 + 8 * (self._popped % _SIZE)
            entries.append(struct.unpack("<II", self.memory.read(at, 8)))
            self._popped = (self._popped + 1) & 0xFFFF
        return entries

    def stop(self) -> int:
        """Stop both rings; return the base of the transmit ring."""
        self.frontend.get_vring_base(0)
        return self.frontend.get_vring_base(1)


def _ids(bench: Bench) -> str:
    ring = _Ring(bench)
    heads = [3, 0, 9, 4, 15, 1]
    ring.send(heads)
    ids = [ident for ident, _ in ring.finished(len(heads))]
    ring.stop()
    if sorted(ids) != sorted(heads):
        raise Wrong(f"heads {heads} were made available, {ids} were used")
    return f"{len(ids)} heads were used once each"


def _lengths(bench: Bench) -> str:
    ring = _Ring(bench)
    ring.send([0, 1, 2])
    lengths = [length for _, length in ring.finished(3)]
    ring.stop()
    if any(lengths):
        raise Wrong(f"the lengths of read-only buffers are {lengths}")
    return "every length is 0"


def _laps(bench: Bench) -> str:
    ring = _Ring(bench)
    for start in range(0, 5 * _SIZE, 5):
        heads = [(start + number) % _SIZE for number in range(5)]
        ring.send(heads)
        ids = sorted(ident for ident, _ in ring.finished(5))
        if ids != sorted(heads):
            raise Wrong(f"after {start} frames heads {heads} were made available, {ids} were used")
    ring.stop()
    return "80 frames were used"


def _apart(bench: Bench) -> str:
    ring = _Ring(bench)
    heads = [0, 2, 4, 6]
    ring.send(heads, apart=True)
    ids = sorted(ident for ident, _ in ring.finished(4))
    ring.stop()
    if ids != heads:
        raise Wrong(f"chains {heads} were made available, {ids} were used")
    return "4 chains were used by their heads"


def _outside(bench: Bench) -> str:
    ring = _Ring(bench)
    ring.send([*range(12)])
    before = ring.memory.read(0, 0x80000)
    ring.finished(12)
    ring.stop()
    after = ring.memory.read(0, 0x80000)
    used = [range(_RINGS * n + _USED, _RINGS * n + _USED + 6 + 8 * _SIZE) for n in (1, 2)]
    changed = [
        at
        for at in range(0x80000)
        if before[at] != after[at] and not any(at in area for area in used)
    ]
    if changed:
        raise Wrong(
            f"{len(changed)} bytes outside the used rings were written, the first at offset "
            f"{changed[0]:#x}"
        )
    return "only the used rings were written"


def _resumes(bench: Bench) -> str:
    ring = _Ring(bench)
    ring.send([0, 1, 2, 3, 4])
    ring.finished(5)
    base = ring.stop()
    if base != 5:
        raise Wrong(f"5 frames were used; the reply says {base}")
    return "the reply was 5"


CLAUSES = (
    Clause(
        "RING-01",
        "rings",
        "each buffer is used once, under its id",
        "VIRTIO 1.3, 2.7.8",
        "Makes six frames available; the heads are not in order.",
        "The used entries name each head once and no other.",
        _ids,
    ),
    Clause(
        "RING-02",
        "rings",
        "the used length of a transmitted frame is 0",
        "VIRTIO 1.3, 2.7.8",
        "Sends three frames.",
        "The length counts bytes that the device wrote, so it is 0.",
        _lengths,
    ),
    Clause(
        "RING-03",
        "rings",
        "the ring wraps around",
        "VIRTIO 1.3, 2.7.6 and 2.7.8",
        "Sends 80 frames through a ring of 16 entries, five at a time.",
        "The used index counts all of them, and each group of five is used completely.",
        _laps,
    ),
    Clause(
        "RING-04",
        "rings",
        "the header may have a descriptor of its own",
        "VIRTIO 1.3, 2.7.4.1 and 5.1.6.2",
        "Sends four frames of two descriptors each.",
        "The used entries name the head of each chain once.",
        _apart,
    ),
    Clause(
        "RING-05",
        "rings",
        "only the used rings are written",
        "VIRTIO 1.3, 2.7.5.1 and 2.7.6.1",
        "Fills the memory around rings and frames with a pattern, then sends twelve frames.",
        "Nothing outside the used rings has changed.",
        _outside,
    ),
    Clause(
        "RING-06",
        "rings",
        "GET_VRING_BASE counts the frames that were used",
        "Vhost-user Protocol, VHOST_USER_GET_VRING_BASE",
        "Sends five frames, and stops the ring.",
        "The base is 5.",
        _resumes,
    ),
)
