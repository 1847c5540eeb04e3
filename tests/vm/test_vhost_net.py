"""``tap,vhost=on``: QEMU sets up the kernel's vhost-net, and the kernel moves the frames."""

import fcntl
import logging
import os
import signal
from collections.abc import Iterator
from typing import Any

import pytest

import virtnic
from peers.netns import Netns
from peers.tap_traffic import VHOST, answer_pings, both_ways, vhost_threads
from support.frames import number_of, numbered
from support.waiting import eventually
from virtnic.testing import set_link

pytestmark = pytest.mark.needs("qemu", "netns")

SET_OWNER, SET_MEM_TABLE = 0xAF01, 0x4008AF03
#: Seconds that a QEMU may take to start in an emulated machine.
PATIENT = 120.0


@pytest.fixture(params=[1, 2], ids=["one queue", "two queues"])
def peer(
    request: pytest.FixtureRequest, qemu_command: str, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Netns]:
    """A namespace with a TAP of one queue, or of two."""
    with Netns(queues=request.param) as peer:
        monkeypatch.setenv("VIRTNIC_QEMU", peer.qemu_command)
        yield peer


def opened(netdev: str, **options: Any) -> virtnic.Port:
    """Open a port on a QEMU that has time to start."""
    return virtnic.open(netdev, timeout=PATIENT, size="8M", **options)


@pytest.mark.slow
def test_numbered_frames(peer: Netns) -> None:
    """10,000 each way, byte for byte; a thread of the kernel's for each queue pair."""
    with opened(f"{peer.netdev},vhost=on", queues=peer.queues) as port:
        assert (port.frontend, port.ring, port.queues) == ("qemu", "split", peer.queues)
        assert vhost_threads()
        both_ways(port, peer)
    assert eventually(lambda: not vhost_threads())


def test_what_the_kernel_does_not_offer(netns: Netns, caplog: pytest.LogCaptureFixture) -> None:
    """No packed rings, no hash, no coalescing; filters do nothing, which is told."""
    netdev = f"{netns.netdev},vhost=on"
    with opened(netdev) as port:
        offered = {feature.name for feature in port.features if feature.offered}
        assert not offered & {"RING_PACKED", "HASH_REPORT", "RSC_EXT"}
        assert {"MRG_RXBUF", "VERSION_1", "CSUM", "HOST_TSO4"} <= offered
        with caplog.at_level(logging.WARNING, "virtnic"):
            port.set_receive_mode("promiscuous", on=False)
        assert "tap" in caplog.text
        with netns.packet_socket() as raw:
            raw.send(numbered(netns.mac, 7, destination="52:54:00:99:99:99"))
            got = [number_of(frame) for frame in port.recv(8, timeout=20.0).tobytes()]
        assert 7 in got
    with pytest.raises(virtnic.VirtnicError, match=r"RING_PACKED|packed"):
        opened(netdev, ring="packed")


@pytest.mark.slow
def test_attach_and_detach(netns: Netns) -> None:
    """While QEMU runs; a port beside it that QEMU itself serves."""
    with virtnic.Qemu(virtnic.Memory("8M"), timeout=PATIENT) as qemu, qemu.attach("user") as other:
        for _ in range(3):
            with qemu.attach(f"{netns.netdev},vhost=on") as port:
                answer_pings(port, netns, 20)
                for up in (False, True):
                    set_link(port, up)
                    assert eventually(lambda: port.link is up)  # noqa: B023
                answer_pings(port, netns, 20)
            assert eventually(lambda: not vhost_threads())
        assert other.link


@pytest.mark.slow
def test_a_killed_qemu(netns: Netns) -> None:
    """The next one has vhost-net as well, and frames pass."""
    with opened(f"{netns.netdev},vhost=on", recover=True) as port:
        for _ in range(2):
            answer_pings(port, netns, 20)
            pid = port.qemu.pid
            os.kill(pid, signal.SIGKILL)
            assert eventually(lambda: not port.away and port.qemu.pid != pid)  # noqa: B023
        answer_pings(port, netns, 20)
        assert vhost_threads()
    assert eventually(lambda: not vhost_threads())


def test_a_descriptor_of_vhost_net(netns: Netns) -> None:
    """One without an owner becomes QEMU's own: EPERM for any other process, ours included."""
    fd = os.open(VHOST, os.O_RDWR | os.O_CLOEXEC)
    try:
        with opened(f"{netns.netdev},vhostfd={fd}") as port:
            answer_pings(port, netns, 20)
            with pytest.raises(OSError, match="busy"):
                fcntl.ioctl(fd, SET_OWNER)
            with pytest.raises(PermissionError):
                fcntl.ioctl(fd, SET_MEM_TABLE, bytes(8))  # of no region
    finally:
        os.close(fd)
