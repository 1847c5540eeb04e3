"""Running out of packet buffers: waiting threads continue later, and one warning is logged.

The backend is one in Python (`peers/ring_backend.py`), which finishes buffers when the test wants
it to. The sides of a test take turns by what they see, not by time; each wait has an end, at which
it fails.
"""

import asyncio
import select
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
import trio

import virtnic
from peers.ring_backend import RingBackend
from support.frames import number_of, numbered
from virtnic import aio, net

pytestmark = pytest.mark.needs("qemu")

SIZE = 256
#: Seconds that a wait may take at most, on a machine that is busy with other things.
TIMEOUT = 20.0
SOURCE = "52:54:00:00:00:01"

Peer = tuple[virtnic.Port, RingBackend]
Open = Callable[[], Peer]


@pytest.fixture(name="open_port")
def _open_port(qemu_command: str, scratch: Path) -> Iterator[Open]:
    """Open a port of the same small memory with each call."""
    with ExitStack() as stack:
        # Enough for the receive rings of two ports, and some 350 buffers besides.
        memory = virtnic.Memory("2M", hugepages=None)
        qemu = stack.enter_context(virtnic.Qemu(memory))
        count = 0

        def open_one() -> Peer:
            nonlocal count
            path = scratch / f"scarce{count}"
            count += 1
            backend = stack.enter_context(RingBackend(path))
            stack.callback(path.unlink)
            port = qemu.attach(f"vhost-user,path={path}", queue_size=SIZE)
            backend.wait_up()
            return port, backend

        yield open_one


def hold_all(port: virtnic.Port, backend: RingBackend) -> list[virtnic.Burst]:
    """Receive, and keep, until the memory has no buffer for the ring any more."""
    held: list[virtnic.Burst] = []
    number = 0
    while backend.deliver(numbered(SOURCE, number)):
        number += 1
        held.append(port.recv(16, timeout=TIMEOUT))
        assert held[-1]
    assert port.memory.buffers_free == 0
    assert port.xstats()["rx_q0_ring_used"] == 0
    return held


def feed(backend: RingBackend) -> bool:
    """Deliver a frame as soon as there is a buffer for it."""
    deadline = time.monotonic() + TIMEOUT
    while not backend.deliver(numbered(SOURCE, 4711)):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.001)
    return True


def test_generate_leaves_buffers_for_receiving(open_port: Open) -> None:
    """It fills as many as there are besides, and makes do with these."""
    (port, _), (other, backend) = open_port(), open_port()
    memory = port.memory
    # Nobody takes what is sent, so its buffers stay where they are.
    result = virtnic.generate(port, frames=[numbered(SOURCE, 0)], seconds=0.2)
    assert 0 < result.sent < SIZE
    assert memory.buffers_free >= 64 * 2
    assert feed(backend)
    assert other.recv(16, timeout=TIMEOUT)
    with pytest.raises(virtnic.MemoryUnavailable, match="kept for receiving"):
        virtnic.generate(other, frames=[numbered(SOURCE, 0)] * 400, seconds=0.2)


def by_recv(port: virtnic.Port) -> virtnic.Burst:
    return port.recv(timeout=TIMEOUT)


def by_select(port: virtnic.Port) -> virtnic.Burst:
    while select.select([port.fileno()], [], [], TIMEOUT)[0]:
        if burst := port.recv():
            return burst
    raise TimeoutError


def by_asyncio(port: virtnic.Port) -> virtnic.Burst:
    async def main() -> virtnic.Burst:
        async with asyncio.timeout(TIMEOUT):
            return await aio.Port(port).recv()

    return asyncio.run(main())


def by_trio(port: virtnic.Port) -> virtnic.Burst:
    async def main() -> virtnic.Burst:
        with trio.fail_after(TIMEOUT):
            return await aio.Port(port).recv()

    return trio.run(main)


