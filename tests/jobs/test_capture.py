"""Captures: written, read and replayed, with the kernel behind a TAP device as the peer."""

import gzip
import os
import random
import re
import resource
import shutil
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import virtnic
from captures import libpcap
from peers.netns import Netns
from support.frames import number_of, numbered
from support.program import running, virtnic_json
from support.traffic import settle
from support.waiting import eventually
from virtnic import capture

pytestmark = pytest.mark.needs("qemu")
needs_kernel = pytest.mark.needs("netns")


@pytest.fixture
def folder(scratch: Path) -> Iterator[Path]:
    """A directory for captures."""
    path = scratch / "captures"
    path.mkdir()
    yield path
    shutil.rmtree(path)


def small() -> virtnic.Memory:
    """Memory enough for a port."""
    return virtnic.Memory("8M", hugepages=None, jumbo_buffers=8)


@pytest.fixture
def tap(netns: Netns) -> Iterator[virtnic.Port]:
    """A port with the kernel behind it."""
    with virtnic.open(netns.netdev, memory=small()) as port:
        port.wait_ready()
        yield port


def pcap(*frames: bytes, order: str = "<", magic: int = 0xA1B2C3D4, link: int = 1) -> bytes:
    """Make a classic capture in which frame n has the time n seconds and n units."""
    head = struct.pack(order + "IHHiIII", magic, 2, 4, 0, 0, 65535, link)
    return head + b"".join(
        struct.pack(order + "IIII", n, n, len(frame), len(frame)) + frame
        for n, frame in enumerate(frames)
    )


def statistics(file: Path) -> list[dict[int, int]]:
    """Return the options of the Interface Statistics Blocks (draft-ietf-opsawg-pcapng, 4.6)."""
    data, at, found = file.read_bytes(), 0, []
    while at < len(data):
        kind, length = struct.unpack_from("II", data, at)
        assert struct.unpack_from("I", data, at + length - 4) == (length,)
        if kind == 5:
            options, here = {}, at + 20
            while struct.unpack_from("H", data, here) != (0,):
                code, size = struct.unpack_from("HH", data, here)
                options[code] = int.from_bytes(data[here + 4 : here + 4 + size], "little")
                here += 4 + size
            found.append(options)
        at += length
    return found


def as_libpcap_reads(file: Path) -> list[tuple[int, int, bytes]]:
    return [(record.timestamp, record.length, record.frame) for record in libpcap.read(file)]


def as_we_read(file: Path) -> list[tuple[int | None, int, bytes]]:
    return [(each.timestamp, each.length, each.frame) for each in capture.read(file)]


@needs_kernel
def test_all_that_passes_is_in_the_file(tap: virtnic.Port, netns: Netns, folder: Path) -> None:
    """Both ways, byte for byte, with the time and the direction; and libpcap reads the same."""
    file = folder / "run.pcapng"
    sent = [numbered(tap.mac, number, 60 + number * 7) for number in range(200)]
    sent.append(numbered(tap.mac, 999, 9000))
    answers = [numbered(netns.mac, number, 100) for number in range(50)]
    with netns.packet_socket() as raw, capture.Writer(file, tap, comment="a test") as writer:
        writer.comment("the first")
        before = time.time_ns()
        tap.send_all(sent)
        for frame in answers:
            raw.send(frame)
        got: list[bytes] = []
        while len(got) < len(answers):
            got += tap.recv(32, timeout=20.0).tobytes()
        after = time.time_ns()
    counts = writer.counts
    assert (counts.seen, counts.written, counts.dropped) == (251, 251, 0)
    assert counts.bytes == file.stat().st_size
    found = list(capture.read(file))
    assert [each.frame for each in found if each.direction == "sent"] == sent
    assert [each.frame for each in found if each.direction == "received"] == answers
    assert [each.comment for each in found] == ["the first", *[None] * 250]
    times = [each.timestamp for each in found if each.timestamp is not None]
    assert times == sorted(times)
    assert before <= times[0]
    assert times[-1] <= after
    assert as_we_read(file) == as_libpcap_reads(file)
    assert b"a test" in file.read_bytes()[:100]
    (totals,) = statistics(file)
    assert {code: totals[code] for code in (4, 5, 6, 8)} == {4: 251, 5: 0, 6: 251, 8: 251}


