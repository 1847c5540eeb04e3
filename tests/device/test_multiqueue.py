"""Several queue pairs, against a kernel TAP and DPDK's testpmd."""

import ctypes
import os
import select
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import pytest

import virtnic
from peers.netns import Netns
from support.frames import arp_request, is_arp_reply, number_of, numbered
from support.waiting import pause
from virtnic.nic.options import Interrupts

SENDERS = 64
PROCESSORS = sorted(os.sched_getaffinity(0))


@pytest.fixture
def netns4(qemu_command: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Netns]:
    """A namespace with a TAP of several queues."""
    with Netns(queues=4) as netns:
        monkeypatch.setenv("VIRTNIC_QEMU", netns.qemu_command)
        yield netns


def kernel_sends(netns: Netns, port: virtnic.Port, each: int = 1) -> int:
    """Have the kernel send UDP from many ports to 10.99.0.2; return how many datagrams."""
    netns.wait_for_carrier()
    netns.run(
        "ip", "neigh", "replace", "10.99.0.2", "lladdr", port.mac, "nud", "permanent", "dev",
        netns.tap,
    )  # fmt: skip
    for number in range(SENDERS):
        with netns.open_socket() as udp:
            udp.bind(("10.99.0.1", 20000 + number))
            for _ in range(each):
                udp.sendto(b"x" * 32, ("10.99.0.2", 9))
    return SENDERS * each


def udp_of(frame: bytes | memoryview) -> int | None:
    """Return the source port of a datagram from the kernel."""
    data = bytes(frame[:36])
    if data[12:14] == b"\x08\x00" and data[23] == 17 and data[26:30] == bytes([10, 99, 0, 1]):
        return int.from_bytes(data[34:36], "big")
    return None


def collect(port: virtnic.Port, total: int, seconds: float = 10.0) -> dict[int, Counter[int]]:
    """Receive ``total`` datagrams on all queues; count them by queue and source port."""
    seen: dict[int, Counter[int]] = {i: Counter() for i in range(port.max_queues)}
    until = time.monotonic() + seconds
    while sum(c.total() for c in seen.values()) < total and time.monotonic() < until:
        for index, counter in seen.items():
            if port.queue(index).active:
                counter.update(p for f in port.queue(index).recv(64) if (p := udp_of(f)))
    return seen


@pytest.mark.needs("qemu", "netns")
@pytest.mark.parametrize("interrupts", ["msix", "intx", "none"])
def test_frames_of_all_queues_arrive_once(netns4: Netns, interrupts: Interrupts) -> None:
    with virtnic.open(netns4.netdev, queues=4, interrupts=interrupts) as port:
        assert (port.queues, port.max_queues) == (4, 4)
        total = kernel_sends(netns4, port, each=3)
        seen = collect(port, total)
        assert sum(seen.values(), Counter()) == {20000 + i: 3 for i in range(SENDERS)}
        used = [index for index, counter in seen.items() if counter]
        assert len(used) > 1, used
        per_queue = [port.queue(i).stats()["rx_packets"] for i in range(4)]
        assert sum(per_queue) == port.stats()["rx_packets"] >= total
        assert all(per_queue[index] for index in used)


@pytest.mark.needs("qemu", "netns")
def test_each_queue_sends_and_is_waited_for(netns4: Netns) -> None:
    with virtnic.open(netns4.netdev, queues=4) as port, netns4.packet_socket() as raw:
        for index in range(4):
            assert port.queue(index).send([numbered(port.mac, 100 + index)]) == 1
        got: set[int | None] = set()
        while not {100, 101, 102, 103} <= got:
            got.add(number_of(raw.recv(4096)))
        assert [port.queue(i).stats()["tx_packets"] for i in range(4)] == [1] * 4
        # The eventfd of a queue is its own.
        files = {port.queue(i).fileno(): i for i in range(4)}
        assert len(files) == 4
        for index in range(4):
            port.queue(index).recv(256)
        total = kernel_sends(netns4, port)
        seen = 0
        while seen < total:
            ready, _, _ = select.select(list(files), [], [], 5.0)
            assert ready, seen
            for file in ready:
                seen += sum(udp_of(f) is not None for f in port.queue(files[file]).recv(64))


