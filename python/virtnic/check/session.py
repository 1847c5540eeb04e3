"""Clauses MSG-08 and following: requests for rings, memory, and optional protocol features."""

from __future__ import annotations

import mmap
import os
import struct
import time
from functools import partial
from typing import TYPE_CHECKING

import virtnic
from virtnic.check.clause import (
    PROTOCOL_FEATURES,
    RING_PACKED,
    VERSION_1,
    Clause,
    NotOffered,
    Wrong,
)
from virtnic.check.device import Device, Wire, frame_of
from virtnic.check.rings import both
from virtnic.check.space import GUEST
from virtnic.errors import DeviceError, message_of
from virtnic.vhost_user import ProtocolFeature, Refused, Region, Request

if TYPE_CHECKING:
    from collections.abc import Callable

    from virtnic.check.clause import Bench
    from virtnic.vhost_user import Frontend

__all__ = ["CLAUSES"]

_NET_F_MTU, _LOG_ALL, _VRING_LOG = 1 << 3, 1 << 26, 1
_PAGE = 0x1000
_STATE = struct.Struct("=II")


def _refused(do: Callable[[], object]) -> str | None:
    """Return how a request was refused; None if it was accepted."""
    try:
        do()
    except Refused as refused:
        return f"with code {refused.code}"
    except ConnectionError:
        return "by closing the connection"
    except DeviceError as error:
        return message_of(error)
    return None


def _with(bench: Bench, feature: ProtocolFeature) -> tuple[Frontend, int]:
    """Connect with a protocol feature. Raises NotOffered without it and without REPLY_ACK."""
    frontend, features, protocol = bench.meet(
        use=ProtocolFeature.MQ | ProtocolFeature.REPLY_ACK | feature
    )
    if feature not in protocol:
        raise NotOffered(f"protocol feature {feature.name} is not offered")
    return frontend, features


def _illegal_sizes(bench: Bench, packed: bool) -> str:
    sizes = [0, 0x8001, 0x10000, 0x80000000, *(() if packed else (3, 1000))]
    accepted = []
    for size in sizes:
        frontend, features = bench.again().acknowledged()
        if packed and not features & RING_PACKED:
            raise NotOffered("feature bit 34 is not offered")
        always = features & (VERSION_1 | PROTOCOL_FEATURES)
        frontend.set_features(always | (RING_PACKED if packed else 0))
        if _refused(partial(frontend.set_vring_num, 0, size)) is None:
            accepted.append(size)
    if accepted:
        raise Wrong(f"rings of {', '.join(map(str, accepted))} entries were accepted")
    return f"{', '.join(map(str, sizes))} were refused"


def _in_flight(bench: Bench, packed: bool) -> str:
    """Stop and start the ring at every position, while frames are with the backend."""
    device = Device(bench, packed=packed, size=8)
    ring = device.tx
    laps = 20
    for number in range(laps):
        count = 1 + number % 7
        device.send([frame_of(number + each) for each in range(count)])
        base = device.frontend.get_vring_base(1)
        used = ring.pop()  # nothing is used from here on, until it starts again
        time.sleep(0.0005)
        if late := ring.pop():
            raise Wrong(f"{len(late)} buffers were used after GET_VRING_BASE, in round {number}")
        if base & 0xFFFF != ring.position & 0xFFFF:
            raise Wrong(
                f"in round {number} {len(used)} of {count} buffers were used, so the base is "
                f"{ring.position & 0xFFFF:#x}; the reply says {base & 0xFFFF:#x}"
            )
        device.start(1, ring.position)
        device.enable(1)
        ring.kick.signal()
        used += ring.wait(count - len(used), bench.timeout)
        if len(used) != count:
            raise Wrong(f"{len(used)} buffers were used where {count} were available")
        for entry in used:
            ring.give(entry.chain)
    device.stop()
    return f"stopped and started {laps} times, with 1 to 7 frames in flight"


