"""``virtnic.testing.FaultyPort``: faults and their report."""

import asyncio
import contextlib
import itertools
import select
import threading
import time
from collections import Counter
from collections.abc import Generator
from typing import Any

import pytest

import virtnic
from support.frames import arp_request, is_arp_reply, number_of, numbered
from support.waiting import PROMPT, eventually
from virtnic.testing import (
    Deliver,
    Die,
    Expect,
    FaultyPort,
    Frames,
    Refuse,
    ScriptedPort,
    Step,
    set_link,
)

MAC = "52:54:00:00:00:01"


def frames(count: int, length: int = 60) -> list[bytes]:
    return [numbered(MAC, number, length) for number in range(count)]


def numbers_of(got: list[bytes]) -> list[int]:
    return [number for frame in got if (number := number_of(frame)) is not None]


def receive_all(port: FaultyPort, quiet: float = 0.1) -> list[bytes]:
    got: list[bytes] = []
    while burst := port.recv(64, timeout=quiet):
        got += burst.tobytes()
    return got


def received(count: int, **faults: Any) -> tuple[list[bytes], dict[str, int]]:
    """Have frames delivered through faults: those that came, and the counters."""
    with FaultyPort(ScriptedPort([Deliver(*frames(count))]), **faults) as port:
        return receive_all(port), port.faults()


def sent(count: int, **faults: Any) -> tuple[list[bytes], dict[str, int]]:
    """Send frames through faults: those that arrived, and the counters."""
    seen: list[bytes] = []

    def script() -> Generator[Step, list[bytes], None]:
        while True:
            seen.extend((yield Expect(1)))

    with FaultyPort(ScriptedPort(script()), **faults) as port:
        for start in range(0, count, 64):
            assert port.send(frames(count)[start : start + 64]) == min(64, count - start)
        deadline = time.monotonic() + 20.0
        while port.faults()["tx_waiting"] and time.monotonic() < deadline:
            port.flush()  # what the ring had no room for waits as well
        while len(seen) < port.faults()["tx_passed"] and time.monotonic() < deadline:
            time.sleep(0.005)
        return list(seen), port.faults()


def balanced(faults: dict[str, int]) -> bool:
    """Every frame came out, or is accounted for."""
    return all(
        faults[f"{way}_seen"] + faults[f"{way}_duplicated"]
        == faults[f"{way}_dropped"] + faults[f"{way}_passed"] + faults[f"{way}_waiting"]
        for way in ("rx", "tx")
    )


WAYS = pytest.mark.parametrize(("through", "way"), [(received, "rx"), (sent, "tx")])


@WAYS
def test_without_faults_nothing_changes(through: Any, way: str) -> None:
    got, faults = through(500)
    assert got == frames(500)
    assert faults[f"{way}_seen"] == faults[f"{way}_passed"] == 500
    assert balanced(faults)


@WAYS
def test_drop(through: Any, way: str) -> None:
    got, faults = through(1000, seed=3, drop=0.2)
    assert 100 < faults[f"{way}_dropped"] < 300
    assert len(got) == 1000 - faults[f"{way}_dropped"]
    assert got == [frame for frame in frames(1000) if frame in set(got)]
    assert balanced(faults)


@WAYS
def test_duplicate(through: Any, way: str) -> None:
    got, faults = through(1000, seed=3, duplicate=0.2)
    count = Counter(numbers_of(got))
    assert sorted(count) == list(range(1000))
    assert sum(n - 1 for n in count.values()) == faults[f"{way}_duplicated"] > 100
    assert max(count.values()) == 2
    assert balanced(faults)


@WAYS
def test_reorder(through: Any, way: str) -> None:
    got, faults = through(1000, seed=3, reorder=0.1)
    numbers = numbers_of(got)
    assert sorted(numbers) == list(range(1000))
    assert numbers != sorted(numbers)
    late = sum(1 for before, number in itertools.pairwise(numbers) if number < before)
    assert 0 < late <= faults[f"{way}_reordered"]
    # None lets more than eight pass, and others that let some pass themselves.
    assert max(abs(place - number) for place, number in enumerate(numbers)) < 20
    assert balanced(faults)


@WAYS
def test_corrupt(through: Any, way: str) -> None:
    got, faults = through(1000, seed=3, corrupt=0.2)
    bits = [
        (int.from_bytes(a, "big") ^ int.from_bytes(b, "big")).bit_count()
        for a, b in zip(got, frames(1000), strict=True)
    ]
    assert set(bits) == {0, 1}
    assert sum(bits) == faults[f"{way}_corrupted"] > 100


def test_delay() -> None:
    with FaultyPort(ScriptedPort([Deliver(*frames(10))]), delay=1.0) as port:
        began = time.monotonic()
        used = time.thread_time()
        assert len(port.recv(64)) == 0
        assert len(port.recv(64, timeout=0.05)) == 0
        assert port.faults()["rx_waiting"] == port.faults()["rx_delayed"] == 10
        assert port.recv(64, timeout=None).tobytes() == frames(10)
        assert 1.0 <= time.monotonic() - began < PROMPT
        assert time.thread_time() - used < 0.5, "it polled instead of sleeping"


