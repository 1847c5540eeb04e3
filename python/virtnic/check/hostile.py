"""Clauses HOST-…: what a hostile driver could do. Only for backends of one's own."""

from __future__ import annotations

import contextlib
import mmap
import os
import random
import resource
import socket
import struct
import time
from typing import TYPE_CHECKING

from virtnic.check.clause import PROTOCOL_FEATURES, VERSION_1, Clause, Wrong
from virtnic.check.device import INDIRECT_DESC, Device, Wire, frame_of
from virtnic.check.life import works
from virtnic.check.packed import PackedRing
from virtnic.check.ring import DESCRIPTOR, INDIRECT, NEXT, WRITE
from virtnic.check.rings import both
from virtnic.check.space import GUEST
from virtnic.check.split import SplitRing
from virtnic.errors import DeviceError
from virtnic.vhost_user import Region, Request

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from virtnic.check.clause import Bench
    from virtnic.check.ring import Ring

__all__ = ["CLAUSES"]

#: Address, length, flags and next of a descriptor.
Entry = tuple[int, int, int, int]
_SIZE = 16
#: The time that a backend has to fall.
_MOMENT = 0.01
_ALL_ONES = 2**64 - 1


def _offer(ring: Ring, entries: Sequence[Entry], *, head: int = 0, ident: int = 0) -> None:
    """Make descriptors available as they are, and kick."""
    if isinstance(ring, SplitRing):
        for number, entry in enumerate(entries):
            ring.space.put(ring.areas[0] + 16 * number, DESCRIPTOR.pack(*entry))
        ring.offer(head)
    elif isinstance(ring, PackedRing):
        for address, length, flags, _ in entries:
            ring.describe(address, length, ident, flags)
    ring.publish()
    ring.kick.signal()


def _each(
    bench: Bench,
    packed: bool,
    attacks: Sequence[tuple[str, Callable[[Device], object]]],
    *,
    want: int = 0,
    elsewhere: bool = False,
) -> str:
    """Try each attack on a device of its own. Raises Wrong if the backend does not live on.

    ``elsewhere``: the attack has the backend write where it is not expected.
    """
    for name, attack in attacks:
        device = Device(bench.again(), packed=packed, size=_SIZE, want=want)
        device.send([frame_of(0)])
        device.sent(1)
        with contextlib.suppress(DeviceError, OSError):
            attack(device)
            time.sleep(_MOMENT)
        if not elsewhere and (outside := device.space.intruded()) is not None:
            raise Wrong(f"{name}: {outside}")
        works(bench, packed, after=f"after {name}")
    return f"served after {len(attacks)} attacks"


def _chains(*entries: Entry, head: int = 0, ident: int = 0) -> Callable[[Device], object]:
    """Return the attack that offers these descriptors in the transmit ring."""
    return lambda device: _offer(device.tx, entries, head=head, ident=ident)


def _jumps(bench: Bench, packed: bool) -> str:
    def by(step: int) -> Callable[[Device], object]:
        def jump(device: Device) -> None:
            ring = device.tx
            assert isinstance(ring, SplitRing)
            device.space.store(ring.areas[2] + 2, ring.available + step)
            ring.kick.signal()

        return jump

    def garbage(flags: int) -> Callable[[Device], object]:
        def write(device: Device) -> None:
            for slot in range(_SIZE):
                entry = DESCRIPTOR.pack(_ALL_ONES, 0xFFFFFFFF, 0xFFFF, flags)
                device.space.put(device.tx.areas[0] + 16 * slot, entry)
            device.space.flush()
            device.tx.kick.signal()

        return write

    if packed:
        return _each(
            bench,
            True,
            [(f"flags of {flags:#x}", garbage(flags)) for flags in (0x80, 0x8000, 0xFFFF)],
        )
    steps = (_SIZE + 1, 1000, 0x7FFF, 0x8000, 0xFFFF)
    return _each(bench, False, [(f"an index that jumps by {step}", by(step)) for step in steps])


