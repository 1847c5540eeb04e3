"""Clauses about single messages."""

from __future__ import annotations

from virtnic.check.clause import PROTOCOL_FEATURES, VERSION_1, Bench, Clause, NotOffered, Wrong
from virtnic.errors import DeviceError
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
        raise Wrong(str(error)) from None
    return "each was acknowledged with 0"


def _unasked(bench: Bench) -> str:
    frontend, _, _ = bench.meet()
    frontend.send(Request.SET_OWNER)
    frontend.send(Request.GET_FEATURES)
    answer = frontend.receive()
    if answer is None or answer.request != Request.GET_FEATURES:
        what = "nothing" if answer is None else f"an answer to message {answer.request}"
        raise Wrong(f"{what} came first")
    return "only the question was answered"


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
        # Nothing is available: the index is where the ring goes on.
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
            raise Wrong(str(error)) from None
        if found != base:
            raise Wrong(f"ring {ring}, set to {base} and idle, was at {found}")
    return "0 and 77 came back"


def _regions(bench: Bench) -> str:
    frontend, features = bench.acknowledged()
    frontend.set_features(features & (VERSION_1 | PROTOCOL_FEATURES))
    memories = [bench.memory() for _ in range(4)]
    for count in (1, 2, 4, 1):
        try:
            frontend.set_mem_table([Region.of(memory) for memory in memories[:count]])
        except DeviceError as error:
            raise Wrong(f"{count} regions: {error}") from None
    return "1, 2, 4 and again 1 region were taken"


def _short(bench: Bench) -> str:
    frontend, _ = bench.acknowledged()
    try:
        frontend.tell(Request.SET_FEATURES, bytes(4))
    except Refused as refused:
        seen = f"refused with {refused.code}"
    except (ConnectionError, DeviceError):
        seen = "hung up on"
    except TimeoutError:
        seen = "not answered"
    else:
        seen = "taken"
    frontend.close()
    try:
        bench.connect().get_features()
    except (OSError, DeviceError) as error:
        raise Wrong(f"it was {seen}; the next front-end: {error}") from None
    return f"it was {seen}, and the next front-end was answered"


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
        raise Wrong(f"it offered {features:#x}, and {now:#x} afterwards")
    again.set_features(now & (VERSION_1 | PROTOCOL_FEATURES))
    return "the next front-end was served"


CLAUSES = (
    Clause(
        "MSG-01",
        "messages",
        "requests are acknowledged",
        "Vhost-user Protocol, VHOST_USER_PROTOCOL_F_REPLY_ACK",
        "Sets one ring up, each request with the flag that asks for a reply.",
        "Each is answered with 0, by its own number.",
        _acknowledged,
    ),
    Clause(
        "MSG-02",
        "messages",
        "who was not asked does not answer",
        "Vhost-user Protocol, Communication",
        "Sends SET_OWNER without the flag that asks for a reply, then a question.",
        "The first answer is that to the question.",
        _unasked,
    ),
    Clause(
        "MSG-03",
        "messages",
        "there is a queue pair",
        "Vhost-user Protocol, VHOST_USER_GET_QUEUE_NUM; VIRTIO 1.3, 5.1.4.1",
        "Asks for the number, where MQ is offered.",
        "1 to 32,768.",
        _queues,
    ),
    Clause(
        "MSG-04",
        "messages",
        "a ring that is stopped says where it is",
        "Vhost-user Protocol, VHOST_USER_GET_VRING_BASE",
        "Starts two idle split rings at 0 and 77, and stops them.",
        "The answers name the ring, and say 0 and 77.",
        _base,
    ),
    Clause(
        "MSG-05",
        "messages",
        "memory comes in several regions, and is replaced",
        "Vhost-user Protocol, VHOST_USER_SET_MEM_TABLE",
        "Shares 1, 2, 4 and again 1 region.",
        "Each table is acknowledged with 0.",
        _regions,
    ),
    Clause(
        "MSG-06",
        "messages",
        "a message that is too short does no harm",
        "Vhost-user Protocol, Message Specification",
        "Sends SET_FEATURES with 4 bytes, then connects anew.",
        "Whatever becomes of it, the next front-end is answered.",
        _short,
    ),
    Clause(
        "MSG-07",
        "messages",
        "a front-end that goes leaves room for the next",
        "Vhost-user Protocol, Communication",
        "Hangs up in the middle of setting a ring up, and in the middle of a greeting.",
        "The next is served, and offered the same.",
        _gone,
    ),
)
