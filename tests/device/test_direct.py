"""Ports without QEMU: this process is the vhost-user front-end."""

import asyncio
import re
import select
import time
from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import Any

import pytest

import virtnic
from peers.process import freeze
from peers.testpmd import Testpmd
from peers.vhost_backend import ScriptedBackend
from peers.vhost_user import MRG_RXBUF, PROTOCOL_FEATURES, VERSION_1
from support.frames import number_of, numbered
from support.program import virtnic as run
from support.program import virtnic_json
from support.traffic import drain, echo
from support.waiting import PROMPT, eventually
from virtnic.nic.options import Interrupts, Ring

StartTestpmd = Callable[..., Testpmd]

RINGS = pytest.mark.parametrize("ring", ["packed", "split"])
#: Each port of testpmd sends back what it receives, and keeps what came while it was stopped.
LOOP = ("--port-topology=loop", "--no-flush-rx")


def direct(path: Path, **options: Any) -> virtnic.Port:
    """Open a port without QEMU; small, for there are many of them."""
    options.setdefault("size", "8M")
    return virtnic.open(f"vhost-user,path={path}", frontend="direct", **options)


@RINGS
@pytest.mark.needs("testpmd")
@pytest.mark.parametrize("interrupts", ["eventfd", "none"])
def test_echo(testpmd: StartTestpmd, ring: Ring, interrupts: Interrupts) -> None:
    """Frames of all lengths come back byte for byte, in order, five times round the ring."""
    pmd = testpmd()
    with direct(pmd.sockets[0], ring=ring, interrupts=interrupts, size="32M") as port:
        assert (port.ring, port.queue_size, port.link) == (ring, 1024, True)
        assert (port.frontend, port.interrupts) == ("direct", interrupts)
        with pytest.raises(virtnic.QemuError, match=r'no QEMU.*frontend="direct"'):
            _ = port.qemu
        port.wait_ready()
        drain(port)
        echo(port, 5_000)
        port.reclaim()
        stats = port.stats()
        assert stats["tx_packets"] == stats["tx_completed"] == stats["rx_packets"]
    assert port.memory.buffers_free == port.memory.buffers
    with pytest.raises(virtnic.PortClosed):
        port.recv(1)
    port.close()


@RINGS
@pytest.mark.needs("testpmd")
def test_queue_pairs(testpmd: StartTestpmd, ring: Ring) -> None:
    """Each is served; they are turned off and on while the port runs, and found after a restart."""
    pmd = testpmd(queues=2)
    with direct(pmd.sockets[0], ring=ring, queues=2) as port:

        def works(queue: int) -> bool:
            pair, frame = port.queue(queue), numbered(port.mac, queue)
            pair.send([frame])
            return any(len(port.queue(back).recv(8, timeout=0.2)) for back in range(port.queues))

        assert port.queues == 2
        assert eventually(lambda: works(0))
        assert eventually(lambda: works(1))
        port.set_queues(1)
        assert port.queues == 1
        assert eventually(lambda: works(0))
        port.set_queues(2)
        assert eventually(lambda: works(1))
        port.restart()
        assert (port.queues, port.restarts) == (2, 1)
        assert eventually(lambda: works(0))
        assert eventually(lambda: works(1))
    assert port.memory.buffers_free == port.memory.buffers


@pytest.mark.needs("testpmd")
def test_a_frame_wakes_who_waits(testpmd: StartTestpmd) -> None:
    """By recv, by select, and in asyncio: the backend signals our own eventfd."""
    pmd = testpmd()
    with direct(pmd.sockets[0]) as port:
        port.wait_ready()
        drain(port)
        for number in range(20):
            assert select.select([port], [], [], 0.0)[0] == []
            port.send([numbered(port.mac, number)])
            assert select.select([port], [], [], 20.0)[0] == [port]
            assert len(drain(port, 0.0, least=1)) == 1
        port.send([numbered(port.mac, 0)])
        assert len(port.recv(1, timeout=20.0)) == 1

    async def ping() -> int:
        netdev = f"vhost-user,path={pmd.sockets[0]}"
        async with virtnic.aio.open(netdev, frontend="direct", size="8M") as port:
            await port.send([numbered(port.mac, 1)])
            return len(await asyncio.wait_for(port.recv(1), 20.0))

    assert asyncio.run(ping()) == 1


class Numbers:
    """Numbered frames through a backend that echoes."""

    def __init__(self, port: virtnic.Port) -> None:
        self.port, self.sent = port, 0
        self.got: list[int] = []

    def traffic(self, frames: int) -> None:
        """Have frames echoed, with no more in flight than the receive ring holds."""
        until = self.sent + frames
        deadline = time.monotonic() + 30.0
        while self.sent < until:
            assert time.monotonic() < deadline, self.port.stats()
            ahead = self.sent - (self.got[-1] if self.got else 0)
            if ahead < 256 or not self.receive(0.2):
                self.send(32)
            self.receive()

    def send(self, frames: int) -> None:
        new = [numbered(self.port.mac, self.sent + number) for number in range(frames)]
        assert self.port.send(new) == frames
        self.sent += frames

    def receive(self, timeout: float = 0.0) -> bool:
        frames = self.port.recv(256, timeout=timeout).tobytes()
        self.got += [number for frame in frames if (number := number_of(frame)) is not None]
        return bool(frames)


