"""A real peer for each netdev of the table: it sends and receives numbered frames, and can be lost.

``PEERS`` has the function that makes each; ``NOWHERE`` says why there is none.
"""

import contextlib
import os
import shlex
import shutil
import signal
import socket
import struct
import subprocess
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import virtnic
from support.frames import GATEWAY, GUEST
from support.packets import parse, udp
from support.waiting import eventually
from virtnic import net
from virtnic.testing import Testpmd

from .components import needs, qemu_command
from .netns import Netns
from .process import mortal, run
from .streams import receive_frame, send_frame

__all__ = ["NOWHERE", "PEERS", "Bench", "Peer"]

#: Seconds for one frame: a busy machine may be slow.
_LONG = 30.0


def _frame(payload: bytes) -> bytes:
    return payload


@dataclass
class Peer:
    """The other end of a netdev."""

    netdev: Any
    #: Give one frame to our port.
    send: Callable[[bytes], object]
    #: Return the next frame of our port.
    receive: Callable[[], bytes]
    #: Lose it, as by a crash.
    kill: Callable[[], object]
    #: Called with the port when it is attached.
    meet: Callable[[virtnic.Port], object] = lambda port: None
    #: The frame that carries a payload, and the payload that a frame carries.
    wrap: Callable[[bytes], bytes] = _frame
    unwrap: Callable[[bytes], bytes] = _frame
    #: The longest payload.
    longest: int = 1514
    #: Options of Qemu.
    qemu: dict[str, Any] = field(default_factory=dict)


class Bench:
    """Where a peer is made: a directory, and what is closed after it."""

    def __init__(self, directory: Path, stack: contextlib.ExitStack) -> None:
        self.directory, self.stack = directory, stack

    def pair(self, kind: socket.SocketKind) -> tuple[socket.socket, socket.socket]:
        """Return two connected sockets."""
        here, there = socket.socketpair(socket.AF_UNIX, kind)
        for sock in (here, there):
            sock.settimeout(_LONG)
            self.stack.enter_context(sock)
        return here, there

    def start(self, argv: list[str], **options: Any) -> subprocess.Popen[bytes]:
        """Start a program that ends with the test."""
        process = subprocess.Popen(mortal(argv), stdout=subprocess.DEVNULL, **options)
        self.stack.callback(_end, process)
        return process

    def path(self, name: str) -> Path:
        """Return the path of a socket, which is removed at the end."""
        path = self.directory / name
        self.stack.callback(lambda: path.unlink(missing_ok=True))
        return path


