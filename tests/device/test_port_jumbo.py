"""Frames longer than a normal buffer: merged when received, contiguous when sent."""

import threading
import time
from collections.abc import Callable
from typing import Any

import pytest

import virtnic
from peers.netns import Netns
from peers.testpmd import Testpmd
from support.frames import number_of, numbered
from support.negotiated import accepted
from support.waiting import eventually
from virtnic import _native
from virtnic.nic.options import Interrupts, jumbo_size, merge_features
from virtnic.qemu import parse

pytestmark = pytest.mark.needs("qemu", "netns")

MTU = 9000
#: The longest Ethernet frame of that MTU.
LONGEST = MTU + 14
#: Every kind of length: short, around one and several buffers of 2,048 bytes, the longest.
LENGTHS = [
    *range(60, LONGEST, 61),
    *(n * 2060 - 12 + d for n in (1, 2, 3, 4) for d in (-1, 0, 1)),
    2048,
    2049,
    LONGEST,
]


@pytest.fixture(name="jumbo_netns")
def _jumbo_netns(netns: Netns) -> Netns:
    """A namespace whose TAP has an MTU of 9,000."""
    netns.run("ip", "link", "set", netns.tap, "mtu", str(MTU))
    return netns


def all_free(memory: _native.Memory) -> bool:
    """Whether no buffer is missing."""
    free = (memory.buffers_free, memory.jumbo_buffers_free)
    return free == (memory.buffers, memory.jumbo_buffers)


def receive(port: virtnic.Port, count: int) -> list[bytes]:
    """Return the next numbered frames, fewer when none comes for a while."""
    got: list[bytes] = []
    while len(got) < count:
        burst = port.recv(64, timeout=20.0)
        if not burst:
            break
        got.extend(frame for frame in burst.tobytes() if number_of(frame) is not None)
    return got


@pytest.mark.parametrize("interrupts", ["msix", "none"])
@pytest.mark.parametrize("how", ["insisted on", "needed by the MTU"])
def test_frames_of_every_length_both_ways(
    jumbo_netns: Netns, interrupts: Interrupts, how: str
) -> None:
    """60 to 9,014 bytes between us and the kernel, byte for byte."""
    options = (
        {"features": {"MRG_RXBUF": True}}
        if how == "insisted on"
        else {"properties": {"host_mtu": MTU}}
    )
    with (
        virtnic.open(jumbo_netns.netdev, interrupts=interrupts, **options) as port,
        jumbo_netns.packet_socket() as raw,
    ):
        assert "MRG_RXBUF" in accepted(port)
        assert port.mtu == (1500 if how == "insisted on" else MTU)
        sent = [numbered(jumbo_netns.mac, i, length) for i, length in enumerate(LENGTHS)]
        got: list[bytes] = []
        thread = threading.Thread(target=lambda: got.extend(receive(port, len(sent))))
        thread.start()
        for frame in sent:
            raw.send(frame)
        thread.join()
        assert [len(frame) for frame in got] == LENGTHS
        assert got == sent
        stats = port.stats()
        dropped = {"rx_no_buffer", "rx_bad_chain", "rx_bad_length"}
        assert {name: stats[name] for name in dropped} == dict.fromkeys(dropped, 0)
        assert stats["rx_bytes"] >= sum(LENGTHS)

        sent = [numbered(port.mac, i, length) for i, length in enumerate(LENGTHS)]
        got = []
        at = 0
        while len(got) < len(sent):
            at += port.send(sent[at : at + 16])
            while len(got) < at:
                frame = raw.recv(1 << 16)
                if number_of(frame) is not None:
                    got.append(frame)
        assert got == sent
        memory = port.memory
    assert all_free(memory)


def test_a_received_jumbo_frame_is_one_view(jumbo_netns: Netns) -> None:
    """It is a memoryview as any other, and is sent on without a copy."""
    with (
        virtnic.open(jumbo_netns.netdev, features={"MRG_RXBUF": True}) as port,
        jumbo_netns.packet_socket() as raw,
    ):
        memory = port.memory
        raw.send(numbered(jumbo_netns.mac, 1, LONGEST))
        burst = port.recv(1, timeout=20.0)
        view = burst[0]
        assert (len(view), view.nbytes, view.contiguous) == (LONGEST, LONGEST, True)
        assert bytes(view) == numbered(jumbo_netns.mac, 1, LONGEST)
        assert memory.jumbo_buffers_free == memory.jumbo_buffers - 1
        view[:12] = bytes(view[6:12]) + bytes(view[:6])
        sent = bytes(view)
        # While a view is alive the frame is copied.
        assert port.send(burst) == 1
        assert port.stats()["tx_copied"] == 1
        assert next(f for f in iter(lambda: raw.recv(1 << 16), None) if number_of(f) == 1) == sent
        view.release()

        raw.send(numbered(jumbo_netns.mac, 2, LONGEST))
        assert port.send(port.recv(1, timeout=20.0)) == 1
        assert port.stats()["tx_copied"] == 1
        assert next(f for f in iter(lambda: raw.recv(1 << 16), None) if number_of(f) == 2)
        del burst
    assert all_free(memory)


