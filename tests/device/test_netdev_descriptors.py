"""Netdevs given by descriptor: QEMU uses ours, under any number."""

import fcntl
import os
import socket
import struct
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

import virtnic
from peers.netns import Netns
from peers.streams import receive_frame, send_frame
from support.frames import numbered
from support.inside import machine_of
from virtnic import net
from virtnic.testing import kill_qemu

pytestmark = pytest.mark.needs("qemu")

TUNSETIFF = 0x400454CA
TAP_FLAGS = 0x0002 | 0x1000 | 0x4000  # IFF_TAP, IFF_NO_PI, IFF_VNET_HDR
MULTI_QUEUE = 0x0100


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    """The two ends of a stream: QEMU's and the test's."""
    here, there = socket.socketpair()
    there.settimeout(5.0)
    with here, there:
        yield here, there


def named(qemu: virtnic.Qemu) -> list[str]:
    """Return the names of descriptors that QEMU still holds: none if all were used or closed."""
    left = []
    for number in range(1, 5):
        for name in (f"net{number}-fd{index}" for index in range(4)):
            try:
                qemu.execute("closefd", fdname=name)
            except virtnic.QemuError:
                continue
            left.append(name)
    return left


def exchange(port: virtnic.Port, there: socket.socket) -> None:
    """Send a frame each way."""
    port.send([numbered(port.mac, 1)])
    assert receive_frame(there) == numbered(port.mac, 1)
    send_frame(there, numbered(port.mac, 2))
    assert port.recv(1, timeout=20.0).tobytes() == [numbered(port.mac, 2)]


def test_a_socket_of_ours(qemu: virtnic.Qemu, pair: tuple[socket.socket, socket.socket]) -> None:
    here, there = pair
    with qemu.attach(f"socket,fd={here.fileno()}") as port:
        exchange(port, there)
        assert named(qemu) == []
    # QEMU had a copy: ours is open, and the other end is at its end when it is closed too.
    os.fstat(here.fileno())
    here.close()
    with pytest.raises(EOFError):
        receive_frame(there)


def test_a_number_that_qemu_uses_itself(
    pair: tuple[socket.socket, socket.socket], qemu: virtnic.Qemu
) -> None:
    """A low number here is QEMU's QMP or QTest socket, or another file, there."""
    here, there = pair
    assert Path(f"/proc/{qemu.pid}/fd/{here.fileno()}").is_symlink()
    with qemu.attach({"type": "socket", "fd": here.fileno()}) as port:
        exchange(port, there)


def test_a_stream_by_descriptor(
    qemu: virtnic.Qemu, pair: tuple[socket.socket, socket.socket]
) -> None:
    here, there = pair
    with qemu.attach(f"stream,addr.type=fd,addr.str={here.fileno()}") as port:
        exchange(port, there)


def test_a_datagram_socket_of_ours(qemu: virtnic.Qemu) -> None:
    if qemu.version < (7, 2):
        pytest.skip("dgram came with 7.2")
    here, there = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    there.settimeout(5.0)
    with here, there, qemu.attach(f"dgram,local.type=fd,local.str={here.fileno()}") as port:
        port.send([numbered(port.mac, 1)])
        assert there.recv(2000) == numbered(port.mac, 1)
        there.send(numbered(port.mac, 2))
        assert port.recv(1, timeout=20.0).tobytes() == [numbered(port.mac, 2)]
        assert named(qemu) == []


def open_tap(netns: Netns, name: str, flags: int) -> int:
    """Return a descriptor of a TAP device of the namespace, opened inside it."""

    def opened() -> int:
        fd = os.open("/dev/net/tun", os.O_RDWR | os.O_CLOEXEC | os.O_NONBLOCK)
        fcntl.ioctl(fd, TUNSETIFF, struct.pack("16sH22x", name.encode(), flags))
        return fd

    return netns.inside(opened)


@pytest.mark.needs("netns")
def test_a_tap_of_ours(netns: Netns, qemu_command: str) -> None:
    """QEMU runs outside of the namespace that the descriptor leads into."""
    fd = open_tap(netns, netns.tap, TAP_FLAGS)
    try:
        with virtnic.open(f"tap,fd={fd}", qemu=qemu_command) as port:
            netns.wait_for_carrier()
            with net.Stack(port, address="10.99.0.2/24") as stack:
                assert stack.ping("10.99.0.1", timeout=20.0).seconds > 0
    finally:
        os.close(fd)