@pytest.mark.needs("qemu", "netns")
def test_each_queue_from_its_own_thread(netns4: Netns) -> None:
    """Threads wait and receive at the same time, while others send."""
    with virtnic.open(netns4.netdev, queues=4) as port, netns4.packet_socket() as raw:
        counters: list[Counter[int]] = [Counter() for _ in range(4)]
        done = threading.Event()

        def work(index: int) -> None:
            queue = port.queue(index)
            sent = 0
            while not done.is_set():
                counters[index].update(p for f in queue.recv(64, timeout=0.05) if (p := udp_of(f)))
                if sent < 200:
                    sent += queue.send([numbered(port.mac, index * 1000 + sent)])

        threads = [threading.Thread(target=work, args=(index,)) for index in range(4)]
        for thread in threads:
            thread.start()
        total = kernel_sends(netns4, port, each=10)
        got: dict[int, list[int]] = {index: [] for index in range(4)}
        while sum(map(len, got.values())) < 800:
            number = number_of(raw.recv(4096))
            if number is not None:
                got[number // 1000].append(number % 1000)
        until = time.monotonic() + 10
        while sum(c.total() for c in counters) < total and time.monotonic() < until:
            time.sleep(0.01)
        done.set()
        for thread in threads:
            thread.join()
    assert sum(counters, Counter()) == {20000 + i: 10 for i in range(SENDERS)}
    assert got == {index: list(range(200)) for index in range(4)}


@pytest.mark.needs("qemu", "netns")
def test_the_number_changes_while_running(netns4: Netns) -> None:
    with virtnic.open(netns4.netdev, queues=4) as port:
        for count in (2, 4, 1, 3):
            port.set_queues(count)
            assert port.queues == count
            assert [port.queue(i).active for i in range(4)] == [i < count for i in range(4)]
            total = kernel_sends(netns4, port)
            seen = collect(port, total)
            assert sum(seen.values(), Counter()).total() == total
            assert not [i for i in range(count, 4) if seen[i]]
        with pytest.raises(virtnic.PortClosed, match=r"queue 3 is not in use; set_queues\(4\)"):
            port.queue(3).send([numbered(port.mac, 1)])
        with pytest.raises(virtnic.PortClosed, match="queue 3 is not in use"):
            port.queue(3).recv(64, timeout=None)
        for count in (0, 5, -1, 1 << 20):
            with pytest.raises(ValueError, match="1 to 4 can be used"):
                port.set_queues(count)
        with pytest.raises(ValueError, match="there is no queue 4"):
            port.queue(4)
        with pytest.raises(ValueError, match="no queue -1"):
            port.queue(-1)


@pytest.mark.needs("qemu", "netns")
def test_a_queue_stops_and_starts_without_the_others(netns4: Netns) -> None:
    """By RING_RESET, with the packets of the others going on."""
    with virtnic.open(netns4.netdev, queues=4) as port:
        if not any(f.name == "RING_RESET" and f.accepted for f in port.features):
            with pytest.raises(virtnic.CommandRefused, match="RING_RESET"):
                port.queue(1).stop()
            return
        free = port.memory.buffers_free

        def wait() -> None:
            try:
                while True:
                    port.queue(1).recv(64, timeout=None)
            except virtnic.PortClosed as error:
                ends.append(str(error))

        ends: list[str] = []

        waiting = threading.Thread(target=wait)
        waiting.start()
        pause(0.1)
        port.queue(1).stop()
        waiting.join(20.0)
        assert not waiting.is_alive()
        assert ends
        assert any(why in ends[0] for why in ("queue 1 is stopped", "queue 1 is being stopped"))
        port.queue(1).stop()
        assert port.memory.buffers_free >= free + port.queue_size
        assert not port.queue(1).active
        for call in (port.queue(1).recv, lambda: port.queue(1).send([numbered(port.mac, 1)])):
            with pytest.raises(virtnic.PortClosed, match=r"queue 1 is stopped"):
                call()
        kernel_sends(netns4, port)
        others = collect(port, SENDERS, seconds=1.0)
        assert sum(others.values(), Counter()).total() > 0
        port.queue(1).start()
        port.queue(1).start()
        for _ in range(20):
            total = kernel_sends(netns4, port)
            seen = collect(port, total)
            if seen[1]:
                break
        assert seen[1]
        assert port.queue(1).send([numbered(port.mac, 1)]) == 1


@pytest.mark.needs("qemu", "netns")
def test_more_queues_than_there_are(netns4: Netns) -> None:
    with pytest.raises(ValueError, match="queues=8: the netdev has 4"):
        virtnic.open(f"{netns4.netdev},queues=4", queues=8)
    with virtnic.open(f"{netns4.netdev},queues=4", queues=2) as port:
        assert (port.queues, port.max_queues) == (2, 2)
        assert sum(collect(port, kernel_sends(netns4, port)).values(), Counter()).total() == SENDERS
    with virtnic.open(f"{netns4.netdev},queues=2") as port:
        assert port.queues == 2


def test_a_netdev_that_has_one_queue(qemu: virtnic.Qemu) -> None:
    with pytest.raises(ValueError, match=r"queues=2: a netdev of type 'user' has 1"):
        qemu.attach("user", queues=2)
    for count in (0, -1, 129):
        with pytest.raises(ValueError, match=f"1 to 128 queue pairs, not {count}"):
            qemu.attach("user", queues=count)
    with qemu.attach("user") as port:
        port.set_queues(1) if port.max_queues > 1 else None
        port.queue(0).send([arp_request(port.mac)])
        assert any(is_arp_reply(frame) for frame in port.queue(0).recv(8, timeout=20.0))


@pytest.mark.needs("testpmd")
@pytest.mark.parametrize("ring", ["split", "packed"])
@pytest.mark.parametrize("queues", [2, 4])
@pytest.mark.parametrize("interrupts", [None, "none"])
def test_testpmd_echoes_on_each_queue(
    qemu: virtnic.Qemu, testpmd: Callable[..., Any], ring: Any, queues: int, interrupts: Any
) -> None:
    """What a queue sends comes back on it: testpmd forwards queue by queue."""
    path = testpmd(queues=queues).sockets[0]
    netdev = f"vhost-user,path={path}"
    with qemu.attach(netdev, queues=queues, ring=ring, interrupts=interrupts) as port:
        assert (port.ring, port.queues) == (ring, queues)
        for round_ in range(50):
            for index in range(queues):
                queue = port.queue(index)
                sent = [numbered(port.mac, 1000 * index + 10 * round_ + i) for i in range(10)]
                assert queue.send(sent) == 10
            for index in range(queues):
                got: list[int | None] = []
                until = time.monotonic() + 20.0
                while len(got) < 10 and time.monotonic() < until:
                    got += map(number_of, port.queue(index).recv(64, timeout=0.5))
                assert got == [1000 * index + 10 * round_ + i for i in range(10)]
        counted = [port.queue(index).stats() for index in range(queues)]
        assert [(c["rx_packets"], c["tx_packets"]) for c in counted] == [(500, 500)] * queues
        assert port.stats()["rx_packets"] == 500 * queues


# --- Loops: a thread for each pair, one report ---


def per_queue(port: virtnic.Port, name: str) -> list[int]:
    """Return a counter of each queue."""
    return [port.queue(index).stats()[name] for index in range(port.max_queues)]


@pytest.mark.needs("qemu", "netns")
def test_frames_of_all_queues_are_received(netns4: Netns) -> None:
    with virtnic.open(netns4.netdev, queues=4) as port:
        total = kernel_sends(netns4, port, each=3)
        result = virtnic.drop(port, packets=total)
        assert result.received == result.packets == total
        counted = per_queue(port, "rx_packets")
        assert sum(counted) == total
        assert sum(map(bool, counted)) > 1


@pytest.mark.needs("qemu", "netns")
def test_a_function_is_called_for_each_queue(netns4: Netns) -> None:
    seen: list[int] = []

    def drop(_packets: Any, lengths: Any, count: int) -> None:
        seen.append(count)
        for index in range(count):
            lengths[index] = 0

    signature = ctypes.CFUNCTYPE(
        None, ctypes.POINTER(ctypes.c_void_p), ctypes.POINTER(ctypes.c_uint32), ctypes.c_uint32
    )

    with virtnic.open(netns4.netdev, queues=2) as port:
        total = kernel_sends(netns4, port)
        result = virtnic.run(port, signature(drop), packets=total)
        assert result.dropped == result.received == sum(seen) == total
        assert all(per_queue(port, "rx_packets"))


@pytest.mark.needs("testpmd")
@pytest.mark.parametrize("ring", ["split", "packed"])
def test_frames_circulate_by_both_queues(
    qemu: virtnic.Qemu, testpmd: Callable[..., Any], ring: Any
) -> None:
    """What a queue sends comes back on it and is sent again; no frame is lost."""
    path = testpmd(queues=2, mode="io").sockets[0]
    with qemu.attach(f"vhost-user,path={path}", queues=2, ring=ring) as port:
        sent = virtnic.generate(port, frames=[numbered(port.mac, 1)], packets=64)
        assert sent.sent == 64
        assert sum(per_queue(port, "tx_packets")) == 64
        for index in range(2):
            # So that each has some, however the others were shared out.
            assert port.queue(index).send([numbered(port.mac, index)] * 8) == 8
        pinned: list[set[int]] = []

        def progress(_result: virtnic.Result) -> bool:
            pinned.append(os.sched_getaffinity(0))
            return min(per_queue(port, "tx_packets")) < 2000

        result = virtnic.reflect(port, mode="io", progress=progress, cpus=PROCESSORS[-1:])
        assert result.sent == result.received == result.packets
        assert result.ring_full == 0
        assert result.bytes == 60 * result.packets
        assert sum(per_queue(port, "tx_packets")) == 64 + 16 + result.sent
        assert min(per_queue(port, "tx_packets")) >= 2000
        # All of that was counted on one processor, and the thread was given back to the others.
        assert set(map(tuple, pinned)) == {(PROCESSORS[-1],)}
        assert sorted(os.sched_getaffinity(0)) == PROCESSORS

        # Exactly that number, over all queues.
        again = virtnic.reflect(port, mode="io", packets=5000)
        assert again.packets == 5000
        # One pair fewer: one thread, which has those of the other no more.
        port.set_queues(1)
        before = per_queue(port, "tx_packets")
        virtnic.generate(port, frames=[numbered(port.mac, 1)], packets=100)
        assert Counter(per_queue(port, "tx_packets")) == Counter([before[0] + 100, before[1]])


@pytest.mark.needs("testpmd")
def test_a_loop_ends_with_the_first_error(qemu: virtnic.Qemu, testpmd: Callable[..., Any]) -> None:
    path = testpmd(queues=2, mode="io").sockets[0]
    with qemu.attach(f"vhost-user,path={path}", queues=2) as port:
        others = port.queue(1)

        def progress(_result: virtnic.Result) -> bool:
            # Only the loop's own threads have them.
            with pytest.raises(virtnic.PortBusy):
                others.recv()
            return False

        virtnic.drop(port, progress=progress)
        with pytest.raises(KeyError):
            virtnic.drop(port, progress=lambda _: {**os.environ}["nothing"])
        for cpu in (1023, 100_000):
            with pytest.raises((OSError, ValueError), match=f"processor {cpu}"):
                virtnic.drop(port, cpus=[PROCESSORS[0], cpu], seconds=30.0)
        with pytest.raises(ValueError, match="numbers of processors"):
            virtnic.drop(port, cpus=[-1])
        with qemu.attach("user") as single:
            with pytest.raises(ValueError, match=r"not 2 and 1; call set_queues\(1\)"):
                virtnic.forward(port, single, seconds=1.0)
            port.set_queues(1)
            virtnic.forward(port, single, seconds=0.1)