def test_jumbo_frames_as_rows(jumbo_netns: Netns) -> None:
    """``data`` shows whole jumbo buffers."""
    with (
        virtnic.open(jumbo_netns.netdev, features={"MRG_RXBUF": True}) as port,
        jumbo_netns.packet_socket() as raw,
    ):
        memory = port.memory
        sent = [numbered(jumbo_netns.mac, number, 3000 + number) for number in range(3)]
        for frame in sent:
            raw.send(frame)
        bursts = [port.recv(1, timeout=20.0) for _ in sent]
        for frame, burst in zip(sent, bursts, strict=True):
            data = burst.data
            assert data.shape == (1, memory.largest_frame)
            assert bytes(data)[: len(frame)] == frame
            assert burst.lengths[0] == len(frame)
            data.release()
        del bursts, burst
    assert all_free(memory)


def test_many_more_jumbo_frames_than_jumbo_buffers(jumbo_netns: Netns) -> None:
    """Sent buffers come back although the ring has room for more, in both directions."""
    total = 500
    memory = virtnic.Memory("32M", jumbo_buffers=4)
    with (
        virtnic.Qemu(memory=memory) as qemu,
        qemu.attach(jumbo_netns.netdev, features={"MRG_RXBUF": True}) as port,
        jumbo_netns.packet_socket() as raw,
    ):
        frames = [numbered(port.mac, i, 9000) for i in range(total)]
        at = 0
        got: list[bytes] = []
        while len(got) < total:
            queued = port.send(frames[at : at + 32])
            assert queued <= 4
            at += queued
            while len(got) < at:
                frame = raw.recv(1 << 16)
                if number_of(frame) is not None:
                    got.append(frame)
        assert got == frames
        # Echoed: what the transmit queue has is what the receive queue needs.
        for number in range(total):
            raw.send(numbered(jumbo_netns.mac, number, 9000))
            burst = port.recv(64, timeout=20.0)
            while [number_of(frame) for frame in burst] != [number]:
                assert len(burst) > 0, f"frame {number} did not come"
                burst = port.recv(64, timeout=20.0)
            assert port.send(burst) == 1
            while number_of(raw.recv(1 << 16)) != number:
                pass
        assert port.stats()["rx_no_buffer"] == 0
    assert all_free(memory)


def test_no_jumbo_buffer_is_free(jumbo_netns: Netns) -> None:
    """Frames that need one are dropped and counted; others pass."""
    memory = virtnic.Memory("32M", jumbo_buffers=2)
    with (
        virtnic.Qemu(memory=memory) as qemu,
        qemu.attach(jumbo_netns.netdev, features={"MRG_RXBUF": True}) as port,
        jumbo_netns.packet_socket() as raw,
    ):
        for number in range(4):
            raw.send(numbered(jumbo_netns.mac, number, 5000))
            raw.send(numbered(jumbo_netns.mac, number + 10, 100))
        kept = []
        numbers: list[int] = []
        while len(numbers) < 6:
            burst = port.recv(64, timeout=20.0)
            assert len(burst) > 0
            numbers += [n for frame in burst if (n := number_of(frame)) is not None]
            kept.append(burst)
        assert numbers == [0, 10, 1, 11, 12, 13]
        assert port.stats()["rx_no_buffer"] == 2
        assert memory.jumbo_buffers_free == 0
        long = numbered(port.mac, 7, 5000)
        assert port.send([long[:60], long, long[:60]]) == 1
        assert port.stats()["tx_no_buffer"] == 1
        for burst in kept:
            burst.release()
        assert port.send([long]) == 1
    assert all_free(memory)


