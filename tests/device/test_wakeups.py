"""No wake-up is lost: many frames, each waited for.

Backend: DPDK's testpmd, which sends each frame back and signals our eventfd itself, on
packed and split rings, with and without EVENT_IDX. A wake-up that is lost leaves nothing
else that could end the wait, so it is seen as a timeout. The quick run has 20,000 round trips
in all; ``VIRTNIC_WAKEUPS=1000000 make test ARGS='tests/device/test_wakeups.py -s'`` has a million.
"""

import os
import select
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest

import virtnic
from peers.testpmd import Testpmd
from support.frames import number_of, numbered
from support.waiting import PROMPT, eventually
from virtnic.nic.options import Interrupts, Ring

pytestmark = pytest.mark.needs("qemu", "testpmd")

StartTestpmd = Callable[..., Testpmd]

RINGS = pytest.mark.parametrize("ring", ["packed", "split"])
EVENT_IDX = pytest.mark.parametrize("event_idx", [True, False], ids=["event_idx", "flags"])
WAYS = pytest.mark.parametrize("way", ["recv", "select"])
#: Round trips of each of the eight combinations.
ROUNDS = int(os.environ.get("VIRTNIC_WAKEUPS", "20000")) // 8
#: Seconds that a frame may take at most, on a machine that is busy with other things.
TIMEOUT = 10.0


def open_port(pmd: Testpmd, ring: Ring, event_idx: bool, **options: Any) -> virtnic.Port:
    netdev = f"vhost-user,path={pmd.sockets[0]}"
    port = virtnic.open(netdev, ring=ring, features={"EVENT_IDX": event_idx}, **options)
    accepted = {feature.name for feature in port.features if feature.accepted}
    assert ("EVENT_IDX" in accepted) is event_idx
    assert port.ring == ring
    return port


def round_trips(port: virtnic.Port, way: str, count: int) -> None:
    """Send a frame, wait for it, and so on."""
    poll = select.poll()
    if way == "select":
        poll.register(port.fileno(), select.POLLIN)
    frames = [numbered(port.mac, number) for number in range(256)]
    for number in range(count):
        frame = frames[number & 0xFF]
        assert port.send([frame]) == 1
        deadline = time.monotonic() + TIMEOUT
        while True:
            if way == "select":
                assert poll.poll(TIMEOUT * 1e3), f"asleep at {number}: {port.stats()}"
                burst = port.recv(1 + number % 2)
            else:
                burst = port.recv(1 + number % 2, timeout=TIMEOUT)
                assert burst, f"asleep at {number}: {port.stats()}"
            if burst:
                break
            assert time.monotonic() < deadline, f"no frame at {number}: {port.stats()}"
        assert len(burst) == 1
        assert number_of(burst[0]) == number & 0xFF


@RINGS
@EVENT_IDX
@WAYS
@pytest.mark.timeout(60 + ROUNDS / 500)
def test_no_wake_up_is_lost(
    qemu_command: str, testpmd: StartTestpmd, ring: Ring, event_idx: bool, way: str
) -> None:
    with open_port(testpmd(), ring, event_idx) as port:
        before = time.monotonic()
        round_trips(port, way, ROUNDS)
        print(f"\n{ring} {event_idx=} {way}: {ROUNDS} in {time.monotonic() - before:.1f} s")
        assert port.stats()["rx_packets"] == ROUNDS


@RINGS
@EVENT_IDX
def test_two_sleepers_and_a_reader_of_the_descriptor(
    qemu_command: str, testpmd: StartTestpmd, ring: Ring, event_idx: bool
) -> None:
    """All three wait on one queue; none may consume the wake-up of another."""
    rounds = 300
    got: list[int] = []
    lock = threading.Lock()
    more = threading.Semaphore(0)

    with open_port(testpmd(), ring, event_idx) as port:

        def take(burst: virtnic.Burst) -> None:
            with lock:
                got.extend(number for number in map(number_of, burst) if number is not None)
            for _ in range(len(burst)):
                more.release()

        def sleep() -> None:
            try:
                while True:
                    take(port.recv(1, timeout=None))
            except virtnic.PortClosed:
                pass

        def read() -> None:
            fd = port.fileno()
            try:
                while True:
                    select.select([fd], [], [])
                    take(port.recv(1))
            except virtnic.PortClosed:
                pass

        threads = [threading.Thread(target=target) for target in (sleep, sleep, read)]
        for thread in threads:
            thread.start()
        try:
            for number in range(0, 3 * rounds, 3):
                frames = [numbered(port.mac, number + i) for i in range(3)]
                assert port.send(frames) == 3
                for _ in range(3):
                    assert more.acquire(timeout=TIMEOUT), f"asleep at {number}: {port.stats()}"
        finally:
            port.close()
        for thread in threads:
            thread.join(TIMEOUT)
            assert not thread.is_alive(), "the end woke two of three"
    assert sorted(got) == list(range(3 * rounds))