def _end(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    process.wait()
    if process.stdin is not None:
        process.stdin.close()


def _stream(sock: socket.socket, netdev: Any, **more: Any) -> Peer:
    """A peer that has a connected stream."""
    return Peer(
        netdev,
        lambda frame: send_frame(sock, frame),
        lambda: receive_frame(sock),
        sock.close,
        **more,
    )


def stream(bench: Bench) -> Peer:
    """A program that listens at a UNIX socket."""
    path = bench.path("stream")
    server = bench.stack.enter_context(socket.socket(socket.AF_UNIX))
    server.bind(str(path))
    server.listen()
    server.settimeout(_LONG)
    found: list[socket.socket] = []

    def meet(_port: virtnic.Port) -> None:
        sock = bench.stack.enter_context(server.accept()[0])
        sock.settimeout(_LONG)
        found.append(sock)

    return Peer(
        f"stream,server=off,addr.type=unix,addr.path={path}",
        lambda frame: send_frame(found[0], frame),
        lambda: receive_frame(found[0]),
        lambda: found[0].close(),
        meet,
    )


def by_socket(bench: Bench) -> Peer:
    """A connected socket of ours."""
    here, there = bench.pair(socket.SOCK_STREAM)
    return _stream(there, f"socket,fd={here.fileno()}", meet=lambda _port: here.close())


def dgram(bench: Bench) -> Peer:
    """A connected pair of datagram sockets."""
    here, there = bench.pair(socket.SOCK_DGRAM)
    return Peer(
        f"dgram,local.type=fd,local.str={here.fileno()}",
        there.send,
        lambda: there.recv(4096),
        there.close,
        lambda _port: here.close(),
    )


def hubport(bench: Bench) -> Peer:
    """A hub in QEMU, with a UDP socket plugged into it too."""
    ours = bench.stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
    ours.bind(("127.0.0.1", 0))
    ours.settimeout(_LONG)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as free:
        free.bind(("127.0.0.1", 0))
        theirs = free.getsockname()
    udp_socket = f"socket,id=udp,udp=127.0.0.1:{ours.getsockname()[1]}"
    return Peer(
        "hubport,hubid=7",
        lambda frame: ours.sendto(frame, theirs),
        lambda: ours.recv(4096),
        ours.close,
        qemu={
            "extra": [
                *("-netdev", f"{udp_socket},localaddr=127.0.0.1:{theirs[1]}"),
                *("-netdev", "hubport,id=hub,hubid=7,netdev=udp"),
            ]
        },
    )


#: RFC 3931, 4.1.2.1: data, version 3; the session follows.
_L2TP = struct.Struct("!II")
_DATA = 0x00030000


def l2tpv3(bench: Bench) -> Peer:
    """The other end of a static tunnel over UDP."""
    ours = bench.stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
    ours.bind(("127.0.0.1", 0))
    ours.settimeout(_LONG)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as free:
        free.bind(("127.0.0.1", 0))
        theirs = free.getsockname()

    def receive() -> bytes:
        packet = ours.recv(4096)
        assert _L2TP.unpack_from(packet) == (_DATA, 8)
        return packet[_L2TP.size :]

    return Peer(
        f"l2tpv3,src=127.0.0.1,dst=127.0.0.1,udp=on,srcport={theirs[1]},"
        f"dstport={ours.getsockname()[1]},rxsession=7,txsession=8,counter=off",
        lambda frame: ours.sendto(_L2TP.pack(_DATA, 7) + frame, theirs),
        receive,
        ours.close,
    )


def tap(bench: Bench) -> Peer:
    """The kernel, behind a TAP device."""
    needs("netns")
    netns = bench.stack.enter_context(Netns())
    return _kernel(bench, netns, netns.tap, netns.netdev, {"qemu": netns.qemu_command})


def bridge(bench: Bench) -> Peer:
    """The kernel, behind a bridge to which a helper adds a TAP device."""
    needs("netns")
    helper = next((p for p in ("/usr/lib/qemu/qemu-bridge-helper",) if Path(p).exists()), None)
    assert helper is not None, "apt-get install qemu-system-common"
    netns = bench.stack.enter_context(Netns())
    netns.run("ip", "link", "add", "br0", "type", "bridge")
    netns.run("ip", "link", "set", "br0", "up")
    # The helper obeys /etc/qemu/bridge.conf: QEMU gets an /etc of its own.
    etc = bench.directory / "etc"
    (etc / "qemu").mkdir(parents=True)
    bench.stack.callback(shutil.rmtree, etc)
    (etc / "qemu/bridge.conf").write_text("allow br0\n")
    for name in ("passwd", "group", "ld.so.cache"):
        shutil.copy(Path("/etc") / name, etc / name)
    script = f'mount --bind {etc} /etc && exec "$@"'
    argv = ["ip", "netns", "exec", netns.name, "unshare", "--mount", "sh", "-c", script, "sh"]
    command = shlex.join([*argv, *shlex.split(qemu_command())])
    return _kernel(
        bench, netns, "br0", f"bridge,br=br0,helper={helper}", {"qemu": command, "sandbox": "spawn"}
    )


def _kernel(bench: Bench, netns: Netns, device: str, netdev: str, qemu: dict[str, Any]) -> Peer:
    found: list[socket.socket] = []

    def meet(_port: virtnic.Port) -> None:
        state = ("cat", f"/sys/class/net/{device}/operstate")
        assert eventually(lambda: netns.run(*state).strip() == "up", _LONG)
        raw = bench.stack.enter_context(
            netns.open_socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(0x88B5))
        )
        raw.setsockopt(socket.SOL_SOCKET, 33, 16 << 20)  # SO_RCVBUFFORCE
        raw.settimeout(_LONG)
        raw.bind((device, 0x88B5))
        found.append(raw)

    return Peer(
        netdev,
        lambda frame: found[0].send(frame),
        lambda: found[0].recv(4096),
        lambda: netns.run("ip", "link", "delete", device),
        meet,
        qemu=qemu,
    )


def _received(other: virtnic.Port) -> bytes:
    """Return the next frame that the other port receives."""
    burst = other.recv(1, timeout=_LONG)
    assert burst, f"nothing comes: {other.stats()}"
    return bytes(burst[0])


