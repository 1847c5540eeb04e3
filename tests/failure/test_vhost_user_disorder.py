"""Backends that use buffers out of order and die.

VIRTIO promises order only with IN_ORDER. So the next backend has to find in the ring what the last
one did not finish, and nothing else; every frame is accounted for. The backend is one in Python
(`peers/ring_backend.py`).
"""

from collections.abc import Iterator
from itertools import count
from pathlib import Path
from typing import Any

import pytest

import virtnic
from peers.ring_backend import RingBackend
from support.frames import number_of, numbered
from support.negotiated import accepted, offered
from virtnic.nic.options import Ring
from virtnic.testing import set_link

pytestmark = pytest.mark.needs("qemu")

SOURCE = "52:54:00:00:00:01"
SIZE = 256
TIMEOUT = 20.0

RINGS = pytest.mark.parametrize("ring", ["split", "packed"])


@pytest.fixture(name="backend")
def _backend(request: pytest.FixtureRequest, scratch: Path) -> Iterator[RingBackend]:
    path = scratch / "disorder"
    with RingBackend(path, packed=request.getfixturevalue("ring") == "packed") as backend:
        yield backend
    path.unlink(missing_ok=True)


@pytest.fixture(name="port")
def _port(
    qemu_command: str, scratch: Path, ring: Ring, backend: RingBackend
) -> Iterator[virtnic.Port]:
    """A port on that backend; all its buffers must be back at the end."""
    memory = virtnic.Memory("8M", hugepages=None)
    netdev = f"vhost-user,path={scratch / 'disorder'}"
    with virtnic.open(netdev, memory=memory, ring=ring, queue_size=SIZE) as port:
        backend.wait_up()
        yield port
    assert memory.buffers_free == memory.buffers


def numbers(frames: list[bytes]) -> list[int | None]:
    return [number_of(frame) for frame in frames]


def collect(backend: RingBackend, wanted: int) -> list[int | None]:
    """Take so many frames from the transmit ring, and finish them."""
    got: list[int | None] = []

    def some() -> bool:
        got.extend(numbers(backend.transmitted()))
        return len(got) >= wanted

    assert backend.wait_for(some, TIMEOUT), got
    return got


