"""Clauses LIFE-…: front-ends that come, go, die and dawdle."""

from __future__ import annotations

import contextlib
import os
import socket
import struct
import subprocess
import sys
import time
from functools import partial
from typing import TYPE_CHECKING

from virtnic.check.clause import PROTOCOL_FEATURES, VERSION_1, Clause, NotOffered, Wrong, bits
from virtnic.check.device import Device, frame_of
from virtnic.check.rings import both
from virtnic.errors import DeviceError, message_of
from virtnic.vhost_user import ProtocolFeature, Region, Request

if TYPE_CHECKING:
    from collections.abc import Callable

    from virtnic.check.clause import Bench
    from virtnic.vhost_user import Frontend

__all__ = ["CLAUSES", "works"]

_TIMES = 100


def works(bench: Bench, packed: bool = False, *, after: str) -> None:
    """Raise Wrong unless a new front-end is served and its frames are used."""
    try:
        device = Device(bench.again(), packed=packed, size=16, memory="1M")
        device.send([frame_of(number) for number in range(3)])
        device.sent(3)
        device.stop()
    except NotOffered:
        raise
    except (Wrong, DeviceError, OSError) as error:
        raise Wrong(f"{after}, the next front-end was not served: {message_of(error)}") from None
    bench.again()


def _steps(bench: Bench, frontend: Frontend) -> list[Callable[[], object]]:
    """Return the messages of a start, one after another."""
    memory = bench.memory()
    offered = frontend.get_features()
    use = ProtocolFeature(0)
    if offered & PROTOCOL_FEATURES:
        use = frontend.get_protocol_features() & (ProtocolFeature.MQ | ProtocolFeature.REPLY_ACK)
    address = memory.address
    steps: list[Callable[[], object]] = [
        lambda: frontend.set_protocol_features(use) if use else None,
        frontend.set_owner,
        lambda: frontend.set_features(offered & (VERSION_1 | PROTOCOL_FEATURES)),
        lambda: frontend.set_mem_table([Region.of(memory)]),
    ]
    for ring in (0, 1):
        at = address + 0x8000 * ring
        steps += [
            partial(frontend.set_vring_num, ring, 16),
            partial(frontend.set_vring_base, ring, 0),
            partial(frontend.set_vring_addr, ring, at, at + 0x2000, at + 0x1000),
            partial(frontend.set_vring_call, ring, bench.event().fileno()),
            partial(frontend.set_vring_kick, ring, bench.event().fileno()),
        ]
    if offered & PROTOCOL_FEATURES:
        steps += [
            lambda: frontend.set_vring_enable(0),
            lambda: frontend.set_vring_enable(1),
        ]
    steps += [lambda: frontend.get_vring_base(0), lambda: frontend.get_vring_base(1)]
    return steps


def _each_message(bench: Bench) -> str:
    count, total = 0, 1
    while count <= total:
        frontend = bench.again().connect()
        if count:
            steps = _steps(bench, frontend)
            total = len(steps)
            for step in steps[: count - 1]:
                step()
        frontend.close()
        works(bench, after=f"after a connection that ended with message {count}")
        count += 1
    return f"served after connections that ended at each of {count} places"


def _hundred(bench: Bench, packed: bool) -> str:
    for number in range(_TIMES):
        try:
            device = Device(bench.again(), packed=packed, size=64, memory="1M")
            device.send([frame_of(each) for each in range(number % 60)])
        except (DeviceError, OSError) as error:
            raise Wrong(f"connection {number + 1} of {_TIMES}: {message_of(error)}") from None
    works(bench, packed, after=f"after {_TIMES} connections")
    return f"{_TIMES} connections ended with up to 59 frames in flight, without a stop"


