"""Extended statistics: every counter compared to the traffic."""

import contextlib
import json
import re
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

import virtnic
from support.frames import numbered
from support.inside import machine_of

OTHER = "02:00:00:00:00:07"
GROUP = "01:00:5e:00:00:fb"
BROADCAST = "ff:ff:ff:ff:ff:ff"
#: The frame check sequence, which is counted and not seen.
FCS = 4
#: Both ends of each class of lengths on the wire, and what a buffer holds at most.
ON_THE_WIRE = [
    24, 63, 64, 65, 127, 128, 255, 256, 511, 512, 1023, 1024, 1518, 1519, 2052,
]  # fmt: skip
LENGTHS = [length - FCS for length in ON_THE_WIRE]
CASTS = {OTHER: "unicast", GROUP: "multicast", BROADCAST: "broadcast"}
SIZES = {
    "undersize": range(64),
    "size_64": range(64, 65),
    "size_65_127": range(65, 128),
    "size_128_255": range(128, 256),
    "size_256_511": range(256, 512),
    "size_512_1023": range(512, 1024),
    "size_1024_1518": range(1024, 1519),
    "size_1519_max": range(1519, 1 << 16),
}


def frames_of_all_kinds(mac: str) -> list[bytes]:
    """Return frames of every length for every kind of destination, each in another number."""
    frames = []
    for i, length in enumerate(LENGTHS):
        for j, destination in enumerate(CASTS):
            frames += [numbered(mac, i, length, destination)] * (1 + i + 3 * j)
    return frames


def classes(frames: list[bytes]) -> dict[str, int]:
    """Count frames as an extended statistic does, from their bytes."""
    counts = dict.fromkeys([*SIZES, *CASTS.values()], 0)
    for frame in frames:
        counts[next(name for name, on_wire in SIZES.items() if len(frame) + FCS in on_wire)] += 1
        counts[CASTS[frame[:6].hex(":")]] += 1
    return {f"{name}_packets": count for name, count in counts.items()}


def counted(port: virtnic.Port, queue: str) -> dict[str, int]:
    """Return the classes that a queue has counted."""
    names = [f"{name}_packets" for name in [*SIZES, *CASTS.values()]]
    stats = port.xstats()
    return {name: stats[f"{queue}_{name}"] for name in names}


class Wire:
    """The peer of a netdev that sends each frame as a UDP datagram: any length passes."""

    def __init__(self) -> None:
        self.socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 8 << 20)
        self.socket.bind(("127.0.0.1", 0))
        self.socket.settimeout(5.0)
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as free:
            free.bind(("127.0.0.1", 0))
            self.qemu = free.getsockname()
        ours, theirs = (f"127.0.0.1:{port}" for _, port in (self.socket.getsockname(), self.qemu))
        self.netdev = f"socket,udp={ours},localaddr={theirs}"

    def send(self, frame: bytes) -> None:
        """Put a frame on the wire, towards the port."""
        self.socket.sendto(frame, self.qemu)

    def recv(self) -> bytes:
        """Take the next frame off the wire."""
        return self.socket.recv(65536)


@pytest.fixture(name="wire")
def _wire() -> Iterator[Wire]:
    wire = Wire()
    with contextlib.closing(wire.socket):
        yield wire


def send_gently(port: virtnic.Port, wire: Wire, frames: list[bytes]) -> list[bytes]:
    """Send frames and return what arrived, with no more in flight than a socket holds."""
    got = []
    for at in range(0, len(frames), 32):
        group = frames[at : at + 32]
        assert port.send_all(group, timeout=5.0) == len(group)
        got += [wire.recv() for _ in group]
    return got


