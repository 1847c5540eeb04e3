"""Checksum and segmentation offload when sending.

What QEMU and the Linux kernel behind a TAP device make of such frames is looked at on a wire that
has no offloads.
"""

import ctypes
import fcntl
import socket
import struct
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

import virtnic
from peers.netns import Netns
from support.negotiated import accepted
from support.offloads import KERNEL, KINDS, US, collect, filling, on_all_kinds
from support.packets import ACK, CWR, ETHERNET, PSH, SYN, Packet, parse, tcp, udp
from virtnic import Offload

pytestmark = pytest.mark.needs("qemu", "netns")

BEYOND = "10.98.0.2"
US6, KERNEL6, BEYOND6 = "fd00:99::2", "fd00:99::1", "fd00:98::2"
SIOCETHTOOL, IFNAMSIZ = 0x8946, 16
ETHTOOL_STXCSUM, ETHTOOL_STSO, ETHTOOL_SGSO = 0x17, 0x1F, 0x24


class Wire:
    """A wire without offloads behind the namespace's router: what a receiver would see."""

    def __init__(self, netns: Netns) -> None:
        run = netns.run
        for scope in ("all", "default"):
            run("sh", "-c", f"echo 0 > /proc/sys/net/ipv6/conf/{scope}/disable_ipv6")
            run("sh", "-c", f"echo 0 > /proc/sys/net/ipv6/conf/{scope}/accept_dad")
        run("ip", "link", "add", "wire0", "type", "veth", "peer", "name", "wire1")
        for name in ("wire0", "wire1"):
            run("ip", "link", "set", name, "up")
        run("ip", "address", "add", "10.98.0.1/24", "dev", "wire0")
        netns.add_ipv6("fd00:98::1/64", "wire0")
        netns.add_ipv6(KERNEL6 + "/64")
        for address in (BEYOND, BEYOND6):
            run("ip", "neigh", "add", address, "lladdr", "02:00:00:00:00:98", "dev", "wire0")
        run("sh", "-c", "echo 1 > /proc/sys/net/ipv4/ip_forward")
        run("sh", "-c", "echo 1 > /proc/sys/net/ipv6/conf/all/forwarding")
        with netns.open_socket() as control:
            for command in (ETHTOOL_STSO, ETHTOOL_SGSO, ETHTOOL_STXCSUM):
                value = ctypes.create_string_buffer(struct.pack("II", command, 0))
                request = struct.pack(f"{IFNAMSIZ}sP", b"wire0", ctypes.addressof(value))
                fcntl.ioctl(control.fileno(), SIOCETHTOOL, request.ljust(40, b"\0"))
        self.raw = netns.open_socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
        self.raw.setsockopt(socket.SOL_SOCKET, 33, 64 << 20)  # SO_RCVBUFFORCE
        self.raw.bind(("wire1", 3))

    def packets(self, count: int, timeout: float = 10.0) -> list[Packet]:
        """Return the first ``count`` frames that came to :data:`BEYOND`."""
        self.raw.settimeout(timeout)
        got: list[Packet] = []
        while len(got) < count:
            packet = parse(self.raw.recv(1 << 17))
            if packet is not None and packet.destination in (BEYOND, BEYOND6):
                got.append(packet)
        return got

    def close(self) -> None:
        self.raw.close()


@pytest.fixture
def wire(netns: Netns) -> Iterator[Wire]:
    """A wire behind the namespace's router."""
    wire = Wire(netns)
    yield wire
    wire.close()


