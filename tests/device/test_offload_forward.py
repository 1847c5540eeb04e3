"""Forwarding frames with pending offloads between two kernels."""

import contextlib
import hashlib
import itertools
import socket
import struct
import threading
from collections.abc import Iterator
from typing import Any

import pytest

import virtnic
from peers.netns import Netns
from support.negotiated import accepted
from support.offloads import KERNEL, KINDS, US, collect, filling
from support.packets import ACK, CWR, tcp, udp

pytestmark = pytest.mark.needs("qemu", "netns")


@contextlib.contextmanager
def two_kernels(
    first: dict[str, Any], second: dict[str, Any], *, memories: int = 1
) -> Iterator[tuple[Netns, Netns, virtnic.Port, virtnic.Port]]:
    """Two namespaces with a port each, of one memory or of two."""
    memory = virtnic.Memory("64M")
    other = memory if memories == 1 else virtnic.Memory("64M")
    with (
        Netns(address=KERNEL + "/24") as left,
        Netns(address=US + "/24") as right,
        virtnic.open(left.netdev, memory=memory, qemu=left.qemu_command, **first) as a,
        virtnic.open(right.netdev, memory=other, qemu=right.qemu_command, **second) as b,
    ):
        left.wait_for_carrier()
        right.wait_for_carrier()
        yield left, right, a, b


