"""What ``frames`` arguments accept: sequences of bytes-like objects, not a single frame."""

import array
import asyncio
import ctypes
import importlib
import itertools
import mmap
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

import virtnic
from support.frames import BROADCAST, numbered
from support.interrupting import alarm
from virtnic.testing import Deliver, Expect, FaultyPort, Frames, ScriptedPort

FRAME = numbered("52:54:00:00:00:01", 7)


class Packet:
    """Like scapy's packets: converts to bytes, and iterates over itself."""

    def __bytes__(self) -> bytes:
        return FRAME

    def __iter__(self) -> Iterator["Packet"]:
        yield self


def in_a_mapping() -> mmap.mmap:
    mapping = mmap.mmap(-1, len(FRAME))
    mapping[:] = FRAME
    return mapping


KINDS: dict[str, Callable[[], Any]] = {
    "bytes": lambda: FRAME,
    "bytearray": lambda: bytearray(FRAME),
    "memoryview": lambda: memoryview(FRAME),
    "array": lambda: array.array("B", FRAME),
    "numpy": lambda: np.frombuffer(FRAME, np.uint8),
    "mmap": in_a_mapping,
    "ctypes": lambda: (ctypes.c_char * len(FRAME)).from_buffer_copy(FRAME),
    "packet": Packet,
}

Send = Callable[[virtnic.Port, Any], object]


async def send_awaited(port: virtnic.Port, frames: Any) -> None:
    await virtnic.aio.Port(port).send_all(frames)


#: Every way to give frames to a port or a fake.
SENDS: dict[str, Send] = {
    "send": lambda port, frames: port.send(frames),
    "send_all": lambda port, frames: port.send_all(frames),
    "queue": lambda port, frames: port.queue(0).send(frames),
    "aio": lambda port, frames: asyncio.run(send_awaited(port, frames)),
    "generate": lambda port, frames: virtnic.generate(port, frames=frames, packets=1),
    "exchange": lambda port, frames: virtnic.exchange(port, frames=frames, packets=1),
    "FaultyPort.send": lambda port, frames: FaultyPort(port).send(frames),
    "FaultyPort.send_all": lambda port, frames: FaultyPort(port).send_all(frames),
}


def test_one_frame_in_the_place_of_several_is_refused_by_every_way_to_send(
    port: virtnic.Port,
) -> None:
    for send in SENDS.values():
        for one in (*(kind() for kind in KINDS.values()), "text"):
            with pytest.raises(TypeError, match=r"for one frame write \[frame\]"):
                send(port, one)
    assert port.stats()["tx_packets"] == 0


def test_every_kind_of_frame_is_taken_by_every_way_to_send(port: virtnic.Port) -> None:
    for number, send in enumerate(SENDS.values()):
        for several in (list, tuple, iter):
            send(port, several([KINDS["packet"](), FRAME]))
        send(port, [kind() for kind in KINDS.values()])
        assert port.stats()["tx_packets"] >= 4 * (number + 1)
    sent = port.stats()
    assert sent["tx_bytes"] == sent["tx_packets"] * len(FRAME)


def test_what_stands_in_for_a_port_takes_the_same() -> None:
    every = [kind() for kind in KINDS.values()]
    with ScriptedPort([Deliver(*every), Expect(2 * len(every))]) as port:
        for kind in KINDS.values():
            with pytest.raises(TypeError, match=r"for one frame write \[frame\]"):
                port.send(kind())
        assert port.send(every) == port.send_all(iter(every)) == len(every)
        port.finish()
        assert port.recv().tobytes() == [FRAME] * len(every)
    assert Frames(every).tobytes() == [FRAME] * len(every)
    with pytest.raises(TypeError, match=r"for one frame write \[frame\]"):
        Frames(FRAME)  # type: ignore[arg-type]


def test_a_packet_that_cannot_be_built_is_told_before_anything_is_sent(port: virtnic.Port) -> None:
    class Unfinished:
        def __bytes__(self) -> bytes:
            raise KeyError("no destination")

    with pytest.raises(KeyError, match="no destination"):
        port.send([FRAME, Unfinished()])
    assert port.stats()["tx_packets"] == 0


