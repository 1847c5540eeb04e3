"""A port on a TAP device in its own network namespace."""

import random
import threading

import pytest

import virtnic
from peers.netns import Netns, PingResult
from support.frames import arp_request, is_arp_reply, mac_bytes, number_of, numbered
from virtnic import net
from virtnic.nic.options import Interrupts

pytestmark = pytest.mark.needs("qemu", "netns")


@pytest.mark.parametrize("interrupts", ["msix", "intx", "none"])
def test_the_kernel_pings_our_stack(netns: Netns, interrupts: Interrupts) -> None:
    """A thousand echo requests, none lost."""
    with (
        virtnic.open(netns.netdev, interrupts=interrupts) as port,
        net.Stack(port, address="10.99.0.2/24"),
        netns.start_ping("10.99.0.2", 1000) as ping,
    ):
        assert ping.stdout is not None
        result = PingResult(ping.stdout.read())
    assert (result.sent, result.received) == (1000, 1000), result.output


def test_we_ping_the_kernel(netns: Netns) -> None:
    with virtnic.open(netns.netdev) as port, net.Stack(port, address="10.99.0.2/24") as stack:
        netns.wait_for_carrier()
        assert stack.arp("10.99.0.1").mac == netns.mac
        for sequence in range(100):
            assert stack.ping("10.99.0.1", sequence=sequence, payload=1000).seconds > 0


def test_we_receive_exactly_what_a_raw_socket_sent(netns: Netns) -> None:
    """Frames of every length, byte for byte, in order."""
    lengths = [*range(60, 1515, 3), 1514]
    random.Random(7).shuffle(lengths)
    with virtnic.open(netns.netdev) as port, netns.packet_socket() as raw:
        sent = [numbered(netns.mac, i, length) for i, length in enumerate(lengths)]
        got: list[bytes] = []

        def receive() -> None:
            while len(got) < len(sent):
                burst = port.recv(64, timeout=20.0)
                if not burst:
                    return
                got.extend(frame for frame in burst.tobytes() if number_of(frame) is not None)

        thread = threading.Thread(target=receive)
        thread.start()
        for frame in sent:
            raw.send(frame)
        thread.join()
    assert got == sent


def test_a_raw_socket_receives_exactly_what_we_sent(netns: Netns) -> None:
    with virtnic.open(netns.netdev) as port, netns.packet_socket() as raw:
        sent = [numbered(port.mac, i, 60 + i) for i in range(1455)]
        at = 0
        got: list[bytes] = []
        while len(got) < len(sent):
            at += port.send(sent[at : at + 32])
            while len(got) < at:
                frame = raw.recv(4096)
                if number_of(frame) is not None:
                    got.append(frame)
    assert got == sent


def test_a_full_ring_takes_what_fits(netns: Netns) -> None:
    """What send() did not take can be sent again: the kernel sees each frame once, in order."""
    total = 5000
    with virtnic.open(netns.netdev, queue_size=64) as port, netns.packet_socket() as raw:
        frames = [numbered(port.mac, i) for i in range(total)]
        got: list[int] = []

        def receive() -> None:
            while len(got) < total:
                number = number_of(raw.recv(4096))
                if number is not None:
                    got.append(number)

        thread = threading.Thread(target=receive)
        thread.start()
        at = refused = 0
        while at < total:
            queued = port.send(frames[at : at + 200])
            refused += queued == 0
            at += queued
        thread.join()
        stats = port.stats()
    assert got == list(range(total))
    assert stats["tx_packets"] == total


def test_a_tap_that_is_not_there(netns: Netns) -> None:
    netns.run("ip", "link", "delete", netns.tap)
    netns.run("ip", "tuntap", "add", "dev", "other0", "mode", "tap", "multi_queue")
    with pytest.raises(virtnic.QemuError, match="other0"):
        virtnic.open("tap,ifname=other0,script=no,downscript=no")


def test_frames_stop_while_the_tap_is_down(netns: Netns) -> None:
    with virtnic.open(netns.netdev) as port, netns.packet_socket() as raw:
        raw.send(numbered(netns.mac, 1))
        assert number_of(port.recv(1, timeout=20.0)[0]) == 1
        netns.run("ip", "link", "set", netns.tap, "down")
        with pytest.raises(OSError, match="down"):
            raw.send(numbered(netns.mac, 2))
        netns.run("ip", "link", "set", netns.tap, "up")
    with virtnic.open(netns.netdev) as port, netns.packet_socket() as raw:
        raw.send(numbered(netns.mac, 3))
        assert number_of(port.recv(1, timeout=20.0)[0]) == 3


@pytest.mark.parametrize("tag", ["", "81000000", "8100e000", "88a80000", "88a800008100e000"])
def test_a_stack_takes_priority_tagged_frames_as_untagged_ones(netns: Netns, tag: str) -> None:
    """Tags with VLAN 0 name a priority and no VLAN (IEEE 802.1Q, table 9-2)."""
    with (
        virtnic.open(netns.netdev) as port,
        net.Stack(port, address="10.99.0.2/24"),
        netns.packet_socket() as raw,
    ):
        question = arp_request(netns.mac, sender="10.99.0.1", target="10.99.0.2")
        another = question[:12] + bytes.fromhex("81000007") + question[12:]
        raw.send(another)  # of VLAN 7: not for us
        raw.send(question[:12] + bytes.fromhex(tag) + question[12:])
        raw.settimeout(20.0)
        answer = b""
        while not is_arp_reply(answer, sender="10.99.0.2"):
            answer = raw.recv(4096)
        assert answer[6:12] == mac_bytes(port.mac)