def _regions(bench: Bench) -> str:
    for count in (2, 3, 8):
        device = Device(bench.again(), size=16, regions=count, memory="2M")
        for number in range(0, 48, 8):
            device.send([frame_of(each) for each in range(number, number + 8)])
            device.sent(8)
        device.stop()
        device.untouched()
    return "rings and frames in 2, 3 and 8 regions with gaps between them"


def _slots(bench: Bench) -> str:
    frontend, features = _with(bench, ProtocolFeature.CONFIGURE_MEM_SLOTS)
    slots = frontend.get_max_mem_slots()
    if not 1 <= slots <= 1 << 16:
        raise Wrong(f"{slots} memory slots")
    frontend.set_features(features & (VERSION_1 | PROTOCOL_FEATURES))
    memories = [virtnic.Memory("2M", hugepages=None) for _ in range(min(3, slots))]
    try:
        for memory in memories:
            frontend.add_mem_reg(Region.of(memory))
        frontend.rem_mem_reg(Region.of(memories[-1]))
        frontend.add_mem_reg(Region.of(memories[-1]))
        for memory in memories:
            frontend.rem_mem_reg(Region.of(memory))
    except DeviceError as error:
        raise Wrong(message_of(error)) from None
    if (
        frontend.acknowledged
        and _refused(lambda: frontend.rem_mem_reg(Region.of(memories[0]))) is None
    ):
        raise Wrong("a region that was not there was removed")
    return f"{slots} slots; {len(memories)} regions were added and removed"


def _inflight(bench: Bench) -> str:
    frontend, features = _with(bench, ProtocolFeature.INFLIGHT_SHMFD)
    frontend.set_features(features & (VERSION_1 | PROTOCOL_FEATURES))
    answer = frontend.get_inflight_fd(2, 256)
    try:
        if len(answer.payload) < 20 or len(answer.fds) != 1:
            raise Wrong(f"{len(answer.payload)} bytes and {len(answer.fds)} descriptors came")
        size, offset = struct.unpack_from("=QQ", answer.payload)
        there = os.fstat(answer.fds[0]).st_size
        if not size or there < offset + size:
            raise Wrong(f"{size} bytes at offset {offset} of a file of {there} bytes")
        # The descriptors' states: 16 bytes each, in two rings of 256.
        if size < 2 * 16 * 256:
            raise Wrong(f"{size} bytes are too few for two rings of 256 entries")
        try:
            frontend.set_inflight_fd(answer.fds[0], size, 2, 256)
        except DeviceError as error:
            raise Wrong(message_of(error)) from None
    finally:
        answer.close()
    return f"{size} bytes, which were accepted back"


def _mtu(bench: Bench) -> str:
    frontend, features = _with(bench, ProtocolFeature.NET_MTU)
    if not features & _NET_F_MTU:
        raise NotOffered("feature bit 3 (MTU) is not offered")
    if not frontend.acknowledged:
        raise NotOffered("REPLY_ACK is not offered, so a refusal cannot be seen")
    frontend.set_features(features & (VERSION_1 | PROTOCOL_FEATURES | _NET_F_MTU))
    try:
        for mtu in (1500, 68, 9000):
            frontend.set_mtu(mtu)
    except Refused as refused:
        raise Wrong(f"an MTU of {mtu}: {message_of(refused)}") from None
    for mtu in (0, 67, 65536):
        if _refused(partial(frontend.set_mtu, mtu)) is None:
            raise Wrong(f"an MTU of {mtu} was accepted")
    return "68, 1,500 and 9,000 were accepted, 0, 67 and 65,536 refused"