def test_what_loops_move_between_two_ports_is_captured(qemu_command: str, folder: Path) -> None:
    """Each port is an interface: a frame was received by one and sent by the other."""
    file = folder / "run.pcapng"
    with virtnic.Qemu(memory=small()) as qemu:
        ends = [qemu.attach(f"hubport,hubid={hub}", mac=f"02:00:00:00:00:0{hub}") for hub in (1, 2)]
        inner = [qemu.attach(f"hubport,hubid={hub}") for hub in (1, 2)]
        for end, port in zip(ends, inner, strict=True):
            settle(end, port)
        frames = [numbered(ends[0].mac, number) for number in range(100)]
        with capture.Writer(file, *inner, names=["left", "right"], snaplen=30):
            ends[0].send_all(frames)
            virtnic.forward(*inner, packets=100, seconds=30)
    found = [(each.interface, each.direction, each.frame) for each in capture.read(file)]
    assert sorted(each for each in found if each[0] == 0) == sorted(
        (0, "received", frame[:30]) for frame in frames
    )
    assert sorted(each for each in found if each[0] == 1) == sorted(
        (1, "sent", frame[:30]) for frame in frames
    )
    assert {each.length for each in capture.read(file)} == {60}
    assert all(name in file.read_bytes() for name in (b"left", b"right"))


@needs_kernel
def test_a_filter_sees_whole_frames(tap: virtnic.Port, folder: Path) -> None:
    """Also what `snaplen` cuts off; and the same filter is there for reading."""
    file = folder / "run.pcapng"
    frames = [numbered(tap.mac, number, 60 + number) for number in range(100)]
    wanted = "ether proto 0x88b5 and ether[59] & 1 = 1"
    with capture.Writer(file, tap, snaplen=20, filter=wanted) as writer:
        tap.send_all(frames)
    expected = [frame for frame in frames if frame[59] & 1]
    assert [each.frame for each in capture.read(file)] == [frame[:20] for frame in expected]
    assert writer.counts.filtered == 100 - len(expected)
    assert [each.length for each in capture.read(file, filter="len < 70")] == [
        len(frame) for frame in expected if len(frame) < 70
    ]
    assert capture.Filter("udp port 53")(bytes(60)) is False
    for wrong in ("udp prot 53", "port 53 and", "\0"):
        with pytest.raises(ValueError, match="filter"):
            capture.Filter(wrong)


def test_without_libpcap_a_filter_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    from virtnic.capture import filters

    monkeypatch.setattr(filters, "_NAMES", ("libnothing.so.0",))
    monkeypatch.setattr("ctypes.util.find_library", lambda _: None)
    filters._libpcap.cache_clear()
    with pytest.raises(FileNotFoundError, match="libpcap, which is not installed"):
        capture.Filter("udp")


@needs_kernel
def test_files_are_rotated(tap: virtnic.Port, folder: Path) -> None:
    """The newest are kept, each complete by itself; together they have the last frames."""
    frames = [numbered(tap.mac, number, 200) for number in range(200)]
    with capture.Writer(folder / "run.pcapng", tap, rotate=("8K", 3)) as writer:
        tap.send_all(frames)
    files = sorted(folder.iterdir())
    assert writer.counts.files > 3
    assert [file.name for file in files] == [
        f"run_{writer.counts.files - back:05}.pcapng" for back in (2, 1, 0)
    ]
    kept = [each.frame for file in files for each in capture.read(file)]
    assert kept == frames[-len(kept) :]
    assert all(as_we_read(file) == as_libpcap_reads(file) for file in files)
    assert statistics(files[-1])[0][8] == 200


