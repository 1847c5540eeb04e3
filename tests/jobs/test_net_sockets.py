"""Sockets of a `virtnic.net.Stack`, against slirp, a kernel TAP and a faulty wire."""

import errno
import hashlib
import os
import select
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import Any

import pytest

import virtnic
from peers.kernel import DATAGRAM, KERNEL, LONG, STACK, STREAM, listen, pattern, read_all
from peers.netns import Netns
from support.waiting import eventually
from virtnic import net
from virtnic.testing import FaultyPort

FAMILIES = pytest.mark.parametrize("family", list(KERNEL), ids=["ipv4", "ipv6"])


def read_exactly(source: Any, length: int) -> bytes:
    """Receive so many bytes."""
    data = b""
    while len(data) < length:
        data += source.recv(length - len(data))
    return data


def fill(sink: net.Socket) -> int:
    """Send to a peer that does not read, until nothing more goes; return how many bytes did."""
    sent = 0
    while True:
        try:
            sent += sink.send(bytes(65536))
        except BlockingIOError:
            return sent


@pytest.fixture
def background() -> Iterator[Callable[..., Future[Any]]]:
    """Run calls in threads, which end with the test."""
    with ThreadPoolExecutor(16) as executor:
        yield executor.submit


@pytest.fixture
def slirp(port: virtnic.Port) -> Iterator[net.Stack]:
    with net.Stack(port, dhcp=True) as stack:
        yield stack


@pytest.fixture(params=[False, True], ids=["plain", "offload"])
def tap(request: pytest.FixtureRequest, dual: Netns) -> Iterator[net.Stack]:
    """A stack with the kernel as its peer, with and without offloads of what is received."""
    with (
        virtnic.open(dual.netdev, offload=request.param) as port,
        net.Stack(port, address=["10.99.0.2/24", "fd99::2/64"]) as stack,
    ):
        dual.wait_for_carrier()
        yield stack


def pair(stack: net.Stack, netns: Netns, family: int) -> tuple[net.Socket, socket.socket]:
    """Connect the stack to the kernel."""
    with listen(netns, family) as server:
        ours = stack.create_connection(server.getsockname()[:2], timeout=LONG)
        theirs, peer = server.accept()
        theirs.settimeout(LONG)
        assert ours.getsockname()[:2] == peer[:2]
        return ours, theirs


def test_dhcp_gives_an_address_and_routers_another(slirp: net.Stack) -> None:
    assert slirp.address == "10.0.2.15/24"
    assert slirp.gateway == "10.0.2.2"
    assert slirp.name_servers == ["10.0.2.3"]
    assert slirp.wait_ipv6(LONG).startswith("fec0:")
    assert slirp.ping("10.0.2.2", timeout=LONG).seconds > 0
    assert slirp.ping("fec0::2", timeout=LONG).seconds > 0
    assert slirp.arp("10.0.2.2", timeout=LONG).mac.startswith("52:55:")


def test_tcp_to_a_server_of_the_host(slirp: net.Stack, background: Callable[..., Any]) -> None:
    data = pattern(1 << 20)
    with socket.create_server(("127.0.0.1", 0)) as server:
        serving = background(server.accept)
        with slirp.create_connection(("10.0.2.2", server.getsockname()[1]), timeout=LONG) as ours:
            theirs = serving.result(LONG)[0]
            with theirs:
                theirs.settimeout(LONG)
                reading = background(read_all, theirs)
                ours.sendall(data)
                ours.shutdown(socket.SHUT_WR)
                assert reading.result(LONG) == data
                theirs.sendall(data)
            assert ours.makefile("rb").read() == data
    with pytest.raises(ConnectionRefusedError):
        slirp.create_connection(("10.0.2.2", 1), timeout=LONG)


@FAMILIES
def test_tcp_both_ways_with_the_kernel(
    tap: net.Stack, dual: Netns, family: int, background: Callable[..., Any]
) -> None:
    data = pattern(4 << 20)
    ours, theirs = pair(tap, dual, family)
    with ours, theirs:
        for sender, receiver in ((ours, theirs), (theirs, ours)):
            reading = background(read_all, receiver)
            sender.sendall(data)
            sender.shutdown(socket.SHUT_WR)
            assert hashlib.sha256(reading.result(LONG)).digest() == hashlib.sha256(data).digest()
        assert ours.recv(1) == b""
    assert tap.stats()["rx_bad_checksum"] == 0


