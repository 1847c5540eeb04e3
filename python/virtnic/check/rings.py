"""Clauses RING-…: split rings, and with a P at the end the same for packed rings."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Literal

from virtnic.check.clause import Clause, Wrong
from virtnic.check.device import (
    HEADER,
    IN_ORDER,
    INDIRECT_DESC,
    Device,
    Wire,
    apart,
    byte_by_byte,
    cut_after,
    frame_of,
    in_pieces,
    whole,
)
from virtnic.check.packed import PackedRing
from virtnic.check.ring import WRITE
from virtnic.check.split import SplitRing
from virtnic.errors import DeviceError, message_of
from virtnic.vhost_user import Refused

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from virtnic.check.clause import Bench
    from virtnic.check.ring import Ring

    Check = Callable[[Bench, bool], str]
    Shape = tuple[str, Callable[[int], Sequence[int]]]

__all__ = ["CLAUSES", "both"]

#: The time for a backend to return too much.
_SETTLE = 0.002
_SPLIT_SIZES = tuple(1 << power for power in range(16))
#: A packed ring may have any size.
_PACKED_SIZES = (1, 2, 3, 5, 8, 17, 100, 256, 1000, 1024, 4096, 32767, 32768)
#: Sizes that a backend must take: what QEMU offers a driver.
_USUAL = (256, 512, 1024)


def _packed_of(ring: Ring) -> None:
    """Raise Wrong if a packed ring has a used descriptor too many."""
    if isinstance(ring, PackedRing) and (wrong := ring.spurious()) is not None:
        raise Wrong(wrong)


def _ids(bench: Bench, packed: bool) -> str:
    device = Device(bench, packed=packed, size=16)
    ring = device.tx
    assert isinstance(ring, SplitRing | PackedRing)
    ring.free.clear()
    ring.free.extend([3, 0, 9, 4, 15, 1])
    device.send([frame_of(number) for number in range(6)])
    device.sent(6, settle=_SETTLE)
    _packed_of(ring)
    device.stop()
    return "6 ids were used once each"


def _lengths(bench: Bench, packed: bool) -> str:
    device = Device(bench, packed=packed, size=16)
    device.send([frame_of(number) for number in range(3)])
    used = device.sent(3)
    device.stop()
    if packed:
        # The length is reserved here (VIRTIO 1.3, 2.8.5); the flag is not.
        if any(entry.flags & WRITE for entry in used):
            raise Wrong("used descriptors of transmitted frames have the flag WRITE")
        return "no used descriptor has the flag WRITE"
    lengths = [entry.length for entry in used]
    if any(lengths):
        raise Wrong(f"the lengths of read-only buffers are {lengths}")
    return "every length is 0"


def _laps(bench: Bench, packed: bool) -> str:
    device = Device(bench, packed=packed, size=16)
    for start in range(0, 80, 5):
        device.send([frame_of(start + number) for number in range(5)])
        used = device.sent(5, settle=_SETTLE if start == 75 else 0)
        if len(used) != 5:
            raise Wrong(f"{len(used)} buffers were used where 5 were available")
    _packed_of(device.tx)
    device.stop()
    return "80 frames were used"


def _apart(bench: Bench, packed: bool) -> str:
    device = Device(bench, packed=packed, size=16)
    device.send([frame_of(number) for number in range(4)], shape=apart)
    device.sent(4, settle=_SETTLE)
    device.stop()
    return "4 chains were used by their ids"


def _outside(bench: Bench, packed: bool) -> str:
    want = INDIRECT_DESC if bench.offers(INDIRECT_DESC) else 0
    device = Device(bench, packed=packed, size=16, want=want)
    shapes: list[tuple[Callable[[int], Sequence[int]], bool]] = [(whole, False), (apart, False)]
    if want:
        shapes += [(whole, True), (apart, True)]
    for shape, indirect in shapes:
        for _ in range(4):
            frames = [frame_of(number) for number in range(8)]
            device.send(frames, shape=shape, indirect=indirect)
            device.tx.wait(8, bench.timeout)  # the frames stay where they are
    device.stop()
    device.untouched()
    return f"{32 * len(shapes)} frames, and nothing around them, were left as they were"


def _resumes(bench: Bench, packed: bool) -> str:
    device = Device(bench, packed=packed, size=16)
    device.send([frame_of(number) for number in range(5)])
    device.sent(5)
    base = device.stop()[1] & 0xFFFF
    right = device.tx.position & 0xFFFF
    if base != right:
        raise Wrong(f"5 frames were used: the base is {right:#x}, the reply says {base:#x}")
    return f"the reply was {base:#x}"


def _used_base(bench: Bench) -> str:
    device = Device(bench, packed=True, size=16)
    device.send([frame_of(number) for number in range(5)])
    device.sent(5)
    used = device.stop()[1] >> 16
    right = device.tx.position >> 16
    if used != right:
        raise Wrong(f"bits 16 to 31 are {right:#x} after 5 frames, the reply says {used:#x}")
    return f"bits 16 to 31 were {used:#x}"


def _some_size(bench: Bench, packed: bool, size: int) -> bool:
    """Pass three laps and a bit through a ring; return whether the size was accepted."""
    memory = "4M" if size <= 4096 else "16M"
    device = Device(bench, packed=packed, size=size, memory=memory, start=False)
    try:
        device.frontend.set_vring_num(1, size)
    except (Refused, ConnectionError):
        if size in _USUAL:
            raise Wrong("it was refused") from None
        return False
    device.start(0)
    device.start(1)
    device.enable(0)
    device.enable(1)
    piece = device.shared(frame_of(size))
    # Three laps and more; above 1,024 entries, which take long, one and more.
    left = 3 * size + 2 if size <= 1024 else size + 2
    while left:
        count = min(size, left)
        for _ in range(count):
            device.tx.add([piece])
        device.tx.publish()
        device.tx.kick.signal()
        used = device.tx.wait(count, bench.timeout)
        if len(used) != count:
            raise Wrong(f"{len(used)} buffers were used where {count} were available")
        left -= count
    _packed_of(device.tx)
    device.stop()
    return True


def _sizes(bench: Bench, packed: bool) -> str:
    refused, wrong = [], []
    sizes = _PACKED_SIZES if packed else _SPLIT_SIZES
    for size in sizes:
        try:
            if not _some_size(bench, packed, size):
                refused.append(size)
        except (Wrong, DeviceError, OSError) as error:
            wrong.append(f"{size}: {message_of(error)}")
            if not bench.answers():
                break
        bench.again()
    if wrong:
        raise Wrong("; ".join(wrong))
    taken = [size for size in sizes if size not in refused]
    text = f"sizes {taken[0]} to {taken[-1]} worked"
    return text + (f"; refused were {', '.join(map(str, refused))}" if refused else "")


def _shapes(bench: Bench, packed: bool) -> str:
    device = Device(bench, packed=packed, size=128)
    shapes: list[Shape] = [
        *((f"{count} descriptors", in_pieces(count)) for count in (2, 3, 4, 7, 16, 32, 64)),
        *((f"cut after byte {at}", cut_after(at)) for at in (1, 11, 13, 26, 75)),
        ("byte by byte", byte_by_byte),
    ]
    for name, shape in shapes:
        try:
            for _ in range(3):
                device.send([frame_of(7, 64)], shape=shape)
                device.sent(1)
        except Wrong as wrong:
            raise Wrong(f"{name}: {wrong}") from None
    _packed_of(device.tx)
    device.stop()
    return f"{len(shapes)} shapes were used"


def _indirect(bench: Bench, packed: bool) -> str:
    device = Device(bench, packed=packed, size=64, want=INDIRECT_DESC)
    shapes: list[Callable[[int], Sequence[int]]] = [
        whole,
        apart,
        *(in_pieces(count) for count in (3, 8, 16, 64)),
    ]
    for lap in range(20):
        shape = shapes[lap % len(shapes)]
        frames = [frame_of(number) for number in range(8)]
        chains = device.send(frames[:4], shape=shape, indirect=True)
        chains += device.send(frames[4:], shape=whole)
        device.sent(len(chains))
    _packed_of(device.tx)
    device.stop()
    return "tables of 1 to 64 descriptors were used, among ordinary buffers"


def _in_order(bench: Bench, packed: bool) -> str:
    device = Device(bench, packed=packed, size=32, want=IN_ORDER)
    expected: list[int] = []
    used: list[int] = []
    for lap in range(20):
        frames = [frame_of(number) for number in range(1 + lap)]
        expected += [chain.ident for chain in device.send(frames)]
        used += [entry.chain.ident for entry in device.sent(len(frames))]
    _packed_of(device.tx)
    device.stop()
    if used != expected:
        raise Wrong("buffers were not used in the order in which they were made available")
    return f"{len(used)} buffers were used in order"


def _any_start(bench: Bench, packed: bool) -> str:
    size = 16
    wrap = 1 << 15
    if packed:
        places = [at | lap for at in (0, 5, 15) for lap in (wrap, 0)]
        bases = [place << 16 | place for place in places]
    else:
        bases = [1, size - 1, size, 0x7FFF, 0x8000, 0xFFF0, 0xFFFF]
    for base in bases:
        device = Device(bench.again(), packed=packed, size=size, bases=[base, base])
        for number in range(12):
            device.send([frame_of(number + each) for each in range(3)])
            device.sent(3)
        found, right = device.stop()[1] & 0xFFFF, device.tx.position & 0xFFFF
        if found != right:
            raise Wrong(
                f"from base {base:#x}, 36 frames on, the base is {right:#x}, the reply says "
                f"{found:#x}"
            )
    return f"started at {', '.join(f'{base:#x}' for base in bases)}"


def _full(bench: Bench, packed: bool) -> str:
    device = Device(bench, packed=packed, size=64)
    for lap in range(6):
        shape, count = (whole, 64) if lap % 2 else (apart, 32)
        device.send([frame_of(number) for number in range(count)], shape=shape)
        device.sent(count, settle=_SETTLE)
    _packed_of(device.tx)
    device.stop()
    return "six full rings were used"


# The receive ring.


def _received(bench: Bench, packed: bool) -> str:
    wire = Wire(bench, packed=packed, size=16)
    for start in range(0, 80, 5):
        wire.posted(5 + start % 8)
        frames = [frame_of(start + number, 60 + 3 * number) for number in range(5)]
        for sent, found in zip(frames, wire.pass_on(frames), strict=True):
            if found.lengths != [len(HEADER) + len(sent)]:
                raise Wrong(
                    f"a frame of {len(sent)} bytes was used with length {sum(found.lengths)}"
                )
    _packed_of(wire.back.rx)
    wire.stop()
    return "80 frames came, each with the length of its header and its bytes"


def _kept(bench: Bench, packed: bool) -> str:
    wire = Wire(bench, packed=packed, size=32)
    for start in range(0, 64, 8):
        wire.posted(16, length=12 + 64)  # no byte more than the frame needs
        wire.pass_on([frame_of(start + number) for number in range(8)])
    wire.stop()
    wire.untouched()
    return "64 frames were written into buffers that just hold them, and nothing around them"


def _shapes_in(bench: Bench, packed: bool) -> str:
    shapes: list[Shape] = [
        ("header apart", apart),
        *((f"{count} descriptors", in_pieces(count)) for count in (2, 3, 7, 32)),
        *((f"cut after byte {at}", cut_after(at)) for at in (1, 11, 13, 26)),
        ("byte by byte", byte_by_byte),
    ]
    return _filled(bench, packed, 0, shapes, indirect=False)


def _filled(
    bench: Bench, packed: bool, want: int, shapes: Sequence[Shape], *, indirect: bool
) -> str:
    """Receive into buffers of each shape; name all that do not work."""
    wire: Wire | None = None
    wrong = []
    for name, shape in shapes:
        if wire is None:
            wire = Wire(bench.again(), packed=packed, size=1024, want=want)
        _drain(wire)
        fault = ""
        try:
            wire.posted(8, length=12 + 64, shape=shape, indirect=indirect)
            wire.pass_on([frame_of(number) for number in range(8)])
        except Wrong as error:
            fault = str(error)
        if (outside := wire.back.space.intruded()) is not None:
            fault = f"{fault}; {outside}" if fault else outside
        if fault:
            wrong.append(f"{name}: {fault}")
            wire = None
    if wrong:
        raise Wrong("; ".join(wrong))
    assert wire is not None
    wire.stop()
    return f"{len(shapes)} shapes were filled"


def _drain(wire: Wire) -> None:
    """Fill what is posted with frames."""
    if count := len(wire.back.rx.outstanding):
        wire.pass_on([frame_of(number) for number in range(count)])


def _indirect_in(bench: Bench, packed: bool) -> str:
    shapes: list[Shape] = [
        ("1 descriptor", whole),
        *((f"{count} descriptors", in_pieces(count)) for count in (2, 3, 6)),
    ]
    return _filled(bench, packed, INDIRECT_DESC, shapes, indirect=True)


def _sizes_in(bench: Bench, packed: bool) -> str:
    worked = []
    for size in (4, 16, 256, 1024, 4096):
        memory = "2M" if size <= 1024 else "4M"
        try:
            wire = Wire(bench.again(), packed=packed, size=size, memory=memory)
        except (Refused, ConnectionError):
            if size in _USUAL:
                raise
            continue
        # Three laps and more; of 4,096 entries, which take long, one and more.
        number, total = 0, 3 * size + 2 if size <= 1024 else size + 2
        chunk = min(size, 256)
        while number < total:
            wire.posted(min(size, 512), length=76)
            count = min(chunk, total - number, len(wire.back.rx.outstanding))
            wire.pass_on([frame_of(each) for each in range(number, number + count)])
            number += count
        _packed_of(wire.back.rx)
        wire.stop()
        worked.append(size)
    return f"{', '.join(map(str, worked))} entries worked"


def _in_order_in(bench: Bench, packed: bool) -> str:
    wire = Wire(bench, packed=packed, size=32, want=IN_ORDER)
    for lap in range(20):
        wire.posted(24)
        ring = wire.back.rx
        before = list(ring.outstanding)
        frames = [frame_of(number) for number in range(1 + lap)]
        wire.pass_on(frames)
        if list(ring.outstanding) != before[len(frames) :]:
            raise Wrong("buffers were not used in the order in which they were made available")
    wire.stop()
    return "210 buffers were used in order"


def both(
    number: int,
    title: str,
    split: str,
    packed: str,
    does: str,
    right: str,
    check: Check,
    needs: Literal["return", "pair"] | None = None,
    *,
    prefix: str = "RING",
    group: Literal["rings", "net", "notify", "life", "hostile", "messages"] = "rings",
) -> Iterator[Clause]:
    """Yield a clause for split rings and the same for packed ones, each with its source."""
    for is_packed, source in ((False, split), (True, packed)):
        yield Clause(
            f"{prefix}-{number:02}" + ("P" if is_packed else ""),
            group,
            title,
            source,
            does,
            right,
            partial(_on, check, is_packed),
            "packed" if is_packed else "split",
            needs,
        )


def _on(check: Check, packed: bool, bench: Bench) -> str:
    return check(bench, packed)


_SPLIT = (
    *both(
        1,
        "each buffer is used once, under its id",
        "VIRTIO 1.3, 2.7.8",
        "VIRTIO 1.3, 2.8.5",
        "Makes six frames available; the ids are not in order.",
        "The used entries name each id once and no other.",
        _ids,
    ),
    *both(
        2,
        "a transmitted frame is used as not written",
        "VIRTIO 1.3, 2.7.8",
        "VIRTIO 1.3, 2.8.5",
        "Sends three frames.",
        "The used length, which counts bytes that the device wrote, is 0; in a packed ring, where "
        "the length is reserved, the flag WRITE is not set.",
        _lengths,
    ),
    *both(
        3,
        "the ring wraps around",
        "VIRTIO 1.3, 2.7.6 and 2.7.8",
        "VIRTIO 1.3, 2.8.1 and 2.8.2",
        "Sends 80 frames through a ring of 16 entries, five at a time.",
        "The used entries count all of them, and each group of five is used completely.",
        _laps,
    ),
    *both(
        4,
        "the header may have a descriptor of its own",
        "VIRTIO 1.3, 2.7.4.1 and 5.1.6.2",
        "VIRTIO 1.3, 2.8.6 and 5.1.6.2",
        "Sends four frames of two descriptors each.",
        "The used entries name the id of each chain once.",
        _apart,
    ),
    *both(
        5,
        "only the used rings are written",
        "VIRTIO 1.3, 2.7.5.1 and 2.7.6.1",
        "VIRTIO 1.3, 2.8.5.1",
        "Fills the memory around rings and frames with a pattern, and sends frames of one and "
        "two descriptors, in indirect tables too if they are offered.",
        "Nothing that is not the device's has changed.",
        _outside,
    ),
    *both(
        6,
        "GET_VRING_BASE counts the frames that were used",
        "Vhost-user Protocol, VHOST_USER_GET_VRING_BASE",
        "Vhost-user Protocol, VHOST_USER_GET_VRING_BASE; VIRTIO 1.3, 2.8.1",
        "Sends five frames, and stops the ring.",
        "The lower 16 bits are the base of the sixth; for a packed ring with the wrap counter in "
        "bit 15.",
        _resumes,
    ),
    *both(
        7,
        "a ring of any size works",
        "VIRTIO 1.3, 2.7; VHOST_USER_SET_VRING_NUM",
        "VIRTIO 1.3, 2.8.10.1; VHOST_USER_SET_VRING_NUM",
        "Passes full laps through rings of 1 to 32,768 entries (split: powers of two).",
        "Every size works or is refused; 256, 512 and 1,024 work.",
        _sizes,
    ),
    *both(
        8,
        "a frame may have any number of descriptors",
        "VIRTIO 1.3, 2.7.4.1 and 2.7.4.2",
        "VIRTIO 1.3, 2.8.6 and 2.8.4",
        "Sends frames of 2 to 64 descriptors, cut inside the header and the frame, and byte by "
        "byte.",
        "Each chain is used once.",
        _shapes,
    ),
    *both(
        9,
        "indirect descriptors are followed",
        "VIRTIO 1.3, 2.7.5.3.2",
        "VIRTIO 1.3, 2.8.7",
        "Sends frames in indirect tables of 1 to 64 descriptors, among others without.",
        "Each buffer is used once.",
        _indirect,
    ),
    *both(
        10,
        "IN_ORDER: buffers are used in order",
        "VIRTIO 1.3, 2.7.9",
        "VIRTIO 1.3, 2.8.9",
        "Sends 210 frames in groups of 1 to 20; one used entry may stand for several.",
        "The ids come back in the order in which they were made available.",
        _in_order,
    ),
    *both(
        11,
        "a ring starts where SET_VRING_BASE says",
        "Vhost-user Protocol, VHOST_USER_SET_VRING_BASE; VIRTIO 1.3, 2.7.6",
        "Vhost-user Protocol, VHOST_USER_SET_VRING_BASE; VIRTIO 1.3, 2.8.1",
        "Starts a ring at several places, before and after its end and that of the index, and "
        "sends 36 frames.",
        "All frames are used, and GET_VRING_BASE names the right place.",
        _any_start,
    ),
    *both(
        12,
        "a full ring is used completely",
        "VIRTIO 1.3, 2.7.8",
        "VIRTIO 1.3, 2.8.5",
        "Makes all descriptors of a ring available at once, six times.",
        "All buffers are used.",
        _full,
    ),
    *both(
        13,
        "a received frame's used length is right",
        "VIRTIO 1.3, 2.7.8.2 and 5.1.6.4",
        "VIRTIO 1.3, 2.8.5 and 5.1.6.4",
        "Receives 80 frames through a ring of 16 entries.",
        "Each frame comes once, in order, unchanged; the length is that of header and frame.",
        _received,
        "return",
    ),
    *both(
        14,
        "nothing outside receive buffers is written",
        "VIRTIO 1.3, 2.7.5.1",
        "VIRTIO 1.3, 2.8.5.1",
        "Receives frames into buffers that just hold them, with a pattern around.",
        "Nothing that is not the device's has changed.",
        _kept,
        "return",
    ),
    *both(
        15,
        "a receive buffer may have any number of descriptors",
        "VIRTIO 1.3, 2.7.4.1",
        "VIRTIO 1.3, 2.8.6",
        "Receives into buffers of 2 to 76 descriptors, cut inside the header and the frame.",
        "Each frame is complete, and nothing around the pieces has changed.",
        _shapes_in,
        "return",
    ),
    *both(
        16,
        "indirect receive buffers are filled",
        "VIRTIO 1.3, 2.7.5.3.2",
        "VIRTIO 1.3, 2.8.7",
        "Receives into buffers of indirect tables of 1 to 16 descriptors.",
        "Each frame is complete, and nothing around the pieces has changed.",
        _indirect_in,
        "return",
    ),
    *both(
        17,
        "a receive ring of any size works",
        "VIRTIO 1.3, 2.7; VHOST_USER_SET_VRING_NUM",
        "VIRTIO 1.3, 2.8.10.1; VHOST_USER_SET_VRING_NUM",
        "Receives full laps of frames through rings of 4 to 4,096 entries.",
        "Each frame comes once, in order, unchanged.",
        _sizes_in,
        "return",
    ),
    *both(
        18,
        "IN_ORDER: receive buffers are used in order",
        "VIRTIO 1.3, 2.7.9",
        "VIRTIO 1.3, 2.8.9",
        "Receives 210 frames in groups of 1 to 20.",
        "The ids come back in the order in which they were made available.",
        _in_order_in,
        "return",
    ),
    Clause(
        "RING-19P",
        "rings",
        "GET_VRING_BASE has the used position too",
        "Vhost-user Protocol (since QEMU 8.2), vring descriptor indices for packed virtqueues",
        "Sends five frames through a packed ring, and stops it.",
        "Bits 16 to 31 are the position of the next used descriptor and its wrap counter.",
        _used_base,
        "packed",
    ),
)
#: Split rings first: the order of the ids.
CLAUSES = tuple(sorted(_SPLIT, key=lambda clause: clause.ring == "packed"))
