"""Clauses MSG-…: requests, replies and connections."""

from __future__ import annotations

from virtnic.check.clause import PROTOCOL_FEATURES, VERSION_1, Bench, Clause, NotOffered, Wrong
from virtnic.errors import DeviceError, message_of
from virtnic.vhost_user import ProtocolFeature, Refused, Region, Request

__all__ = ["CLAUSES"]


def _acknowledged(bench: Bench) -> str:
    frontend, features = bench.acknowledged()
    memory = bench.memory()
    try:
        frontend.set_features(features & (VERSION_1 | PROTOCOL_FEATURES))
        frontend.set_mem_table([Region.of(memory)])
        frontend.set_vring_num(0, 256)
        frontend.set_vring_base(0, 0)
        frontend.set_vring_addr(0, memory.address, memory.address + 0x2000, memory.address + 0x1000)
        frontend.set_vring_call(0, bench.event().fileno())
        frontend.set_vring_kick(0, bench.event().fileno())
        if features & PROTOCOL_FEATURES:
            frontend.set_vring_enable(0, False)
    except (DeviceError, TimeoutError) as error:
        raise Wrong(message_of(error)) from None
    return "every request was acknowledged with 0"


def _unasked(bench: Bench) -> str:
    frontend, _, _ = bench.meet()
    frontend.send(Request.SET_OWNER)
    frontend.send(Request.GET_FEATURES)
    answer = frontend.receive()
    if answer is None or answer.request != Request.GET_FEATURES:
        if answer is None:
            raise Wrong("GET_FEATURES was not answered")
        raise Wrong(f"the first reply was to message {answer.request}")
    return "only GET_FEATURES was answered"


def _queues(bench: Bench) -> str:
    frontend, _, protocol = bench.meet()
    if ProtocolFeature.MQ not in protocol:
        raise NotOffered("protocol feature MQ is not offered")
    number = frontend.get_queue_num()
    if not 1 <= number <= 0x8000:
        raise Wrong(f"{number} queue pairs")
    return f"{number} queue pairs"


def _base(bench: Bench) -> str:
    frontend, features, _ = bench.meet()
    memory = bench.memory()
    frontend.set_features(features & (VERSION_1 | PROTOCOL_FEATURES))
    frontend.set_mem_table([Region.of(memory)])
    for ring, base in ((0, 0), (1, 77)):
        at = 0x4000 * ring
        # The ring is idle: the available and the used index are both at its base.
        memory.write(at + 0x1002, base.to_bytes(2, "little"))
        memory.write(at + 0x2002, base.to_bytes(2, "little"))
        address = memory.address + at
        frontend.set_vring_num(ring, 128)
        frontend.set_vring_base(ring, base)
        frontend.set_vring_addr(ring, address, address + 0x2000, address + 0x1000)
        frontend.set_vring_call(ring, bench.event().fileno())
        frontend.set_vring_kick(ring, bench.event().fileno())
        try:
            found = frontend.get_vring_base(ring)
        except DeviceError as error:
            raise Wrong(message_of(error)) from None
        if found != base:
            raise Wrong(f"ring {ring} was idle at {base}; the reply says {found}")
    return "the replies were 0 and 77"


def _regions(bench: Bench) -> str:
    frontend, features = bench.acknowledged()
    frontend.set_features(features & (VERSION_1 | PROTOCOL_FEATURES))
    memories = [bench.memory() for _ in range(4)]
    for count in (1, 2, 4, 1):
        try:
            frontend.set_mem_table([Region.of(memory) for memory in memories[:count]])
        except DeviceError as error:
            raise Wrong(f"{count} regions: {message_of(error)}") from None
    return "tables of 1, 2, 4 and 1 regions accepted"


def _short(bench: Bench) -> str:
    frontend, _ = bench.acknowledged()
    try:
        frontend.tell(Request.SET_FEATURES, bytes(4))
    except Refused as refused:
        seen = f"it was refused with code {refused.code}"
    except (ConnectionError, DeviceError):
        seen = "the backend closed the connection"
    except TimeoutError:
        seen = "it was not answered"
    else:
        seen = "it was accepted"
    frontend.close()
    try:
        bench.connect().get_features()
    except (OSError, DeviceError) as error:
        raise Wrong(f"{seen}; the next connection failed: {message_of(error)}") from None
    return f"{seen}; the next connection was served"


def _gone(bench: Bench) -> str:
    frontend, features, _ = bench.meet()
    memory = bench.memory()
    frontend.set_features(features & (VERSION_1 | PROTOCOL_FEATURES))
    frontend.set_mem_table([Region.of(memory)])
    frontend.set_vring_num(0, 256)
    frontend.close()
    half = bench.connect()
    half.get_features()
    half.close()
    again, now, _ = bench.meet()
    if now != features:
        raise Wrong(f"it offered {features:#x} before, and {now:#x} after")
    again.set_features(now & (VERSION_1 | PROTOCOL_FEATURES))
    return "the next connection was served"


CLAUSES = (
    Clause(
        "MSG-01",
        "messages",
        "requests are acknowledged",
        "Vhost-user Protocol, VHOST_USER_PROTOCOL_F_REPLY_ACK",
        "Sets up a ring; every request has the need_reply flag.",
        "Every request gets one reply with its own request number and the value 0.",
        _acknowledged,
    ),
    Clause(
        "MSG-02",
        "messages",
        "a request without need_reply gets no reply",
        "Vhost-user Protocol, Communication",
        "Sends SET_OWNER without the need_reply flag, then GET_FEATURES.",
        "The first reply is the one to GET_FEATURES.",
        _unasked,
    ),
    Clause(
        "MSG-03",
        "messages",
        "the number of queue pairs is valid",
        "Vhost-user Protocol, VHOST_USER_GET_QUEUE_NUM; VIRTIO 1.3, 5.1.4.1",
        "If MQ is offered, sends GET_QUEUE_NUM.",
        "The reply is between 1 and 32,768.",
        _queues,
    ),
    Clause(
        "MSG-04",
        "messages",
        "GET_VRING_BASE returns the base of an idle ring",
        "Vhost-user Protocol, VHOST_USER_GET_VRING_BASE",
        "Starts two idle split rings at 0 and 77, and stops them.",
        "Each reply names its ring, and the bases are 0 and 77.",
        _base,
    ),
    Clause(
        "MSG-05",
        "messages",
        "memory tables of several regions are accepted",
        "Vhost-user Protocol, VHOST_USER_SET_MEM_TABLE",
        "Sends SET_MEM_TABLE with 1, 2, 4 and then 1 region.",
        "Each table is acknowledged with 0.",
        _regions,
    ),
    Clause(
        "MSG-06",
        "messages",
        "a truncated request does no harm",
        "Vhost-user Protocol, Message Specification",
        "Sends SET_FEATURES with a payload of 4 bytes, then connects again.",
        "The new connection is served, whatever happened to the first.",
        _short,
    ),
    Clause(
        "MSG-07",
        "messages",
        "a front-end that disconnects leaves room for the next",
        "Vhost-user Protocol, Communication",
        "Disconnects while setting up a ring, and after the first request of a connection.",
        "The next connection is served and offered the same features.",
        _gone,
    ),
)
