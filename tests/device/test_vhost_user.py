"""Ports on vhost-user backends, end to end (DPDK's testpmd)."""

import select
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

import virtnic
from peers.testpmd import Testpmd
from support.frames import number_of, numbered
from support.traffic import drain, settle
from support.waiting import PROMPT, eventually, pause
from virtnic.nic.options import Interrupts, Notify, Ring

pytestmark = pytest.mark.needs("qemu", "testpmd")

StartTestpmd = Callable[..., Testpmd]

RINGS = pytest.mark.parametrize("ring", ["packed", "split"])
NOTIFY = pytest.mark.parametrize("notify", ["eventfd", "qtest"])
#: Each port of testpmd sends back what it receives, and keeps what came while it was stopped.
LOOP = ("--port-topology=loop", "--no-flush-rx")


def swapped(frame: bytes) -> bytes:
    """Exchange the two addresses."""
    return frame[6:12] + frame[:6] + frame[12:]


def exchange(port: virtnic.Port, frames: list[bytes], in_flight: int) -> list[bytes]:
    """Send frames and receive as many, with a bounded number on the way."""
    got: list[bytes] = []
    sent = 0
    deadline = time.monotonic() + 60.0
    while len(got) < len(frames):
        assert time.monotonic() < deadline, f"{sent} sent, {len(got)} came back: {port.stats()}"
        room = in_flight - (sent - len(got))
        if sent < len(frames) and room:
            sent += port.send(frames[sent : sent + min(room, 64)])
        got += port.recv(256, timeout=0.0 if sent < len(frames) else 1.0).tobytes()
    return got


def drained(port: virtnic.Port) -> int:
    """Receive what is there, and return the total so far."""
    drain(port)
    return port.stats()["rx_packets"]


def in_order(frames: list[bytes]) -> list[bytes]:
    """Sort by number."""
    return sorted(frames, key=lambda frame: number_of(frame) or 0)


def counted(pmd: Testpmd, name: str, expected: int) -> dict[str, int]:
    """Return testpmd's counters, of which it counts some after the frames have left."""
    deadline = time.monotonic() + 20.0
    while (stats := pmd.stats())[name] < expected and time.monotonic() < deadline:
        time.sleep(0.01)
    return stats


def cpu_time(pid: int) -> float:
    """Seconds that all threads of a process have run."""
    tasks = Path(f"/proc/{pid}/task").iterdir()
    return sum(int((task / "schedstat").read_text().split()[0]) for task in tasks) / 1e9


@RINGS
@NOTIFY
@pytest.mark.parametrize("interrupts", ["msix", "none"])
def test_echo(
    qemu_command: str, testpmd: StartTestpmd, ring: Ring, notify: Notify, interrupts: Interrupts
) -> None:
    """Frames of all lengths come back byte for byte, in order; testpmd counted the same."""
    pmd = testpmd()
    netdev = f"vhost-user,path={pmd.sockets[0]}"
    with virtnic.open(netdev, ring=ring, notify=notify, interrupts=interrupts) as port:
        assert port.ring == ring
        assert port.queue_size == 1024
        lengths = range(18, port.memory.buffer_size + 1)
        frames = [numbered(port.mac, i, length) for i, length in enumerate(lengths)]
        assert exchange(port, frames, in_flight=512) == [swapped(frame) for frame in frames]
        port.reclaim()
        ours, theirs = port.stats(), counted(pmd, "TX-packets", len(frames))
        total = sum(map(len, frames))
        assert ours["tx_packets"] == ours["rx_packets"] == len(frames)
        assert ours["tx_bytes"] == ours["rx_bytes"] == total
        assert theirs["RX-packets"] == theirs["TX-packets"] == len(frames)
        assert theirs["RX-bytes"] == theirs["TX-bytes"] == total
        assert len(port.recv(1)) == 0
    assert port.memory.buffers_free == port.memory.buffers


def test_packed_rings_are_chosen_where_they_are_offered(
    qemu_command: str, testpmd: StartTestpmd
) -> None:
    pmd = testpmd()
    with virtnic.open(f"vhost-user,path={pmd.sockets[0]}") as port:
        assert port.ring == "packed"
        assert port.link is True


