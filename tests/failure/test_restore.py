"""What is restored on the QEMU that replaces a killed one, seen in its traffic.

The peer is the Linux kernel behind a TAP device.
"""

import random
import struct
import time
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest

import virtnic
from device.test_multiqueue import SENDERS, collect, kernel_sends, udp_of
from device.test_rss import expected
from failure.test_recovery import EAGER, kill, wait_for_another
from peers.netns import Netns
from support.frames import number_of, numbered
from support.offloads import US, download, filling
from support.packets import Packet, parse
from support.traffic import drain
from virtnic.qemu.command import Accel

pytestmark = pytest.mark.needs("qemu", "netns")

QUEUES = 4


@pytest.fixture
def netns4(qemu_command: str, accel: Accel, monkeypatch: pytest.MonkeyPatch) -> Iterator[Netns]:
    """A namespace with a TAP of several queues."""
    with Netns(queues=QUEUES) as netns:
        monkeypatch.setenv("VIRTNIC_QEMU", netns.qemu_command)
        yield netns


def killed(netns: Netns, port: virtnic.Port, times: int = 1) -> None:
    """Kill QEMU, and wait until the port and the kernel are there again."""
    wait_for_another(port, kill(port), times)
    netns.wait_for_carrier()


@pytest.mark.parametrize("steers", [True, False])
def test_flows_land_where_they_did(netns4: Netns, accel: Accel, steers: bool) -> None:
    """Key, table and types of RSS; or, with an empty table, the report of hashes alone."""
    netdev = f"{netns4.netdev},vhost=off"
    options: dict[str, Any] = {
        "queues": QUEUES,
        "properties": {"rss": True, "hash": True},
        "accel": accel,
    }
    with virtnic.open(netdev, recover=EAGER, **options) as port:
        if port.rss_limits is None:
            pytest.skip("this QEMU does not offer RSS")
        chance = random.Random(1)
        key = chance.randbytes(40)
        table = [chance.randrange(QUEUES) for _ in range(128)] if steers else []
        port.set_rss(key, table, ["UDPV4"])
        for times in (1, 2):
            killed(netns4, port, times)
            assert port.rss == virtnic.Rss(key, tuple(table), ("UDPV4",), 0)
            total, seen = kernel_sends(netns4, port), 0
            until = time.monotonic() + 10.0
            while seen < total and time.monotonic() < until:
                for index in range(QUEUES):
                    burst = port.queue(index).recv(64)
                    assert burst.hashes is not None
                    for frame, value in zip(burst, burst.hashes, strict=True):
                        sport = udp_of(frame)
                        if sport is None:
                            continue
                        seen += 1
                        assert value == expected(key, sport)
                        assert not steers or table[value % len(table)] == index
            assert seen == total


def test_as_many_queues_are_used(netns4: Netns, accel: Accel) -> None:
    with virtnic.open(netns4.netdev, queues=QUEUES, recover=EAGER, accel=accel) as port:
        for times, count in enumerate((2, 3, 1), 1):
            port.set_queues(count)
            killed(netns4, port, times)
            assert [port.queue(i).active for i in range(QUEUES)] == [
                i < count for i in range(QUEUES)
            ]
            total = kernel_sends(netns4, port)
            seen = collect(port, total)
            assert sum(seen.values(), Counter()).total() == total
            assert not [i for i in range(count, QUEUES) if seen[i]]
            assert sum(1 for counter in seen.values() if counter) == count