@RINGS
@pytest.mark.parametrize("before", [0, 3 * SIZE // 2], ids=["first lap", "later lap"])
def test_frames_to_a_backend_that_died_in_disorder(
    port: virtnic.Port, backend: RingBackend, before: int
) -> None:
    """Sent = taken by a backend + dropped by QEMU for want of one; none twice, no violation."""
    taken: list[int | None] = []
    for number in range(before):
        assert port.send([numbered(SOURCE, number)]) == 1
        taken += collect(backend, 1)
    burst = [numbered(SOURCE, before + number) for number in range(8)]
    assert port.send(burst) == len(burst)
    buffers = list(backend.available())
    assert len(buffers) == len(burst)
    for index in (6, 1, 7, 3):
        taken.append(number_of(backend.read(buffers[index])))
        backend.finish(1, buffers[index])
    backend.signal(1)
    backend.die()
    backend.wait_up(2)
    later = [numbered(SOURCE, 10_000 + number) for number in range(2 * SIZE)]
    sent = 0
    while sent < len(later):
        sent += port.send(later[sent : sent + 16])
        taken += numbers(backend.transmitted())
    taken += numbers(backend.transmitted())
    port.reclaim()
    stats = port.stats()
    assert len(set(taken)) == len(taken)
    assert taken[-sent:] == list(range(10_000, 10_000 + sent))
    assert stats["tx_packets"] == len(taken) + stats["tx_no_backend"]
    assert stats["tx_no_backend"] <= 4
    assert stats["tx_completed"] == stats["tx_packets"]


@RINGS
def test_buffers_of_a_backend_that_died_in_disorder(
    port: virtnic.Port, backend: RingBackend
) -> None:
    """What it received arrives; the buffers it had are there for the next."""
    buffers = [backend.take(0) for _ in range(8)]
    order = [5, 0, 7, 2]
    for index in order:
        buffer = buffers[index]
        assert buffer is not None
        backend.write(0, buffer, numbered(SOURCE, index))
    backend.signal(0)
    backend.die()
    got: list[int | None] = []
    while len(got) < len(order):
        burst = port.recv(timeout=TIMEOUT)
        assert burst
        got += [number_of(frame) for frame in burst]
    assert got == order
    backend.wait_up(2)
    for number in range(2 * SIZE):
        assert backend.deliver(numbered(SOURCE, number))
        burst = port.recv(timeout=TIMEOUT)
        assert [number_of(frame) for frame in burst] == [number]


@pytest.mark.parametrize("ring", ["packed"])
@pytest.mark.parametrize("others", [False, True], ids=["all", "the first"])
def test_buffers_of_a_backend_that_died_while_it_finished_them(
    port: virtnic.Port, backend: RingBackend, others: bool
) -> None:
    """It had written ids and lengths, but not all flags: DPDK writes those of a burst last.

    What is left of such a descriptor says that the buffer is as long as the frame that it got.
    """
    buffers = [backend.take(0) for _ in range(4)]
    for index, buffer in enumerate(buffers):
        assert buffer is not None
        if index > 0 and others:
            backend.write(0, buffer, numbered(SOURCE, index))
        else:
            backend.begin_to_finish(0, buffer, 72)
    backend.die()
    backend.wait_up(2)
    length = port.memory.buffer_size - 200
    got: list[int | None] = []
    for number in range(10_000, 10_000 + 2 * SIZE):
        assert backend.deliver(numbered(SOURCE, number).ljust(length, b"-"))
        while not got or got[-1] != number:
            burst = port.recv(timeout=TIMEOUT)
            assert burst, port.stats()
            got += numbers(burst.tobytes())
    assert got[: -2 * SIZE] == ([1, 2, 3] if others else [])
    assert port.stats()["rx_bad_length"] == (1 if others else 4)


@pytest.mark.parametrize("ring", ["packed"])
def test_frames_to_a_backend_that_died_while_it_finished_them(
    port: virtnic.Port, backend: RingBackend
) -> None:
    """The next backend gets no empty frame; frames that were begun are finished."""
    frames = [numbered(SOURCE, number) for number in range(8)]
    assert port.send(frames) == len(frames)
    for buffer in list(backend.available())[:4]:
        backend.begin_to_finish(1, buffer)
    backend.die()
    backend.wait_up(2)
    for number in range(8, 2 * SIZE):
        assert port.send([numbered(SOURCE, number)]) == 1
        frames = backend.transmitted()
        assert frames, port.stats()
        # What QEMU, which had the ring in between, has left of the others comes first.
        assert all(frames)
        assert numbers(frames)[-1] == number
    port.reclaim()
    stats = port.stats()
    assert stats["tx_completed"] == stats["tx_packets"] == 2 * SIZE


@RINGS
@pytest.mark.parametrize("how", ["loss", "link"])
def test_a_backend_that_is_driven_by_kicks_is_kicked_again(
    port: virtnic.Port, backend: RingBackend, how: str
) -> None:
    """QEMU, which has the ring in between, says "no notifications" and never takes it back."""
    for life in count(1):
        kicks = backend.rings[1].kicks
        assert port.send([numbered(SOURCE, life)]) == 1
        assert backend.kicked(1, kicks, TIMEOUT), f"the backend was not kicked in life {life}"
        collect(backend, 1)
        if life == 2:
            break
        if how == "loss":
            backend.die()
            backend.wait_up(2)
        else:
            set_link(port, up=False)
            assert backend.wait_for(lambda: not backend.rings[1].enabled, TIMEOUT)
            set_link(port, up=True)
            backend.wait_up()
        # The kick that every new eventfd gets is over.
        assert backend.wait_for(lambda: backend.rings[1].kicks > 0, TIMEOUT)


IN_ORDER = 1 << 35


@pytest.mark.parametrize("taken_back", [False, True])
def test_a_backend_that_keeps_the_order_dies_behind_a_batch(
    scratch: Path, taken_back: bool
) -> None:
    """One used descriptor stands for several; the next backend goes on behind all of them."""
    path = scratch / "order"
    memory = virtnic.Memory("8M", hugepages=None)
    with (
        RingBackend(path, packed=True, more_features=IN_ORDER) as backend,
        virtnic.open(
            f"vhost-user,path={path}",
            frontend="direct",
            memory=memory,
            ring="packed",
            queue_size=SIZE,
            features={"IN_ORDER": True},
        ) as port,
    ):
        backend.wait_up()
        taken: list[int | None] = []
        for lap in range(5):
            first = lap * 1_000
            assert port.send([numbered(SOURCE, first + n) for n in range(100)]) == 100
            buffers = list(backend.available())
            batch = buffers[:60]
            taken += [number_of(backend.read(buffer)) for buffer in batch]
            backend.finish_batch(1, batch)
            backend.signal(1)
            if taken_back:
                port.reclaim()
            backend.die()
            backend.wait_up(lap + 2)
            taken += collect(backend, 40)
            assert taken[-100:] == list(range(first, first + 100))
            port.reclaim()
            assert port.stats()["tx_completed"] == len(taken) == port.stats()["tx_packets"]
    assert memory.buffers_free == memory.buffers
    path.unlink(missing_ok=True)


def test_in_order_is_not_accepted_unless_asked_for(qemu_command: str, scratch: Path) -> None:
    """A backend tells late what it took; by default the next one is not given it once more."""
    path = scratch / "order"
    options: dict[str, Any] = {"memory": virtnic.Memory("8M", hugepages=None), "ring": "packed"}
    with RingBackend(path, packed=True, more_features=IN_ORDER):
        netdev = f"vhost-user,path={path}"
        with virtnic.open(netdev, frontend="direct", **options) as direct:
            assert "IN_ORDER" in offered(direct) - accepted(direct)
        with virtnic.open(netdev, **options) as port:
            if port.qemu.version < (9, 1):  # it has no such property
                return
        options["properties"] = {"in_order": True}
        with virtnic.open(netdev, **options) as port:
            assert "IN_ORDER" in offered(port) - accepted(port)
        with virtnic.open(netdev, features={"IN_ORDER": True}, **options) as port:
            assert "IN_ORDER" in accepted(port)
    path.unlink(missing_ok=True)
