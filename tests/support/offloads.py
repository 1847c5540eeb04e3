"""Helpers of the offload tests."""

import random
import socket
import threading
import time
from typing import Any

import pytest

import virtnic
from peers.netns import Netns
from support.packets import TinyTcp

US, KERNEL = "10.99.0.2", "10.99.0.1"

KINDS: dict[str, dict[str, Any]] = {
    "split": {},
    "packed": {"ring": "packed"},
    "intx": {"interrupts": "intx"},
    "legacy": {"legacy": True},
    "only-legacy": {"properties": {"disable-modern": True, "disable-legacy": "off"}},
}
on_all_kinds = pytest.mark.parametrize("kind", KINDS)


def filling(length: int, seed: int = 1) -> bytes:
    """Return random bytes."""
    return random.Random(seed).randbytes(length)


def download(netns: Netns, port: virtnic.Port, payload: bytes) -> TinyTcp:
    """Have the kernel send data over TCP to port 2000; return the receiving connection."""
    with netns.open_socket(kind=socket.SOCK_STREAM) as client:
        client.settimeout(20)

        def send() -> None:
            client.connect((US, 2000))
            client.sendall(payload)
            client.shutdown(socket.SHUT_WR)

        thread = threading.Thread(target=send)
        thread.start()
        connection = TinyTcp(port, US, netns.mac)
        assert connection.run() == payload
        thread.join()
    return connection


def collect(port: virtnic.Port, count: int) -> virtnic.Burst:
    """Return a burst of ``count`` frames that the kernel has sent."""
    until = time.monotonic() + 20
    while True:
        for _ in range(2):  # QEMU has looked at its TAP by then, and passed them all on
            port.qemu.execute("query-status")
        burst = port.recv(64, timeout=1.0)
        if len(burst) == count:
            return burst
        assert time.monotonic() < until