def end(pmd: Testpmd) -> None:
    """Kill it, but leave the socket: it may be ours."""
    pmd.sockets.clear()
    pmd.kill()


@RINGS
@pytest.mark.needs("testpmd")
@pytest.mark.parametrize("server", [False, True], ids=["client", "server"])
def test_a_backend_that_dies(scratch: Path, ring: Ring, server: bool) -> None:
    """Two kills under load, one with frames waiting: none arrives twice, and each is accounted for.

    What waits in the ring is the next backend's; what one had taken dies with it.
    """
    path, links = scratch / "vhu0", []
    pmd = None if server else Testpmd([path], extra=LOOP)
    opening = f"vhost-user,path={path}" + (",server=on,wait=30" if server else "")
    if server:
        # It connects again and again, until there is a socket.
        pmd = Testpmd([path], extra=LOOP, client=True)
    assert pmd is not None
    try:
        with virtnic.open(
            opening, frontend="direct", ring=ring, on_link=lambda port: links.append(port.link)
        ) as port:
            numbers = Numbers(port)
            waited: set[int] = set()
            for kill in range(2):
                numbers.traffic(2000 + 300 * kill)
                if kill % 2:
                    while numbers.receive(1.0):
                        pass
                    port.reclaim()
                    freeze(pmd.pid)
                    before = numbers.sent
                    numbers.send(96)
                    waited |= set(range(before, numbers.sent))
                end(pmd)
                assert eventually(lambda: not port.link)
                before = numbers.sent
                numbers.send(64)
                waited |= set(range(before, numbers.sent))
                if not server:
                    path.unlink()
                pmd = Testpmd([path], extra=LOOP, client=server)
                assert eventually(lambda: port.link, 30.0)
                while numbers.receive(1.0):
                    pass
            numbers.traffic(500)
            while numbers.receive(1.0):
                pass
            port.reclaim()
            stats = port.stats()
            assert len(numbers.got) == len(set(numbers.got)), "a frame came twice"
            assert waited <= set(numbers.got), "a frame that no backend had taken was lost"
            assert stats["tx_packets"] == stats["tx_completed"] == numbers.sent
            assert stats["tx_lost"] == stats["tx_no_backend"] == 0
            assert eventually(lambda: links == [False, True] * 2), links
        assert port.memory.buffers_free == port.memory.buffers
    finally:
        end(pmd)
        path.unlink(missing_ok=True)


def test_what_it_does_not_have(scratch: Path) -> None:
    """Options for QEMU are refused by name, before anything is opened."""
    path = scratch / "vhu0"
    for netdev, options, words in (
        ("user", {}, "frontend='direct' is for vhost-user,path=SOCKET"),
        (f"vhost-user,path={path}", {"accel": "tcg"}, "has no QEMU: leave out accel"),
        (f"vhost-user,path={path}", {"legacy": True}, "no legacy interface"),
        (f"vhost-user,path={path}", {"interrupts": "msix"}, "interrupts must be one of 'eventfd'"),
        (f"vhost-user,path={path}", {"notify": "qtest"}, "notify must be one of 'eventfd'"),
        (f"vhost-user,path={path}", {"properties": {"rss": True}}, "host_mtu is the only one"),
        (f"vhost-user,path={path}", {"properties": {"host_mtu": 67}}, "host_mtu is 68 to 65535"),
        (f"vhost-user,path={path}", {"mac": "01:00:00:00:00:01"}, "group address"),
        (f"vhost-user,path={path}", {"mac": "nonsense"}, "an address is written as"),
        (f"vhost-user,path={path}", {"queues": 129}, "1 to 128 queue pairs"),
        (f"vhost-user,path={path}", {"vhostforce": True}, "no option 'vhostforce'"),
        (f"vhost-user,path={path},vhostforce=on", {}, "knows no vhostforce"),
    ):
        with pytest.raises((ValueError, TypeError), match=re.escape(words)):
            virtnic.open(netdev, frontend="direct", **options)
    with pytest.raises(ValueError, match="frontend must be one of 'qemu', 'direct'"):
        virtnic.open("user", frontend="kernel")  # type: ignore[arg-type]
    with pytest.raises(virtnic.NetdevUnavailable, match=r"start it first.*wait="):
        direct(path)
    with pytest.raises(TimeoutError, match="no vhost-user backend connected"):
        virtnic.open(f"vhost-user,path={path},server=on,wait=0.2", frontend="direct")
    assert not path.exists()