@pytest.mark.needs("qemu")
@pytest.mark.parametrize("ring", ["split", "packed"])
@pytest.mark.parametrize("merge", [False, True])
def test_every_class_in_python(qemu_command: str, wire: Wire, ring: Any, merge: bool) -> None:
    options = {"ring": ring, "statistics": "extended", "features": {"MRG_RXBUF": merge}}
    with virtnic.open(wire.netdev, **options) as port:
        assert port.statistics == "extended"
        frames = frames_of_all_kinds(port.mac)
        got = send_gently(port, wire, frames)
        assert sorted(got) == sorted(frames)
        assert counted(port, "tx_q0") == classes(frames)
        assert counted(port, "rx_q0") == dict.fromkeys(classes(frames), 0)
        received: list[bytes] = []
        for frame in frames:
            wire.send(frame)
            received += port.recv(64, timeout=20.0).tobytes()
        # QEMU lengthens what is shorter than Ethernet allows.
        assert len(received) == len(frames)
        assert counted(port, "rx_q0") == classes(received)
        assert counted(port, "tx_q0") == classes(frames)
        # A burst is counted like frames of ours.
        back: list[bytes] = []
        for frame in frames[:60]:
            wire.send(frame)
            burst = port.recv(64, timeout=20.0)
            back += burst.tobytes()
            assert port.send(burst) == 1
        assert len(back) == 60
        assert counted(port, "tx_q0") == classes(frames + back)


@pytest.mark.needs("qemu")
def test_every_class_in_loops(qemu_command: str, wire: Wire) -> None:
    with virtnic.open(wire.netdev, statistics="extended", buffer_size=4096) as port:
        frames = frames_of_all_kinds(port.mac)
        result: list[virtnic.Result] = []
        loop = threading.Thread(
            target=lambda: result.append(virtnic.reflect(port, mode="io", packets=len(frames)))
        )
        loop.start()
        back = []
        for at in range(0, len(frames), 32):
            for frame in frames[at : at + 32]:
                wire.send(frame)
            back += [wire.recv() for _ in frames[at : at + 32]]
            assert port.xstats()["rx_q0_packets"] >= at  # while the loop has the queues
        loop.join()
        assert result[0].packets == len(back)
        assert counted(port, "rx_q0") == counted(port, "tx_q0") == classes(back)

        # A load that is sent again and again out of the same buffers.
        before = counted(port, "tx_q0")
        load = frames_of_all_kinds(port.mac)[::7]
        total = 10 * len(load)
        sent: list[bytes] = []
        reader = threading.Thread(target=lambda: sent.extend(wire.recv() for _ in range(total)))
        reader.start()
        virtnic.generate(port, frames=load, rate=2000, packets=total)
        reader.join()
        assert sorted(sent) == sorted(load * 10)
        now = counted(port, "tx_q0")
        assert {name: now[name] - before[name] for name in now} == classes(sent)


@pytest.mark.needs("testpmd")
@pytest.mark.parametrize("ring", ["split", "packed"])
def test_each_queue_counts_its_own(
    qemu: virtnic.Qemu, testpmd: Callable[..., Any], ring: Any
) -> None:
    path = testpmd(queues=2, mode="io").sockets[0]
    netdev = f"vhost-user,path={path}"
    with qemu.attach(netdev, queues=2, ring=ring, statistics="extended") as port:
        # What the backend takes at most, and another mixture by each queue.
        usual = [frame for frame in frames_of_all_kinds(port.mac) if 60 <= len(frame) <= 1518]
        by_queue = [usual, usual[::3]]
        for index, frames in enumerate(by_queue):
            queue = port.queue(index)
            got: list[bytes] = []
            for at in range(0, len(frames), 32):
                group = frames[at : at + 32]
                assert queue.send(group) == len(group)
                deadline = time.monotonic() + 20.0
                while len(got) < at + len(group):
                    got += queue.recv(64, timeout=1.0).tobytes()
                    assert time.monotonic() < deadline, (index, len(got))
            assert sorted(got) == sorted(frames)
        stats = port.xstats()
        for index, frames in enumerate(by_queue):
            for way in ("rx", "tx"):
                assert counted(port, f"{way}_q{index}") == classes(frames)
                assert stats[f"{way}_q{index}_packets"] == len(frames)
                assert stats[f"{way}_q{index}_bytes"] == sum(map(len, frames))
        assert stats["rx_packets"] == sum(map(len, by_queue))


@pytest.mark.needs("qemu")
def test_classes_are_there_when_asked_for(qemu_command: str, wire: Wire) -> None:
    with virtnic.open(wire.netdev) as port:
        frame = numbered(port.mac, 1)
        assert port.statistics == "basic"
        send_gently(port, wire, [frame] * 5)
        assert not any("size" in name and "ring" not in name for name in port.xstats())
        assert set(port.stats()) <= set(port.xstats())
        port.set_statistics("extended")
        send_gently(port, wire, [frame] * 7)
        assert port.xstats()["tx_q0_size_64_packets"] == 7
        assert port.xstats()["tx_q0_packets"] == 12
        port.set_statistics("basic")
        send_gently(port, wire, [frame])
        port.set_statistics("extended")
        assert port.xstats()["tx_q0_size_64_packets"] == 7
        with pytest.raises(ValueError, match='must be basic, sizes or extended, not "all"'):
            port.set_statistics("all")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="statistics must be one of"):
        virtnic.open(wire.netdev, statistics="all")  # type: ignore[arg-type]