def transfer(left: Netns, right: Netns, count: int, progress: list[bool]) -> tuple[str, str]:
    """Send bytes by the kernels' TCP from left to right; return the two sides' hashes."""
    hashes: dict[str, str] = {}
    with (
        right.open_socket(kind=socket.SOCK_STREAM) as listener,
        left.open_socket(kind=socket.SOCK_STREAM) as client,
    ):
        listener.bind((US, 5000))
        listener.listen()
        listener.settimeout(20)
        client.settimeout(20)

        def receive() -> None:
            digest = hashlib.sha256()
            server, _ = listener.accept()
            with server:
                server.settimeout(20)
                while data := server.recv(1 << 20):
                    digest.update(data)
            hashes["right"] = digest.hexdigest()

        def send() -> None:
            digest = hashlib.sha256()
            client.connect((US, 5000))
            block = filling(1 << 20)
            for number in range(count >> 20):
                data = number.to_bytes(8, "big") + block[8:]
                digest.update(data)
                client.sendall(data)
            client.shutdown(socket.SHUT_WR)
            hashes["left"] = digest.hexdigest()

        threads = [threading.Thread(target=run) for run in (receive, send)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        progress.append(True)
    return hashes["left"], hashes["right"]


def move(
    left: Netns, right: Netns, a: virtnic.Port, b: virtnic.Port, count: int = 32 << 20
) -> virtnic.Result:
    """Transfer through ``virtnic.forward``; the two sides must have the same bytes."""
    done: list[bool] = []
    hashes: list[tuple[str, str]] = []

    def run() -> None:
        try:
            hashes.append(transfer(left, right, count, done))
        finally:
            done.append(True)

    thread = threading.Thread(target=run)
    thread.start()
    result = virtnic.forward(a, b, seconds=60, progress=lambda _: not done)
    thread.join()
    ((sent, received),) = hashes
    assert sent == received
    return result


@pytest.mark.parametrize(
    ("first", "second"),
    [("split", "split"), ("packed", "split"), ("legacy", "packed"), ("split", "only-legacy")],
)
def test_forward_keeps_segmentation(qemu_command: str, first: str, second: str) -> None:
    """TSO from one kernel to the other: long frames all the way, whatever the header's length."""
    with two_kernels({**KINDS[first], "offload": True}, {**KINDS[second], "offload": True}) as (
        left,
        right,
        a,
        b,
    ):
        result = move(left, right, a, b)
        assert result.no_offload == 0
        stats = b.stats()
        assert (stats["tx_no_offload"], stats["tx_bad_offload"], stats["tx_copied"]) == (0, 0, 0)
        assert stats["tx_bytes"] / stats["tx_packets"] > 5000
        assert stats["tx_bytes"] > 32 << 20


def test_forward_copies_metadata_between_memories(qemu_command: str) -> None:
    with two_kernels({"offload": True}, {"offload": True}, memories=2) as (left, right, a, b):
        assert move(left, right, a, b, 8 << 20).no_offload == 0
        stats = b.stats()
        assert stats["tx_copied"] == stats["tx_packets"]
        assert stats["tx_bytes"] / stats["tx_packets"] > 3000


@pytest.mark.parametrize("memories", [1, 2])
def test_forward_calculates_what_the_other_port_cannot(qemu_command: str, memories: int) -> None:
    """The receiving kernel verifies every checksum that was calculated in software."""
    with two_kernels({"features": {"GUEST_CSUM": True}}, {"offload": False}, memories=memories) as (
        left,
        right,
        a,
        b,
    ):
        assert "CSUM" not in accepted(b)
        before = errors(right)
        assert move(left, right, a, b, 8 << 20).no_offload == 0
        assert errors(right) == before


def errors(netns: Netns) -> list[int]:
    """Return how many wrong checksums the namespace's kernel saw: of IP, TCP, UDP."""
    lines = netns.run("cat", "/proc/net/snmp").splitlines()
    found = {}
    for names, values in itertools.pairwise(lines):
        if names.split(":")[0] == values.split(":")[0] and "InCsumErrors" in names:
            at = names.split().index("InCsumErrors")
            found[names.split(":")[0]] = int(values.split()[at])
    return [found[name] for name in ("Tcp", "Udp")]


@pytest.mark.parametrize("memories", [1, 2])
@pytest.mark.parametrize("how", ["forward", "send"])
def test_what_cannot_be_segmented_is_dropped_and_counted(
    qemu_command: str, how: str, memories: int
) -> None:
    with two_kernels(
        {"offload": True}, {"offload": False, "features": {"MRG_RXBUF": True}}, memories=memories
    ) as (left, _, a, b):
        long = tcp(
            (left.mac, b.mac), (KERNEL, US), (1, 2), payload=filling(30_000), flags=ACK | CWR
        )
        # A packet socket with a vnet header, which decides what the port receives.
        with left.packet_socket() as raw:
            raw.setsockopt(263, 15, 1)  # SOL_PACKET, PACKET_VNET_HDR
            short = udp((left.mac, b.mac), (KERNEL, US), (3, 4), b"short")
            raw.send(struct.pack("<BBHHHH", 1, 1, 54, 1000, 34, 16) + long)
            raw.send(struct.pack("<BBHHHH", 1, 0, 0, 0, 34, 6) + short)
        if how == "forward":
            result = virtnic.forward(a, b, packets=1, seconds=10)
            assert (result.sent, result.no_offload, result.ring_full) == (1, 1, 0)
        else:
            burst = collect(a, 2)
            offloads = list(burst.offload or ())
            assert [o.segmentation for o in offloads] == ["tcp4", None]
            assert b.send(burst) == 1
            assert not burst
        assert b.stats()["tx_no_offload"] == 1
        memory = a.memory
        b.reclaim()
        a.close()
        b.close()
    assert memory.jumbo_buffers_free == memory.jumbo_buffers
    assert memory.buffers_free == memory.buffers


@pytest.mark.parametrize("memories", [1, 2])
@pytest.mark.parametrize("viewed", [False, True])
def test_a_burst_keeps_its_metadata_when_it_is_sent(
    qemu_command: str, viewed: bool, memories: int
) -> None:
    """By hand in Python, with and without views of the frames, and with explicit offloads."""
    with two_kernels({"offload": True}, {"offload": True}, memories=memories) as (
        left,
        right,
        a,
        b,
    ):
        right_mac = right.mac
        left.run("ip", "neigh", "add", US, "lladdr", right_mac, "dev", left.tap)
        with left.open_socket() as source, right.open_socket() as sink:
            sink.bind((US, 2000))
            sink.settimeout(5)
            for explicit in (False, True):
                before = errors(right)
                source.sendto(b"first", (US, 2000))
                source.sendto(b"second", (US, 2000))
                burst = collect(a, 2)
                views = list(burst) if viewed else []
                offloads = burst.offload
                sent = b.send(burst, offload=offloads) if explicit else b.send(burst)
                assert (sent, len(burst)) == (2, 0)
                assert [sink.recv(100), sink.recv(100)] == [b"first", b"second"]
                assert errors(right) == before
                del views