def test_what_a_backend_is_told(scratch: Path) -> None:
    """Features, protocol features, our memory, each ring; in the order of QEMU's document."""
    with ScriptedBackend(scratch / "vhu0", pairs=2) as backend:
        with direct(backend.path, queues=2, mac="52-54-00-00-00-07", queue_size=256) as port:
            assert (port.mac, port.link, port.queues) == ("52:54:00:00:00:07", True, 2)
            (connection,) = backend.connections
            assert backend.wait(lambda: len(connection.enabled) == 4)
            said = [message.request for message in connection.messages]
            assert said[:6] == [1, 15, 16, 17, 3, 2]
            table = next(m for m in connection.messages if m.request == 5)
            regions = int.from_bytes(table.payload[:4], "little")
            base, size, ours, offset = (
                int.from_bytes(table.payload[at : at + 8], "little") for at in (8, 16, 24, 32)
            )
            assert (regions, base, size, ours, offset) == (
                1,
                port.memory.iova,
                port.memory.size,
                port.memory.address,
                0,
            )
            assert connection.features >> 32 & 1
            assert connection.enabled == dict.fromkeys(range(4), True)
        assert backend.wait(lambda: not connection.started)
        with pytest.raises(virtnic.QemuError, match="2 queue pairs, but 3 are required"):
            direct(backend.path, queues=3)
        with direct(backend.path, properties={"host_mtu": 1400}) as port:
            assert port.mtu == 1400


def test_filters_are_refused(scratch: Path) -> None:
    """There is no control queue, and the error names the missing feature."""
    with ScriptedBackend(scratch / "vhu0") as backend, direct(backend.path) as port:
        with pytest.raises(virtnic.CommandRefused, match="CTRL_RX"):
            port.set_promiscuous(False)
        with pytest.raises(virtnic.CommandRefused, match="CTRL_VLAN"):
            port.add_vlan(7)
        with pytest.raises(virtnic.CommandRefused, match="does not compute hashes"):
            port.set_rss()


def test_coming_back_with_less(scratch: Path) -> None:
    """The port goes on without packed rings; without VERSION_1 it waits for another backend."""
    with ScriptedBackend(scratch / "vhu0") as backend:
        with direct(backend.path) as port:
            assert port.ring == "packed"
            backend.features = PROTOCOL_FEATURES | MRG_RXBUF
            backend.drop()
            assert eventually(lambda: not port.link)
            assert backend.wait(lambda: len(backend.connections) > 2), "looked for again"
            assert not port.link
            backend.features = PROTOCOL_FEATURES | VERSION_1 | MRG_RXBUF
            assert eventually(lambda: port.link)
            assert port.ring == "split"
            assert backend.wait(lambda: backend.serving)
            assert [f.why for f in port.features if f.name == "RING_PACKED"] == [
                "the device came back without it"
            ]
        assert port.memory.buffers_free == port.memory.buffers


@pytest.mark.parametrize("recover", [False, virtnic.Recovery(attempts=2, backoff=0.01)])
def test_no_other_backend(scratch: Path, recover: bool | virtnic.Recovery) -> None:
    """The port ends as its policy says, and wakes waiting threads."""
    with ScriptedBackend(scratch / "vhu0") as backend:
        port = direct(backend.path, recover=recover)
    with port:
        with pytest.raises(virtnic.DeviceError, match="open the port anew"):
            port.recv(1, timeout=20.0)
        assert not port.link
    assert port.memory.buffers_free == port.memory.buffers


def test_how_long_it_takes(scratch: Path) -> None:
    """Printed but not judged: the time from open to the first frame in the ring."""
    with ScriptedBackend(scratch / "vhu0") as backend:
        for number in count():
            began = time.perf_counter()
            with direct(backend.path, size="4M") as port:
                port.send([numbered(port.mac, 0)])
                took = time.perf_counter() - began
            print(f"{took * 1e3:.2f} ms")
            assert took < PROMPT
            if number == 5:
                break


@pytest.mark.needs("testpmd")
def test_the_commands(testpmd: StartTestpmd) -> None:
    """Those that open ports take `--frontend direct`, and refuse with it what is QEMU's."""
    pmd = testpmd()
    netdev, memory = f"vhost-user,path={pmd.sockets[0]}", ("--memory", "8M")
    direct = ("--netdev", netdev, "--frontend", "direct", *memory)
    found = virtnic_json("probe", *direct)
    assert (found["qemu"], found["functions"], found["port"]["frontend"]) == (None, [], "direct")
    assert "no QEMU" in run("probe", *direct).stdout
    assert "99 sent" in run("generate", *direct, "--packets", "99").stdout
    run("forward", "--port", f"{netdev};frontend=direct", *memory, "--seconds", "0")
    refused = run("probe", *direct, "--accel", "tcg", status=2)
    assert "--frontend direct has no QEMU: leave out --accel" in refused.stderr
