"""Two ports of one process on an Open vSwitch bridge with DPDK."""

import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest

import virtnic
from support.frames import BROADCAST, number_of, numbered
from support.traffic import settle
from virtnic.nic.options import Ring
from virtnic.testing import OvsBridge

pytestmark = pytest.mark.needs("qemu", "ovs")

#: Two QEMUs would choose the same address by default.
MACS = ("02:00:00:00:00:0a", "02:00:00:00:00:0b")


@dataclass(frozen=True)
class Switched:
    """A bridge with a port of ours at each of its two."""

    ovs: OvsBridge
    a: virtnic.Port
    b: virtnic.Port
    names: tuple[str, str]


@pytest.fixture(params=["client", "server"])
def switched(
    request: pytest.FixtureRequest,
    memory: virtnic.Memory,
    qemu: virtnic.Qemu,
    ovs: Callable[..., OvsBridge],
    scratch: Path,
) -> Iterator[Switched]:
    """The bridge connects to us (dpdkvhostuserclient), or we to it (dpdkvhostuser)."""
    names = ("left", "right")
    with ExitStack() as stack:
        if request.param == "client":
            paths = [scratch / name for name in names]
            switch = ovs(clients=dict(zip(names, paths, strict=True)))
            # It tries once a second; both at a time.
            executor = stack.enter_context(ThreadPoolExecutor(1))
            netdevs = [f"vhost-user,path={path},server=on,wait=20" for path in paths]
            other = executor.submit(virtnic.open, netdevs[1], memory=memory, mac=MACS[1])
            a = stack.enter_context(qemu.attach(netdevs[0], mac=MACS[0]))
            b = stack.enter_context(other.result())
        else:
            switch = ovs(servers=names)
            a, b = (
                stack.enter_context(
                    qemu.attach(f"vhost-user,path={switch.switch.directory / name}", mac=mac)
                )
                for name, mac in zip(names, MACS, strict=True)
            )
        settle(a, b)
        yield Switched(switch, a, b, names)
    assert memory.buffers_free == memory.buffers


def receive(port: virtnic.Port, count: int, seconds: float = 20.0) -> list[bytes]:
    """Return the next numbered frames that arrive."""
    got: list[bytes] = []
    deadline = time.monotonic() + seconds
    while len(got) < count and time.monotonic() < deadline:
        burst = port.recv(count - len(got), timeout=0.5)
        got += [bytes(frame) for frame in burst if number_of(frame) is not None]
    return got


def transfer(source: virtnic.Port, sink: virtnic.Port, frames: list[bytes]) -> list[bytes]:
    """Send frames, never more than half a ring of them on the way."""
    got: list[bytes] = []
    while len(got) < len(frames):
        part = frames[len(got) : len(got) + 256]
        sent = source.send(part)
        assert sent == len(part)
        arrived = receive(sink, sent)
        got += arrived
        if len(arrived) < sent:
            break
    return got


def test_a_bridge_switches_two_ports(switched: Switched) -> None:
    """Numbered frames of all lengths, both ways, byte for byte; the bridge learns our addresses."""
    ovs, a, b = switched.ovs, switched.a, switched.b
    assert a.ring == b.ring == "packed"
    # The bridge does not know b yet, so it floods this; a is learnt from it.
    there = [numbered(a.mac, i, 60 + i % 1455, destination=b.mac) for i in range(1500)]
    assert transfer(a, b, there) == there
    back = [numbered(b.mac, i, 60 + i % 1455, destination=a.mac) for i in range(1500)]
    assert transfer(b, a, back) == back
    left, right = (ovs.number(name) for name in switched.names)
    learnt = ovs.learnt()
    assert (learnt[a.mac], learnt[b.mac]) == (left, right)
    # Nothing came back to its sender, and the bridge counted what we did.
    assert len(a.recv(1)) == len(b.recv(1)) == 0
    assert ovs.switch.packets_received() == a.stats()["tx_packets"] + b.stats()["tx_packets"]


def test_flows_decide(switched: Switched) -> None:
    """Flows set by ovs-ofctl apply to our frames: dropped, rewritten, sent back."""
    ovs, a, b = switched.ovs, switched.a, switched.b
    left, right = (ovs.number(name) for name in switched.names)
    frames = [numbered(a.mac, i, destination=BROADCAST) for i in range(100)]

    ovs.ofctl("del-flows")
    ovs.add_flow(f"in_port={left},actions=drop")
    a.send(frames)
    assert receive(b, 1, seconds=0.5) == []

    ovs.add_flow(f"in_port={left},actions=mod_dl_dst:{b.mac},output:{right}")
    assert transfer(a, b, frames) == [numbered(a.mac, i, destination=b.mac) for i in range(100)]

    ovs.add_flow(f"in_port={left},actions=in_port")
    assert transfer(a, a, frames) == frames
    # The counters follow within a second.
    deadline = time.monotonic() + 10.0
    while "n_packets=100" not in (flows := ovs.ofctl("dump-flows")):
        assert time.monotonic() < deadline, flows
        time.sleep(0.05)


def test_a_bridge_that_restarts(
    qemu: virtnic.Qemu, ovs: Callable[..., OvsBridge], scratch: Path
) -> None:
    """Ports that listen survive the switch: the next one connects to them and traffic goes on."""
    paths = {name: scratch / name for name in ("left", "right")}
    links: list[tuple[str, bool]] = []
    first = ovs(clients=paths)
    with ExitStack() as stack:
        ports: list[virtnic.Port] = []
        for name, path in paths.items():

            def told(port: virtnic.Port, name: str = name) -> None:
                links.append((name, port.link))

            netdev = f"vhost-user,path={path},server=on,wait=20"
            ports.append(stack.enter_context(qemu.attach(netdev, on_link=told)))
        a, b = ports
        settle(a, b)
        frames = [numbered(a.mac, i, destination=b.mac) for i in range(500)]
        assert transfer(a, b, frames) == frames
        first.switch.kill()
        wait_for_links(links, {("left", False), ("right", False)})
        assert (a.link, b.link) == (False, False)
        ovs(clients=paths)
        wait_for_links(links, {("left", True), ("right", True)})
        settle(a, b)
        assert transfer(a, b, frames) == frames
        assert transfer(b, a, frames) == frames
    assert qemu.memory.buffers_free == qemu.memory.buffers


def wait_for_links(links: list[tuple[str, bool]], wanted: set[tuple[str, bool]]) -> None:
    deadline = time.monotonic() + 20.0
    while not wanted <= set(links):
        assert time.monotonic() < deadline, links
        time.sleep(0.01)


@pytest.mark.parametrize("ring", ["packed", "split"])
def test_ports_without_qemu(
    memory: virtnic.Memory, ovs: Callable[..., OvsBridge], scratch: Path, ring: Ring
) -> None:
    """One connects to the bridge, to the other the bridge connects; 10,000 frames each way."""
    path = scratch / "right"
    switch = ovs(servers=["left"], clients={"right": path})
    with (
        virtnic.open(
            f"vhost-user,path={switch.switch.directory / 'left'}",
            frontend="direct",
            memory=memory,
            mac=MACS[0],
            ring=ring,
        ) as a,
        virtnic.open(
            f"vhost-user,path={path},server=on,wait=20",
            frontend="direct",
            memory=memory,
            mac=MACS[1],
            ring=ring,
        ) as b,
    ):
        settle(a, b)
        for source, sink in ((a, b), (b, a)):
            frames = [numbered(source.mac, i, destination=sink.mac) for i in range(10_000)]
            assert transfer(source, sink, frames) == frames
    assert memory.buffers_free == memory.buffers