def _config(bench: Bench) -> str:
    frontend, _ = _with(bench, ProtocolFeature.CONFIG)
    whole = frontend.get_config(0, 12)
    if not whole:
        raise Wrong("12 bytes were asked for, and the reply is empty, which means an error")
    again = frontend.get_config(0, 12)
    part = frontend.get_config(6, 4)
    if not whole == again or part != whole[6:10]:
        raise Wrong(f"{whole.hex()}, then {again.hex()}; bytes 6 to 9 alone {part.hex()}")
    change = struct.pack("=III", 0, 6, 0) + bytes(6)
    if (
        frontend.acknowledged
        and _refused(lambda: frontend.tell(Request.SET_CONFIG, change)) is None
    ):
        raise Wrong("SET_CONFIG of the MAC address, which is read-only, was accepted")
    return f"the first 12 bytes are {whole.hex()}"


def _status(bench: Bench) -> str:
    frontend, features = _with(bench, ProtocolFeature.STATUS)
    try:
        for status in (0, 1, 3):
            frontend.set_status(status)
            if (found := frontend.get_status()) & 0x3F != status:
                raise Wrong(f"status {status:#x} was written, {found:#x} read")
        frontend.set_features(features & (VERSION_1 | PROTOCOL_FEATURES))
        frontend.set_status(11)
        if (found := frontend.get_status()) & ~0x40 != 11:
            raise Wrong(f"FEATURES_OK was written, the status is {found:#x}")
    except Refused as refused:
        raise Wrong(message_of(refused)) from None
    return "the status was kept at each step"


