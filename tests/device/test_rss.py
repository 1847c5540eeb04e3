"""Receive-side scaling, compared to an independent Toeplitz calculation."""

import ipaddress
import random
import time
from collections.abc import Iterator

import pytest

import virtnic
from device.test_multiqueue import SENDERS, collect, kernel_sends, udp_of
from peers.netns import Netns
from virtnic import net
from virtnic.nic.rss import DEFAULT_KEY

PROPERTIES = {"rss": True, "hash": True}


def toeplitz(key: bytes, data: bytes) -> int:
    """Calculate the hash as Microsoft's "RSS Hashing Functions" describes it, bit by bit."""
    shifted = int.from_bytes(key, "big")
    length = 8 * len(key)
    result = 0
    for index in range(8 * len(data)):
        if data[index // 8] >> (7 - index % 8) & 1:
            result ^= shifted >> (length - 32 - index) & 0xFFFFFFFF
    return result


def tuple_of(source: str, destination: str, *ports: int) -> bytes:
    """Return what is hashed: addresses, then ports."""
    packed = ipaddress.ip_address(source).packed + ipaddress.ip_address(destination).packed
    return packed + b"".join(port.to_bytes(2, "big") for port in ports)


@pytest.mark.parametrize(
    ("destination", "dport", "source", "sport", "addresses", "with_ports"),
    [
        ("161.142.100.80", 1766, "66.9.149.187", 2794, 0x323E8FC2, 0x51CCC178),
        ("65.69.140.83", 4739, "199.92.111.2", 14230, 0xD718262A, 0xC626B0EA),
        ("12.22.207.184", 38024, "24.19.198.95", 12898, 0xD2D0A5DE, 0x5C2B394A),
        ("209.142.163.6", 2217, "38.27.205.30", 48228, 0x82989176, 0xAFC7327F),
        ("202.188.127.2", 1303, "153.39.163.191", 44251, 0x5D1809C5, 0x10E828A2),
    ],
)
def test_our_toeplitz_is_the_published_one(
    destination: str, dport: int, source: str, sport: int, addresses: int, with_ports: int
) -> None:
    """Microsoft: "Verifying the RSS Hash Calculation"."""
    assert toeplitz(DEFAULT_KEY, tuple_of(source, destination)) == addresses
    assert toeplitz(DEFAULT_KEY, tuple_of(source, destination, sport, dport)) == with_ports


@pytest.fixture
def steering(
    qemu_command: str, monkeypatch: pytest.MonkeyPatch
) -> Iterator[tuple[Netns, virtnic.Port]]:
    """A port of four queues that can hash, and the kernel behind it."""
    with Netns(queues=4) as netns:
        monkeypatch.setenv("VIRTNIC_QEMU", netns.qemu_command)
        with virtnic.open(f"{netns.netdev},vhost=off", queues=4, properties=PROPERTIES) as port:
            if port.rss_limits is None:
                pytest.skip("this QEMU does not offer RSS")
            yield netns, port


def expected(key: bytes, sport: int) -> int:
    return toeplitz(key, tuple_of("10.99.0.1", "10.99.0.2", sport, 9))


@pytest.mark.needs("qemu", "netns")
@pytest.mark.parametrize("entries", [1, 4, 128])
def test_flows_land_where_toeplitz_says(steering: tuple[Netns, virtnic.Port], entries: int) -> None:
    netns, port = steering
    chance = random.Random(entries)
    key = chance.randbytes(40)
    table = [chance.randrange(4) for _ in range(entries)]
    port.set_rss(key, table, ["IPV4", "UDPV4"])
    assert port.rss == virtnic.Rss(key, tuple(table), ("IPV4", "UDPV4"), 0)
    seen = collect(port, kernel_sends(netns, port, each=2))
    for index, flows in seen.items():
        for sport in flows:
            assert table[expected(key, sport) % entries] == index, sport
    assert sum(len(flows) for flows in seen.values()) == SENDERS
    # Without ports there is one flow.
    port.set_rss(key, table, ["IPV4"])
    seen = collect(port, kernel_sends(netns, port))
    one = table[toeplitz(key, tuple_of("10.99.0.1", "10.99.0.2")) % entries]
    assert [index for index, flows in seen.items() if flows] == [one]
    assert seen[one].total() == SENDERS


@pytest.mark.needs("qemu", "netns")
def test_hashes_come_with_the_frames(steering: tuple[Netns, virtnic.Port]) -> None:
    netns, port = steering
    port.set_rss(types=["UDPV4"])
    assert port.rss is not None
    assert port.rss.key == DEFAULT_KEY
    total = kernel_sends(netns, port)
    checked = 0
    deadline = time.monotonic() + 20.0
    while checked < total and time.monotonic() < deadline:
        for index in range(4):
            burst = port.queue(index).recv(64)
            assert burst.hashes is not None
            assert burst.hash_types is not None
            for frame, value, kind in zip(burst, burst.hashes, burst.hash_types, strict=True):
                sport = udp_of(frame)
                if sport is not None:
                    assert (kind, value) == (3, expected(DEFAULT_KEY, sport))
                    checked += 1
        time.sleep(0.001)
    assert checked == total
    # Frames still go out, behind the longer header.
    port.set_queues(1)
    with net.Stack(port, address="10.99.0.2/24") as stack:
        assert stack.arp("10.99.0.1").mac == netns.mac


def test_a_port_without_hashes(port: virtnic.Port) -> None:
    assert port.rss_limits is None
    assert port.rss is None
    burst = port.recv(1)
    assert burst.hashes is None
    assert burst.hash_types is None


@pytest.mark.needs("qemu", "netns")
def test_what_the_device_cannot_do(steering: tuple[Netns, virtnic.Port]) -> None:
    _, port = steering
    assert port.rss_limits is not None
    key, table = port.rss_limits.key, port.rss_limits.table
    with pytest.raises(ValueError, match=f"1 to {key} bytes, not {key + 1}"):
        port.set_rss(key=bytes(key + 1))
    with pytest.raises(ValueError, match=f"1 to {key} bytes, not 0"):
        port.set_rss(key=b"")
    with pytest.raises(ValueError, match=r"power of two of entries.*not 3"):
        port.set_rss(table=[0, 1, 2])
    with pytest.raises(ValueError, match=f"up to {table}, not {2 * table}"):
        port.set_rss(table=[0] * (2 * table))
    with pytest.raises(ValueError, match="queue 4; 4 are in use"):
        port.set_rss(table=[0, 4])
    with pytest.raises(ValueError, match="SCTP"):
        port.set_rss(types=["SCTP"])
    assert port.rss is None


@pytest.mark.needs("qemu", "netns")
def test_another_number_of_queues_ends_steering(steering: tuple[Netns, virtnic.Port]) -> None:
    netns, port = steering
    port.set_rss(table=[3])
    assert collect(port, kernel_sends(netns, port))[3].total() == SENDERS
    port.set_queues(2)
    assert port.rss is None
    assert sum(c.total() for c in collect(port, kernel_sends(netns, port)).values()) == SENDERS