def _loops(bench: Bench, packed: bool) -> str:
    here = GUEST + 0x1000
    if packed:
        attacks = [
            ("a chain as long as the ring", _chains(*[(here, 4, NEXT, 0)] * _SIZE)),
            ("a buffer id of 65,535", _chains((here, 76, 0, 0), ident=0xFFFF)),
            ("a buffer id of 16", _chains((here, 76, 0, 0), ident=_SIZE)),
        ]
    else:
        attacks = [
            ("a descriptor that follows itself", _chains((here, 4, NEXT, 0))),
            ("a loop of two", _chains((here, 4, NEXT, 1), (here, 4, NEXT, 0))),
            ("a head of 65,535", _chains(head=0xFFFF)),
            ("a head of 16", _chains(head=_SIZE)),
            ("a next of 65,535", _chains((here, 4, NEXT, 0xFFFF))),
        ]
    return _each(bench, packed, attacks)


def _outside(bench: Bench, packed: bool) -> str:
    places = (0, GUEST - 0x1000, GUEST + (1 << 22), GUEST + (1 << 40), _ALL_ONES - 0xFFF)
    attacks = [(f"an address of {at:#x}", _chains((at, 76, 0, 0))) for at in places]
    return _each(bench, packed, attacks)


def _across(bench: Bench, packed: bool) -> str:
    end = GUEST + (1 << 22)  # of the 4 MiB of a device
    attacks = [
        (
            f"a buffer that ends {beyond} bytes beyond the memory",
            _chains((end - 76 + beyond, 76, 0, 0)),
        )
        for beyond in (1, 12, 75)
    ]
    attacks.append(
        ("a header across the end", _chains((end - 4, 12, NEXT, 1), (end - 64, 64, 0, 0)))
    )
    return _each(bench, packed, attacks)


def _overflow(bench: Bench, packed: bool) -> str:
    here = GUEST + 0x1000
    attacks = [
        ("a buffer across 2**64", _chains((_ALL_ONES - 15, 76, 0, 0))),
        ("a length of 4 GiB", _chains((here, 0xFFFFFFFF, 0, 0))),
        ("two lengths of 4 GiB", _chains((here, 0xFFFFFFFF, NEXT, 1), (here, 0xFFFFFFFF, 0, 0))),
        ("a length of 0", _chains((here, 0, 0, 0))),
        ("lengths of 0", _chains((here, 0, NEXT, 1), (here, 0, NEXT, 2), (here, 0, 0, 0))),
        ("a length of 1", _chains((here, 1, 0, 0))),
    ]
    return _each(bench, packed, attacks)


def _direction(bench: Bench, packed: bool) -> str:
    here = GUEST + 0x1000

    def receive(device: Device) -> None:
        _offer(device.rx, [(here, 1526, 0, 0)])
        device.send([frame_of(1)])

    attacks: list[tuple[str, Callable[[Device], object]]] = [
        ("a buffer to write in a transmit ring", _chains((here, 76, WRITE, 0))),
        ("both directions in one chain", _chains((here, 12, WRITE | NEXT, 1), (here, 64, 0, 0))),
        ("a buffer to read in a receive ring", receive),
    ]
    return _each(bench, packed, attacks)


def _tables(bench: Bench, packed: bool) -> str:
    def table(
        length: int, *entries: Entry, flags: int = INDIRECT, at: int | None = None
    ) -> Callable[[Device], object]:
        def attack(device: Device) -> None:
            space = device.space
            offset = space.take(1024)
            data = b""
            for address, size, bits, following in entries or [(GUEST + 0x1000, 76, 0, 0)]:
                last = (0, bits) if packed else (bits, following)
                data += DESCRIPTOR.pack(address, size, *last)
            space.put(offset, data)
            _offer(device.tx, [(space.guest(offset) if at is None else at, length, flags, 1)])

        return attack

    here = GUEST + 0x1000
    attacks = [
        ("an indirect table of 0 bytes", table(0)),
        ("an indirect table of 8 bytes", table(8)),
        ("an indirect table of 17 bytes", table(17)),
        ("an indirect table of 1 MiB", table(1 << 20)),
        ("an indirect table of 4 GiB", table(0xFFFFFFFF)),
        ("an indirect table outside the memory", table(16, at=_ALL_ONES - 0xFFF)),
        ("an indirect table across the end", table(64, at=GUEST + (1 << 22) - 16)),
        ("a table in a table", table(16, (here, 16, INDIRECT, 0))),
        ("a table that ends early", table(16, (here, 12, NEXT, 7))),
        ("a table with a loop", table(32, (here, 12, NEXT, 1), (here, 12, NEXT, 0))),
        ("a table that points outside", table(16, (_ALL_ONES - 0xFFF, 76, 0, 0))),
        ("INDIRECT and NEXT together", table(16, flags=INDIRECT | NEXT)),
    ]
    return _each(bench, packed, attacks, want=INDIRECT_DESC)


