"""Names: a server in the kernel's namespace, which answers wrongly, too; and what follows."""

import socket
import struct
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

import virtnic
from peers.netns import Netns
from virtnic import net

LONG = 30.0
#: The records that the server has: (name, kind): data.
RECORDS: dict[tuple[str, int], list[bytes]] = {
    ("host.test", 1): [bytes([10, 99, 0, 1])],
    ("both.test", 1): [bytes([10, 99, 0, 1])],
    ("both.test", 28): [socket.inet_pton(socket.AF_INET6, "fd99::77")],
    ("long.test", 1): [bytes([10, 99, 1, n]) for n in range(100)],
}
ALIASES = {"alias.test": "host.test", "circle.test": "circle.test"}


def wire(name: str) -> bytes:
    """Return a name as messages have it."""
    return b"".join(bytes([len(part)]) + part.encode() for part in name.split(".")) + b"\0"


def answer(question: bytes, limit: int) -> bytes:
    """Return what the server says to a question."""
    at, labels = 12, []
    while size := question[at]:
        labels.append(question[at + 1 : at + 1 + size].decode())
        at += size + 1
    name, kind = ".".join(labels), struct.unpack(">H", question[at + 1 : at + 3])[0]
    asked = question[12 : at + 5]
    found = [(kind, data) for data in RECORDS.get((name, kind), [])]
    if name in ALIASES:
        found = [(5, wire(ALIASES[name]))]
    known = name in ALIASES or any(name == other for other, _ in RECORDS)
    body = b"".join(
        b"\xc0\x0c" + struct.pack(">HHIH", one, 1, 60, len(data)) + data for one, data in found
    )
    flags = 0x8180 | (0 if known else 3)
    head = question[:2] + struct.pack(">HHHHH", flags, 1, len(found), 0, 0)
    if len(head + asked + body) > limit:
        return question[:2] + struct.pack(">HHHHH", flags | 0x0200, 1, 0, 0, 0) + asked
    return head + asked + body


class Server:
    """A name server, over UDP and TCP. Before each right answer comes a forged one."""

    def __init__(self, netns: Netns) -> None:
        self.datagrams = netns.open_socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.connections = netns.open_socket(socket.AF_INET, socket.SOCK_STREAM)
        for one in (self.datagrams, self.connections):
            one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            one.bind(("10.99.0.1", 53))
        self.connections.listen()
        self.threads = [threading.Thread(target=work) for work in (self.udp, self.tcp)]
        for thread in self.threads:
            thread.start()

    def udp(self) -> None:
        while True:
            question, peer = self.datagrams.recvfrom(4096)
            if len(question) < 12:
                return
            forged = bytes([question[0] ^ 1]) + answer(question, 512)[1:]
            for one in (b"", b"\xff" * 40, forged, answer(question, 512)):
                self.datagrams.sendto(one, peer)

    def tcp(self) -> None:
        while True:
            connection, _ = self.connections.accept()
            with connection:
                question = connection.recv(4096)
                if len(question) < 12:
                    return
                said = answer(question[2:], 65535)
                connection.sendall(struct.pack(">H", len(said)) + said)

    def close(self, netns: Netns) -> None:
        with netns.open_socket() as last:
            last.sendto(b"", ("10.99.0.1", 53))
        with netns.open_socket(socket.AF_INET, socket.SOCK_STREAM) as last:
            last.connect(("10.99.0.1", 53))
        for thread in self.threads:
            thread.join()
        self.datagrams.close()
        self.connections.close()


@pytest.fixture
def stack(netns: Netns, tmp_path: Path) -> Iterator[net.Stack]:
    hosts = tmp_path / "hosts"
    hosts.write_text("10.99.0.1 filed.test filed # a comment\nfd99::1 filed.test\n")
    server = Server(netns)
    try:
        with (
            virtnic.open(netns.netdev) as port,
            net.Stack(
                port,
                address=["10.99.0.2/24", "fd99::2/64"],
                gateway="10.99.0.1",
                dns=["10.99.0.1"],
                search=["none", "test"],
                hosts=hosts,
            ) as stack,
        ):
            netns.wait_for_carrier()
            yield stack
    finally:
        server.close(netns)


def addresses(stack: net.Stack, name: str, family: int = 0) -> list[str]:
    return [info[4][0] for info in stack.getaddrinfo(name, 80, family, socket.SOCK_STREAM)]


def test_names_of_all_kinds(stack: net.Stack) -> None:
    assert addresses(stack, "host.test", socket.AF_INET) == ["10.99.0.1"]
    assert addresses(stack, "host") == ["10.99.0.1"]
    assert addresses(stack, "both.test") == ["fd99::77", "10.99.0.1"]
    assert addresses(stack, "alias.test") == ["10.99.0.1"]
    # Longer than a datagram: asked again by TCP.
    assert len(addresses(stack, "long.test.", socket.AF_INET)) == 100
    assert addresses(stack, "filed", socket.AF_INET) == ["10.99.0.1"]
    assert addresses(stack, "FILED.test") == ["fd99::1", "10.99.0.1"]
    assert addresses(stack, "192.0.2.7") == ["192.0.2.7"]
    for name, code in (
        ("nobody.test", socket.EAI_NONAME),
        ("circle.test", socket.EAI_NODATA),
    ):
        with pytest.raises(socket.gaierror) as caught:
            addresses(stack, name)
        assert caught.value.errno == code


def test_of_two_addresses_the_one_that_answers_is_used(stack: net.Stack, netns: Netns) -> None:
    """`both.test` has an IPv6 address, which nobody has."""
    with netns.open_socket(socket.AF_INET, socket.SOCK_STREAM) as server:
        server.bind(("10.99.0.1", 0))
        server.listen()
        with stack.create_connection(("both.test", server.getsockname()[1]), LONG) as ours:
            assert ours.getpeername()[0] == "10.99.0.1"
            with server.accept()[0] as theirs:
                theirs.sendall(b"here")
                assert ours.recv(10) == b"here"
    assert sum(one.state == "syn-sent" for one in stack.connections()) == 0
