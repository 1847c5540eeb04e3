"""Clauses NET-…: frames and their headers, long and short, with offloads, on rings that are off."""

from __future__ import annotations

import struct
import time
from typing import TYPE_CHECKING

from virtnic.check.clause import Clause, NotOffered, Wrong
from virtnic.check.device import MRG_RXBUF, Device, Wire, frame_of, same
from virtnic.vhost_user import ProtocolFeature

if TYPE_CHECKING:
    from virtnic.check.clause import Bench
    from virtnic.check.device import Received

__all__ = ["CLAUSES"]

_CSUM, _GUEST_CSUM, _GUEST_TSO4, _HOST_TSO4, _MQ = 1 << 0, 1 << 1, 1 << 7, 1 << 11, 1 << 22
_NEEDS_CSUM, _GSO_TCPV4 = 1, 1
_HEADER = struct.Struct("<BBHHHHH")
#: The time in which a frame would come that must not.
_QUIET = 0.02


def _drained(wire: Wire) -> Wire:
    """Fill what is posted with frames, so that the next buffers are those of the check."""
    if count := len(wire.back.rx.outstanding):
        wire.pass_on([frame_of(number) for number in range(count)])
    return wire


def _header(bench: Bench) -> str:
    wire = Wire(bench, size=64)
    wire.posted(32)
    for found in wire.pass_on([frame_of(number, 60 + number) for number in range(20)]):
        flags, gso = found.header[:2]
        if flags or gso:
            raise Wrong(f"without offloads the flags are {flags:#x}, the GSO type {gso:#x}")
    wire.stop()
    return "20 headers without flags and GSO type"


def _one_buffer(bench: Bench) -> str:
    wire = Wire(bench, size=64)
    wire.posted(32)
    for found in wire.pass_on([frame_of(number) for number in range(20)]):
        buffers = int.from_bytes(found.header[10:12], "little")
        if buffers != 1:
            before = " (as the driver left it)" if buffers == 0xA5A5 else ""
            raise Wrong(f"num_buffers is {buffers:#x}{before}")
    wire.stop()
    return "num_buffers is 1 in 20 headers"


def _lengths(bench: Bench) -> str:
    wire = Wire(bench, size=64)
    lengths = [*range(60, 300), *range(300, 1514, 37), 1512, 1513, 1514]
    for at in range(0, len(lengths), 16):
        wire.posted(32)
        wire.pass_on([frame_of(each, each) for each in lengths[at : at + 16]])
    wire.stop()
    return f"{len(lengths)} lengths from 60 to 1,514 came unchanged"


def _came(wire: Wire, frame: bytes) -> Received | None:
    """Send a frame and then a usual one; return the first if it came before the second."""
    marker = frame_of(0xABCDEF, 77)
    wire.posted(4)
    wire.out.send([frame])
    wire.out.sent(1)
    wire.out.send([marker])
    wire.out.sent(1)
    (first,) = wire.receive(1)
    if same(marker, first.frame):
        return None
    (second,) = wire.receive(1)
    if not same(marker, second.frame):
        raise Wrong(f"a frame of {len(frame)} bytes came twice, or another came with it")
    return first


def _runts(bench: Bench) -> str:
    wire = _drained(Wire(bench, size=64))
    came = []
    for length in (14, 18, 20, 30, 42, 46, 59):
        frame = frame_of(length, length)
        found = _came(wire, frame)
        if found is None:
            continue
        padded = found.frame[len(frame) :]
        if not same(frame, found.frame[: len(frame)]) or any(padded) or len(padded) > 46:
            raise Wrong(f"a frame of {length} bytes came changed, with {len(found.frame)} bytes")
        came.append(length)
    wire.stop()
    what = f"frames of {', '.join(map(str, came))} bytes came" if came else "none came"
    return f"{what}, and usual frames after each"


def _long(bench: Bench) -> str:
    wire = _drained(Wire(bench, size=64, memory="8M"))
    longest, dropped = 0, []
    for length in (1515, 1518, 2048, 4000, 9018, 16000, 32000, 65535, 65550):
        wire.posted(8, length=12 + 65550)
        found = _came(wire, frame := frame_of(length, length))
        if found is None:
            dropped.append(length)
        elif not same(frame, found.frame):
            raise Wrong(f"a frame of {length} bytes came changed, with {len(found.frame)} bytes")
        else:
            longest = length
    wire.stop()
    text = f"frames of up to {longest:,} bytes came" if longest else "none came"
    return text + (f"; dropped were {', '.join(map(str, dropped))}" if dropped else "")