def test_a_loop_reflects_jumbo_frames(jumbo_netns: Netns) -> None:
    """The engine's loops, too, get sent jumbo buffers back."""
    memory = virtnic.Memory("32M", jumbo_buffers=2)
    total = 100
    with (
        virtnic.Qemu(memory=memory) as qemu,
        qemu.attach(jumbo_netns.netdev, features={"MRG_RXBUF": True}) as port,
        jumbo_netns.packet_socket() as raw,
    ):
        echoed: list[int] = []

        def play() -> None:
            for number in range(total):
                raw.send(numbered(jumbo_netns.mac, number, 9000))
                while (back := number_of(raw.recv(1 << 16))) != number:
                    assert back is None
                echoed.append(number)

        thread = threading.Thread(target=play)
        thread.start()
        result = virtnic.reflect(port, seconds=20, packets=total)
        thread.join()
    assert result.packets == total
    assert echoed == list(range(total))
    assert all_free(memory)


def test_the_longest_frame_of_all(netns: Netns) -> None:
    """64 KiB in one frame, as segmentation offloads make them."""
    # The kernel takes no longer MTU on a TAP: 65,521 with its Ethernet header.
    netns.run("ip", "link", "set", netns.tap, "mtu", "65521")
    length = 65535
    with (
        virtnic.open(netns.netdev, features={"MRG_RXBUF": True}) as port,
        netns.packet_socket() as raw,
    ):
        assert port.memory.largest_frame >= 65550
        raw.send(numbered(netns.mac, 1, length))
        assert receive(port, 1) == [numbered(netns.mac, 1, length)]
        sent = numbered(port.mac, 2, length)
        assert port.send([sent]) == 1
        assert next(f for f in iter(lambda: raw.recv(1 << 17), None) if number_of(f) == 2) == sent


def test_an_mtu_that_no_buffer_holds(jumbo_netns: Netns) -> None:
    """Without jumbo buffers, or with merging refused."""
    mtu = {"host_mtu": MTU}
    with (
        virtnic.Qemu(memory=virtnic.Memory("32M", jumbo_buffers=0)) as qemu,
        pytest.raises(ValueError, match=r"9018 bytes.* no jumbo buffers.*buffer_size"),
    ):
        qemu.attach(jumbo_netns.netdev, properties=mtu)
    with pytest.raises(ValueError, match=r"9018 bytes.*MRG_RXBUF.*buffer_size"):
        virtnic.open(jumbo_netns.netdev, features={"MRG_RXBUF": False}, properties=mtu)
    memory = virtnic.Memory("32M", buffer_size=9018, jumbo_buffers=0)
    assert (memory.jumbo_buffers, memory.largest_frame) == (0, memory.buffer_size)
    with (
        virtnic.Qemu(memory=memory) as qemu,
        qemu.attach(jumbo_netns.netdev, properties=mtu, features={"MRG_RXBUF": False}) as port,
    ):
        assert "MRG_RXBUF" not in accepted(port)


@pytest.mark.parametrize("interrupts", ["msix", "none"])
@pytest.mark.parametrize("legacy", [False, True])
def test_frames_that_no_buffer_holds_are_counted_and_told_of_once(
    jumbo_netns: Netns, caplog: pytest.LogCaptureFixture, legacy: bool, interrupts: Any
) -> None:
    """No drop is silent on a port that was opened without regard to long frames."""

    def told() -> list[str]:
        return [m for m in caplog.messages if "which no buffer holds" in m]

    memory = virtnic.Memory("32M", jumbo_buffers=0)
    with (
        virtnic.Qemu(memory=memory) as qemu,
        qemu.attach(jumbo_netns.netdev, legacy=legacy, interrupts=interrupts) as port,
        jumbo_netns.packet_socket() as raw,
    ):
        for number in range(20):
            raw.send(numbered(jumbo_netns.mac, number, 2049 if number % 2 else 2048))
        assert [number_of(frame) for frame in receive(port, 10)] == list(range(0, 20, 2))
        raw.send(numbered(jumbo_netns.mac, 20, 60))
        assert [number_of(frame) for frame in receive(port, 1)] == [20]
        stats = port.stats()
        assert (stats["rx_bad_length"], stats["rx_no_buffer"], stats["rx_bad_chain"]) == (10, 0, 0)
        if interrupts != "none":
            assert eventually(told)
    (warning,) = told()
    assert "more than 2048 bytes" in warning
    assert "jumbo_buffers" in warning
    assert all_free(memory)