def test_a_jittery_delay_reorders() -> None:
    got, _ = received(200, seed=1, delay=(0.0, 0.1))
    assert sorted(got) == sorted(frames(200))
    assert got != frames(200)


def test_delayed_frames_leave_by_themselves() -> None:
    """A program that sends and then waits elsewhere does not hold them up."""
    with ScriptedPort([Expect(3)]) as inner, FaultyPort(inner, delay=0.1) as port:
        assert port.send(frames(3)) == 3
        assert inner.stats()["tx_packets"] == 0
        inner.finish()
        assert port.faults()["tx_passed"] == 3


def test_the_descriptor_tells_of_delayed_frames() -> None:
    with FaultyPort(ScriptedPort([Deliver(*frames(3))]), delay=0.1) as port:
        fd = port.fileno()
        assert select.select([fd], [], [], 20.0)[0] == [fd]  # something came to the port itself
        assert len(port.recv()) == 0
        assert select.select([fd], [], [], 0)[0] == []
        assert select.select([fd], [], [], 20.0)[0] == [fd]
        assert port.recv(2).tobytes() == frames(3)[:2]
        assert select.select([fd], [], [], 0)[0] == [fd]
        assert port.recv(2).tobytes() == frames(3)[2:]
        assert len(port.recv()) == 0
        assert select.select([fd], [], [], 0)[0] == []


def test_asyncio_hears_of_delayed_frames() -> None:
    async def main(port: FaultyPort) -> list[bytes]:
        loop = asyncio.get_running_loop()
        got: list[bytes] = []
        done = loop.create_future()

        def readable() -> None:
            got.extend(port.recv().tobytes())
            if len(got) == 20:
                done.set_result(None)

        loop.add_reader(port.fileno(), readable)
        await asyncio.wait_for(done, 5.0)
        loop.remove_reader(port.fileno())
        return got

    with FaultyPort(ScriptedPort([Deliver(*frames(20))]), delay=(0.02, 0.1), seed=2) as port:
        assert sorted(asyncio.run(main(port))) == sorted(frames(20))


@WAYS
def test_the_same_seed_does_the_same(through: Any, way: str) -> None:
    wild = {"drop": 0.1, "duplicate": 0.1, "corrupt": 0.1}
    first, again, other = (through(300, seed=seed, **wild) for seed in (5, 5, 6))
    assert first == again
    assert first[0] != other[0]


def test_bursts_do_not_change_what_is_done() -> None:
    """The fate of frame n does not depend on how the frames are fetched."""
    wild: dict[str, Any] = {"seed": 9, "drop": 0.2, "duplicate": 0.2, "corrupt": 0.2}
    whole, _ = received(300, **wild)
    with FaultyPort(ScriptedPort([Deliver(*frames(300))]), **wild) as port:
        single: list[bytes] = []
        while burst := port.recv(1, timeout=0.1):
            assert len(burst) == 1
            single += burst.tobytes()
    assert single == whole


@pytest.mark.parametrize("on", ["rx", "tx"])
def test_one_direction_only(on: Any) -> None:
    inner = ScriptedPort([Deliver(*frames(100)), Expect(100)])
    with FaultyPort(inner, drop=1.0, on=on) as port:
        port.send(frames(100))
        assert len(receive_all(port)) == (0 if on == "rx" else 100)
        assert port.faults()["tx_passed"] == (0 if on == "tx" else 100)
        stats = port.stats()
        assert stats[f"fault_{on}_dropped"] == 100
        assert stats["rx_packets"] == 100


def test_a_flood_is_bounded() -> None:
    with FaultyPort(ScriptedPort([]), delay=60.0) as port:
        while port.send(frames(256)):
            assert port.faults()["tx_waiting"] < 5000
        assert port.faults()["tx_waiting"] == 4096
        port.flush()
        assert port.faults()["tx_passed"] == 4096


def test_errors_are_those_of_the_port() -> None:
    with FaultyPort(ScriptedPort([])) as port:
        with pytest.raises(ValueError, match="frame 0"):
            port.send([b""])
        with pytest.raises(TypeError):
            port.send([3])  # type: ignore[list-item]
        with pytest.raises(TypeError, match=r"for one frame write \[frame\]"):
            port.send(b"x" * 60)  # type: ignore[arg-type]
        for wrong in (-1.0, float("nan")):
            with pytest.raises(ValueError, match="the timeout must be a number of seconds"):
                port.recv(1, timeout=wrong)
        assert port.mac == MAC
        with pytest.raises(AttributeError):
            _ = port.colour
    assert port.closed
    for call in (port.recv, port.fileno, lambda: port.send(frames(1))):
        with pytest.raises(virtnic.PortClosed):
            call()