@pytest.mark.parametrize("way", [by_recv, by_select, by_asyncio, by_trio])
def test_a_receiver_without_buffers_is_woken_when_they_come_back(
    open_port: Open, way: Callable[[virtnic.Port], virtnic.Burst]
) -> None:
    """Only returning buffers can wake it: the device has none, so it does not interrupt."""
    port, backend = open_port()
    held = hold_all(port, backend)
    port.fileno()
    fed: list[bool] = []

    def give_back() -> None:
        held.clear()
        fed.append(feed(backend))

    consumer = threading.Timer(0.05, give_back)
    consumer.start()
    burst = way(port)
    consumer.join()
    assert fed == [True]
    assert [number_of(frame) for frame in burst] == [4711]


def test_one_buffer_is_enough(open_port: Open) -> None:
    """An empty ring gets a wake-up for the first buffer that comes back."""
    port, backend = open_port()
    held = hold_all(port, backend)
    poll = select.poll()
    poll.register(port.fileno(), select.POLLIN)
    assert not port.recv()
    assert not poll.poll(0)
    held[0] = held[-1]
    assert poll.poll(TIMEOUT * 1e3)
    assert not port.recv()
    assert feed(backend)
    assert poll.poll(TIMEOUT * 1e3)
    assert len(port.recv()) == 1


def test_the_last_view_of_a_frame_counts_as_its_buffer(open_port: Open) -> None:
    """A buffer whose burst is gone comes back with the last view."""
    port, backend = open_port()
    held = hold_all(port, backend)
    views = [frame for burst in held for frame in burst]
    held.clear()
    poll = select.poll()
    poll.register(port.fileno(), select.POLLIN)
    assert not port.recv()
    assert not poll.poll(0)
    views.pop().release()
    assert poll.poll(TIMEOUT * 1e3)
    for view in views:
        view.release()


def test_a_buffer_that_is_missing_is_counted_once(open_port: Open) -> None:
    """However often it is polled."""
    port, backend = open_port()
    held = hold_all(port, backend)
    for _ in range(1000):
        assert not port.recv()
    assert port.stats()["rx_no_buffer"] == SIZE
    held.clear()
    assert not port.recv()
    assert port.xstats()["rx_q0_ring_used"] == SIZE
    assert port.stats()["rx_no_buffer"] == SIZE


@pytest.mark.parametrize("way", ["wait_writable", "poll", "send_all"])
def test_a_sender_without_buffers_is_woken_when_they_come_back(open_port: Open, way: str) -> None:
    """The ring has room, so the device would never say anything."""
    port, backend = open_port()
    held = hold_all(port, backend)
    frame = numbered(SOURCE, 1)
    assert port.send([frame]) == 0
    assert port.stats()["tx_no_buffer"] == 1
    poll = select.poll()
    poll.register(port.tx_fileno(), select.POLLIN)
    assert not poll.poll(0)
    assert not port.wait_writable(timeout=0.0)
    consumer = threading.Timer(0.05, held.clear)
    consumer.start()
    if way == "wait_writable":
        assert port.wait_writable(timeout=TIMEOUT)
    elif way == "poll":
        assert poll.poll(TIMEOUT * 1e3)
    else:
        port.send_all([frame], timeout=TIMEOUT)
    consumer.join()
    port.send([frame])
    assert backend.transmitted()[0] == frame