@RINGS
def test_a_frame_wakes_a_waiting_recv(qemu_command: str, testpmd: StartTestpmd, ring: Ring) -> None:
    """By the backend's own interrupt, without QEMU."""
    pmd = testpmd()
    with virtnic.open(f"vhost-user,path={pmd.sockets[0]}", ring=ring) as port:
        frame = numbered(port.mac, 7)

        def send_to_a_sleeper(sleeps: int) -> None:
            while port.stats()["rx_sleeps"] == sleeps:
                time.sleep(0.01)
            pause(0.25)
            port.send([frame])

        for _ in range(8):
            sender = threading.Thread(
                target=send_to_a_sleeper, args=(port.stats()["rx_sleeps"],), daemon=True
            )
            used = time.thread_time()
            sender.start()
            burst = port.recv(1, timeout=10.0)
            assert burst.tobytes() == [swapped(frame)]
            assert time.thread_time() - used < 0.2, "it polled instead of sleeping"
            sender.join()
            # A frame that arrives just when `recv` looks for signals (every 0.1 s) needs none.
            if port.stats()["rx_interrupts"] == 3:
                break
        assert port.stats()["rx_interrupts"] == 3
        began = time.monotonic()
        assert len(port.recv(1, timeout=0.2)) == 0
        assert 0.2 <= time.monotonic() - began < PROMPT


@RINGS
@NOTIFY
def test_select(qemu_command: str, testpmd: StartTestpmd, ring: Ring, notify: Notify) -> None:
    pmd = testpmd()
    netdev = f"vhost-user,path={pmd.sockets[0]}"
    with virtnic.open(netdev, ring=ring, notify=notify) as port:
        fd = port.fileno()
        for number in range(100):
            assert select.select([fd], [], [], 0.0)[0] == []
            frame = numbered(port.mac, number)
            port.send([frame])
            assert select.select([fd], [], [], 20.0)[0] == [fd]
            assert port.recv(8).tobytes() == [swapped(frame)]
            # The eventfd stays readable until recv finds nothing.
            assert len(port.recv(8)) == 0


@RINGS
def test_qemu_is_idle(qemu_command: str, testpmd: StartTestpmd, ring: Ring) -> None:
    """Neither frames nor interrupts nor kicks cost QEMU a microsecond."""
    pmd = testpmd()
    with virtnic.open(f"vhost-user,path={pmd.sockets[0]}", ring=ring) as port:
        frames = [numbered(port.mac, i) for i in range(256)]
        exchange(port, frames, in_flight=256)
        pid = port.qemu.pid

        def idle() -> bool:
            before = cpu_time(pid)
            for _ in range(40):
                exchange(port, frames, in_flight=256)
            for _ in range(100):
                port.send(frames[:1])
                assert len(port.recv(1, timeout=20.0)) == 1
            return cpu_time(pid) - before < 0.005

        assert eventually(idle)  # once it has done with the device


@RINGS
def test_generate_and_drop(qemu_command: str, testpmd: StartTestpmd, ring: Ring) -> None:
    """100,000 frames each way; what one side counts as sent the other has received."""
    pmd = testpmd(mode="rxonly")
    with virtnic.open(f"vhost-user,path={pmd.sockets[0]}", ring=ring) as port:
        frames = [numbered(port.mac, i, 60 + 10 * i) for i in range(100)]
        result = virtnic.generate(port, frames=frames, packets=100_000, seconds=30)
        assert result.sent == result.packets == 100_000
        deadline = time.monotonic() + 20.0
        while port.stats()["tx_completed"] < 100_000 and time.monotonic() < deadline:
            port.reclaim()
        assert port.stats()["tx_completed"] == port.stats()["tx_packets"] == 100_000
        theirs = counted(pmd, "RX-packets", 100_000)
        assert theirs["RX-packets"] == 100_000
        assert theirs["RX-bytes"] == result.bytes == 1000 * sum(map(len, frames))

        pmd.command("stop")
        pmd.command("set fwd txonly")
        pmd.clear_stats()
        before = port.stats()["rx_packets"]
        pmd.command("start")
        result = virtnic.drop(port, packets=100_000, seconds=30)
        assert result.received == result.packets >= 100_000
        pmd.command("stop")
        drain(port)
        assert eventually(lambda: drained(port) - before == pmd.stats()["TX-packets"])
    assert port.memory.buffers_free == port.memory.buffers


@RINGS
def test_reflect(qemu_command: str, testpmd: StartTestpmd, ring: Ring) -> None:
    """256 frames circulate until 100,000 have passed; none is missing at the end."""
    pmd = testpmd()
    with virtnic.open(f"vhost-user,path={pmd.sockets[0]}", ring=ring) as port:
        frames = [numbered(port.mac, i, 60 + i) for i in range(256)]
        assert port.send(frames) == len(frames)
        result = virtnic.reflect(port, packets=100_000, seconds=30)
        assert result.sent == result.received == result.packets >= 100_000
        assert (result.ring_full, result.dropped) == (0, 0)
        got = drain(port, least=len(frames))
        assert in_order(got) == [swapped(frame) for frame in frames]
        ours = port.stats()
        theirs = counted(pmd, "TX-packets", ours["rx_packets"])
        assert ours["tx_packets"] == ours["rx_packets"] == result.sent + len(frames)
        assert theirs["RX-packets"] == ours["tx_packets"]
        assert theirs["TX-packets"] == ours["rx_packets"]
        assert ours["tx_copied"] == 0