def test_a_ring_that_is_full_drops_and_says_so(qemu_command: str, folder: Path) -> None:
    """The writer hangs in a pipe that nobody reads; the port goes on."""
    pipe = folder / "pipe"
    os.mkfifo(pipe)
    with virtnic.open("user", memory=small()) as port:
        reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
        writer = capture.Writer(pipe, port, buffer=1)  # 256 KiB for each queue
        assert virtnic.generate(port, packets=30_000, size=1518).sent == 30_000
        assert writer.counts.seen == 30_000
        assert writer.counts.dropped > 0
        copy = folder / "copy.pcapng"

        def drain() -> None:
            os.set_blocking(reader, True)
            with os.fdopen(reader, "rb") as source, copy.open("wb") as target:
                shutil.copyfileobj(source, target)

        thread = threading.Thread(target=drain)
        thread.start()
        writer.close()
        thread.join()
    counts = writer.counts
    assert counts.seen == counts.written + counts.dropped == 30_000
    assert len(list(capture.read(copy))) == counts.written
    (totals,) = statistics(copy)
    assert (totals[4], totals[5], totals[8]) == (30_000, counts.dropped, counts.written)


FULL = """
import resource, signal, sys, virtnic
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
with virtnic.open("user", hugepages=None) as port:
    resource.setrlimit(resource.RLIMIT_FSIZE, (3 << 20, 3 << 20))
    writer = virtnic.capture.Writer(sys.argv[1], port)
    virtnic.generate(port, packets=20_000, size=1518, rate=200_000)
    try:
        writer.close()
    except OSError as error:
        assert writer.failed
        writer.close()
        port.send([bytes(60)])
        print(writer.counts.written, error)
"""


def test_a_file_that_cannot_grow_ends_the_capture_and_not_the_port(
    qemu_command: str, folder: Path
) -> None:
    """As a full disk does; whole blocks are left."""
    file = folder / "run.pcapng"
    done = subprocess.run(
        [sys.executable, "-c", FULL, file], capture_output=True, text=True, timeout=90, check=False
    )
    assert done.returncode == 0, done.stderr
    assert re.search("writing .*File too large", done.stdout)
    assert 1 << 20 <= file.stat().st_size <= 3 << 20
    assert as_we_read(file) == as_libpcap_reads(file)


FRAMES = [bytes([number] * (20 + number)) for number in range(30)]


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize(("magic", "unit"), [(0xA1B2C3D4, 1000), (0xA1B23C4D, 1)])
@pytest.mark.parametrize("pack", ["plain", "gzip", "zstd"])
def test_classic_captures_are_read(
    folder: Path, order: str, magic: int, unit: int, pack: str
) -> None:
    """Either order of bytes, micro- and nanoseconds, also in several packed parts."""
    data = pcap(*FRAMES, order=order, magic=magic)
    if pack == "gzip":
        data = gzip.compress(data[:500]) + gzip.compress(data[500:])
    elif pack == "zstd":
        data = stored(data[:500]) + stored(data[500:])
    file = folder / "a.pcap"
    file.write_bytes(data)
    found = as_we_read(file)
    assert found == [(n * 10**9 + n * unit, len(f), f) for n, f in enumerate(FRAMES)]


def stored(data: bytes) -> bytes:
    """Return a Zstandard frame with one raw block (RFC 8878, 3.1.1)."""
    assert len(data) < 1 << 17
    head = b"\x28\xb5\x2f\xfd\xa0" + struct.pack("<I", len(data))
    return head + struct.pack("<I", len(data) << 3 | 1)[:3] + data


def block(kind: int, body: bytes, order: str = "<") -> bytes:
    """Make a block of pcapng."""
    length = struct.pack(order + "I", len(body) + 12)
    return struct.pack(order + "I", kind) + length + body + length