def _receive(bench: Bench, packed: bool) -> str:
    end = GUEST + (1 << 22)
    places = {
        "outside the memory": (_ALL_ONES - 0xFFFF, 1526),
        "between regions": (GUEST - 0x1000, 1526),
        "across the end of the memory": (end - 40, 1526),
        "of 4 GiB": (GUEST + 0x1000, 0xFFFFFFFF),
        "of 0 bytes": (GUEST + 0x1000, 0),
        "of 1 byte": (GUEST + 0x1000, 1),
    }
    for name, (address, length) in places.items():
        wire = Wire(bench.again(), packed=packed, size=_SIZE)
        if count := len(wire.back.rx.outstanding):
            wire.pass_on([frame_of(number) for number in range(count)])
        before = wire.back.space.read(0, 1 << 22)
        with contextlib.suppress(Wrong, DeviceError, OSError):
            _offer(wire.back.rx, [(address, length, WRITE, 0)])
            wire.out.send([frame_of(number) for number in range(4)])
            time.sleep(_MOMENT)
        if length <= 1526 and wire.back.space.read((1 << 22) - 64, 64) != before[-64:]:
            raise Wrong(f"a receive buffer {name} was written in part")
        works(bench, packed, after=f"after a receive buffer {name}")
    return f"served after {len(places)} bad receive buffers"


def _unmapped(bench: Bench) -> str:
    def unmap(device: Device) -> None:
        other = bench.memory()
        device.send([frame_of(number) for number in range(8)])
        region = Region(GUEST + (1 << 32), other.size, other.address, 0, other.fileno())
        device.frontend.set_mem_table([region])
        for _ in range(5):
            device.tx.kick.signal()
            time.sleep(_MOMENT / 5)

    return _each(bench, False, [("a memory table without the rings", unmap)])


def _truncated(bench: Bench) -> str:
    frontend, features, _ = bench.meet()
    fd = os.memfd_create("virtnic check: truncated")
    bench.closes(lambda: os.close(fd))
    size = 1 << 21
    os.ftruncate(fd, size)
    memory = mmap.mmap(fd, size)
    frontend.set_features(features & (VERSION_1 | PROTOCOL_FEATURES))
    user = 0x7F0000000000
    frontend.set_mem_table([Region(GUEST, size, user, 0, fd)])
    kick = bench.event()
    for ring in (0, 1):
        at = user + 0x10000 * ring
        frontend.set_vring_num(ring, _SIZE)
        frontend.set_vring_base(ring, 0)
        frontend.set_vring_addr(ring, at, at + 0x2000, at + 0x1000)
        frontend.set_vring_call(ring, bench.event().fileno())
        frontend.set_vring_kick(ring, kick.fileno() if ring else bench.event().fileno())
    if features & PROTOCOL_FEATURES:
        frontend.set_vring_enable(0)
        frontend.set_vring_enable(1)
    near, far = (DESCRIPTOR.pack(GUEST + at, 76, 0, 0) for at in (0x18000, 0x100000))
    memory[0x10000:0x10020] = near + far
    memory[0x11000:0x11008] = struct.pack("<HHHH", 0, 1, 0, 1)
    kick.signal()
    deadline = time.monotonic() + bench.timeout
    while memory[0x12002] != 1:
        if time.monotonic() > deadline:
            raise Wrong("the frame before was not used")
        time.sleep(0.001)
    os.ftruncate(fd, 0x20000)  # the rings are still there, the second frame is not
    memory[0x11002] = 2
    kick.signal()
    time.sleep(_MOMENT)
    os.ftruncate(fd, 0)
    kick.signal()
    time.sleep(_MOMENT)
    memory.close()
    works(bench, after="after a file that was truncated in use")
    return "served after a file that was truncated in use"


