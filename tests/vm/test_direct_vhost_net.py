"""The kernel's vhost-net without QEMU: ``virtnic.open("tap,…,vhost=on", frontend="direct")``."""

import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import virtnic
from peers.netns import Netns
from peers.tap_traffic import VHOST, answer_pings, both_ways, vhost_threads
from support.frames import numbered
from support.waiting import eventually

pytestmark = pytest.mark.needs("netns")


@pytest.fixture(params=[1, 2], ids=["one queue", "two queues"])
def peer(request: pytest.FixtureRequest) -> Iterator[Netns]:
    """A namespace with a TAP of one queue, or of two."""
    with Netns(queues=request.param) as peer:
        yield peer


def descriptors() -> int:
    """How many this process has."""
    return len(list(Path("/proc/self/fd").iterdir()))


def direct(peer: Netns, **options: Any) -> virtnic.Port:
    """Open a port on the namespace's TAP: its descriptors are opened inside."""
    options.setdefault("size", "8M")
    return peer.inside(
        lambda: virtnic.open(f"{peer.netdev},vhost=on", frontend="direct", **options)
    )


@pytest.mark.slow
@pytest.mark.parametrize("interrupts", ["eventfd", "none"])
def test_numbered_frames(peer: Netns, interrupts: Any) -> None:
    """10,000 each way, byte for byte; and nothing is left of it."""
    count = 10_000 if interrupts == "eventfd" else 2_000
    before = descriptors()
    with direct(peer, queues=peer.queues, interrupts=interrupts) as port:
        assert (port.frontend, port.ring, port.queues) == ("direct", "split", peer.queues)
        assert len(vhost_threads()) == peer.queues
        assert port.link
        both_ways(port, peer, count)
        port.reclaim()
        stats = port.stats()
        assert stats["tx_packets"] == stats["tx_completed"]
        port.restart()
        both_ways(port, peer, 100)
    assert port.memory.buffers_free == port.memory.buffers
    assert eventually(lambda: not vhost_threads())
    assert descriptors() <= before


def test_frames_and_pings(netns: Netns) -> None:
    """Some frames of each way, and our stack answers the kernel."""
    with direct(netns) as port:
        assert (port.frontend, port.ring, port.link) == ("direct", "split", True)
        assert vhost_threads()
        port.wait_ready(60.0)
        both_ways(port, netns, 500)
        answer_pings(port, netns, 50)
    assert eventually(lambda: not vhost_threads())
    assert port.memory.buffers_free == port.memory.buffers


@pytest.mark.slow
def test_queues_are_turned_off_and_on() -> None:
    """The kernel sends to the queues that are on, and no frame is lost for one that is off."""
    with Netns(queues=2) as peer, direct(peer, queues=2) as port:
        for queues in (1, 2, 1):
            port.set_queues(queues)
            assert port.queues == queues
            both_ways(port, peer, 500)


@pytest.mark.slow
def test_segments_and_checksums() -> None:
    """With offloads, the kernel leaves segmentation to us; without, it does it itself."""
    for offload in (True, False):
        with Netns() as peer, direct(peer, offload=offload, size="32M") as port:
            accepted = {feature.name for feature in port.features if feature.accepted}
            assert ("HOST_TSO4" in accepted, "GUEST_TSO4" in accepted) == (offload, offload)
            answer_pings(port, peer, 20)


@pytest.mark.slow
def test_long_frames() -> None:
    """Frames of 9,000 bytes fit into several buffers."""
    with Netns() as peer, direct(peer) as port:
        peer.run("ip", "link", "set", peer.tap, "mtu", "9000")
        with peer.packet_socket() as raw:
            frame = numbered(peer.mac, 9, 9014)
            raw.send(frame)
            got: list[bytes] = []
            while frame not in got:
                burst = port.recv(16, timeout=20.0)
                assert burst
                got += burst.tobytes()


def test_a_killed_process_leaves_nothing() -> None:
    """Neither the kernel's thread, nor the TAP's queue."""
    program = (
        "import sys, virtnic; "
        "port = virtnic.open(sys.argv[1], frontend='direct', size='8M'); "
        "print('open', flush=True); port.recv(1, timeout=600)"
    )
    with Netns() as peer:
        argv = [sys.executable, "-c", program, f"{peer.netdev},vhost=on"]
        with peer.popen(argv) as process:
            assert process.stdout is not None
            assert process.stdout.readline() == "open\n"
            assert vhost_threads()
            process.send_signal(signal.SIGKILL)
        assert eventually(lambda: not vhost_threads())
        with direct(peer) as port:  # the TAP is free again
            answer_pings(port, peer, 20)


def test_who_may_not() -> None:
    """A descriptor has one owner; the errors say what to do."""
    with Netns() as peer:
        fd = os.open(VHOST, os.O_RDWR | os.O_CLOEXEC)
        try:
            netdev = f"tap,ifname={peer.tap},vhostfd={fd}"
            with peer.inside(lambda: virtnic.open(netdev, frontend="direct", size="8M")) as port:
                answer_pings(port, peer, 20)
                with pytest.raises(virtnic.NetdevUnavailable, match=r"open.*other program|busy"):
                    direct(peer)
            with pytest.raises(PermissionError, match="has an owner already"):
                peer.inside(lambda: virtnic.open(netdev, frontend="direct", size="8M"))
        finally:
            os.close(fd)