@pytest.mark.needs("netns")
def test_several_queues_of_a_tap_of_ours(netns: Netns) -> None:
    fds = [open_tap(netns, "many0", TAP_FLAGS | MULTI_QUEUE) for _ in range(2)]
    try:
        with virtnic.open(f"tap,fds={fds[0]}:{fds[1]}") as port:
            assert port.max_queues == 2
        with pytest.raises(ValueError, match="queues=3: the netdev has 2 queue pairs"):
            virtnic.open({"type": "tap", "fds": fds}, queues=3)
    finally:
        for fd in fds:
            os.close(fd)


def closed_number() -> int:
    fd = os.dup(0)
    os.close(fd)
    return fd


@pytest.mark.parametrize(
    ("netdev", "words"),
    [
        ("socket,fd={closed}", "this process has no open descriptor"),
        ("tap,fds={closed}", "this process has no open descriptor"),
        ("socket,fd=99999999999999999999", "this process has no open descriptor"),
        ("socket,fd=-1", "is not a descriptor"),
        ("socket,fd=name", "is not a descriptor"),
        ({"type": "socket", "fd": True}, "is not a descriptor"),
        ("socket,fd={null}", "is /dev/null, and must be a socket"),
        ("socket,fd={listening}", "is a listening socket"),
        ("stream,addr.type=fd,addr.str={datagram}", "is a socket of type SOCK_DGRAM"),
        ("stream,addr.type=fd", "needs the descriptor"),
        ("stream,addr.type=fd,addr.str={stream},server=on", "server=on cannot be used with it"),
        ("dgram,local.type=fd,local.str={stream}", "is a socket of type SOCK_STREAM"),
        ("tap,fd={null}", "is /dev/null .*, and must be a TAP"),
        ("tap,fds={null}:{stream}", "and must be a TAP"),
        ("tap,ifname=x,vhost=on,vhostfd={stream}", "and must be a character device"),
        ("tap,ifname=x,vhostfds={null}:{closed}", "this process has no open descriptor"),
        ("tap,ifname=x,vhostfds={null}:{stream}", "and must be a character device"),
        ("tap,ifname=x,vhostfd=", "is not a descriptor"),
        ("vhost-vdpa,vhostfd={closed}", "this process has no open descriptor"),
    ],
)
def test_a_wrong_descriptor_is_refused_before_qemu_sees_it(
    qemu: virtnic.Qemu, netdev: Any, words: str
) -> None:
    with ExitStack() as stack:
        stream, other = (stack.enter_context(sock) for sock in socket.socketpair())
        datagram = stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
        listening = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        null = stack.enter_context(open(os.devnull, "r+b", buffering=0))  # noqa: PTH123
        assert other is not stream
        if isinstance(netdev, str):
            netdev = netdev.format(
                closed=closed_number(),
                null=null.fileno(),
                stream=stream.fileno(),
                datagram=datagram.fileno(),
                listening=listening.fileno(),
            )
        with pytest.raises(ValueError, match=words):
            qemu.attach(netdev)
    assert machine_of(qemu).process.alive
    assert qemu.ports == ()


def test_what_qemu_refuses_leaves_nothing_there(
    qemu: virtnic.Qemu, pair: tuple[socket.socket, socket.socket]
) -> None:
    here, there = pair
    with pytest.raises(ValueError, match="'colour' is unknown"):
        qemu.attach(f"socket,fd={here.fileno()},colour=red")
    assert named(qemu) == []
    here.close()
    with pytest.raises(EOFError):
        receive_frame(there)


def test_the_descriptor_goes_to_the_next_qemu_too(
    qemu_command: str, accel: Any, pair: tuple[socket.socket, socket.socket]
) -> None:
    """With ``recover`` a copy is kept until the port is closed."""
    here, there = pair
    memory = virtnic.Memory("8M", hugepages=None)
    with virtnic.Qemu(memory, accel=accel, recover=True) as qemu:
        events = qemu.events()
        port = qemu.attach(f"socket,fd={here.fileno()}")
        here.close()
        exchange(port, there)
        kill_qemu(qemu)
        while (event := events.wait(20.0)) is not None and event.kind != "qemu-back":
            pass
        assert event is not None
        exchange(port, there)
        port.close()
        with pytest.raises(EOFError):
            receive_frame(there)