@pytest.mark.needs("testpmd")
def test_echoes_of_an_mtu_of_9000(testpmd: Callable[..., Testpmd], qemu_command: str) -> None:
    """The jumbo buffers of a port's own memory fit its MTU, so that there are enough of them."""
    # Each takes five descriptors: so many find room in the ring even if nobody receives.
    total, window = 3000, 190
    extra = ("--max-pkt-len=9018", "--mbuf-size=10240")
    backend = testpmd(mode="macswap", extra=extra)
    with virtnic.open(
        f"vhost-user,path={backend.sockets[0]}", size="64M", properties={"host_mtu": MTU}
    ) as port:
        assert 9018 <= port.memory.largest_frame < 9200
        port.wait_ready()
        frames = [numbered(port.mac, number, LONGEST) for number in range(total)]
        sent, got = 0, list[int]()
        while len(got) < total:
            sent += port.send(frames[sent : min(len(got) + window, total)])
            burst = port.recv(64, timeout=20.0)
            assert len(burst) > 0, port.stats()
            got += [number for frame in burst if (number := number_of(frame)) is not None]
        assert got == list(range(total))
        assert port.stats()["rx_no_buffer"] == 0


def test_jumbo_buffers_fit_the_mtu_unless_frames_are_segments() -> None:
    mtu = {"host_mtu": MTU}
    assert jumbo_size("vhost-user,path=/x", {"properties": mtu}, 2048) == 9018
    assert jumbo_size("tap", {"properties": mtu, "offload": False}, 2048) == 9018
    for options in ({}, {"offload": True}, {"features": {"GUEST_TSO4": True}}):
        assert jumbo_size("vhost-user,path=/x", {"properties": mtu, **options}, 2048) == (
            None if options else 9018
        )
    assert jumbo_size("tap", {"properties": mtu}, 2048) is None
    assert jumbo_size("vhost-user,path=/x", {}, 2048) is None
    assert jumbo_size("vhost-user,path=/x", {"properties": mtu}, 9018) is None
    with pytest.raises(ValueError, match="more than the 2048 bytes of a common one, not 2000"):
        virtnic.Memory("32M", jumbo_size=2000)


def test_who_merges(jumbo_netns: Netns) -> None:
    """Where QEMU moves the frames, a ring that holds the longest, unless it is refused."""
    with virtnic.Qemu() as qemu:
        for queue_size, features, merges in (
            (0, {}, True),
            (64, {}, True),
            (32, {}, False),
            (0, {"MRG_RXBUF": False}, False),
            (32, {"MRG_RXBUF": True}, True),
        ):
            with qemu.attach(jumbo_netns.netdev, queue_size=queue_size, features=features) as port:
                assert ("MRG_RXBUF" in accepted(port)) is merges
    assert merge_features(parse("tap,ifname=t,vhost=on"), qemu.memory, 256) == {}
    assert merge_features(parse("vhost-user,path=/x"), qemu.memory, 1024) == {}


@pytest.mark.parametrize("count", [-1, 1000, 1 << 40])
def test_more_jumbo_buffers_than_fit(count: int) -> None:
    with pytest.raises((ValueError, OverflowError), match=r"jumbo|negative"):
        virtnic.Memory("32M", jumbo_buffers=count)


def test_generate_jumbo_frames(jumbo_netns: Netns) -> None:
    """Again and again from a few jumbo buffers, which come back; short frames among them."""
    memory = virtnic.Memory("32M", jumbo_buffers=8)
    with virtnic.open(jumbo_netns.netdev, memory=memory) as port:
        jumbo_netns.wait_for_carrier()
        short = numbered(port.mac, 1, 60)
        long = numbered(port.mac, 2, LONGEST)
        for frames, count in (([long], 2000), ([short, long, long], 3000), ([short], 1000)):
            before = jumbo_netns.statistics()
            result = virtnic.generate(port, frames=frames, packets=count, seconds=60)
            assert result.sent == count
            assert result.bytes == count // len(frames) * sum(map(len, frames))
            # What the device still holds comes back when a jumbo buffer is needed.
            assert port.send([long] * 2) == 2
            deadline = time.monotonic() + 10
            while (
                memory.jumbo_buffers_free < memory.jumbo_buffers
                or port.stats()["tx_packets"] > port.stats()["tx_completed"]
            ):
                assert time.monotonic() < deadline, port.stats()
                port.reclaim()
            after = jumbo_netns.statistics()
            assert after["rx_packets"] - before["rx_packets"] == count + 2
            assert after["rx_bytes"] - before["rx_bytes"] == result.bytes + 2 * LONGEST
        with pytest.raises(
            virtnic.MemoryUnavailable, match=r"5 of 5 frames .* longer than 2048 .*\(8 of 8 "
        ):
            virtnic.generate(port, frames=[long] * 5, packets=5)
        with pytest.raises(ValueError, match=f"holds 1 to {memory.largest_frame}"):
            virtnic.generate(port, frames=[bytes(memory.largest_frame + 1)], packets=1)
        result = virtnic.generate(port, size=LONGEST + 4, packets=100, seconds=60)
        assert result.bytes == 100 * LONGEST
        port.reclaim()
    assert all_free(memory)