def section(order: str = "<") -> bytes:
    return block(0x0A0D0D0A, struct.pack(order + "IHHq", 0x1A2B3C4D, 1, 0, -1), order)


def interface(order: str = "<", options: bytes = b"", link: int = 1) -> bytes:
    return block(1, struct.pack(order + "HHI", link, 0, 0) + options, order)


def packet(units: int, data: bytes, number: int = 0, order: str = "<", held: int = -1) -> bytes:
    size = len(data) if held < 0 else held
    body = struct.pack(order + "IIIII", number, units >> 32, units & 0xFFFFFFFF, size, len(data))
    return block(6, body + data + bytes(-len(data) % 4), order)


@pytest.mark.parametrize("order", ["<", ">"])
def test_pcapng_of_others_is_read(folder: Path, order: str) -> None:
    """Time in any unit and with an offset, several sections and interfaces, simple packets."""

    def resolution(value: int) -> bytes:
        return struct.pack(order + "HHB3x", 9, 1, value)

    offset = struct.pack(order + "HHq", 14, 8, 1000)
    file = folder / "a.pcapng"
    file.write_bytes(
        section(order)
        + interface(order)
        + interface(order, resolution(9) + offset, link=113)
        + interface(order, resolution(0x80 | 10))
        + packet(3_000_001, b"micro", 0, order)
        + packet(7, b"nano", 1, order)
        + packet(1025, b"binary", 2, order)
        + block(3, struct.pack(order + "I", 6) + b"simple\0\0", order)
        + block(0x0BAD, b"1234", order)
        + section(order)
        + interface(order, link=147)
        + packet(5, b"again", 0, order)
    )
    found = [(e.timestamp, e.frame, e.interface, e.link_type) for e in capture.read(file)]
    assert found == [
        (3_000_001_000, b"micro", 0, 1),
        (1_000_000_000_007, b"nano", 1, 113),
        (1_000_976_562, b"binary", 2, 1),
        (None, b"simple", 0, 1),
        (5_000, b"again", 0, 147),
    ]


WHOLE = pcap(*FRAMES)


@pytest.mark.parametrize(
    ("content", "frames", "complaint"),
    [
        (b"", 0, "is empty"),
        (b"\x7fELF" + bytes(5000), 0, "is no capture"),
        (WHOLE[:20], 0, "is no capture"),
        (WHOLE[:-1], 29, "was cut after its first 29 frames"),
        (gzip.compress(WHOLE)[:-30], None, "unpacked|cut"),
        (b"\x1f\x8b" + bytes(100), 0, "unpacked"),
        (b"\x28\xb5\x2f\xfd" + b"\xff" * 100, 0, "unpacked"),
        (pcap() + struct.pack("<IIII", 0, 0, 0xFFFFFFFF, 60) + bytes(60), 0, "cut"),
        (section() + packet(1, b"frame"), 0, "of interface 0, and 0 are described"),
        (section() + interface() + packet(1, b"1234", held=4000), 0, "cut"),
        (section() + interface(options=b"\x09\0\x01\0\x7f\0\0\0"), 0, "units of 10 to the minus"),
        (section() + interface() + block(6, b"1234"), 0, "malformed|cut"),
        (section() + interface() * 65_537, 0, "more than 65536 interfaces"),
    ],
)
def test_what_cannot_be_read_is_told_of(
    folder: Path, content: bytes, frames: int | None, complaint: str
) -> None:
    """After the frames before it."""
    file = folder / "bad.pcap"
    file.write_bytes(content)
    found: list[Any] = []
    with pytest.raises(ValueError, match=complaint):
        found.extend(capture.read(file))
    assert frames is None or len(found) == frames or not found


def test_reading_takes_no_memory_for_lengths_that_are_lies(folder: Path) -> None:
    """A block that says that it has 4 GiB, in a file of 64 MiB, costs 16 MiB at most."""
    file = folder / "bad.pcapng"
    with file.open("wb") as target:
        target.write(section() + interface() + struct.pack("<II", 6, 0xFFFFFFF0))
        target.truncate(64 << 20)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(ValueError, match="malformed"):
        list(capture.read(file))
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 64 << 10


