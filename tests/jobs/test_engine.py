"""Loops in the Rust core: forward, reflect, generate, drop, run."""

import ctypes
import dataclasses
import struct
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import virtnic
from peers.netns import Netns, PingResult
from peers.ring_backend import RingBackend
from support.frames import mac_bytes, number_of, numbered
from support.waiting import pause
from virtnic import _native
from virtnic.loops import make_frame, parse_rate
from virtnic.memory import parse_size

needs_kernel = pytest.mark.needs("qemu", "netns")


@pytest.fixture
def two_kernels(qemu_command: str) -> Iterator[tuple[Netns, Netns, virtnic.Port, virtnic.Port]]:
    """Two namespaces, each with a QEMU and a port of its own, all on one memory."""
    memory = virtnic.Memory("32M")
    with (
        Netns(address="10.99.0.1/24") as left,
        Netns(address="10.99.0.2/24") as right,
        virtnic.open(left.netdev, memory=memory, qemu=left.qemu_command) as a,
        virtnic.open(right.netdev, memory=memory, qemu=right.qemu_command) as b,
    ):
        yield left, right, a, b


@needs_kernel
def test_forward_connects_two_kernels(
    two_kernels: tuple[Netns, Netns, virtnic.Port, virtnic.Port],
) -> None:
    left, right, a, b = two_kernels
    seen: list[virtnic.Result] = []
    with left.start_ping(right.address, 500) as ping:

        def progress(result: virtnic.Result) -> bool:
            seen.append(result)
            return ping.poll() is None

        result = virtnic.forward(a, b, progress=progress, seconds=60)
        assert ping.stdout is not None
        pings = PingResult(ping.stdout.read())
    assert (pings.sent, pings.received) == (500, 500), pings.output
    assert result.sent >= 1000
    assert result.packets == result.sent
    assert result.ring_full == 0
    assert len(seen) > 1
    # No byte was copied: both ports take their buffers from one memory.
    assert a.stats()["tx_copied"] == b.stats()["tx_copied"] == 0


@needs_kernel
def test_forward_copies_between_two_memories(qemu_command: str) -> None:
    with (
        Netns(address="10.99.0.1/24") as left,
        Netns(address="10.99.0.2/24") as right,
        virtnic.open(left.netdev, qemu=left.qemu_command) as a,
        virtnic.open(right.netdev, qemu=right.qemu_command) as b,
        left.start_ping("10.99.0.2", 100) as ping,
    ):
        virtnic.forward(a, b, progress=lambda _: ping.poll() is None, seconds=60)
        assert ping.stdout is not None
        pings = PingResult(ping.stdout.read())
        assert (pings.sent, pings.received) == (100, 100), pings.output
        assert b.stats()["tx_copied"] >= 100


@needs_kernel
def test_bursts_cross_from_one_port_to_another(
    two_kernels: tuple[Netns, Netns, virtnic.Port, virtnic.Port],
) -> None:
    """By hand in Python: a burst received on one port is sent on another without a copy."""
    left, right, a, b = two_kernels
    with left.packet_socket() as source, right.packet_socket() as sink:
        sent = [numbered(left.mac, i, 60 + i) for i in range(500)]
        for frame in sent:
            source.send(frame)
        moved = 0
        while moved < len(sent):
            burst = a.recv(64, timeout=20.0)
            assert burst
            moved += len(burst)
            while burst:
                b.send(burst)
        got: list[bytes] = []
        while len(got) < len(sent):
            frame = sink.recv(4096)
            if number_of(frame) is not None:
                got.append(frame)
    assert got == sent
    assert b.stats()["tx_copied"] == 0


@needs_kernel
@pytest.mark.parametrize("mode", ["io", "mac", "macswap"])
def test_reflect(netns: Netns, mode: str) -> None:
    with virtnic.open(netns.netdev) as port, netns.packet_socket() as raw:
        loop = threading.Thread(
            target=virtnic.reflect, args=(port,), kwargs={"mode": mode, "packets": 200}
        )
        loop.start()
        frame = numbered(netns.mac, 1)
        destination, source = frame[:6], frame[6:12]
        expected = {
            "io": frame,
            "mac": destination + mac_bytes(port.mac) + frame[12:],
            "macswap": source + destination + frame[12:],
        }[mode]
        got = 0
        for _ in range(200):
            raw.send(frame)
            while raw.recv(4096, 0) != expected:
                pass
            got += 1
        loop.join(10.0)
        assert not loop.is_alive()
    assert got == 200