@FAMILIES
def test_a_server_of_the_stack(tap: net.Stack, dual: Netns, family: int) -> None:
    with tap.create_server(("", 0), family=family) as server:
        number = server.getsockname()[1]
        with dual.open_socket(family, STREAM) as theirs:
            theirs.settimeout(LONG)
            theirs.connect((STACK[family], number))
            server.settimeout(LONG)
            ours, peer = server.accept()
            assert peer[:2] == theirs.getsockname()[:2]
            with ours:
                theirs.sendall(b"hello")
                assert ours.recv(100) == b"hello"
                # A half: what the peer still says is heard.
                ours.sendall(b"bye")
                ours.shutdown(socket.SHUT_WR)
                assert read_all(theirs) == b"bye"
                theirs.sendall(b"late")
                theirs.close()
                assert read_all(ours) == b"late"
                with pytest.raises(BrokenPipeError):
                    ours.sendall(b"more")
    # Nobody listens any more.
    with dual.open_socket(family, STREAM) as theirs:
        theirs.settimeout(LONG)
        with pytest.raises(ConnectionRefusedError):
            theirs.connect((STACK[family], number))


def test_resets_and_timeouts(tap: net.Stack, dual: Netns) -> None:
    ours, theirs = pair(tap, dual, socket.AF_INET)
    with ours:
        ours.settimeout(0.01)
        with pytest.raises(TimeoutError):
            ours.recv(1)
        ours.setblocking(False)
        with pytest.raises(BlockingIOError):
            ours.recv(1)
        theirs.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        theirs.close()
        ours.settimeout(LONG)
        with pytest.raises(ConnectionResetError):
            ours.recv(1)
        with pytest.raises(BrokenPipeError):
            ours.send(b"x")
    with pytest.raises(TimeoutError):
        tap.create_connection(("10.99.0.77", 9), timeout=0.05)
    with tap.socket() as lost, pytest.raises(OSError, match="no gateway") as caught:
        lost.connect(("192.0.2.1", 9))
    assert caught.value.errno == errno.ENETUNREACH
    # Unread bytes: the peer is told that they are lost.
    ours, theirs = pair(tap, dual, socket.AF_INET)
    with theirs:
        theirs.sendall(b"unread")
        assert eventually(lambda: tap.connections()[-1].receive_queue == 6)
        ours.close()
        with pytest.raises(ConnectionResetError):
            read_all(theirs)


def test_what_cannot_be_bound(slirp: net.Stack) -> None:
    with slirp.create_server(("", 8080)), slirp.socket() as second:
        with pytest.raises(OSError, match="another socket") as caught:
            second.bind(("", 8080))
        assert caught.value.errno == errno.EADDRINUSE
        with pytest.raises(OSError, match="not an address of the stack") as caught:
            second.bind(("10.0.2.77", 0))
        assert caught.value.errno == errno.EADDRNOTAVAIL
        with pytest.raises(OSError, match="not connected") as caught:
            second.send(b"x")
        assert caught.value.errno == errno.ENOTCONN
    second.close()
    with pytest.raises(OSError, match="closed") as caught:
        second.getsockname()
    assert caught.value.errno == errno.EBADF
    assert second.fileno() == -1


@FAMILIES
def test_udp(tap: net.Stack, dual: Netns, family: int) -> None:
    with listen(dual, family, DATAGRAM) as theirs, tap.socket(family, DATAGRAM) as ours:
        ours.settimeout(LONG)
        sizes = [0, 1, 1400] + ([5000, 60000] if family == socket.AF_INET else [])
        for size in sizes:
            data = pattern(64 << 10)[:size]
            assert ours.sendto(data, theirs.getsockname()) == size
            received, peer = theirs.recvfrom(65535)
            assert received == data
            theirs.sendto(data, peer)
            echoed, peer = ours.recvfrom(65535)
            assert echoed == data
            assert peer == theirs.getsockname()
        with pytest.raises(OSError, match="at most") as caught:
            ours.sendto(bytes(65508), theirs.getsockname())
        assert caught.value.errno == errno.EMSGSIZE
        peer = theirs.getsockname()
    with tap.socket(family, DATAGRAM) as ours:
        ours.settimeout(LONG)
        ours.connect(peer)
        ours.send(b"nobody")
        with pytest.raises(ConnectionRefusedError):
            ours.recv(1)