@pytest.mark.parametrize(
    "wrong",
    [
        *({"drop": wrong} for wrong in (1.5, float("nan"), "half", None)),
        {"corrupt": -0.1},
        *({"delay": wrong} for wrong in (-1.0, (2.0, 1.0), (1.0,), "long", float("nan"))),
        {"on": "air"},
    ],
)
def test_wrong_arguments(wrong: dict[str, Any]) -> None:
    with ScriptedPort([]) as inner, pytest.raises(ValueError, match=str(next(iter(wrong)))):
        FaultyPort(inner, **wrong)


def test_nothing_passes_the_wire_by(port: virtnic.Port) -> None:
    """What is sent goes through it, or is refused, whichever way it is sent."""
    faulty = FaultyPort(port, drop=1.0)
    assert faulty.send_all(iter(frames(1000))) == 1000

    async def main() -> None:
        await virtnic.aio.Port(faulty).send_all(frames(500))

    asyncio.run(main())
    assert faulty.faults()["tx_dropped"] == 1500
    with pytest.raises(ValueError, match=r"queue\(0\) is not supported"):
        faulty.queue(0)
    with pytest.raises(ValueError, match="send them without offload"):
        faulty.send(frames(1), virtnic.Offload())  # type: ignore[arg-type]
    assert port.stats()["tx_packets"] == 0


def test_its_link_callbacks_get_the_bad_port(port: virtnic.Port) -> None:
    faulty = FaultyPort(port)
    told: list[object] = []
    faulty.on_link(told.append)
    events = port.qemu.events()
    set_link(port, up=False)
    assert events.wait(20.0) is not None
    assert told == [faulty]


def test_asyncio_by_a_script() -> None:
    """A program for asyncio meets the same, without a QEMU: a full ring, answers, the end."""

    def script() -> Generator[Step, list[bytes], None]:
        yield Refuse(2)
        got = yield Expect(600)
        yield Deliver(*got[-3:])
        yield Die("QEMU was killed")

    async def program(inner: ScriptedPort) -> list[bytes]:
        port = virtnic.aio.Port(FaultyPort(inner))
        await port.send_all(frames(600))
        got: list[bytes] = []
        with contextlib.suppress(virtnic.QemuDied):
            async for burst in port:
                got += burst.tobytes()
        return got

    with ScriptedPort(script(), room=64) as inner:
        assert asyncio.run(program(inner)) == frames(600)[-3:]
        inner.finish()


def test_received_frames_are_as_a_burst() -> None:
    np = pytest.importorskip("numpy")
    three = [b"a" * 60, b"b" * 64, b"c" * 100]
    burst = Frames(three)
    assert (len(burst), burst.tobytes()) == (3, three)
    assert [bytes(frame) for frame in burst[1:]] == three[1:]
    assert bytes(burst[-1]) == three[2]
    with pytest.raises(IndexError):
        _ = burst[3]
    assert burst.lengths.tolist() == [60, 64, 100]
    assert burst.data.shape == (3, 2048)
    assert np.asarray(burst.data)[1, 63] == ord("b")
    burst[0][:2] = b"zz"
    headers = burst.headers(62)
    assert headers.shape == (3, 62)
    assert bytes(headers[0]) == b"zz" + b"a" * 58 + b"\0\0"
    headers[:, 0] = ord("y")
    burst.put_headers(headers)
    assert [frame[:2] for frame in burst.tobytes()] == [b"yz", b"yb", b"yc"]
    assert list(map(len, burst)) == [60, 64, 100]
    burst.release()
    assert len(burst) == 0
    with pytest.raises(BufferError):
        _ = burst.data


def all_came(port: virtnic.Port, counts: dict[str, int]) -> bool:
    """Whether each request that got through was answered, and each answer has come or not."""
    waiting = counts["tx_waiting"] + counts["rx_waiting"]
    return waiting == 0 and counts["rx_seen"] == port.stats()["tx_packets"]


def test_on_a_real_port(port: virtnic.Port) -> None:
    """The gateway answers every request that gets through, through the same bad wire."""
    faulty = FaultyPort(port, seed=11, drop=0.3, duplicate=0.2, reorder=0.2)
    replies: list[bool] = []
    stop = threading.Event()

    def receive() -> None:
        while not stop.is_set():
            replies.extend(is_arp_reply(frame) for frame in faulty.recv(64, timeout=0.1))

    receiver = threading.Thread(target=receive)
    receiver.start()
    for _ in range(200):
        assert faulty.send([arp_request(port.mac)]) == 1
    faulty.flush()
    assert eventually(lambda: all_came(port, faulty.faults()))
    stop.set()
    receiver.join()
    counts = faulty.faults()
    assert balanced(counts)
    assert counts["tx_waiting"] == counts["rx_waiting"] == 0
    assert port.stats()["tx_packets"] == counts["tx_passed"]
    assert port.stats()["rx_packets"] == counts["rx_seen"] == counts["tx_passed"]
    assert len(replies) == counts["rx_passed"]
    assert all(replies)


def test_a_burst_is_moved(port: virtnic.Port) -> None:
    faulty = FaultyPort(port)
    port.send([arp_request(port.mac)])
    burst = port.recv(timeout=20.0)
    assert len(burst) == 1
    assert faulty.send(burst) == 1
    assert len(burst) == 0