@needs_kernel
def test_generate_and_count(netns: Netns) -> None:
    with virtnic.open(netns.netdev) as port:
        frames = [numbered(port.mac, i, 60 + 100 * i) for i in range(3)]
        before = netns.statistics()
        result = virtnic.generate(port, frames=frames, packets=3000, seconds=60)
        assert result.sent == result.packets == 3000
        assert result.bytes == 1000 * sum(map(len, frames))
        port.reclaim()
        after = netns.statistics()
        assert after["rx_packets"] - before["rx_packets"] == 3000
        assert after["rx_bytes"] - before["rx_bytes"] == result.bytes
        # A second load, at a rate.
        result = virtnic.generate(port, size=64, rate="10kpps", seconds=0.5)
        assert 0 < result.sent <= 10_000 * result.seconds + 1
    assert port.memory.buffers_free == port.memory.buffers


@needs_kernel
def test_drop(netns: Netns) -> None:
    with virtnic.open(netns.netdev) as port, netns.packet_socket() as raw:
        loop = threading.Thread(target=virtnic.drop, args=(port,), kwargs={"packets": 1000})
        loop.start()
        for i in range(1000):
            raw.send(numbered(netns.mac, i))
        loop.join(10.0)
        assert not loop.is_alive()
        assert port.stats()["rx_packets"] >= 1000


SIGNATURE = ctypes.CFUNCTYPE(
    None, ctypes.POINTER(ctypes.c_void_p), ctypes.POINTER(ctypes.c_uint32), ctypes.c_uint32
)


@needs_kernel
def test_a_function_decides_about_each_frame(netns: Netns) -> None:
    """Every second frame is dropped, every fourth gets a nonsensical verdict, others go back."""
    with virtnic.open(netns.netdev) as port, netns.packet_socket() as raw:

        def decide(packets: list[int], lengths: list[int], count: int) -> None:
            for i in range(count):
                number = number_of(ctypes.string_at(packets[i], 18)) or 0
                if number % 4 == 1:
                    lengths[i] = virtnic.loops.DROP
                elif number % 4 == 3:
                    lengths[i] = virtnic.to_port(lengths[i], 9)
                else:
                    ctypes.memmove(packets[i] + 18, b"seen", 4)

        loop = threading.Thread(
            target=lambda: results.append(
                virtnic.run(port, SIGNATURE(decide), packets=400, seconds=30)
            )
        )
        results: list[virtnic.Result] = []
        loop.start()
        back = []
        for i in range(400):
            raw.send(numbered(netns.mac, i))
            if i % 2 == 0:
                frame = raw.recv(4096)
                while frame[18:22] != b"seen":
                    frame = raw.recv(4096)
                back.append(number_of(frame))
        loop.join(10.0)
        assert not loop.is_alive()
    assert back == list(range(0, 400, 2))
    [result] = results
    assert (result.received, result.sent) == (400, 200)
    assert (result.dropped, result.bad_verdict) == (100, 100)
    assert port.memory.buffers_free == port.memory.buffers


def test_a_function_of_the_wrong_kind() -> None:
    for wrong in (0, 1, 4096, -1):
        with pytest.raises(ValueError, match="function"):
            virtnic.packet_function(wrong)
    data = ctypes.create_string_buffer(16)
    with pytest.raises(ValueError, match="not in executable memory"):
        virtnic.packet_function(ctypes.addressof(data))
    for wrong_type in ("name", None, 1.5, b"code"):
        with pytest.raises(TypeError, match="packet function"):
            virtnic.packet_function(wrong_type)


def test_a_numba_function_is_checked(qemu_command: str) -> None:
    numba = pytest.importorskip("numba")
    with pytest.raises(TypeError, match="signature"):
        virtnic.packet_function(numba.cfunc("int32(int32)")(lambda x: x))

    @virtnic.packet_function
    def swallow(packets, lengths, count):  # type: ignore[no-untyped-def]
        for i in range(count):
            lengths[i] = 0

    with virtnic.open("user") as port:
        assert virtnic.run(port, swallow, seconds=0.1).received == 0


def test_queues_in_use_are_busy(port: virtnic.Port) -> None:
    started = threading.Event()
    stop = threading.Event()

    def progress(_: virtnic.Result) -> bool:
        started.set()
        return not stop.is_set()

    loop = threading.Thread(target=virtnic.reflect, args=(port,), kwargs={"progress": progress})
    loop.start()
    try:
        assert started.wait(20.0)
        for call in (
            lambda: port.recv(1),
            lambda: port.send([b"\0" * 60]),
            lambda: virtnic.drop(port, seconds=1),
        ):
            with pytest.raises(virtnic.PortBusy, match="loop"):
                call()
    finally:
        stop.set()
        loop.join(20.0)
    assert not loop.is_alive()
    assert len(port.recv(1)) == 0


