"""The kernel in a namespace as the peer of a stack: addresses, listening sockets, data."""

import hashlib
import socket
from typing import Any

from .netns import Netns

__all__ = ["DATAGRAM", "KERNEL", "LONG", "STACK", "STREAM", "listen", "pattern", "read_all"]

#: A timeout in seconds that is ample for a busy machine.
LONG = 30.0
STREAM, DATAGRAM = socket.SOCK_STREAM, socket.SOCK_DGRAM
#: The kernel's address and the stack's, of each family.
KERNEL: dict[int, str] = {socket.AF_INET: "10.99.0.1", socket.AF_INET6: "fd99::1"}
STACK: dict[int, str] = {socket.AF_INET: "10.99.0.2", socket.AF_INET6: "fd99::2"}


def pattern(length: int) -> bytes:
    """Return bytes in which every position can be told from others."""
    return b"".join(
        hashlib.sha256(bytes([n & 255, n >> 8 & 255, n >> 16])).digest()
        for n in range(length // 32)
    )


def read_all(source: Any) -> bytes:
    """Receive until the peer ends its half."""
    parts = []
    while part := source.recv(1 << 16):
        parts.append(part)
    return b"".join(parts)


def listen(netns: Netns, family: int, kind: int = STREAM) -> socket.socket:
    """Return a socket of the kernel that others can reach."""
    server = netns.open_socket(family, kind)
    server.settimeout(LONG)
    server.bind((KERNEL[family], 0))
    if kind == STREAM:
        server.listen(64)
    return server