@contextlib.contextmanager
def _raw(bench: Bench) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX) as raw:
        raw.settimeout(0.2)
        raw.connect(os.fspath(bench.path))
        yield raw


def _malformed(bench: Bench) -> str:
    header = struct.Struct("=III")
    pieces = {
        "half a header": header.pack(Request.GET_FEATURES, 1, 0)[:7],
        "half a payload": header.pack(Request.SET_FEATURES, 1, 8) + bytes(3),
        "a size of 4 GiB": header.pack(Request.SET_FEATURES, 1, 0xFFFFFFFF) + bytes(64),
        "a size of 64 KiB": header.pack(Request.SET_MEM_TABLE, 1, 65536) + bytes(65536),
        "a size of 5,000": header.pack(Request.SET_MEM_TABLE, 1, 5000) + bytes(5000),
        "version 0": header.pack(Request.GET_FEATURES, 0, 0),
        "the flag of a reply": header.pack(Request.GET_FEATURES, 5, 0),
        "a table of 2**32 - 1 regions": header.pack(Request.SET_MEM_TABLE, 1, 40)
        + struct.pack("=II", 0xFFFFFFFF, 0)
        + bytes(32),
    }
    for name, data in pieces.items():
        with contextlib.suppress(OSError), _raw(bench.again()) as raw:
            raw.sendall(data)
            time.sleep(_MOMENT)
        works(bench, after=f"after {name}")
    return f"served after {len(pieces)} malformed messages"


def _flood(bench: Bench) -> str:
    count = 0
    message = struct.pack("=III", Request.GET_FEATURES, 1, 0)
    with contextlib.suppress(OSError), _raw(bench.again()) as raw:
        # Nobody reads the replies: it may block, and then close.
        while count < 20_000:
            raw.sendall(message * 100)
            count += 100
    time.sleep(_MOMENT)
    works(bench, after="after a flood of messages")
    return f"served after {count} messages at once whose replies nobody read"