def received(raw: socket.socket, count: int) -> list[bytes]:
    """Return the next numbered frames."""
    got: list[bytes] = []
    while len(got) < count:
        frame = raw.recv(70_000)
        if number_of(frame) is not None:
            got.append(frame)
    return got


@needs_kernel
@pytest.mark.parametrize("speed", [1.0, "max", "2x", "1Gbps"])
def test_a_replay_is_what_was_captured(
    tap: virtnic.Port, netns: Netns, folder: Path, speed: float | str
) -> None:
    """All frames, in order, as often as asked for, not before they are due."""
    file = folder / "run.pcap"
    rng = random.Random(3)
    frames = [numbered(tap.mac, number, rng.randint(60, 1514)) for number in range(100)]
    head = struct.pack("<IHHiIII", 0xA1B2C3D4, 2, 4, 0, 0, 65535, 1)
    records = [struct.pack("<IIII", 7, n * 2000, len(f), len(f)) + f for n, f in enumerate(frames)]
    file.write_bytes(head + b"".join(records))
    with netns.packet_socket() as raw:
        done = capture.replay(tap, file, speed=speed, loop=2)
        assert received(raw, 200) == frames * 2
    assert (done.sent, done.bytes) == (200, 2 * sum(map(len, frames)))
    if speed == 1.0:
        assert done.seconds >= 0.398
    elif speed == "2x":
        assert done.seconds >= 0.199


@needs_kernel
def test_gaps_are_kept(tap: virtnic.Port, folder: Path) -> None:
    """The last frame is not sent before its time, and what is late is counted."""
    file, again = folder / "run.pcap", folder / "again.pcapng"
    frames = [numbered(tap.mac, number) for number in range(300)]
    head = struct.pack("<IHHiIII", 0xA1B23C4D, 2, 4, 0, 0, 65535, 1)
    due = [number * 100_000 + number % 7 * 10_000 for number in range(300)]
    records = [struct.pack("<IIII", 0, at, 60, 60) + f for at, f in zip(due, frames, strict=True)]
    file.write_bytes(head + b"".join(records))
    with capture.Writer(again, tap):
        done = capture.replay(tap, file)
    found = [(each.timestamp, each.frame) for each in capture.read(again)]
    assert [frame for _, frame in found] == frames
    assert done.seconds >= due[-1] / 1e9
    assert 0 <= done.late <= 300
    assert (done.latest > 0) == (done.late > 0)


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (pcap(FRAMES[0], link=113), "frame 0 has link type 113"),
        (pcap(bytes(100_000)), "frame 0 cannot be sent: .*the largest buffer holds"),
        (WHOLE[:-1], "cut after its first 29"),
        (pcap(), "has no frames"),
        (section() + interface() + packet(1, bytes(60), held=60)[:-4] + b"\x60\0\0\0", "malformed"),
        (WHOLE[:24] + struct.pack("<IIII", 0, 0, 20, 60) + bytes(20), "20 of the 60 bytes"),
    ],
)
def test_what_cannot_be_replayed_is_told_of(
    qemu_command: str, folder: Path, content: bytes, complaint: str
) -> None:
    file = folder / "bad.pcap"
    file.write_bytes(content)
    with virtnic.open("user", memory=small()) as port:
        with pytest.raises(ValueError, match=complaint):
            capture.replay(port, file, speed="max")
        for wrong in (0, -1.0, float("nan"), "fast", "0x"):
            with pytest.raises(ValueError, match=r"speed|rate"):
                capture.replay(port, file, speed=wrong)
        with pytest.raises(ValueError, match="loop must be 1 or more"):
            capture.replay(port, file, loop=0)