@pytest.mark.needs("qemu")
def test_lengths_without_destinations(qemu_command: str, wire: Wire) -> None:
    with virtnic.open(wire.netdev, statistics="sizes") as port:
        assert port.statistics == "sizes"
        frames = [numbered(port.mac, 1), b"\xff" * 1000]
        send_gently(port, wire, frames)
        virtnic.generate(port, frames=frames, packets=6)
        sizes = port.xstats()
        assert sizes["tx_q0_size_64_packets"] == sizes["tx_q0_size_512_1023_packets"] == 4
        assert not any("cast" in name for name in sizes)
        port.set_statistics("extended")
        # Destinations were not looked at meanwhile.
        assert port.xstats()["tx_q0_broadcast_packets"] == 0


@pytest.mark.needs("qemu")
@pytest.mark.parametrize("ring", ["split", "packed"])
def test_the_ring_is_seen_to_fill(qemu_command: str, wire: Wire, ring: Any) -> None:
    with virtnic.open(wire.netdev, ring=ring, interrupts="none") as port:
        size = port.queue_size

        def use(way: str) -> tuple[int, int]:
            stats = port.xstats()
            used, free = stats[f"{way}_q0_ring_used"], stats[f"{way}_q0_ring_free"]
            assert used + free == stats[f"{way}_q0_ring_size"] == size
            return used, free

        assert use("rx") == (size, 0)
        assert use("tx") == (0, size)
        # A stopped QEMU takes nothing.
        machine_of(port.qemu).monitor.execute("stop")
        frame = numbered(port.mac, 1)
        assert port.send([frame] * 10) == 10
        assert use("tx") == (10, size - 10)
        assert port.send([frame] * size) == size - 10
        assert use("tx") == (size, 0)
        assert port.xstats()["tx_q0_ring_full"] > 0
        machine_of(port.qemu).monitor.execute("cont")
        deadline = time.monotonic() + 20.0
        while use("tx")[0]:
            port.reclaim()
            assert time.monotonic() < deadline
        assert use("tx") == (0, size)
        # Received frames leave places that are filled again in groups.
        for _ in range(4):
            wire.send(frame)
        got = 0
        while got < 4:
            got += len(port.recv(64, timeout=20.0))
        assert use("rx")[0] == size - 4


@pytest.mark.needs("qemu")
def test_a_snapshot_takes_no_lock(qemu_command: str, wire: Wire) -> None:
    """Also while a loop has the queues."""
    with virtnic.open(wire.netdev, statistics="extended") as port:
        stop = threading.Event()
        loop = threading.Thread(
            target=lambda: virtnic.drop(port, progress=lambda _: not stop.is_set())
        )
        loop.start()
        try:
            wire.send(numbered(port.mac, 1))
            while not port.xstats()["rx_q0_packets"]:
                time.sleep(0.001)
            with pytest.raises(virtnic.PortBusy):
                port.recv()
            for _ in range(300):  # a lock that the loop has would never be had
                port.xstats()
        finally:
            stop.set()
            loop.join()


@pytest.mark.needs("qemu")
def test_commands_print_them(qemu_command: str) -> None:
    argv = [sys.executable, "-m", "virtnic.cli", "generate", "--packets", "100", "--xstats"]
    words = subprocess.run(argv, check=True, capture_output=True, text=True).stdout
    # They are 64 bytes on the wire: 60 and the frame check sequence.
    assert re.search(r"^  tx_q0_size_64_packets +100$", words, re.MULTILINE), words
    said = subprocess.run([*argv, "--json"], check=True, capture_output=True, text=True).stdout
    (port,) = json.loads(said)["ports"]
    assert (
        port["xstats"]["tx_q0_unicast_packets"] + port["xstats"]["tx_q0_broadcast_packets"] == 100
    )
    assert port["counters"].items() <= port["xstats"].items()