@RINGS
def test_queue_sizes(qemu: virtnic.Qemu, testpmd: StartTestpmd, ring: Ring) -> None:
    sizes = (64, 128, 256, 512, 1024)
    pmd = testpmd(ports=len(sizes), extra=LOOP)
    for path, size in zip(pmd.sockets, sizes, strict=True):
        with qemu.attach(f"vhost-user,path={path}", ring=ring, queue_size=size) as port:
            assert (port.ring, port.queue_size) == (ring, size)
            # Several laps, so that every descriptor is used and the wrap counters turn.
            frames = [numbered(port.mac, i) for i in range(4 * size + 3)]
            got = exchange(port, frames, in_flight=size // 2)
            assert got == [swapped(frame) for frame in frames]
    for size in (100, 2048):
        with pytest.raises((ValueError, virtnic.QemuError), match=r"queue.*size|power of two"):
            qemu.attach(f"vhost-user,path={path}", ring=ring, queue_size=size)
    assert qemu.memory.buffers_free == qemu.memory.buffers


@RINGS
@pytest.mark.parametrize("qemus", [1, 2])
def test_forward_between_two_backends(
    qemu: virtnic.Qemu, testpmd: StartTestpmd, ring: Ring, qemus: int
) -> None:
    """Frames circle through two ports of testpmd and two of ours, and not a byte is copied."""
    pmd = testpmd(ports=2, mode="io")
    left, right = (f"vhost-user,path={path}" for path in pmd.sockets)
    with qemu.attach(left, ring=ring) as a:
        if qemus == 1:
            b = qemu.attach(right, ring=ring)
        else:
            b = virtnic.open(right, ring=ring, memory=qemu.memory)
        with b:
            settle(a, b)
            before = a.stats()["rx_packets"] + b.stats()["rx_packets"]
            frames = [numbered(a.mac, i, 60 + i) for i in range(256)]
            assert a.send(frames) == len(frames)
            result = virtnic.forward(a, b, packets=100_000, seconds=30)
            assert result.packets == result.sent == result.received >= 100_000
            assert result.ring_full == 0
            ours = (a.stats(), b.stats())
            assert ours[0]["tx_copied"] == ours[1]["tx_copied"] == 0
            assert sum(stats["rx_packets"] for stats in ours) - before == result.received
            # What left through one port of testpmd came back by way of the other.
            left_over: list[bytes] = []

            def all_are_there() -> bool:
                left_over.extend(drain(a) + drain(b))
                return len(left_over) >= len(frames)

            assert eventually(all_are_there)
            assert in_order(left_over) == frames
    assert qemu.memory.buffers_free == qemu.memory.buffers


@pytest.mark.parametrize("first", ["testpmd", "port"])
@pytest.mark.parametrize("server", ["on", "off"])
def test_either_side_may_come_first(
    qemu_command: str, testpmd: StartTestpmd, scratch: Path, first: str, server: str
) -> None:
    """Whichever of the two listens, and whichever starts first."""
    path = scratch / "vhu0"
    if first == "testpmd":
        pmd = testpmd(client=server == "on")
    with ThreadPoolExecutor(1) as executor:
        opening = executor.submit(virtnic.open, f"vhost-user,path={path},server={server},wait=20")
        if first == "port":
            pause(0.5)
            assert not opening.done()
            pmd = testpmd(client=server == "on")
        with opening.result(20) as port:
            frames = [numbered(port.mac, i) for i in range(1000)]
            assert exchange(port, frames, in_flight=256) == [swapped(frame) for frame in frames]
            assert counted(pmd, "RX-packets", 1000)["RX-packets"] == 1000
    assert path.exists() is (server == "off")


@RINGS
def test_the_data_path_has_two_directions_at_once(
    qemu_command: str, testpmd: StartTestpmd, ring: Ring
) -> None:
    """One thread sends, another receives."""
    pmd = testpmd()
    with virtnic.open(f"vhost-user,path={pmd.sockets[0]}", ring=ring) as port:
        frames = [numbered(port.mac, i) for i in range(5000)]
        got: list[bytes] = []

        def receive() -> None:
            while len(got) < len(frames) and (burst := port.recv(64, timeout=2.0)):
                got.extend(burst.tobytes())

        receiver = threading.Thread(target=receive)
        receiver.start()
        sent = 0
        while sent < len(frames) and receiver.is_alive():
            if sent - len(got) < 512:
                sent += port.send(frames[sent : sent + 32])
        receiver.join()
        assert len(got) == len(frames), f"{sent} sent: {port.stats()}, {pmd.stats()}"
        assert got == [swapped(frame) for frame in frames]