def _killed(bench: Bench, packed: bool) -> str:
    if packed and not bench.offers(1 << 34):
        raise NotOffered(f"feature bits {bits(1 << 34)} are not offered")
    for _ in range(3):
        ring = "packed" if packed else "split"
        victim = subprocess.Popen(
            [
                *(sys.executable, "-m", "virtnic.check.victim"),
                *(os.fspath(bench.path), str(bench.timeout), ring),
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
        assert victim.stdout is not None
        assert victim.stdin is not None
        try:
            said = victim.stdout.readline()
        finally:
            victim.kill()
            victim.wait()
            victim.stdout.close()
            victim.stdin.close()
        if said != b"sent\n":
            raise Wrong("a front-end in a process of its own was not served")
        works(bench, packed, after="after a front-end that was killed with frames in flight")
    return "three front-ends were killed with frames in flight, and the next ones served"


def _slowly(bench: Bench) -> str:
    with socket.socket(socket.AF_UNIX) as raw:
        raw.settimeout(bench.timeout)
        raw.connect(os.fspath(bench.path))
        for byte in struct.pack("=III", Request.GET_FEATURES, 1, 0):
            raw.sendall(bytes([byte]))
            time.sleep(0.003)
        reply = raw.recv(20)
        if len(reply) != 20:
            raise Wrong(f"{len(reply)} of 20 bytes came as the reply")
        # Owner, then features in two parts: header, half the payload, the rest.
        raw.sendall(struct.pack("=III", Request.SET_OWNER, 1, 0))
        features = struct.unpack("=Q", reply[12:])[0] & (VERSION_1 | PROTOCOL_FEATURES)
        for part in (
            struct.pack("=III", Request.SET_FEATURES, 1, 8),
            struct.pack("=Q", features)[:3],
            struct.pack("=Q", features)[3:],
            struct.pack("=III", Request.GET_FEATURES, 1, 0),
        ):
            raw.sendall(part)
            time.sleep(0.003)
        again = raw.recv(20)
    if again[12:] != reply[12:]:
        raise Wrong(f"the features were {reply[12:].hex()}, then {again[12:].hex()}")
    return "messages that came byte by byte were answered"


def _two(bench: Bench) -> str:
    device = Device(bench, size=16)
    device.send([frame_of(0)])
    device.sent(1)
    seen = "waited"
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX) as second:
        second.settimeout(0.05)
        second.connect(os.fspath(bench.path))
        second.sendall(struct.pack("=III", Request.GET_FEATURES, 1, 0))
        try:
            seen = "was served too" if second.recv(20) else "was refused"
        except ConnectionError:
            seen = "was refused"
        for number in range(20):
            device.send([frame_of(number)])
            device.sent(1)
    for number in range(20):
        device.send([frame_of(number)])
        device.sent(1)
    device.stop()
    works(bench, after="after two front-ends at once")
    return f"the second {seen}; the first went on before and after the second left"


CLAUSES = (
    Clause(
        "LIFE-01",
        "life",
        "a front-end may leave after any message",
        "Vhost-user Protocol, Communication",
        "Disconnects after each message of a start and a stop.",
        "The next front-end is served, and its frames are used.",
        _each_message,
    ),
    *both(
        2,
        "a hundred front-ends leave with frames in flight",
        "Vhost-user Protocol, Communication",
        "Vhost-user Protocol, Communication",
        "Connects, sends up to 59 frames and disconnects at once, a hundred times.",
        "The next front-end is served, and its frames are used.",
        _hundred,
        prefix="LIFE",
        group="life",
    ),
    *both(
        3,
        "a front-end dies with frames in flight",
        "Vhost-user Protocol, Communication",
        "Vhost-user Protocol, Communication",
        "Kills a process that has sent 64 frames (SIGKILL), three times.",
        "The next front-end is served, and its frames are used.",
        _killed,
        prefix="LIFE",
        group="life",
    ),
    Clause(
        "LIFE-04",
        "life",
        "a slow front-end is served",
        "Vhost-user Protocol, Message Specification",
        "Sends requests byte by byte and in parts, with pauses.",
        "They are answered.",
        _slowly,
    ),
    Clause(
        "LIFE-05",
        "life",
        "a second front-end does not disturb the first",
        "Vhost-user Protocol, VHOST_USER_SET_OWNER",
        "Connects a second time while frames are sent on the first connection, and leaves.",
        "The frames of the first are used all along; the second may wait or be refused.",
        _two,
    ),
)
