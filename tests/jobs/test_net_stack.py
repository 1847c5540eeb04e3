"""A `virtnic.net.Stack` itself: what it works on, its addresses, and what ends it."""

import asyncio
import errno
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import pytest

import virtnic
from peers.kernel import LONG
from peers.netns import Netns
from support.frames import arp_request, ip_bytes, is_arp_reply, mac_bytes
from virtnic import aio, net
from virtnic.testing import Deliver, Expect, FaultyPort, ScriptedPort, kill_qemu

pytestmark = pytest.mark.needs("qemu")


class Own:
    """A program's own port: a stack needs no more than this of it."""

    def __init__(self, port: virtnic.Port) -> None:
        self._port = port

    def send(self, frames: Iterable[bytes]) -> int:
        return self._port.send(list(frames))

    def recv(self, maximum: int, timeout: float) -> virtnic.Burst:
        return self._port.recv(maximum, timeout)


@pytest.mark.parametrize("kind", ["port", "queue", "FaultyPort", "Own"])
def test_dhcp_arp_and_ping_on_any_port(port: virtnic.Port, kind: str) -> None:
    ports: dict[str, Any] = {
        "port": port,
        "queue": port.queue(0),
        "FaultyPort": FaultyPort(port),
        "Own": Own(port),
    }
    with net.Stack(ports[kind]) as stack:
        lease = stack.dhcp(LONG)
        assert isinstance(lease, net.Lease)
        assert (lease.address, lease.prefix, lease.gateway) == ("10.0.2.15", 24, "10.0.2.2")
        assert lease.dns == stack.name_servers == ["10.0.2.3"]
        assert lease.duration > 0 < lease.elapsed
        reply = stack.arp("10.0.2.2", LONG)
        assert isinstance(reply, net.ArpReply)
        assert reply.mac.startswith("52:55:")
        for sequence in (0, 7, 65535):
            pong = stack.ping("10.0.2.2", sequence, payload=1000, timeout=LONG)
            assert isinstance(pong, net.PingReply)
            assert pong.sequence == sequence
        with pytest.raises(AttributeError):
            pong.sequence = 1  # type: ignore[misc]


def test_a_stack_on_a_script() -> None:
    """The device replies when it is asked."""
    mac, peer = "52:54:00:12:34:56", "52:54:00:00:00:09"
    reply = bytearray(arp_request(peer, sender="10.0.0.9", target="10.0.0.1"))
    reply[21] = 2
    reply[:6] = reply[32:38] = mac_bytes(mac)
    asked = Expect(where=lambda frame: frame[38:42] == ip_bytes("10.0.0.9"))
    with (
        ScriptedPort([asked, Deliver(bytes(reply))], mac=mac) as port,
        net.Stack(port, address="10.0.0.1/24", ipv6=False) as stack,
    ):
        assert stack.arp("10.0.0.9", LONG).mac == peer
        port.finish(LONG)


@pytest.mark.needs("netns")
@pytest.mark.usefixtures("qemu_command")
def test_two_stacks_on_two_queues() -> None:
    """Each asks with its own address."""
    with (
        Netns(queues=2) as netns,
        virtnic.open(netns.netdev, queues=2, qemu=netns.qemu_command) as port,
        netns.packet_socket() as raw,
        net.Stack(port.queue(0), address="10.99.0.2/24") as first,
        net.Stack(port.queue(1), address="10.99.0.3/24") as second,
    ):
        netns.wait_for_carrier()
        for stack in (first, second):
            with pytest.raises(TimeoutError, match=r"no ARP reply from 10\.99\.0\.77"):
                stack.arp("10.99.0.77", 0.01)
        raw.settimeout(LONG)
        senders: set[bytes] = set()
        while senders != {ip_bytes("10.99.0.2"), ip_bytes("10.99.0.3")}:
            frame = raw.recv(4096)
            if frame[12:14] == b"\x08\x06":
                senders.add(frame[28:32])


async def _awaited(port: virtnic.Port) -> None:
    async with aio.net.Stack(aio.Port(port)) as stack:
        lease = await stack.dhcp(LONG)
        assert isinstance(lease, net.Lease)
        assert isinstance(await stack.arp("10.0.2.2", LONG), net.ArpReply)
        assert isinstance(await stack.ping("10.0.2.2", timeout=LONG), net.PingReply)
        stack.configure("10.0.2.99/24")
        assert stack.address == "10.0.2.15/24"
        stack.remove_address("10.0.2.15")
        assert stack.address == "10.0.2.99/24"


