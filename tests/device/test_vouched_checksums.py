"""A backend that vouches for checksums without setting them, as passt does.

It sets DATA_VALID (VIRTIO 1.3, section 5.1.6.4) although GUEST_CSUM was not negotiated. Linux's
driver believes it in that case, too.
"""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
from typing import TYPE_CHECKING

import pytest

import virtnic
from peers.ring_backend import HEADER, RingBackend
from support.frames import mac_bytes
from support.packets import ACK, ETHERNET, FIN, SYN, ethernet, network, parse, tcp, udp
from support.waiting import eventually
from virtnic import net
from virtnic.testing import FaultyPort

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = pytest.mark.needs("qemu")

OURS, PEER = "10.0.0.1", "10.0.0.2"
PEER_MAC = "02:00:00:00:00:09"
DATA_VALID = 2


class Echo(RingBackend):
    """Echoes TCP, UDP and ICMP, with checksums that are partial or 0; answers ARP."""

    def __init__(self, path: Path, flags: int) -> None:
        super().__init__(path)
        self.header = bytes([flags]) + HEADER[1:]
        self._over = threading.Event()
        self._server = threading.Thread(target=self._answer_all)
        self._server.start()

    def close(self) -> None:
        """Close it. A second call does nothing."""
        self._over.set()
        self._server.join()
        super().close()

    def _answer_all(self) -> None:
        while not self._over.wait(0.002):
            with contextlib.suppress(KeyError, LookupError):  # nothing is served
                for frame in self.transmitted():
                    for answer in answers(frame):
                        self.deliver(answer)


def answers(frame: bytes) -> Iterator[bytes]:
    """Yield what the peer sends for a frame."""
    ours = ":".join(f"{byte:02x}" for byte in frame[6:12])
    if frame[12:14] == b"\x08\x06" and frame[38:42] == socket.inet_aton(PEER):
        mac = mac_bytes(PEER_MAC)
        yield frame[6:12] + mac + frame[12:21] + b"\2" + mac + frame[38:42] + frame[22:32]
        return
    if frame[12:14] == b"\x08\x00" and frame[23] == 1:
        echo = b"\0\0\0\0" + frame[ETHERNET + 24 :]
        yield ethernet(PEER_MAC, ours, network(PEER, OURS, 1, len(echo)) + echo)
        return
    packet = parse(frame)
    if packet is None:
        return
    ends = (PEER_MAC, ours), (PEER, packet.source), (packet.ports[1], packet.ports[0])
    if packet.protocol == socket.IPPROTO_UDP:
        yield udp(*ends, packet.payload)
        return
    behind = packet.sequence + len(packet.payload)
    if packet.flags & SYN:
        yield tcp(*ends, acknowledgement=behind + 1, flags=SYN | ACK)
    elif packet.payload:
        yield tcp(
            *ends,
            sequence=packet.acknowledgement,
            acknowledgement=behind,
            payload=packet.payload,
        )
    elif packet.flags & FIN:
        yield tcp(
            *ends, sequence=packet.acknowledgement, acknowledgement=behind + 1, flags=FIN | ACK
        )


@contextlib.contextmanager
def port_of(qemu: virtnic.Qemu, path: Path, flags: int = DATA_VALID) -> Iterator[virtnic.Port]:
    with Echo(path, flags) as backend, qemu.attach(f"vhost-user,path={path}") as port:
        backend.wait_up()
        yield port


@pytest.mark.parametrize("faulty", [False, True], ids=["port", "faulty"])
def test_a_connection(qemu: virtnic.Qemu, scratch: Path, faulty: bool) -> None:
    """On the port, and on one that copies its frames."""
    with port_of(qemu, scratch / "vhu0") as port:
        below = FaultyPort(port) if faulty else port
        with net.Stack(below, address=f"{OURS}/24") as stack:
            with stack.create_connection((PEER, 80), timeout=60) as connection:
                for text in (b"hello", bytes(range(256)) * 4):
                    connection.sendall(text)
                    received = b""
                    while len(received) < len(text):
                        received += connection.recv(4096)
                    assert received == text
            with stack.socket(type=socket.SOCK_DGRAM) as datagrams:
                datagrams.settimeout(60)
                datagrams.sendto(b"question", (PEER, 53))
                assert datagrams.recvfrom(100) == (b"question", (PEER, 53))
            assert stack.ping(PEER, timeout=60).seconds > 0
            assert stack.stats()["rx_bad_checksum"] == 0


def test_nobody_vouches(qemu: virtnic.Qemu, scratch: Path) -> None:
    with (
        port_of(qemu, scratch / "vhu0", flags=0) as port,
        net.Stack(port, address=f"{OURS}/24") as stack,
    ):
        datagrams = stack.socket(type=socket.SOCK_DGRAM)

        def counted() -> bool:
            datagrams.sendto(b"question", (PEER, 53))
            return stack.stats()["rx_bad_checksum"] > 0

        assert eventually(counted)
        datagrams.close()


def test_frames_as_they_are_and_complete(qemu: virtnic.Qemu, scratch: Path) -> None:
    """A burst has no metadata here, and says so; its copies are complete on request."""
    with port_of(qemu, scratch / "vhu0") as port:
        question = udp((port.mac, PEER_MAC), (OURS, PEER), (7, 53), b"question", complete=True)
        assert port.send([question]) == 1
        burst = port.recv(timeout=60)
        assert burst.offload is None
        (raw,), (whole,) = burst.tobytes(), burst.tobytes(checksums=True)
        before, after = parse(raw), parse(whole)
        assert before is not None
        assert after is not None
        assert (before.valid, after.valid) == (False, True)
        assert struct.unpack("!H", raw[40:42]) != struct.unpack("!H", whole[40:42])
        assert (raw[:40], raw[42:]) == (whole[:40], whole[42:])