def test_a_stopped_queue_stays_stopped(netns4: Netns, accel: Accel) -> None:
    with virtnic.open(netns4.netdev, queues=QUEUES, recover=EAGER, accel=accel) as port:
        if not any(f.name == "RING_RESET" and f.accepted for f in port.features):
            pytest.skip("this QEMU does not offer RING_RESET")
        port.queue(1).stop()
        killed(netns4, port)
        assert [port.queue(i).active for i in range(QUEUES)] == [True, False, True, True]
        with pytest.raises(virtnic.PortClosed, match="queue 1 is stopped"):
            port.queue(1).recv()
        kernel_sends(netns4, port)
        assert sum(collect(port, SENDERS, seconds=1.0).values(), Counter()).total() > 0
        port.queue(1).start()
        seen: Counter[int] = Counter()
        for _ in range(20):
            seen += collect(port, kernel_sends(netns4, port))[1]
            if seen:
                break
        assert seen
        with netns4.packet_socket() as raw:
            assert port.queue(1).send([numbered(port.mac, 77)]) == 1
            while number_of(raw.recv(4096)) != 77:
                pass


def tagged(mac: str, number: int, vlan: int, destination: str) -> bytes:
    """Put a numbered frame into a VLAN (IEEE 802.1Q)."""
    frame = numbered(mac, number, destination=destination)
    return frame[:12] + struct.pack("!HH", 0x8100, vlan) + frame[12:]


def test_what_was_filtered_is_filtered(netns: Netns, accel: Accel) -> None:
    """The address, other addresses, groups, VLANs; and then all groups."""
    mac, other = "52:54:00:00:00:99", "52:54:00:00:00:98"
    group, strange = "01:00:5e:00:00:11", "01:00:5e:00:00:22"
    with virtnic.open(netns.netdev, recover=EAGER, accel=accel) as port:
        first = port.mac
        port.set_mac(mac)
        port.set_promiscuous(False)
        port.set_mac_filter(multicast=[group])
        port.add_vlan(7)
        port.add_vlan(8)
        port.remove_vlan(8)
        for times in (1, 2):
            killed(netns, port, times)
            assert port.mac == mac
            with netns.packet_socket() as raw:
                for number, address in enumerate((first, other, group, strange, mac)):
                    raw.send(numbered(netns.mac, number, destination=address))
                for vlan in (7, 8, 9):
                    raw.send(tagged(netns.mac, vlan, vlan, mac))
                frames = drain(port, 0.5, least=2 + times)
            plain = [n for n in map(number_of, frames) if n is not None]
            assert plain == ([2, 4] if times == 1 else [2, 3, 4])
            tags = [frame[14:16] for frame in frames if frame[12:14] == b"\x81\x00"]
            assert tags == [b"\0\7"]
            port.set_allmulticast()


def test_what_the_kernel_leaves_to_do(netns: Netns, accel: Accel) -> None:
    """Guest offloads: a long TCP frame comes in one piece, or does not."""
    with virtnic.open(netns.netdev, offload=True, recover=EAGER, accel=accel) as port:
        netns.run("ip", "neigh", "add", US, "lladdr", port.mac, "dev", netns.tap)
        whole = ["GUEST_CSUM", "GUEST_TSO4"]
        for times, wanted in enumerate(([], whole, []), 1):
            port.set_guest_offloads(wanted)
            killed(netns, port, times)
            longest, checksums = long_tcp(netns, port)
            if wanted:
                assert longest > 20_000
                assert "needed" in checksums
            else:
                assert longest <= 1514
                assert checksums == {None}
            with netns.open_socket() as client:
                client.sendto(b"x" * 100, (US, 2000))
                assert datagram(port).valid == (not wanted)


def long_tcp(netns: Netns, port: virtnic.Port) -> tuple[int, set[str | None]]:
    """Have the kernel send a megabyte by TCP: the longest frame, and what its checksums were."""
    connection = download(netns, port, filling(1 << 20))
    return (
        max(length for length, _ in connection.frames),
        {offload.checksum for _, offload in connection.frames},
    )


def datagram(port: virtnic.Port) -> Packet:
    """Return the next datagram to port 2000."""
    until = time.monotonic() + 20.0
    while time.monotonic() < until:
        for frame in port.recv(64, timeout=1.0).tobytes():
            packet = parse(frame)
            if packet is not None and packet.protocol == 17 and packet.ports[1] == 2000:
                return packet
    raise AssertionError("nothing came")