@RINGS
@EVENT_IDX
def test_a_full_transmit_queue_wakes(
    qemu_command: str, testpmd: StartTestpmd, ring: Ring, event_idx: bool
) -> None:
    """testpmd stops and starts; a sender waits by descriptor or by call, and all arrives."""
    pmd = testpmd(mode="rxonly")
    with open_port(pmd, ring, event_idx, queue_size=256) as port:
        total = 0
        for turn in range(6):
            pmd.command("stop")
            frames = [numbered(port.mac, i) for i in range(256)]
            while port.send(frames):
                pass
            assert not port.wait_writable(0.05)
            start = threading.Timer(0.3, pmd.command, args=("start",))
            start.start()
            used = time.thread_time()
            if turn % 2:
                assert select.select([port.tx_fileno()], [], [], TIMEOUT)[0]
            else:
                assert port.wait_writable(TIMEOUT)
            assert time.thread_time() - used < 0.2, "it polled instead of sleeping"
            start.join()
            assert port.send_all(frames * 4, timeout=TIMEOUT) == 1024
            assert port.wait_writable(TIMEOUT)
            assert port.send_all([], timeout=0.0) == 0
            total = port.stats()["tx_packets"]
        assert total > 6 * 1024


def test_send_all_stops_at_its_timeout(qemu_command: str, testpmd: StartTestpmd) -> None:
    pmd = testpmd(mode="rxonly")
    with virtnic.open(f"vhost-user,path={pmd.sockets[0]}", queue_size=256) as port:
        pmd.command("stop")
        frames = [numbered(port.mac, i) for i in range(1000)]
        before = time.monotonic()
        queued = port.send_all(frames, timeout=0.2)
        assert 0.2 <= time.monotonic() - before < PROMPT
        assert 0 < queued < 1000
        pmd.command("start")
        assert port.send_all(frames[queued:], timeout=TIMEOUT) == 1000 - queued
        port.wait_writable(TIMEOUT)


@pytest.mark.parametrize("interrupts", ["msix", "none"])
def test_send_all_by_interrupt_and_by_polling(
    qemu_command: str, testpmd: StartTestpmd, interrupts: Interrupts
) -> None:
    pmd = testpmd(mode="rxonly")
    netdev = f"vhost-user,path={pmd.sockets[0]}"
    with virtnic.open(netdev, queue_size=64, interrupts=interrupts) as port:
        assert port.send_all(numbered(port.mac, i) for i in range(5000)) == 5000
        assert port.stats()["tx_packets"] == 5000


def test_polling_spares_the_sleep_while_frames_come_quickly(
    qemu_command: str, testpmd: StartTestpmd
) -> None:
    with virtnic.open(f"vhost-user,path={testpmd().sockets[0]}", spin=20_000) as port:
        assert port.polling == 20_000

        def more_polls_than_sleeps() -> bool:
            """Of some frames; a frame that is already there needs no wait."""
            before = port.stats()
            round_trips(port, "recv", 100)
            polls, sleeps = (port.stats()[of] - before[of] for of in ("rx_polls", "rx_sleeps"))
            return polls > 5 * sleeps

        # Not while others have the processor that testpmd polls on.
        assert eventually(more_polls_than_sleeps)
        stats = port.stats()
        # Idle: two waits that polled in vain, then none does.
        for _ in range(3):
            assert not port.recv(1, timeout=0.1)
        used = time.thread_time()
        assert not port.recv(1, timeout=0.4)
        assert time.thread_time() - used < 0.2
        assert port.stats()["rx_sleeps"] > stats["rx_sleeps"]
        port.set_polling(0)
        before = port.stats()
        round_trips(port, "recv", 50)
        assert port.stats()["rx_polls"] == before["rx_polls"]
        for bad in (-1, float("nan"), 1e6):
            with pytest.raises(ValueError, match="poll"):
                port.set_polling(bad)