def vde(bench: Bench) -> Peer:
    """A VDE switch, with another QEMU's port on it."""
    needs("vde")
    place = bench.directory / "vde"
    control = bench.path("vde.ctl")
    switch = bench.start(
        ["vde_switch", "-s", str(place), "-M", str(control)],
        stdin=subprocess.PIPE,  # it ends when there is no more input
    )
    bench.stack.callback(shutil.rmtree, place, ignore_errors=True)
    assert eventually((place / "ctl").is_socket, _LONG)
    other = bench.stack.enter_context(
        virtnic.open(f"vde,sock={place}", hugepages=None, size="8M", mac="02:00:00:00:00:99")
    )

    return Peer(
        f"vde,sock={place}",
        lambda frame: other.send_all([frame], timeout=_LONG),
        lambda: _received(other),
        switch.kill,
    )


def vhost_user(bench: Bench) -> Peer:
    """DPDK's testpmd, which passes frames on to another port of ours."""
    needs("testpmd")
    paths = [bench.path("vhu0"), bench.path("vhu1")]
    testpmd = bench.stack.enter_context(Testpmd(paths, mode="io"))
    memory = virtnic.Memory("8M", hugepages=None)
    other = bench.stack.enter_context(
        virtnic.open(f"vhost-user,path={paths[1]}", frontend="direct", memory=memory)
    )

    def meet(port: virtnic.Port) -> None:
        for each in (port, other):
            each.wait_ready(_LONG)
        for each in (port, other):
            assert each.recv(1, timeout=_LONG)  # the frame by which that was seen

    return Peer(
        f"vhost-user,path={paths[0]}",
        lambda frame: other.send_all([frame], timeout=_LONG),
        lambda: _received(other),
        testpmd.kill,
        meet,
    )


def user(bench: Bench) -> Peer:
    """A UDP socket of the host, which slirp's gateway leads to; frames are translated."""
    return _translated(bench, "user", GUEST, GATEWAY)


def passt(bench: Bench) -> Peer:
    """The same, through passt."""
    needs("passt", "netns")
    netns = bench.stack.enter_context(Netns())
    netns.run("ip", "route", "add", "default", "via", "10.99.0.2")
    command = f"ip netns exec {netns.name} {qemu_command()}"
    peer = _translated(
        bench,
        # Else it becomes `nobody`, who may not write the file for its process id.
        {"type": "passt", "param": [{"str": "--runas"}, {"str": "0"}]},
        "10.99.0.1",
        "10.99.0.2",
        opened=lambda: netns.open_socket(socket.AF_INET, socket.SOCK_DGRAM),
    )
    peer.qemu = {"qemu": command, "sandbox": False}

    def kill() -> None:
        inside = run(["ip", "netns", "pids", netns.name]).split()
        pids = [pid for pid in inside if "passt" in Path(f"/proc/{pid}/comm").read_text()]
        assert pids
        for pid in pids:
            os.kill(int(pid), signal.SIGKILL)

    peer.kill = kill
    return peer


def _translated(
    bench: Bench,
    netdev: Any,
    guest: str,
    gateway: str,
    opened: Callable[[], socket.socket] = lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM),
) -> Peer:
    host = bench.stack.enter_context(opened())
    host.bind(("127.0.0.1", 0))
    host.settimeout(_LONG)
    ports = (4000, host.getsockname()[1])
    macs: list[tuple[str, str]] = []
    source: list[Any] = []

    def meet(port: virtnic.Port) -> None:
        with net.Stack(port, address=f"{guest}/24") as stack:
            macs.append((port.mac, stack.arp(gateway, timeout=_LONG).mac))

    def wrap(payload: bytes) -> bytes:
        return udp(macs[0], (guest, gateway), ports, payload, complete=True)

    def unwrap(frame: bytes) -> bytes:
        packet = parse(frame)
        return packet.payload if packet and packet.ports == ports[::-1] else b""

    def receive() -> bytes:
        payload, where = host.recvfrom(4096)
        source[:] = [where]
        return payload

    def send(payload: bytes) -> None:
        host.sendto(payload, source[0])

    return Peer(netdev, send, receive, host.close, meet, wrap, unwrap, longest=1472)


PEERS: dict[str, Callable[[Bench], Peer]] = {
    "user": user,
    "tap": tap,
    "bridge": bridge,
    "passt": passt,
    "vhost-user": vhost_user,
    "socket": by_socket,
    "stream": stream,
    "dgram": dgram,
    "hubport": hubport,
    "l2tpv3": l2tpv3,
    "vde": vde,
}
#: Netdevs without a peer here, and why.
NOWHERE = {
    "vhost-vdpa": "a device of the kernel, for which this takes a virtual machine",
    "af-xdp": "in no Debian QEMU",
    "netmap": "in no Debian QEMU",
}