def test_close_ends_a_loop(qemu_command: str) -> None:
    ended: list[BaseException] = []
    with virtnic.open("user") as port:

        def loop() -> None:
            try:
                virtnic.drop(port)
            except virtnic.PortClosed as closed:
                ended.append(closed)

        thread = threading.Thread(target=loop)
        thread.start()
        pause(0.2)
    thread.join(20.0)
    assert not thread.is_alive()
    assert len(ended) == 1


def test_a_failing_progress_function_ends_the_loop(port: virtnic.Port) -> None:
    def progress(_: virtnic.Result) -> bool:
        raise RuntimeError("enough")

    with pytest.raises(RuntimeError, match="enough"):
        virtnic.drop(port, progress=progress)
    assert len(port.recv(1)) == 0


@pytest.mark.needs("qemu")
@pytest.mark.parametrize("backpressure", [None, True, False])
def test_frames_for_a_full_ring_stay_where_they_are_unless_told_otherwise(
    qemu: virtnic.Qemu, scratch: Path, backpressure: bool | None
) -> None:
    """The peer takes nothing. After 0.1 s of that they are dropped: what was held is looked at."""
    how: dict[str, Any] = {} if backpressure is None else {"backpressure": backpressure}
    with (
        RingBackend(scratch / "left") as left,
        RingBackend(scratch / "right") as right,
        qemu.attach(f"vhost-user,path={scratch}/left", queue_size=64) as a,
        qemu.attach(f"vhost-user,path={scratch}/right", queue_size=64) as b,
    ):
        left.wait_up()
        right.wait_up()
        while b.send([numbered(b.mac, 0)]):
            pass
        for number in range(32):
            assert left.deliver(numbered(a.mac, number))
        result = virtnic.forward(
            a, b, seconds=20, progress=lambda now: not (now.held or now.received), **how
        )
    assert result.sent == 0
    if backpressure is False:
        assert result.held == 0
        assert result.ring_full == result.received > 0
    else:
        assert result.held > 0


def test_bad_arguments(port: virtnic.Port) -> None:
    with pytest.raises(ValueError, match="two different ports"):
        virtnic.forward(port, port)
    with pytest.raises(ValueError, match="mode"):
        virtnic.reflect(port, mode="nonsense")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="frames must not be empty"):
        virtnic.generate(port, frames=[], seconds=1)
    with pytest.raises(ValueError, match="frame 1"):
        virtnic.generate(port, frames=[b"x" * 60, b""], seconds=1)
    for size in (63, 100_000, "huge"):
        with pytest.raises(ValueError, match="imix"):
            virtnic.generate(port, size=size, seconds=1)  # type: ignore[arg-type]
    for rate in (0, -1.0, "fast", "10 carts", float("inf"), float("nan")):
        with pytest.raises(ValueError, match="rate"):
            virtnic.generate(port, rate=rate, seconds=1)
    with pytest.raises(ValueError, match="packets"):
        virtnic.drop(port, packets=-1)
    with pytest.raises(ValueError, match="seconds"):
        virtnic.drop(port, seconds=-1)


def test_rates() -> None:
    assert parse_rate("10Mpps", 60) == 10e6
    assert parse_rate("1.5kpps", 60) == 1500
    assert parse_rate("480bps", 60) == 1.0
    assert parse_rate(7, 60) == 7.0


@pytest.mark.parametrize(
    ("text", "pps"),
    [
        ("1e6", 1e6),
        ("10", 10),
        ("10k", 10e3),
        ("2.5 Mpps", 2.5e6),
        ("10kp/s", 10e3),
        ("10 packets/s", 10),
        ("1_000pps", 1000),
        ("1Gbps", 1e9 / 480),
        ("1gbps", 1e9 / 480),
        ("1GBPS", 1e9 / 480),
        ("1Gbit/s", 1e9 / 480),
        ("1 Gb/s", 1e9 / 480),
        ("1e9bps", 1e9 / 480),
        ("100Mbit/s", 1e8 / 480),
        ("1Gibit/s", (1 << 30) / 480),
        ("60MB/s", 1e6),
        ("60MBps", 1e6),
        ("60 Mbytes/s", 1e6),
    ],
)
def test_a_rate_in_any_usual_spelling(text: str, pps: float) -> None:
    assert parse_rate(text, 60) == pytest.approx(pps)