def test_a_packet_may_send_while_it_is_built(port: virtnic.Port) -> None:
    class Recursive:
        def __bytes__(self) -> bytes:
            port.send([FRAME])
            return FRAME

    assert port.send([Recursive(), FRAME]) == 2
    assert port.stats()["tx_packets"] == 3


def test_a_packet_of_scapy_is_a_frame(port: virtnic.Port) -> None:
    layers = importlib.import_module("scapy.layers.l2")
    packet = layers.Ether(dst=BROADCAST, src=port.mac) / layers.ARP(pdst="10.0.2.2")
    with pytest.raises(TypeError, match="not Ether"):
        port.send(packet)
    assert port.send([packet]) == 1
    assert port.recv(timeout=20.0)


def test_what_is_no_frame_says_which_it_is(port: virtnic.Port) -> None:
    with pytest.raises(TypeError, match=r"frame 1 .* but int; the 1 frames before it were queued"):
        port.send([FRAME, 5])  # type: ignore[list-item]
    with pytest.raises(TypeError, match="frame 1 to send"):
        virtnic.generate(port, frames=[FRAME, 5])  # type: ignore[list-item]


LOOPS: dict[str, Callable[..., virtnic.Result]] = {
    "generate": lambda port, **how: virtnic.generate(port, **how),
    "exchange": lambda port, **how: virtnic.exchange(port, **how),
}
NAN, INFINITE = float("nan"), float("inf")


@pytest.mark.parametrize("loop", LOOPS.values(), ids=LOOPS)
def test_a_load_that_cannot_be_sent_is_a_value_error(
    port: virtnic.Port, loop: Callable[..., virtnic.Result]
) -> None:
    longest = port.memory.largest_frame
    given: list[Any] = [[], iter([]), [b""], [FRAME, b""], [bytes(longest + 1)]]
    for frames in given:
        for rate in (None, "1Gbps", "1kpps", 5):
            with pytest.raises(ValueError, match="frame"):
                loop(port, frames=frames, rate=rate, packets=1)
    for wrong in (0, -1, NAN, INFINITE, "0pps", "0Gbps"):
        with pytest.raises(ValueError, match="rate"):
            loop(port, rate=wrong, packets=1)
    for size in (0, -64, 63, 1 << 20, "jumbo", 64.5, NAN):
        with pytest.raises(ValueError, match="64"):
            loop(port, size=size, packets=1)
    assert loop(port, frames=[bytes(longest)], packets=0).packets == 0


@pytest.mark.parametrize("loop", ["forward", "reflect", "drop", "generate", "exchange", "run"])
def test_when_a_loop_ends_is_checked_before_it_starts(qemu: virtnic.Qemu, loop: str) -> None:
    a, b = qemu.attach("user"), qemu.attach("user")
    code = ctypes.cast(ctypes.CDLL(None).abs, ctypes.c_void_p).value  # never called here
    ports = {"forward": (a, b), "run": (a, virtnic.packet_function(code))}.get(loop, (a,))
    start = getattr(virtnic, loop)
    for seconds in (-1, -1e-9, -INFINITE, NAN):
        with pytest.raises(ValueError, match="seconds"):
            start(*ports, seconds=seconds)
    for packets in (-1, 1 << 64):
        with pytest.raises(ValueError, match="packets"):
            start(*ports, packets=packets)
    with pytest.raises(TypeError, match="progress"):
        start(*ports, progress=5, seconds=0)
    assert start(*ports, packets=0).packets == 0


@pytest.mark.timeout(60)
def test_frames_without_end(port: virtnic.Port) -> None:
    """The first invalid one ends the iteration, and so does a signal handler."""
    for send in (port.send, port.send_all):
        with pytest.raises(TypeError, match="frame 0 is not a contiguous bytes-like"):
            send(itertools.count())  # type: ignore[arg-type]
    offloads = itertools.repeat(None)
    with pytest.raises(ValueError, match="1 frames need 1 offloads, or one for all; not more"):
        port.send([FRAME], offloads)
    frames = itertools.repeat(FRAME, 50_000_000)
    before = port.stats()["tx_packets"]
    with alarm(0.02):
        port.send(frames)
    assert frames.__length_hint__() > 0
    assert port.stats()["tx_packets"] == before
