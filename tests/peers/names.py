"""A name server in a namespace, which also sends wrong answers."""

import socket
import struct
import threading

from .netns import Netns

__all__ = ["NameServer"]

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
    """Return the server's response to a query."""
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


class NameServer:
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