def _empty(bench: Bench) -> str:
    wire = _drained(Wire(bench, size=64))
    for length in (0, 1, 5, 13):
        wire.posted(4)
        wire.out.send([frame_of(0, length)])
        wire.out.sent(1)
    wire.posted(8)
    for _ in range(8):  # whatever came of them: usual frames come again
        wire.out.send([frame_of(9)])
        wire.out.sent(1)
        if any(same(frame_of(9), each.frame) for each in wire.receive(1)):
            break
    else:
        raise Wrong("no usual frame came after frames of 0 to 13 bytes")
    wire.stop()
    wire.untouched()
    return "frames of 0, 1, 5 and 13 bytes did no harm"


def _merged(bench: Bench) -> str:
    for room in (128, 64, 257):
        wire = _drained(Wire(bench.again(), size=256, want=MRG_RXBUF))
        for length in (60, 500, 1514):
            wire.posted(100, length=room)
            for found in wire.pass_on([frame_of(number, length) for number in range(3)]):
                total = 12 + length
                if any(each != room for each in found.lengths[:-1]):
                    raise Wrong(f"a buffer of {room} bytes is not full: {found.lengths}")
                if sum(found.lengths) != total:
                    raise Wrong(f"the lengths are {found.lengths}, together not {total}")
        wire.stop()
        wire.untouched()
    return "frames of up to 1,514 bytes came in buffers of 64, 128 and 257"


def _too_few(bench: Bench) -> str:
    wire = _drained(Wire(bench, size=64, want=MRG_RXBUF))
    wire.posted(4, length=128)
    wire.out.send([frame_of(1, 1514)])
    wire.out.sent(1)
    time.sleep(_QUIET)
    if (used := wire.back.rx.pop()) != []:
        raise Wrong(f"{len(used)} of 4 buffers were used, which do not hold the frame")
    wire.posted(40, length=128)
    wire.out.send([frame_of(2, 60)])
    wire.out.sent(1)
    (found,) = wire.receive(1)
    waited = same(frame_of(1, 1514), found.frame)
    if waited:
        (found,) = wire.receive(1)
    if not same(frame_of(2, 60), found.frame):
        raise Wrong(f"the next frame, of 60 bytes, came with {len(found.frame)}")
    wire.stop()
    wire.untouched()
    return f"a frame that did not fit {'waited' if waited else 'was dropped'}; the next one came"


def _too_small(bench: Bench) -> str:
    wire = _drained(Wire(bench, size=64))
    wire.posted(8, length=12 + 60)
    wire.out.send([frame_of(number, 1514) for number in range(4)])
    wire.out.sent(4)
    time.sleep(_QUIET)
    for entry in wire.back.rx.pop():
        wire.back.content(entry)  # no more than there is room
        wire.back.rx.give(entry.chain)
    wire.posted(8, length=12 + 60)
    wire.pass_on([frame_of(number, 60) for number in range(8)])
    wire.stop()
    wire.untouched()
    return "frames that did not fit did no harm, and those that fit came"


def _vlan(bench: Bench) -> str:
    wire = Wire(bench, size=64)
    wire.posted(32)
    # Not VLAN 0: a switch may take that tag off.
    frames = []
    for number, tag in enumerate((b"\x00\x01", b"\x0f\xfe", b"\x60\x64")):
        inner = frame_of(number, 60 + 400 * number)
        frames.append(inner[:12] + b"\x81\x00" + tag + inner[12:])
    wire.pass_on(frames)
    wire.stop()
    return "802.1Q frames of 64 to 864 bytes came with their tags"


# Offloads.