def test_broadcast_and_groups(tap: net.Stack, dual: Netns) -> None:
    dual.run("ip", "route", "add", "224.0.0.0/4", "dev", "tap0")
    with dual.open_socket() as theirs, tap.socket(socket.AF_INET, DATAGRAM) as ours:
        theirs.settimeout(LONG)
        theirs.bind(("", 5555))
        with pytest.raises(PermissionError):
            ours.sendto(b"all", ("10.99.0.255", 5555))
        ours.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
        ours.sendto(b"all", ("10.99.0.255", 5555))
        assert theirs.recv(10) == b"all"
        group = socket.inet_aton("239.1.2.3") + socket.inet_aton("10.99.0.1")
        theirs.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, group)
        ours.sendto(b"some", ("239.1.2.3", 5555))
        assert theirs.recv(10) == b"some"
    with dual.open_socket() as theirs, tap.socket(socket.AF_INET, DATAGRAM) as ours:
        ours.settimeout(LONG)
        ours.bind(("", 5556))
        ours.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, group)
        theirs.sendto(b"group", ("239.1.2.3", 5556))
        assert ours.recv(10) == b"group"
        ours.setsockopt(socket.IPPROTO_IP, socket.IP_DROP_MEMBERSHIP, group)
        theirs.sendto(b"late", ("239.1.2.3", 5556))
        theirs.sendto(b"mine", (STACK[socket.AF_INET], 5556))
        assert ours.recv(10) == b"mine"


def test_select_tells_reading_from_writing(tap: net.Stack, dual: Netns) -> None:
    def look(one: net.Socket) -> tuple[bool, bool]:
        readable, writable, _ = select.select([one], [one], [], 0)
        return bool(readable), bool(writable)

    ours, theirs = pair(tap, dual, socket.AF_INET)
    with ours, theirs:
        assert look(ours) == (False, True)
        theirs.sendall(b"x")
        assert select.select([ours], [], [], LONG)[0]
        assert ours.recv(10) == b"x"
        assert look(ours) == (False, True)
        ours.setblocking(False)
        sent = fill(ours)
        assert eventually(lambda: look(ours) == (False, False))
        reader = threading.Thread(target=read_exactly, args=(theirs, sent))
        reader.start()
        assert select.select([], [ours], [], LONG)[1]
        reader.join()
        theirs.close()
        assert select.select([ours], [], [], LONG)[0]
        assert ours.recv(1) == b""


def test_many_connections(tap: net.Stack, dual: Netns, background: Callable[..., Any]) -> None:
    with listen(dual, socket.AF_INET) as server:
        accepting = background(lambda: [server.accept()[0] for _ in range(100)])
        ours = [tap.create_connection(server.getsockname(), timeout=LONG) for _ in range(100)]
        theirs = {one.getpeername(): one for one in accepting.result(LONG)}
        for number, one in enumerate(ours):
            one.settimeout(LONG)
            one.sendall(b"%d" % number)
        for number, one in enumerate(ours):
            peer = theirs[one.getsockname()]
            assert peer.recv(10) == b"%d" % number
            peer.sendall(b"!%d" % number)
            assert one.recv(10) == b"!%d" % number
        assert sum(one.state == "established" for one in tap.connections()) == 100
        for one in [*ours, *theirs.values()]:
            one.close()


