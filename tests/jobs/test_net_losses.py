"""Connections over a bad wire: 5 % loss, reordering, duplicates and delay, in both directions.

``VIRTNIC_NET_MEGABYTES=100`` sends so much each way instead of a little.
"""

import contextlib
import hashlib
import os
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

import virtnic
from peers.components import has_netem
from peers.kernel import LONG, listen, pattern
from peers.netns import Netns
from virtnic import net
from virtnic.testing import FaultyPort

MEGABYTES = os.environ.get("VIRTNIC_NET_MEGABYTES")
SIZE = int(MEGABYTES or "1") << 20
#: Seconds: with such losses and delays the stack sends about 50 kB/s.
TIMEOUT = 90.0 + SIZE / 20_000
#: What the wire does; its delay is that of one direction, in seconds.
FAULTS: dict[str, dict[str, Any]] = {
    "lossy": {"drop": 0.05, "duplicate": 0.02, "reorder": 0.05},
    "lossy-and-long": {"drop": 0.05, "duplicate": 0.02, "reorder": 0.05, "delay": 0.025},
}


@contextlib.contextmanager
def faulty(netns: Netns, faults: dict[str, Any]) -> Iterator[Any]:
    """A port on a wire that the process makes bad, the same each time."""
    with virtnic.open(netns.netdev) as port, FaultyPort(port, seed=7, **faults) as wire:
        yield wire


@contextlib.contextmanager
def netem(netns: Netns, faults: dict[str, Any]) -> Iterator[Any]:
    """A port whose peer's kernel makes the wire bad: what the kernel sends only."""
    words = ["loss", f"{faults['drop']:%}", "duplicate", f"{faults['duplicate']:%}"]
    delay = faults.get("delay", 0.001)
    words += ["delay", f"{delay * 1000:g}ms", "reorder", f"{1 - faults['reorder']:%}"]
    netns.run("tc", "qdisc", "add", "dev", netns.tap, "root", "netem", *words)
    with virtnic.open(netns.netdev) as port:
        yield port


#: A module of the kernel is not something that a machine can be given: without it, one wire less.
WIRES = [faulty, netem] if has_netem() else [faulty]


@pytest.mark.timeout(TIMEOUT * 2)
@pytest.mark.parametrize("kind", FAULTS)
@pytest.mark.parametrize("wire", WIRES)
def test_nothing_is_lost(netns: Netns, wire: Any, kind: str) -> None:
    data = pattern(SIZE)
    digest = hashlib.sha256(data).digest()

    def received(source: Any) -> bytes:
        found = hashlib.sha256()
        while part := source.recv(1 << 16):
            found.update(part)
        return found.digest()

    def send(sink: Any) -> None:
        sink.sendall(data)
        sink.shutdown(socket.SHUT_WR)

    with (
        wire(netns, FAULTS[kind]) as port,
        net.Stack(port, address="10.99.0.2/24", ipv6=False) as stack,
        listen(netns, socket.AF_INET) as server,
        ThreadPoolExecutor(4) as executor,
    ):
        netns.wait_for_carrier()
        ours = stack.create_connection(server.getsockname(), timeout=LONG)
        theirs, _ = server.accept()
        with ours, theirs:
            for one in (ours, theirs):
                one.settimeout(TIMEOUT)
            reading = [executor.submit(received, one) for one in (ours, theirs)]
            sending = [executor.submit(send, one) for one in (ours, theirs)]
            for done in sending:
                done.result(TIMEOUT)
            assert [one.result(TIMEOUT) for one in reading] == [digest] * 2
            counted = ours.stats()
            assert counted["retransmits"] > 0
            assert counted["out_of_order"] > 0
            assert counted["duplicates"] > 0
            assert 0 < counted["rtt"] < 5