def _sum(data: bytes) -> int:
    """Return the Internet checksum, not inverted (RFC 1071)."""
    data += b"\0" * (len(data) % 2)
    total: int = sum(struct.unpack(f">{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return total


def _ip(protocol: int, body: bytes) -> tuple[bytes, int]:
    """Return the Ethernet and IPv4 header for a body, and the sum of its pseudo-header."""
    ends = b"\x0a\x00\x00\x01\x0a\x00\x00\x02"
    head = struct.pack(">BBHHHBBH", 0x45, 0, 20 + len(body), 1, 0, 64, protocol, 0) + ends
    head = head[:10] + struct.pack(">H", 0xFFFF - _sum(head)) + head[12:]
    pseudo = _sum(ends + struct.pack(">HH", protocol, len(body)))
    return frame_of(0)[:12] + b"\x08\x00" + head, pseudo


def _udp(length: int) -> tuple[bytes, bytes]:
    """Return a UDP frame with an unfinished checksum, and its header."""
    data = frame_of(3, length)
    body = struct.pack(">HHHH", 1000, 2000, 8 + length, 0) + data
    ethernet, pseudo = _ip(17, body)
    body = body[:6] + struct.pack(">H", pseudo) + body[8:]
    return ethernet + body, _HEADER.pack(_NEEDS_CSUM, 0, 0, 0, 34, 6, 0)


def _valid(frame: bytes) -> bool:
    """Return whether the checksum of the TCP or UDP frame is right."""
    length = struct.unpack_from(">H", frame, 16)[0] - 20
    body = frame[34 : 34 + length]
    pseudo = frame[26:34] + struct.pack(">HH", frame[23], length)
    return _sum(pseudo + body) == 0xFFFF


def _checksums(bench: Bench, want: int) -> list[str]:
    """Send frames with unfinished checksums; return how each came. Raises Wrong."""
    wire = _drained(Wire(bench, size=64, want=want))
    wire.posted(16)
    seen = []
    for length in (26, 100, 101, 1400):
        frame, header = _udp(length)
        wire.out.send([frame], header=header)
        wire.out.sent(1)
        (found,) = wire.receive(1)
        flags, _, _, _, start, offset, _ = _HEADER.unpack(found.header)
        without = found.frame[12:40] + found.frame[42:]
        if without != frame[12:40] + frame[42:]:
            raise Wrong(f"a UDP frame of {len(frame)} bytes came changed, beyond its checksum")
        if flags & _NEEDS_CSUM:
            if not want & _GUEST_CSUM:
                raise Wrong("NEEDS_CSUM is set without GUEST_CSUM")
            if (start, offset) != (34, 6) or found.frame[40:42] != frame[40:42]:
                raise Wrong(f"NEEDS_CSUM, with csum_start {start} and csum_offset {offset}")
            seen.append("kept unfinished")
        elif _valid(found.frame):
            seen.append("finished")
        else:
            raise Wrong(f"the checksum is wrong, and the flags are {flags:#x}")
    wire.stop()
    return seen


def _both_sums(bench: Bench) -> str:
    return f"the checksums were {_checksums(bench, _CSUM | _GUEST_CSUM)[0]}"


def _one_sum(bench: Bench) -> str:
    return f"the checksums were {_checksums(bench, _CSUM)[0]}"


def _segments(bench: Bench, want: int) -> str:
    """Send 5,000 bytes of TCP in one frame; all must come, in one frame or segments."""
    wire = _drained(Wire(bench, size=256, want=want | MRG_RXBUF))
    wire.posted(200)
    data = bytes(at * 31 & 0xFF for at in range(5000))
    size = 1400
    tcp = struct.pack(">HHIIBBHHH", 1000, 2000, 7000, 1, 0x50, 0x10, 1000, 0, 0)
    ethernet, pseudo = _ip(6, tcp + data)
    tcp = tcp[:16] + struct.pack(">H", pseudo) + tcp[18:]
    header = _HEADER.pack(_NEEDS_CSUM, _GSO_TCPV4, 54, size, 34, 16, 0)
    wire.out.send([ethernet + tcp + data], header=header)
    wire.out.sent(1)
    got: dict[int, bytes] = {}
    frames = 0
    while sum(map(len, got.values())) < len(data):
        (found,) = wire.receive(1)
        frames += 1
        flags, gso, _, _, _, _, _ = _HEADER.unpack(found.header)
        length = struct.unpack_from(">H", found.frame, 16)[0]
        payload = found.frame[54 : 14 + length]
        if gso and not want & _GUEST_TSO4:
            raise Wrong(f"GSO type {gso} without GUEST_TSO4")
        if not gso and len(payload) > size:
            raise Wrong(f"a segment of {len(payload)} bytes, where {size} are allowed")
        if not flags & _NEEDS_CSUM and not _valid(found.frame):
            raise Wrong(f"segment {frames} has a wrong checksum, and the flags are {flags:#x}")
        got[struct.unpack_from(">I", found.frame, 38)[0] - 7000] = payload
    if b"".join(got[at] for at in sorted(got)) != data:
        raise Wrong("the segments together are not what was sent")
    wire.stop()
    return f"5,000 bytes came in {frames} frame{'s' if frames > 1 else ''}"


def _tso_kept(bench: Bench) -> str:
    return _segments(bench, _CSUM | _GUEST_CSUM | _HOST_TSO4 | _GUEST_TSO4)


def _tso_done(bench: Bench) -> str:
    return _segments(bench, _CSUM | _HOST_TSO4)


# Rings that are off.


def _off(bench: Bench) -> str:
    wire = _drained(Wire(bench, size=64))
    out = wire.out
    if not out.features & 1 << 30:
        raise NotOffered("without protocol features rings cannot be disabled")
    out.enable(1, False)
    wire.posted(16)
    out.send([frame_of(number) for number in range(4)])
    time.sleep(_QUIET)
    for entry in wire.back.rx.pop():
        raise Wrong(f"a frame of {entry.length - 12} bytes came, sent on a ring that is disabled")
    out.enable(1)
    out.tx.kick.signal()
    out.sent(4)
    out.send([frame_of(7)])
    out.sent(1)
    for _ in range(5):  # some send what waited meanwhile
        if same(frame_of(7), wire.receive(1)[0].frame):
            break
    else:
        raise Wrong("frames that came after the ring was enabled are not those that were sent")
    wire.stop()
    return "no frame came from a disabled ring; they came once it was enabled"


def _discards(bench: Bench) -> str:
    device = Device(bench, size=64)
    if not device.features & 1 << 30:
        raise NotOffered("without protocol features rings cannot be disabled")
    device.send([frame_of(0)])
    device.sent(1)
    device.enable(1, False)
    device.send([frame_of(number) for number in range(4)])
    try:
        device.tx.wait(4, min(bench.timeout, 0.5))
    except Wrong as wrong:
        raise Wrong(f"{wrong}: they stay in a ring that is started and disabled") from None
    device.stop()
    return "frames in a disabled ring were used"


def _rx_off(bench: Bench) -> str:
    wire = Wire(bench, size=64, pairs=2, want=_MQ, warm=False)
    if not wire.back.features & 1 << 30:
        raise NotOffered("without protocol features rings cannot be disabled")
    # Which of two enabled rings a frame comes to is the device's choice.
    wire.back.enable(2, False)
    wire.warm()
    _drained(wire)
    other = wire.back.rings[2]
    wire.back.post(other, 32)
    for _ in range(8):
        wire.posted(16)
        wire.pass_on([frame_of(number) for number in range(8)])
    if used := other.pop():
        raise Wrong(f"{len(used)} buffers of a disabled receive ring were used")
    wire.stop()
    return "64 frames came to the enabled ring, none to the disabled one"


def _second(bench: Bench) -> str:
    frontend, _, protocol = bench.meet()
    if ProtocolFeature.MQ not in protocol or frontend.get_queue_num() < 2:
        raise NotOffered("there is one queue pair only")
    pairs = frontend.get_queue_num()
    device = Device(bench.again(), size=64, pairs=2, want=_MQ)
    device.send([frame_of(number) for number in range(4)])
    device.sent(4)
    device.send([frame_of(number) for number in range(4)], ring=device.rings[3])
    try:
        device.sent(4, ring=device.rings[3])
    except Wrong as wrong:
        raise Wrong(f"{pairs} pairs are offered, and of the second {wrong}") from None
    device.stop()
    return f"the second of {pairs} queue pairs works"


def _clause(
    number: int,
    title: str,
    source: str,
    does: str,
    right: str,
    check: object,
    *,
    alone: bool = False,
) -> Clause:
    return Clause(
        f"NET-{number:02}",
        "net",
        title,
        source,
        does,
        right,
        check,  # type: ignore[arg-type]
        needs=None if alone else "return",
    )


CLAUSES = (
    _clause(
        1,
        "a received header is right without offloads",
        "VIRTIO 1.3, 5.1.6.4.1",
        "Receives 20 frames without any offload.",
        "The flags are 0, the GSO type is NONE.",
        _header,
    ),
    _clause(
        2,
        "frames of every length come unchanged",
        "VIRTIO 1.3, 5.1.6",
        "Passes frames of 60 to 1,514 bytes.",
        "Each comes once, in order, unchanged.",
        _lengths,
    ),
    _clause(
        3,
        "short frames do no harm",
        "VIRTIO 1.3, 5.1.6.2",
        "Sends frames of 14 to 59 bytes, and a usual one after each.",
        "Each comes unchanged or padded with zeros, or does not come; the usual ones come.",
        _runts,
    ),
    _clause(
        4,
        "long frames do no harm",
        "VIRTIO 1.3, 5.1.6.2 and 5.1.6.3.1",
        "Sends frames of 1,515 to 65,550 bytes, and a usual one after each.",
        "Each comes unchanged or does not come; the usual ones come.",
        _long,
    ),
    _clause(
        5,
        "frames without an Ethernet header do no harm",
        "VIRTIO 1.3, 5.1.6.2",
        "Sends frames of 0 to 13 bytes after the header.",
        "They are used, and usual frames come afterwards.",
        _empty,
    ),
    _clause(
        6,
        "MRG_RXBUF: a frame is spread over buffers",
        "VIRTIO 1.3, 5.1.6.4 and 5.1.6.4.1",
        "Receives frames of 60 to 1,514 bytes into buffers of 64, 128 and 257.",
        "num_buffers counts the buffers, all but the last are full, the frame is unchanged.",
        _merged,
    ),
    _clause(
        7,
        "MRG_RXBUF: a frame for which there are too few buffers",
        "VIRTIO 1.3, 5.1.6.4.1",
        "Offers 512 bytes for a frame of 1,514, and more afterwards.",
        "No buffer is used for a part of it; the next frame comes.",
        _too_few,
    ),
    _clause(
        8,
        "a frame that does not fit its buffer",
        "VIRTIO 1.3, 5.1.6.4.1 and 2.7.5.1",
        "Without MRG_RXBUF, offers buffers for 60 bytes to frames of 1,514, then to such of 60.",
        "Nothing is written outside the buffers; the frames that fit come.",
        _too_small,
    ),
    _clause(
        9,
        "VLAN tags come unchanged",
        "VIRTIO 1.3, 5.1.6",
        "Passes frames with 802.1Q tags, priorities among them.",
        "Each comes unchanged.",
        _vlan,
    ),
    _clause(
        10,
        "an unfinished checksum is kept or finished",
        "VIRTIO 1.3, 5.1.6.2 and 5.1.6.4.1",
        "With CSUM and GUEST_CSUM, sends UDP frames with NEEDS_CSUM.",
        "Each comes with NEEDS_CSUM and the same offsets, or with the right checksum.",
        _both_sums,
    ),
    _clause(
        11,
        "an unfinished checksum is finished without GUEST_CSUM",
        "VIRTIO 1.3, 5.1.6.4.1",
        "With CSUM alone, sends UDP frames with NEEDS_CSUM.",
        "Each comes with the right checksum and without the flag.",
        _one_sum,
    ),
    _clause(
        12,
        "a frame to be segmented is kept or segmented",
        "VIRTIO 1.3, 5.1.6.2 and 5.1.6.4.1",
        "With TSO both ways, sends 5,000 bytes of TCP in one frame.",
        "All bytes come, in a frame with its GSO type or in segments with right checksums.",
        _tso_kept,
    ),
    _clause(
        13,
        "a frame to be segmented is segmented without GUEST_TSO4",
        "VIRTIO 1.3, 5.1.6.4.1",
        "With HOST_TSO4 and no GUEST_TSO4, sends 5,000 bytes of TCP in one frame.",
        "All bytes come in segments with right checksums.",
        _tso_done,
    ),
    _clause(
        14,
        "no frame comes from a disabled ring",
        "Vhost-user Protocol, Ring states",
        "Disables the transmit ring, sends four frames, and enables it.",
        "None comes before; the next one comes after.",
        _off,
    ),
    _clause(
        15,
        "no frame comes to a disabled receive ring",
        "Vhost-user Protocol, Ring states; VIRTIO 1.3, 5.1.6.5.5",
        "Disables the second of two receive rings, with buffers in it, and passes 64 frames.",
        "None of its buffers is used.",
        _rx_off,
    ),
    _clause(
        16,
        "frames in a disabled transmit ring are discarded",
        "Vhost-user Protocol, Ring states",
        "Disables the transmit ring while it runs, and sends four frames.",
        "They are used.",
        _discards,
        alone=True,
    ),
    _clause(
        17,
        "the second queue pair works",
        "Vhost-user Protocol, VHOST_USER_GET_QUEUE_NUM; VIRTIO 1.3, 5.1.6.5.5",
        "If two pairs or more are offered, sends four frames on the second.",
        "They are used.",
        _second,
        alone=True,
    ),
    _clause(
        18,
        "num_buffers is 1 without MRG_RXBUF",
        "VIRTIO 1.3, 5.1.6.4.1",
        "Receives 20 frames without MRG_RXBUF.",
        "num_buffers is set to 1 in each header.",
        _one_buffer,
    ),
)