def test_finished_frames_of_a_silent_port_are_no_loss_to_another(open_port: Open) -> None:
    """They are asked for when the memory has no other buffer."""
    (silent, backend), (busy, _) = open_port(), open_port()
    # Fewer than half of the ring: the port has no reason to look for them.
    pinned = [numbered(SOURCE, number) for number in range(SIZE // 2 - 1)]
    assert silent.send(pinned) == len(pinned)
    assert len(backend.transmitted()) == len(pinned)
    free = busy.memory.buffers_free
    kept = 2 * SIZE // 4
    wanted = [numbered(SOURCE, number) for number in range(free - kept + len(pinned))]
    assert busy.send(wanted) == len(wanted)
    assert busy.memory.buffers_free == kept


def test_frames_that_a_silent_port_has_finished_later_wake_another(open_port: Open) -> None:
    """Its device sends no interrupts: the port polls."""
    (silent, slow), (waiting, other) = open_port(), open_port()
    while silent.send([numbered(SOURCE, 0)]):
        pass
    assert silent.stats()["tx_no_buffer"]
    frame = numbered(SOURCE, 1)
    assert waiting.send([frame]) == 0
    poll = select.poll()
    poll.register(waiting.tx_fileno(), select.POLLIN)
    assert not poll.poll(0)
    assert slow.transmitted()
    assert poll.poll(TIMEOUT * 1e3)
    assert waiting.send([frame]) == 1
    assert other.transmitted() == [frame]


def test_buffers_of_a_port_that_is_closed_feed_another(open_port: Open) -> None:
    """Its receive ring held as many buffers as others."""
    (port, backend), (closing, _) = open_port(), open_port()
    held = hold_all(port, backend)
    poll = select.poll()
    poll.register(port.fileno(), select.POLLIN)
    assert not port.recv()
    assert not poll.poll(0)
    closing.close()
    assert poll.poll(TIMEOUT * 1e3)
    assert not port.recv()
    assert port.xstats()["rx_q0_ring_used"] == SIZE
    held.clear()


def test_transmitting_leaves_buffers_for_receiving(open_port: Open) -> None:
    """Senders that take all they can get, and backends that finish nothing."""
    (port, backend), (other, _) = open_port(), open_port()
    for sender in (port, other):
        while sender.send([numbered(SOURCE, 0)]):
            pass
    kept = 2 * SIZE // 4
    assert port.memory.buffers_free == kept
    # Everything that the ring had, and what was left.
    for number in range(SIZE + kept):
        assert backend.deliver(numbered(SOURCE, number))
        assert [number_of(frame) for frame in port.recv(timeout=TIMEOUT)] == [number]


def test_the_stack_goes_on_when_buffers_come_back(open_port: Open) -> None:
    """Its link is a port like any other."""
    port, backend = open_port()
    held = hold_all(port, backend)
    stack = net.Stack(port, address="10.0.0.1/24", ipv6=False)
    asked = (
        b"\xff" * 6
        + bytes.fromhex("525400000002")
        + bytes.fromhex("08060001080006040001525400000002")
        + bytes([10, 0, 0, 2])
        + bytes(6)
        + bytes([10, 0, 0, 1])
    ).ljust(60, b"\0")
    answered = threading.Event()

    def ask() -> None:
        held.clear()
        deadline = time.monotonic() + TIMEOUT
        while not backend.deliver(asked) and time.monotonic() < deadline:
            time.sleep(0.001)
        while not answered.is_set() and time.monotonic() < deadline:
            if any(frame[12:14] == b"\x08\x06" for frame in backend.transmitted()):
                answered.set()
            time.sleep(0.001)

    with stack:
        asker = threading.Timer(0.05, ask)
        asker.start()
        asker.join()
    assert answered.is_set()


def test_transmitting_leaves_jumbo_buffers_for_receiving(qemu_command: str, scratch: Path) -> None:
    """A quarter of them, which long frames that come in are put together in."""
    path = scratch / "jumbo"
    memory = virtnic.Memory("4M", hugepages=None, jumbo_buffers=8)
    with (
        RingBackend(path) as backend,
        virtnic.open(f"vhost-user,path={path}", memory=memory) as port,
    ):
        backend.wait_up()
        long = numbered(SOURCE, 1, 9000)
        assert port.send([long] * 8) == 6
        assert memory.jumbo_buffers_free == 2
        assert not port.wait_writable(timeout=0.0)
        assert len(backend.transmitted()) == 6
        assert port.wait_writable(timeout=TIMEOUT)
        assert port.send([long]) == 1
    path.unlink(missing_ok=True)