def _log(bench: Bench) -> str:
    use = ProtocolFeature.LOG_SHMFD | ProtocolFeature.REPLY_ACK | ProtocolFeature.MQ
    device = Device(bench, size=16, want=_LOG_ALL, start=False, use=use)
    if ProtocolFeature.LOG_SHMFD not in device.protocol:
        raise NotOffered("protocol feature LOG_SHMFD is not offered")
    frontend, space = device.frontend, device.space
    size = (GUEST + space.memory.size) // _PAGE // 8 + 8
    fd = os.memfd_create("virtnic check: log")
    bench.closes(lambda: os.close(fd))
    os.ftruncate(fd, size)
    log = mmap.mmap(fd, size)
    bench.closes(log.close)
    frontend.set_log_base(fd, size)
    for number in (0, 1):
        device.start(number, log=True)
        device.enable(number)
    chains = device.send([frame_of(number) for number in range(8)])
    device.sent(8)
    device.stop()
    used = device.tx.areas[1]
    marked = {page for page in range(size * 8) if log[page // 8] >> page % 8 & 1}
    right = {space.guest(used + at) // _PAGE for at in (2, 4, 4 + 8 * 8 - 1)}
    allowed = {
        space.guest(area + at) // _PAGE
        for ring in device.rings
        for area in (ring.areas[1],)
        for at in (0, 6 + 8 * ring.size)
    }
    del chains
    if missing := right - marked:
        raise Wrong(f"page {min(missing):#x} of the used ring was written and is not marked")
    if more := marked - allowed:
        raise Wrong(f"{len(more)} pages are marked that were not written, such as {min(more):#x}")
    return f"{len(marked)} pages of used rings were marked, and none else"


def _rarp(bench: Bench) -> str:
    mac = b"\x52\x54\x00\x0a\x0b\x0c"
    wire = Wire(bench, size=64, use=ProtocolFeature.RARP | ProtocolFeature.REPLY_ACK)
    if ProtocolFeature.RARP not in wire.out.protocol:
        raise NotOffered("protocol feature RARP is not offered")
    wire.posted(16)
    wire.out.frontend.send_rarp(mac)
    # Some backends send it with the next frame that they take.
    (found, *_) = wire.receive(1)
    frame = found.frame
    if frame[12:14] != b"\x80\x35" or mac not in frame[:12] or mac not in frame[22:]:
        raise Wrong(f"a frame came that is no RARP request for the address: {frame[:42].hex()}")
    wire.stop()
    return "a RARP request for the address came"


def _unknown(bench: Bench) -> str:
    seen = []
    for request in (0, 200, 0xFFFF):
        frontend, _ = bench.again().acknowledged()
        how = _refused(partial(frontend.tell, request, bytes(8)))
        if how is None:
            raise Wrong(f"request {request} was acknowledged with 0")
        seen.append(how)
    return f"refused {seen[0]}"


def _descriptors(bench: Bench) -> str:
    memory = bench.memory()
    region = Region.of(memory)
    null = bench.event().fileno()
    table = _STATE.pack(1, 0) + region.pack()
    tries: list[tuple[str, int, bytes, list[int]]] = [
        ("SET_MEM_TABLE of one region without", Request.SET_MEM_TABLE, table, []),
        ("SET_MEM_TABLE of one region with two", Request.SET_MEM_TABLE, table, [region.fd] * 2),
        ("SET_VRING_KICK with two", Request.SET_VRING_KICK, bytes(8), [null, null]),
        ("SET_FEATURES with one", Request.SET_FEATURES, b"", [null]),
    ]
    accepted = []
    for what, request, payload, fds in tries:
        frontend, features = bench.again().acknowledged()
        always = features & (VERSION_1 | PROTOCOL_FEATURES)
        if request != Request.SET_FEATURES:
            frontend.set_features(always)
        how = _refused(partial(frontend.tell, request, payload or struct.pack("=Q", always), fds))
        if how is None:
            accepted.append(f"{what} descriptor{'s' if len(fds) > 1 else ''}")
    if accepted:
        raise Wrong(f"accepted: {', '.join(accepted)}")
    return f"{len(tries)} requests with wrong descriptors were refused"


def _too_many(bench: Bench) -> str:
    frontend, features, protocol = bench.meet()
    if ProtocolFeature.MQ not in protocol:
        raise NotOffered("protocol feature MQ is not offered")
    pairs = frontend.get_queue_num()
    frontend.close()
    accepted = []
    # SET_VRING_NUM has 32 bits for the index, SET_VRING_KICK has 8.
    for ring in (0xFFFFFFFF, 0x8000, 0x10000):
        frontend, features = bench.again().acknowledged()
        frontend.set_features(features & (VERSION_1 | PROTOCOL_FEATURES))
        if _refused(partial(frontend.set_vring_num, ring, 256)) is None:
            accepted.append(ring)
    if accepted:
        raise Wrong(f"{pairs} queue pairs are offered, ring {accepted[0]} was accepted")
    return f"rings beyond {pairs} queue pairs were refused"


def _changed(bench: Bench) -> str:
    device = Device(bench, size=16, memory="2M", regions=2, pinned=0)
    for number in range(6):
        # The rings stay in the first region; the frames are in the one that comes and goes.
        device.space.pinned = count = 1 - number % 2
        device.frontend.set_mem_table(device.space.regions[: 1 + count])
        device.send([frame_of(each) for each in range(8)])
        device.sent(8)
    device.stop()
    return "the table changed six times while the ring was running, and frames went on"


CLAUSES = (
    *both(
        8,
        "rings of illegal sizes are refused",
        "VIRTIO 1.3, 2.7; VHOST_USER_SET_VRING_NUM",
        "VIRTIO 1.3, 2.8.10.1; VHOST_USER_SET_VRING_NUM",
        "Sends SET_VRING_NUM with 0 and more than 32,768 entries; split: no powers of two either.",
        "Each is refused.",
        _illegal_sizes,
        prefix="MSG",
        group="messages",
    ),
    *both(
        9,
        "a ring stops and starts with frames in flight",
        "Vhost-user Protocol, VHOST_USER_GET_VRING_BASE and Ring states",
        "Vhost-user Protocol, VHOST_USER_GET_VRING_BASE and Ring states",
        "Stops a ring of 8 entries at every position with 1 to 7 frames in flight, and starts it.",
        "The base is that of the first frame that was not used; none is used while it is stopped, "
        "and each once afterwards.",
        _in_flight,
        prefix="MSG",
        group="messages",
    ),
    Clause(
        "MSG-11",
        "messages",
        "rings and frames lie in several regions",
        "Vhost-user Protocol, Memory access",
        "Shares 2, 3 and 8 regions with gaps between guest addresses, and uses all of them.",
        "All frames are used, and nothing that is not the device's is written.",
        _regions,
    ),
    Clause(
        "MSG-12",
        "messages",
        "regions are added and removed",
        "Vhost-user Protocol, VHOST_USER_ADD_MEM_REG and VHOST_USER_REM_MEM_REG",
        "Adds three regions, removes them, and removes one again.",
        "Each request is acknowledged with 0, but the last.",
        _slots,
    ),
    Clause(
        "MSG-13",
        "messages",
        "inflight memory is given out and taken back",
        "Vhost-user Protocol, VHOST_USER_GET_INFLIGHT_FD and VHOST_USER_SET_INFLIGHT_FD",
        "Asks for the memory for two rings of 256 entries, and hands it back.",
        "One descriptor of a file that is as large as the reply says, and large enough.",
        _inflight,
    ),
    Clause(
        "MSG-14",
        "messages",
        "legal MTUs are accepted, others refused",
        "Vhost-user Protocol, VHOST_USER_NET_SET_MTU; VIRTIO 1.3, 5.1.4.1",
        "Sends NET_SET_MTU with 68 to 9,000, and with 0, 67 and 65,536.",
        "The former are acknowledged with 0, the latter not.",
        _mtu,
    ),
    Clause(
        "MSG-15",
        "messages",
        "the configuration space is readable",
        "Vhost-user Protocol, VHOST_USER_GET_CONFIG and VHOST_USER_SET_CONFIG",
        "Reads 12 bytes twice and 4 of them alone; writes the MAC address, which is read-only.",
        "Each reply has the size that was asked for and the same content; the write is refused.",
        _config,
    ),
    Clause(
        "MSG-16",
        "messages",
        "the device status is kept",
        "Vhost-user Protocol, VHOST_USER_SET_STATUS; VIRTIO 1.3, 2.1",
        "Writes the status as a driver does when it starts, and reads it.",
        "Each bit reads as written.",
        _status,
    ),
    Clause(
        "MSG-17",
        "messages",
        "written pages are logged",
        "Vhost-user Protocol, Migration",
        "Shares a log, sends eight frames with VHOST_F_LOG_ALL and VHOST_VRING_F_LOG.",
        "The pages of the used ring are marked, and none else.",
        _log,
    ),
    Clause(
        "MSG-18",
        "messages",
        "SEND_RARP announces the address",
        "Vhost-user Protocol, VHOST_USER_SEND_RARP",
        "Sends SEND_RARP with a MAC address.",
        "A RARP request with that address comes out.",
        _rarp,
        needs="return",
    ),
    Clause(
        "MSG-19",
        "messages",
        "an unknown request is refused",
        "Vhost-user Protocol, VHOST_USER_PROTOCOL_F_REPLY_ACK",
        "Sends requests 0, 200 and 65,535, and asks for acknowledgements.",
        "The acknowledgement is not 0, or the backend closes the connection.",
        _unknown,
    ),
    Clause(
        "MSG-20",
        "messages",
        "a request with the wrong number of descriptors is refused",
        "Vhost-user Protocol, Communication",
        "Sends SET_MEM_TABLE, SET_VRING_KICK and SET_FEATURES with too many or too few.",
        "Each is refused.",
        _descriptors,
    ),
    Clause(
        "MSG-21",
        "messages",
        "a ring that does not exist is refused",
        "Vhost-user Protocol, Multiple queue support",
        "Sends SET_VRING_NUM for rings far beyond the number of queue pairs.",
        "Each is refused.",
        _too_many,
    ),
    Clause(
        "MSG-22",
        "messages",
        "the memory table changes while rings run",
        "Vhost-user Protocol, VHOST_USER_SET_MEM_TABLE and Ring states",
        "Adds a region to the table of a running ring and takes it away, in turn; frames use it.",
        "Frames go on being used.",
        _changed,
    ),
)