@on_all_kinds
@pytest.mark.parametrize("version", [4, 6])
def test_one_long_frame_becomes_segments(netns: Netns, wire: Wire, kind: str, version: int) -> None:
    """64 KiB in one frame: every segment on the wire is right, and all bytes are there."""
    timestamps = struct.pack("!BBBBII", 1, 1, 8, 10, 1, 2)
    network = 20 if version == 4 else 40
    payload = filling(65535 - network - 32)
    size, first = 1500 - network - 32, 0xFFFFF000
    with virtnic.open(netns.netdev, **KINDS[kind]) as port:
        assert port.legacy == ("legacy" in kind)
        macs = (port.mac, netns.mac)
        addresses = (US, BEYOND) if version == 4 else (US6, BEYOND6)
        frame = tcp(
            macs,
            addresses,
            (1000, 2000),
            sequence=first,
            acknowledgement=99,
            flags=ACK | PSH | CWR,
            options=timestamps,
            payload=payload,
        )
        offload = Offload(
            checksum="needed",
            checksum_start=ETHERNET + network,
            checksum_offset=16,
            segmentation="tcp4" if version == 4 else "tcp6",
            segment_size=size,
            ecn=True,
        )
        netns.wait_for_carrier()
        assert port.send([frame], offload=offload) == 1
        segments = wire.packets(-(-len(payload) // size))
    assert b"".join(segment.payload for segment in segments) == payload
    at = 0
    for number, segment in enumerate(segments):
        last = number == len(segments) - 1
        assert segment.valid, number
        assert (segment.source, segment.destination) == addresses
        assert segment.sequence == (first + at) % (1 << 32)
        assert segment.header == 32
        assert len(segment.payload) == (len(payload) - at if last else size)
        assert segment.flags == ACK | (CWR if number == 0 else 0) | (PSH if last else 0)
        assert segment.acknowledgement == 99
        if version == 4:
            assert segment.ident == 7 + number
        at += len(segment.payload)


@on_all_kinds
def test_checksums_are_calculated_by_the_device(netns: Netns, wire: Wire, kind: str) -> None:
    """One offload for all frames, or a list with one for each; None leaves a frame as it is."""
    with virtnic.open(netns.netdev, **KINDS[kind]) as port:
        macs, ports = (port.mac, netns.mac), (1000, 2000)
        addresses = (US, BEYOND)
        netns.wait_for_carrier()
        over_udp = Offload(checksum="needed", checksum_start=34, checksum_offset=6)
        over_tcp = Offload(checksum="needed", checksum_start=34, checksum_offset=16)
        datagrams = [udp(macs, addresses, ports, filling(n)) for n in (0, 1, 2, 999, 1472)]
        assert port.send(datagrams, offload=over_udp) == len(datagrams)
        segment = tcp(macs, addresses, ports, payload=filling(77))
        whole = udp(macs, addresses, ports, b"whole", complete=True)
        mixed = [segment, whole, datagrams[1]]
        assert port.send(mixed, offload=[over_tcp, None, over_udp]) == 3
        packets = wire.packets(8)
        # A checksum that is not to be calculated stays wrong: the kernel passes it on.
        assert port.send([datagrams[3]]) == 1
        (untouched,) = wire.packets(1)
    assert [packet.valid for packet in packets] == [True] * 8
    assert [packet.payload for packet in packets[:5]] == [filling(n) for n in (0, 1, 2, 999, 1472)]
    assert [packet.payload for packet in packets[5:]] == [filling(77), b"whole", filling(1)]
    assert (untouched.valid, untouched.partial) == (False, True)


def test_a_kernel_socket_accepts_what_we_send(netns: Netns) -> None:
    with virtnic.open(netns.netdev) as port, netns.open_socket() as sink:
        sink.bind((KERNEL, 2000))
        sink.settimeout(5.0)
        netns.wait_for_carrier()
        macs = (port.mac, netns.mac)
        offload = Offload(checksum="needed", checksum_start=34, checksum_offset=6)
        assert port.send([udp(macs, (US, KERNEL), (1000, 2000), b"hello")], offload=offload) == 1
        assert sink.recv(100) == b"hello"
        with netns.open_socket(kind=socket.SOCK_STREAM) as listener:
            listener.bind((KERNEL, 3000))
            listener.listen()
            netns.run("ip", "neigh", "add", US, "lladdr", port.mac, "dev", netns.tap)
            syn = tcp(macs, (US, KERNEL), (1000, 3000), flags=SYN, sequence=41)
            offload = Offload(checksum="needed", checksum_start=34, checksum_offset=16)
            assert port.send([syn], offload=offload) == 1
            answers = [parse(f) for f in next_frames(port, lambda p: p.ports == (3000, 1000))]
            assert answers[0] is not None
            assert (answers[0].flags, answers[0].acknowledgement) == (SYN | ACK, 42)
            assert answers[0].valid


def next_frames(port: virtnic.Port, wanted: Callable[[Packet], bool]) -> list[bytes]:
    """Return the frames of the first burst with a wanted one."""
    until = time.monotonic() + 10
    while time.monotonic() < until:
        frames = [
            frame
            for frame in port.recv(64, timeout=1.0).tobytes()
            if (packet := parse(frame)) is not None and wanted(packet)
        ]
        if frames:
            return frames
    raise AssertionError("it did not come")


def test_a_datagram_in_fragments(netns: Netns) -> None:
    """UFO: one UDP datagram of 20,000 bytes, which the kernel reassembles."""
    with virtnic.open(netns.netdev) as port, netns.open_socket() as sink:
        if "HOST_UFO" not in accepted(port):
            pytest.skip("the device does not offer HOST_UFO")
        sink.bind((KERNEL, 2000))
        sink.settimeout(5.0)
        netns.wait_for_carrier()
        payload = filling(20_000)
        frame = udp((port.mac, netns.mac), (US, KERNEL), (1000, 2000), payload)
        offload = Offload(
            checksum="needed",
            checksum_start=34,
            checksum_offset=6,
            segmentation="udp",
            segment_size=1480,
        )
        assert port.send([frame], offload=offload) == 1
        assert sink.recv(1 << 16) == payload


def test_many_datagrams_in_one_frame(netns: Netns, wire: Wire) -> None:
    """USO, which QEMU has since 8.2."""
    with virtnic.open(netns.netdev) as port:
        netns.wait_for_carrier()
        payload = filling(40_000)
        frame = udp((port.mac, netns.mac), (US, BEYOND), (1000, 2000), payload)
        offload = Offload(
            checksum="needed",
            checksum_start=34,
            checksum_offset=6,
            segmentation="udp_l4",
            segment_size=1400,
        )
        if "HOST_USO" not in accepted(port):
            with pytest.raises(ValueError, match="needs HOST_USO, which was not negotiated"):
                port.send([frame], offload=offload)
            return
        assert port.send([frame], offload=offload) == 1
        packets = wire.packets(-(-len(payload) // 1400))
    assert all(packet.valid for packet in packets)
    assert b"".join(packet.payload for packet in packets) == payload
    assert {len(packet.payload) for packet in packets[:-1]} == {1400}


#: What is wrong with the second of three frames, and part of the error.
WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "the field is outside": ({"checksum_offset": 5000}, r"34 \+ 5000, is outside the frame of"),
    "the field is half outside": ({"checksum_start": 65535}, r"65535 \+ 16, is outside"),
    "no segment size": ({"segmentation": "tcp4"}, "segment size is 0"),
    "no checksum": (
        {"checksum": None, "segmentation": "tcp4", "segment_size": 1000},
        "segmentation needs checksum=",
    ),
    "another protocol's field": (
        {"checksum_offset": 6, "segmentation": "tcp4", "segment_size": 1000},
        "offset is 6, but .* it is 16",
    ),
    "another version of IP": (
        {"segmentation": "tcp6", "segment_size": 1000},
        "segmented as tcp6, but its EtherType is 0x0800",
    ),
    "headers beyond the frame": (
        {"checksum_start": 1030, "segmentation": "tcp4", "segment_size": 1000},
        "headers take .* bytes, but the frame has",
    ),
    "a header length beyond the frame": (
        {"segmentation": "tcp4", "segment_size": 1000, "header_length": 5000},
        "header length is 5000, but its headers take 54 bytes of a frame of 1054",
    ),
    "a header length that is too short": (
        {"segmentation": "tcp4", "segment_size": 1000, "header_length": 53},
        "header length is 53, but its headers take 54",
    ),
    "ECN without segments": ({"ecn": True}, "unknown type of segmentation 0x80"),
    "ECN with datagrams": (
        {"segmentation": "udp_l4", "segment_size": 1000, "ecn": True},
        "unknown type of segmentation 0x85",
    ),
}


@pytest.mark.parametrize("as_burst", [False, True])
def test_wrong_metadata_is_not_sent(netns: Netns, as_burst: bool) -> None:
    """The error says which frame and why; those before it were queued and nothing is lost."""
    with virtnic.open(netns.netdev) as port, netns.packet_socket() as raw:
        memory = port.memory
        right = Offload(checksum="needed", checksum_start=34, checksum_offset=16)
        plain = {"checksum": "needed", "checksum_start": 34, "checksum_offset": 16}
        macs = (port.mac, netns.mac)
        # To an unused address: an answer would be among the received frames.
        nobody = (US, "10.97.0.1")
        frames = [tcp(macs, nobody, (1, 2 + n), payload=filling(1000)) for n in range(3)]
        for name, (change, says) in WRONG.items():
            offloads = [right, Offload(**{**plain, **change}), right]
            queued: Any = frames
            if as_burst:
                for frame in frames:
                    raw.send(frame)
                queued = collect(port, 3)
            with pytest.raises(
                ValueError, match=rf"frame 1: .*{says}.* 1 frames .* queued"
            ) as info:
                port.send(queued, offload=offloads)
            assert info.value.queued == 1, name  # type: ignore[attr-defined]
            if as_burst:
                assert queued.tobytes() == frames[1:]
                assert port.send(queued, offload=right) == 2
        assert port.stats()["tx_bad_offload"] == len(WRONG)
        assert port.stats()["tx_packets"] == (3 if as_burst else 1) * len(WRONG)
        for wrong in (3, "needed", [1, 2, 3], [right, "x", None]):
            with pytest.raises(TypeError, match="offload must be an Offload"):
                port.send(frames, offload=wrong)  # type: ignore[arg-type]
        with pytest.raises(ValueError, match="3 frames need 3 offloads, or one for all; not 2"):
            port.send(frames, offload=[right, right])
        port.reclaim()
    assert memory.buffers_free == memory.buffers


def test_an_offload_that_was_not_negotiated(netns: Netns) -> None:
    with virtnic.open(netns.netdev, offload=False) as port:
        frame = udp((port.mac, netns.mac), (US, KERNEL), (1, 2), b"x")
        offload = Offload(checksum="needed", checksum_start=34, checksum_offset=6)
        with pytest.raises(ValueError, match=r"frame 1: its offload needs CSUM, .* not negotiated"):
            port.send([frame, frame], offload=[None, offload])
        with pytest.raises(ValueError, match="frame 0: its offload needs CSUM"):
            port.send_all([frame], offload=offload)
    with pytest.raises(ValueError, match="HOST_TSO4 cannot be insisted on without CSUM"):
        virtnic.open(netns.netdev, features={"CSUM": False, "HOST_TSO4": True})


def test_send_all_counts_across_groups(netns: Netns) -> None:
    with virtnic.open(netns.netdev) as port:
        frame = udp((port.mac, netns.mac), (US, KERNEL), (1, 2), b"x")
        right = Offload(checksum="needed", checksum_start=34, checksum_offset=6)
        wrong = Offload(checksum="needed", checksum_start=34, checksum_offset=600)
        offloads = [right] * 2500 + [wrong]
        with pytest.raises(ValueError, match="outside the frame") as info:
            port.send_all([frame] * 2501, timeout=10, offload=offloads)
        assert info.value.queued == 2500  # type: ignore[attr-defined]
        assert port.send_all([frame] * 1500, timeout=10, offload=right) == 1500