def test_a_bad_wire_loses_nothing(dual: Netns, background: Callable[..., Any]) -> None:
    data = pattern(1 << 20)
    with virtnic.open(dual.netdev) as port:
        wire = FaultyPort(port, seed=7, drop=0.01, duplicate=0.01, reorder=0.02, corrupt=0.005)
        with wire, net.Stack(wire, address="10.99.0.2/24") as stack:
            ours, theirs = pair(stack, dual, socket.AF_INET)
            with ours, theirs:
                for sender, receiver in ((ours, theirs), (theirs, ours)):
                    reading = background(read_all, receiver)
                    sender.sendall(data)
                    sender.shutdown(socket.SHUT_WR)
                    digest = hashlib.sha256(reading.result(60)).digest()
                    assert digest == hashlib.sha256(data).digest()
                counted = ours.stats()
                assert counted["retransmits"] > 0
                assert counted["duplicates"] > 0
                assert stack.stats()["rx_bad_checksum"] > 0


def test_waits_can_be_interrupted(slirp: net.Stack) -> None:
    """By what a signal handler raises, as Ctrl-C does."""

    class Interrupted(Exception):
        pass

    def raise_it(*_: object) -> None:
        raise Interrupted

    before = signal.signal(signal.SIGALRM, raise_it)
    datagrams = slirp.socket(socket.AF_INET, DATAGRAM)
    datagrams.bind(("", 0))
    try:
        with slirp.create_server(("", 0)) as server, datagrams:
            for wait in (server.accept, lambda: datagrams.recv(1)):
                signal.setitimer(signal.ITIMER_REAL, 0.02)
                with pytest.raises(Interrupted):
                    wait()
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def test_what_ends_the_port_ends_the_sockets(port: virtnic.Port) -> None:
    stack = net.Stack(port, dhcp=True)
    with stack.create_server(("", 80)) as server:
        with ThreadPoolExecutor(1) as executor:
            accepting = executor.submit(server.accept)
            port.close()
            with pytest.raises(OSError, match="ended") as caught:
                accepting.result(LONG)
        assert caught.value.errno == errno.ENETDOWN
        with pytest.raises(OSError, match="ended"):
            stack.socket()
    stack.close()
    assert stack.closed
    with pytest.raises(OSError, match="closed"):
        stack.socket()


def test_a_closed_stack_resets_its_connections(tap: net.Stack, dual: Netns) -> None:
    ours, theirs = pair(tap, dual, socket.AF_INET)
    with theirs:
        tap.close()
        with pytest.raises(ConnectionResetError):
            theirs.recv(1)
    with pytest.raises(OSError, match="closed"):
        ours.send(b"x")
    ours.close()


def has_received(connection: net.Socket, count: int) -> bool:
    received: int = connection.stats()["rx_bytes"]
    return received > count


def has_restarted(port: virtnic.Port, before: int) -> bool:
    return port.restarts > before


def test_connections_outlive_their_qemu(dual: Netns, background: Callable[..., Any]) -> None:
    """With ``recover=True``: what was sent meanwhile is sent again, in both directions."""
    data = pattern(24 << 20)
    with (
        virtnic.open(dual.netdev, recover=True) as port,
        net.Stack(port, address="10.99.0.2/24") as stack,
        stack.create_server(("", 8080)) as server,
    ):
        dual.wait_for_carrier()
        ours, theirs = pair(stack, dual, socket.AF_INET)
        with ours, theirs:
            ours.settimeout(LONG)
            reading = [background(read_all, one) for one in (ours, theirs)]
            sending = [background(one.sendall, data) for one in (ours, theirs)]
            for megabytes in (2, 12):
                before = port.restarts
                assert eventually(partial(has_received, ours, megabytes << 20))
                assert not any(one.done() for one in reading)
                os.kill(port.qemu.pid, signal.SIGKILL)
                assert eventually(partial(has_restarted, port, before))
            for one in sending:
                one.result(LONG)
            for one in (ours, theirs):
                one.shutdown(socket.SHUT_WR)
            digest = hashlib.sha256(data).digest()
            assert [hashlib.sha256(one.result(LONG)).digest() for one in reading] == [digest] * 2
            assert ours.stats()["retransmits"] > 0
        # And what only waited.
        with dual.open_socket(socket.AF_INET, STREAM) as late:
            late.settimeout(LONG)
            late.connect((STACK[socket.AF_INET], 8080))
            server.settimeout(LONG)
            with server.accept()[0] as accepted:
                accepted.sendall(b"hello")
                assert late.recv(5) == b"hello"