def _connections(bench: Bench) -> str:
    for _ in range(500):
        with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX) as raw:
            raw.settimeout(0.2)
            raw.connect(os.fspath(bench.path))
            raw.sendall(struct.pack("=III", Request.GET_FEATURES, 1, 0))
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    together = min(500, soft // 2)
    with contextlib.ExitStack() as stack:
        for _ in range(together):
            with contextlib.suppress(OSError):
                raw = stack.enter_context(socket.socket(socket.AF_UNIX))
                raw.settimeout(0.05)
                raw.connect(os.fspath(bench.path))
    works(bench, after=f"after {500 + together} connections")
    return f"served after 500 connections in turn and {together} at once"


def _noise(bench: Bench) -> str:
    noise = random.Random(14)  # noqa: S311 - repeatable, not secret
    sent = 0
    null = bench.event
    for _ in range(30):
        frontend = bench.again().connect()
        frontend.timeout = 0.05
        with contextlib.suppress(DeviceError, OSError):
            frontend.get_features()
            frontend.set_owner()
            for _ in range(20):
                # SET_LOG_BASE and the like with random addresses are part of it.
                payload = noise.randbytes(noise.choice((0, 4, 8, 8, 16, 40, 40, 72, 264)))
                fds = [null().fileno() for _ in range(noise.choice((0, 0, 0, 1, 2)))]
                frontend.send(noise.randrange(1, 44), payload, fds, need_reply=bool(sent % 2))
                sent += 1
        works(bench, after=f"after {sent} random messages")
    return f"served after {sent} random messages"


def _addresses(bench: Bench, packed: bool) -> str:
    def at(descriptors: int, used: int, available: int) -> Callable[[Device], object]:
        def attack(device: Device) -> None:
            frontend, base = device.frontend, device.space.memory.address
            frontend.get_vring_base(1)
            frontend.set_vring_num(1, _SIZE)
            frontend.set_vring_addr(1, base + descriptors, base + used, base + available)
            frontend.set_vring_kick(1, device.tx.kick.fileno())
            device.enable(1)
            device.tx.kick.signal()

        return attack

    end = 1 << 22
    attacks = [
        ("descriptors outside the memory", at(1 << 40, 0x2000, 0x1000)),
        ("all areas outside the memory", at(1 << 40, 1 << 40, 1 << 40)),
        ("descriptors across the end", at(end - 32, 0x2000, 0x1000)),
        ("a used ring across the end", at(0, end - 4, 0x1000)),
        ("an available ring across the end", at(0, 0x2000, end - 4)),
        ("areas that are not aligned", at(1, 0x2001, 0x1001)),
    ]
    return _each(bench, packed, attacks, elsewhere=True)


def _while_running(bench: Bench, packed: bool) -> str:
    def size(entries: int) -> Callable[[Device], object]:
        def attack(device: Device) -> None:
            device.send([frame_of(number) for number in range(8)])
            device.frontend.set_vring_num(1, entries)
            device.send([frame_of(number) for number in range(4)])

        return attack

    def base(device: Device) -> None:
        device.send([frame_of(number) for number in range(8)])
        device.frontend.set_vring_base(1, 0xFFFF)
        device.tx.kick.signal()

    attacks: list[tuple[str, Callable[[Device], object]]] = [
        ("32,768 entries in a running ring", size(32768)),
        ("1 entry in a running ring", size(1)),
        ("another base in a running ring", base),
    ]
    for name, attack in attacks:
        device = Device(bench.again(), packed=packed, size=_SIZE)
        with contextlib.suppress(Wrong, DeviceError, OSError):
            attack(device)
            time.sleep(_MOMENT)
        works(bench, packed, after=f"after {name}")
    return f"served after {len(attacks)} changes of a running ring"


_LIVES_ON = "The backend may refuse, close the connection or go on; the next front-end is served."


def _both(
    number: int,
    title: str,
    does: str,
    check: Callable[[Bench, bool], str],
    *,
    back: bool = False,
) -> Iterator[Clause]:
    return both(
        number,
        title,
        "VIRTIO 1.3, 2.7; robustness",
        "VIRTIO 1.3, 2.8; robustness",
        does,
        _LIVES_ON + " Nothing that is not the device's is written.",
        check,
        "return" if back else None,
        prefix="HOST",
        group="hostile",
    )


def _one(number: int, title: str, does: str, check: Callable[[Bench], str]) -> Clause:
    source = "Vhost-user Protocol; robustness"
    return Clause(f"HOST-{number:02}", "hostile", title, source, does, _LIVES_ON, check)


CLAUSES: tuple[Clause, ...] = (
    *_both(
        1, "indices that jump", "Moves the index too far; packed: writes flags at random.", _jumps
    ),
    *_both(2, "chains that loop", "Offers chains with loops and ids out of range.", _loops),
    *_both(3, "addresses outside the memory", "Offers buffers that are not shared.", _outside),
    *_both(4, "buffers across the end", "Offers buffers that end beyond the memory.", _across),
    *_both(5, "lengths that overflow", "Offers lengths of 0, 1 and 4 GiB.", _overflow),
    *_both(
        6, "wrong directions", "Offers buffers to write for sending, and the reverse.", _direction
    ),
    *_both(7, "odd indirect tables", "Offers nested, endless, odd and far tables.", _tables),
    *_both(
        8,
        "bad receive buffers",
        "Offers receive buffers outside and too small.",
        _receive,
        back=True,
    ),
    _one(
        9,
        "memory unmapped in use",
        "Replaces the memory table by one without the rings.",
        _unmapped,
    ),
    _one(10, "a file truncated in use", "Truncates the file of the memory, and kicks.", _truncated),
    _one(11, "malformed messages", "Sends halves, wrong sizes, wrong flags.", _malformed),
    _one(12, "a flood of messages", "Sends 20,000 requests, and reads no reply.", _flood),
    _one(
        13,
        "a thousand connections",
        "Connects 500 times in turn, and 500 times at once.",
        _connections,
    ),
    _one(14, "random messages", "Sends 600 messages of random types, sizes and contents.", _noise),
    *_both(
        15,
        "bad ring addresses",
        "Places rings outside the memory, across its end, unaligned.",
        _addresses,
    ),
    *_both(
        16, "changes of a running ring", "Changes size and base of a running ring.", _while_running
    ),
)