def test_a_replay_ends_with_its_port_and_when_it_is_told_to(
    qemu_command: str, folder: Path
) -> None:
    file = folder / "run.pcap"
    file.write_bytes(pcap(*FRAMES))
    with virtnic.open("user", memory=small()) as port:
        done = capture.replay(port, file, loop=None, speed="max", packets=1000)
        assert done.sent == 1000
        calls: list[Any] = []

        def once(result: virtnic.loops.Result) -> bool:
            calls.append(result)
            return False

        capture.replay(port, file, progress=once)
        assert len(calls) == 1
        timer = threading.Timer(0.2, port.close)
        timer.start()
        with pytest.raises(virtnic.PortClosed):
            capture.replay(port, file, loop=None)
        timer.join()


@needs_kernel
def test_ctrl_c_while_nobody_reads_a_pipe(tap: virtnic.Port, folder: Path) -> None:
    pipe = folder / "pipe"
    os.mkfifo(pipe)
    interrupt = threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGINT))
    # Ends a wait that is deaf to signals.
    end = threading.Timer(20, lambda: os.close(os.open(pipe, os.O_RDWR)))
    interrupt.start()
    end.start()
    try:
        with pytest.raises(KeyboardInterrupt):
            capture.Writer(pipe, tap)
        assert end.is_alive()
    finally:
        end.cancel()


@needs_kernel
def test_pipes(tap: virtnic.Port, folder: Path) -> None:
    """A pipe can be written and read, but not replayed, which reads its file more than once."""
    pipe, file = folder / "pipe", folder / "file"
    file.write_bytes(pcap(*(bytes([number]) * 60 for number in range(2))))
    os.mkfifo(pipe)
    writing = threading.Thread(target=lambda: pipe.write_bytes(file.read_bytes()))
    writing.start()
    assert [frame[0] for _, frame in capture.read(pipe)] == [0, 1]
    writing.join()
    with pytest.raises(ValueError, match="is a pipe"):
        capture.replay(tap, pipe)
    command = [sys.executable, "-m", "virtnic.cli", "capture", "--port", "user", "-w"]
    for name in ("-", "/dev/stdout"):
        done = subprocess.run([*command, name], check=False, capture_output=True, text=True)
        assert done.returncode == 2
        assert "standard output" in done.stderr


@needs_kernel
def test_the_commands(netns: Netns, folder: Path) -> None:
    """What `capture` wrote is sent by `replay`."""
    file = folder / "run.pcapng"
    words = ["capture", "--port", netns.netdev, "-w", str(file), "-s", "64", "--comment", "a test"]
    with running(*words, "-f", "ether proto 0x88b5", "--interval", "0") as process:
        assert process.stdout is not None
        assert process.stdout.readline().startswith("CAPTURE tap")
        with netns.packet_socket() as raw:
            for number in range(20):
                raw.send(numbered(netns.mac, number, 100))
        statistics = f"/sys/class/net/{netns.tap}/statistics/tx_packets"
        assert eventually(lambda: int(netns.run("cat", statistics)) >= 20)
        assert eventually(lambda: file.stat().st_size > 20 * 100)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=30)
    assert process.returncode == 0, out + err
    assert re.search("20 of .* 0 dropped because the file was too slow", out)
    assert [number_of(each.frame) for each in capture.read(file)] == list(range(20))

    words = ["replay", "--port", netns.netdev, str(file), "--speed", "10kpps", "--loop", "3"]
    with netns.packet_socket() as raw:
        said = virtnic_json(*words, status=2)
        assert "64 of the 100 bytes of frame 0" in said["error"]["message"]
        said = virtnic_json(*words, "--truncated")
        assert [number_of(frame) for frame in received(raw, 60)] == [*range(20)] * 3
    assert (said["sent"], said["speed"], said["file"]) == (60, "10kpps", str(file))
    said = virtnic_json("capture", "--port", "user", "-w", str(file), "-f", "nonsense", status=2)
    assert "'nonsense' is wrong" in said["error"]["message"]