def test_the_same_awaited(port: virtnic.Port) -> None:
    asyncio.run(_awaited(port))


@pytest.fixture
def tap(netns: Netns) -> Iterator[net.Stack]:
    with virtnic.open(netns.netdev) as port, net.Stack(port, ipv6=False) as stack:
        netns.wait_for_carrier()
        yield stack


@pytest.mark.needs("netns")
def test_addresses_come_and_go(netns: Netns, tap: net.Stack) -> None:
    """The kernel hears of each as long as the stack has it."""
    with pytest.raises(OSError, match="no IPv4 address; use dhcp=True") as caught:
        tap.ping("10.99.0.1")
    assert caught.value.errno == errno.ENETUNREACH
    with pytest.raises(ValueError, match=r"needs an IPv4 address.*; use dhcp=True"):
        tap.arp("10.99.0.1")
    tap.configure("10.99.0.2/24", "10.99.0.1")
    tap.configure("10.99.0.3/24")
    assert tap.addresses == ["10.99.0.2/24", "10.99.0.3/24"]
    assert netns.ping("10.99.0.2", 1).received == netns.ping("10.99.0.3", 1).received == 1
    tap.remove_address("10.99.0.2/24")
    assert (tap.address, tap.gateway) == ("10.99.0.3/24", "10.99.0.1")
    with netns.packet_socket() as raw:
        raw.settimeout(LONG)
        for target in ("10.99.0.2", "10.99.0.3"):
            raw.send(arp_request(netns.mac, sender="10.99.0.1", target=target))
        frame = b""
        while not is_arp_reply(frame, sender="10.99.0.3"):
            frame = raw.recv(4096)
            assert not is_arp_reply(frame, sender="10.99.0.2")
        assert frame[:6] == mac_bytes(netns.mac)
    tap.remove_address("10.99.0.3")
    assert (tap.addresses, tap.gateways) == ([], [])
    with pytest.raises(ValueError, match="cannot be removed: the stack's addresses are: none"):
        tap.remove_address("10.99.0.3")
    with pytest.raises(ValueError, match=r"10\.99\.0\.255 is not the address of a host"):
        tap.configure("10.99.0.2/24", "10.99.0.255")
    assert tap.addresses == []
    for last in range(8):
        tap.configure(f"10.99.1.{last + 1}/24")
    with pytest.raises(ValueError, match="the stack has 8 addresses"):
        tap.configure("10.99.0.2/24")


def test_numbers_out_of_range(port: virtnic.Port) -> None:
    with net.Stack(port, address="10.0.2.15/24") as stack:
        for wrong in (-1, 65536):
            with pytest.raises(ValueError, match=f"a sequence number must be.*not {wrong}"):
                stack.ping("10.0.2.2", wrong)
            with pytest.raises(ValueError, match=f"a payload's length must be.*not {wrong}"):
                stack.ping("10.0.2.2", payload=wrong)
            with pytest.raises(ValueError, match=f"an MTU must be.*not {wrong}"):
                net.Stack(port, mtu=wrong)
        assert stack.ping("10.0.2.2", timeout=LONG).sequence == 0


#: What asks the network, and so ends when there is none.
ASKING: dict[str, Callable[[net.Stack], object]] = {
    "dhcp": lambda stack: stack.dhcp(None),
    "arp": lambda stack: stack.arp("10.0.2.77", None),
    "ping": lambda stack: stack.ping("10.0.2.77", timeout=None),
    "wait_ipv6": lambda stack: stack.wait_ipv6(None),
    "configure": lambda stack: stack.configure("10.0.2.9/24"),
    "socket": lambda stack: stack.socket(),
}


@pytest.mark.parametrize("end", ["close", "detach", "kill"])
def test_what_ends_the_port_is_the_cause(qemu: virtnic.Qemu, end: str) -> None:
    port = qemu.attach("user,restrict=on")
    with net.Stack(port, address="10.0.2.15/24", ipv6=False) as stack:
        if end == "close":
            port.close()
        elif end == "detach":
            qemu.detach(port)
        else:
            kill_qemu(qemu)
        for name, call in ASKING.items():
            with pytest.raises(OSError, match="the stack has ended: ") as caught:
                call(stack)
            assert caught.value.errno == errno.ENETDOWN, name
            kind = virtnic.QemuDied if end == "kill" else virtnic.PortClosed
            assert isinstance(caught.value.__cause__, kind), name
        assert not stack.closed
    with pytest.raises((virtnic.QemuDied, virtnic.PortClosed)):
        net.Stack(port)