@pytest.mark.parametrize("text", ["", "10 pigeons", "-1", "0", "1Gb", "nan", "1e999", "1ps"])
def test_what_is_no_rate(text: str) -> None:
    with pytest.raises(ValueError, match="the rate must be"):
        parse_rate(text, 60)


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("64M", 64 << 20),
        ("64m", 64 << 20),
        ("64MB", 64 << 20),
        ("64 MiB", 64 << 20),
        ("64Mi", 64 << 20),
        ("1.5G", 3 << 29),
        ("65536", 65536),
        ("64K", 65536),
        ("64KiB", 65536),
        ("0x10000", 65536),
        ("1e6", 1_000_000),
        ("1T", 1 << 40),
        (" 4096 bytes ", 4096),
    ],
)
def test_a_size_in_any_usual_spelling(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize(
    "size",
    ["1e400", "9999999999T", 1 << 64, "", "M", "-64M", "64X", "1.5", "0", 0, -1, True, 1.5, None],
)
def test_what_is_no_size(size: Any) -> None:
    with pytest.raises(ValueError, match="the size must be"):
        parse_size(size)


def test_a_frame_is_made_as_it_is_wanted() -> None:
    frame = make_frame(
        100,
        source="52-54-00-00-00-01",
        destination="525400000002",
        source_ip="10.0.0.1",
        destination_ip="10.0.0.2",
        source_port=1234,
        destination_port=5001,
        vlan=7,
    )
    assert len(frame) == 100
    assert frame[:18].hex() == "52540000000252540000000181000007" + "0800"
    assert (frame[30:34], frame[34:38]) == (b"\x0a\0\0\1", b"\x0a\0\0\2")
    assert struct.unpack("!4H", frame[38:46]) == (1234, 5001, 62, 0)
    assert sum(struct.unpack("!10H", frame[18:38])) % 0xFFFF == 0
    for wrong in ({"vlan": 4095}, {"source_port": -1}, {"source": "x"}, {"source_ip": "x"}):
        with pytest.raises(ValueError, match=r"VLAN|port|MAC|IPv4 or IPv6"):
            make_frame(100, **wrong)


def test_a_rate_in_bits_counts_the_checksum(
    port: virtnic.Port, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A frame of 60 bytes is one of 64 on the wire, as people count."""
    asked = []

    def generate(_port: object, load: object, per_second: float, _until: object) -> dict[str, Any]:
        asked.append(per_second)
        names = [field.name for field in dataclasses.fields(virtnic.Result)]
        return dict.fromkeys(names, 0)

    monkeypatch.setattr(_native, "generate", generate)
    virtnic.generate(port, rate="512kbps", seconds=0)
    virtnic.generate(port, frames=[bytes(124), bytes(252)], rate="192kB/s", seconds=0)
    assert asked == [1000.0, 1000.0]


@pytest.mark.parametrize("payload", [b"", b"x", b"hello, world"])
@pytest.mark.parametrize("vlan", [None, 7])
def test_made_frames_over_ipv6(payload: bytes, vlan: int | None) -> None:
    frame = make_frame(None, source_ip="2001:db8::1", vlan=vlan, payload=payload)
    tag = 0 if vlan is None else 4
    assert len(frame) == max(60, 62 + tag + len(payload))
    packet = frame[14 + tag :]
    assert packet[8:40].hex() == "20010db8" + "0" * 23 + "1" + "20010002" + "0" * 23 + "2"
    assert packet[48:] == payload
    (length,) = struct.unpack("!H", packet[4:6])
    assert length == 8 + len(payload)
    pseudo = packet[8:40] + struct.pack("!I4B", length, 0, 0, 0, 17) + packet[40:]
    words = struct.unpack(f"!{(len(pseudo) + 1) // 2}H", pseudo + b"\0" * (len(pseudo) % 2))
    assert sum(words) % 0xFFFF == 0


def test_a_payload_that_does_not_fit() -> None:
    with pytest.raises(ValueError, match="a payload of 30 bytes makes a frame of 72 bytes"):
        make_frame(60, payload=bytes(30))
    with pytest.raises(ValueError, match="not both IPv4 or both IPv6"):
        make_frame(100, source_ip="10.0.0.1", destination_ip="::1")


def test_made_frames_are_valid_udp() -> None:
    frame = make_frame(60, source="52:54:00:00:00:01")
    assert len(frame) == 60
    header = frame[14:34]
    total = sum(int.from_bytes(header[i : i + 2], "big") for i in range(0, 20, 2))
    assert (total & 0xFFFF) + (total >> 16) == 0xFFFF
    with pytest.raises(ValueError, match="42"):
        make_frame(41)
