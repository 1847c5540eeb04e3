"""Checksum and segmentation offloads, with the Linux kernel behind a TAP device.

The kernel hands us frames whose checksums are not calculated and that are 64 KiB long, and
takes such from us: what it makes of them is looked at on a wire that has no offloads.
"""

import contextlib
import ctypes
import fcntl
import hashlib
import itertools
import random
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

import virtnic
from frames import numbered
from packets import ACK, CWR, ETHERNET, PSH, SYN, Packet, TinyTcp, parse, tcp, udp
from peers.netns import Netns
from virtnic import Offload

pytestmark = pytest.mark.needs("qemu", "netns")

US, KERNEL, BEYOND = "10.99.0.2", "10.99.0.1", "10.98.0.2"
US6, KERNEL6, BEYOND6 = "fd00:99::2", "fd00:99::1", "fd00:98::2"
SIOCETHTOOL, IFNAMSIZ = 0x8946, 16
ETHTOOL_STXCSUM, ETHTOOL_STSO, ETHTOOL_SGSO = 0x17, 0x1F, 0x24
UDP_SEGMENT = 103

KINDS: dict[str, dict[str, Any]] = {
    "split": {},
    "packed": {"ring": "packed"},
    "intx": {"interrupts": "intx"},
    "legacy": {"legacy": True},
    "only-legacy": {"properties": {"disable-modern": True, "disable-legacy": "off"}},
}
on_all_kinds = pytest.mark.parametrize("kind", KINDS)


def accepted(port: virtnic.Port) -> set[str]:
    """Return the names of the features in force."""
    return {name for name, _, _, accepted, _ in port.features if accepted}


def offered(port: virtnic.Port) -> set[str]:
    """Return the names of the features that the device has."""
    return {name for name, _, offered, _, _ in port.features if offered}


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
        run("ip", "-6", "address", "add", "fd00:98::1/64", "dev", "wire0", "nodad")
        run("ip", "-6", "address", "add", KERNEL6 + "/64", "dev", netns.tap, "nodad")
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
        """Return what came to :data:`BEYOND`, until so many are there."""
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


def filling(length: int, seed: int = 1) -> bytes:
    """Return random bytes."""
    return random.Random(seed).randbytes(length)


# --- What we send --------------------------------------------------------------------


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
    """By the list, one for all or one for each; frames without anything to do go as they are."""
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
        # What nobody is to calculate stays as it is: the kernel passes it on, wrong.
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
    """Return the frames of the first burst in which there is one that is wanted."""
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
    """UFO: one UDP datagram of 20,000 bytes, which the kernel puts together again."""
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
            with pytest.raises(ValueError, match="needs HOST_USO, which is not in force"):
                port.send([frame], offload=offload)
            return
        assert port.send([frame], offload=offload) == 1
        packets = wire.packets(-(-len(payload) // 1400))
    assert all(packet.valid for packet in packets)
    assert b"".join(packet.payload for packet in packets) == payload
    assert {len(packet.payload) for packet in packets[:-1]} == {1400}


#: What is wrong with the second of three frames, and what is said of it.
WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "the field is outside": ({"checksum_offset": 5000}, r"34 \+ 5000, is outside the frame of"),
    "the field is half outside": ({"checksum_start": 65535}, r"65535 \+ 16, is outside"),
    "no segment size": ({"segmentation": "tcp4"}, "segment size is 0"),
    "no checksum": (
        {"checksum": None, "segmentation": "tcp4", "segment_size": 1000},
        "say that one is needed",
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
    "ECN without segments": ({"ecn": True}, "no segmentation of type 0x80"),
    "ECN with datagrams": (
        {"segmentation": "udp_l4", "segment_size": 1000, "ecn": True},
        "no segmentation of type 0x85",
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
        # To nobody: an answer would be among what is received.
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
            with pytest.raises(TypeError, match="offload is an Offload"):
                port.send(frames, offload=wrong)  # type: ignore[arg-type]
        with pytest.raises(ValueError, match="3 frames need 3 offloads, or one for all; not 2"):
            port.send(frames, offload=[right, right])
        port.reclaim()
    assert memory.buffers_free == memory.buffers


def collect(port: virtnic.Port, count: int) -> virtnic.Burst:
    """Return a burst of so many frames."""
    until = time.monotonic() + 5
    while True:
        time.sleep(0.05)
        burst = port.recv(64, timeout=1.0)
        if len(burst) == count:
            return burst
        assert time.monotonic() < until


def test_an_offload_that_was_not_negotiated(netns: Netns) -> None:
    with virtnic.open(netns.netdev, offload=False) as port:
        frame = udp((port.mac, netns.mac), (US, KERNEL), (1, 2), b"x")
        offload = Offload(checksum="needed", checksum_start=34, checksum_offset=6)
        with pytest.raises(ValueError, match=r"frame 1: its offload needs CSUM, .* not in force"):
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


# --- What we receive -----------------------------------------------------------------


@on_all_kinds
def test_the_kernel_sends_long_tcp_frames(netns: Netns, kind: str) -> None:
    """Frames of up to 64 KiB, each with the metadata that says so."""
    payload = filling(4 << 20)
    with virtnic.open(netns.netdev, offload=True, **KINDS[kind]) as port:
        assert {"GUEST_CSUM", "GUEST_TSO4", "GUEST_TSO6", "MRG_RXBUF"} <= accepted(port)
        memory = port.memory
        netns.run("ip", "neigh", "add", US, "lladdr", port.mac, "dev", netns.tap)
        netns.wait_for_carrier()
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
        segmented = [(n, offload) for n, offload in connection.frames if offload.segmentation]
        assert max(n for n, _ in segmented) > 60_000
        for length, offload in segmented:
            assert (offload.segmentation, offload.segment_size) == ("tcp4", 1460)
            assert offload.header_length <= length
            assert offload.checksum == "needed"
        # What is no longer than a segment is not segmented.
        for length, offload in connection.frames:
            assert (offload.segmentation is None) == (length - 54 <= 1460)
        assert port.stats()["rx_no_buffer"] == 0
        port.reclaim()
    assert memory.jumbo_buffers_free == memory.jumbo_buffers


def test_offloads_are_turned_off_and_on_at_run_time(netns: Netns) -> None:
    """``set_guest_offloads``: what the kernel then does itself."""
    with virtnic.open(netns.netdev, offload=True) as port, netns.open_socket() as client:
        netns.run("ip", "neigh", "add", US, "lladdr", port.mac, "dev", netns.tap)
        netns.wait_for_carrier()

        def one() -> tuple[Offload, Packet]:
            client.sendto(b"x" * 100, (US, 2000))
            until = time.monotonic() + 5
            while time.monotonic() < until:
                burst = port.recv(1, timeout=1.0)
                for frame, offload in zip(burst.tobytes(), burst.offload or (), strict=True):
                    packet = parse(frame)
                    if packet is not None and packet.ports[1] == 2000:
                        return offload, packet
            raise AssertionError("nothing came")

        needed = Offload(checksum="needed", checksum_start=34, checksum_offset=6)
        for _ in range(3):
            offload, packet = one()
            assert (offload.checksum, offload.checksum_start) == ("needed", 34)
            assert offload.checksum_offset == needed.checksum_offset
            assert (packet.valid, packet.partial) == (False, True)
            port.set_guest_offloads([])
            offload, packet = one()
            assert not offload
            assert packet.valid
            port.set_guest_offloads(["GUEST_CSUM", "GUEST_TSO4"])


def test_udp_segments_arrive_as_one_frame(netns: Netns) -> None:
    """The kernel's UDP_SEGMENT: one frame with GUEST_USO4, else datagrams."""
    with virtnic.open(netns.netdev, offload=True) as port, netns.open_socket() as client:
        netns.run("ip", "neigh", "add", US, "lladdr", port.mac, "dev", netns.tap)
        netns.wait_for_carrier()
        client.setsockopt(socket.IPPROTO_UDP, UDP_SEGMENT, 1000)
        payload = filling(20_500)
        client.sendto(payload, (US, 2000))
        got: list[tuple[bytes, Offload]] = []
        while sum(len(data) for data, _ in got) < len(payload):
            burst = port.recv(64, timeout=5.0)
            assert burst
            for frame, offload in zip(burst.tobytes(), burst.offload or (), strict=True):
                packet = parse(frame)
                if packet is not None and packet.ports[1] == 2000:
                    got.append((packet.payload, offload))
        assert b"".join(data for data, _ in got) == payload
        assert {offload.checksum for _, offload in got} == {"needed"}
        if "GUEST_USO4" in accepted(port):
            assert [(o.segmentation, o.segment_size) for _, o in got] == [("udp_l4", 1000)]
        else:
            assert [len(data) for data, _ in got] == [1000] * 20 + [500]
            assert {offload.segmentation for _, offload in got} == {None}


def test_the_device_coalesces_segments(netns: Netns) -> None:
    """RSC: QEMU makes one frame of segments in a row, and says of how many."""
    with (
        virtnic.open(
            netns.netdev,
            offload=True,
            features={"RSC_EXT": True},
            properties={"guest_rsc_ext": True},
            accel="tcg",  # its timer is of the virtual clock, which accel=qtest holds still
        ) as port,
        netns.packet_socket() as raw,
    ):
        macs = (netns.mac, port.mac)
        payload = filling(40_000)
        segments = [
            tcp(
                macs,
                (KERNEL, US),
                (1, 2),
                sequence=at,
                payload=payload[at : at + 1000],
                complete=True,
            )
            for at in range(0, len(payload), 1000)
        ]
        for segment in segments:
            raw.send(segment)
        got: dict[int, bytes] = {}
        coalesced: list[Offload] = []
        while sum(map(len, got.values())) < len(payload):
            burst = port.recv(64, timeout=5.0)
            assert burst
            for frame, offload in zip(burst.tobytes(), burst.offload or (), strict=True):
                packet = parse(frame)
                if packet is None or packet.destination != US:
                    continue
                got[packet.sequence] = packet.payload
                if offload.coalesced_segments:
                    coalesced.append(offload)
                    assert len(packet.payload) == 1000 * offload.coalesced_segments
                    assert (offload.segmentation, offload.duplicate_acks) == ("tcp4", 0)
                    assert (offload.checksum, offload.checksum_start) == (None, 0)
                    with pytest.raises(ValueError, match="coalesced on its way in"):
                        port.send([frame], offload=offload)
        assert b"".join(got[at] for at in sorted(got)) == payload
        assert max(offload.coalesced_segments for offload in coalesced) > 1


def test_tunnels_are_seen(netns: Netns) -> None:
    """QEMU has offered them since 10.2, in bits beyond 64; they are reported and left alone."""
    with virtnic.open(netns.netdev, offload=True) as port:
        tunnels = [row for row in port.features if "TUNNEL_GSO" in row[0]]
        assert [bit for _, bit, *_ in tunnels] == [65, 66, 67, 68]
        assert not any(accepted for *_, accepted, _ in tunnels)
        says = {
            "not offered",
            "VIRTIO 1.4; the longer header that says where tunnels are is not driven",
        }
        assert {why for *_, why in tunnels} <= says
    with pytest.raises(ValueError, match="HOST_UDP_TUNNEL_GSO cannot be insisted on"):
        virtnic.open(netns.netdev, features={"HOST_UDP_TUNNEL_GSO": True})


def test_without_offloads_there_is_nothing_to_know(netns: Netns) -> None:
    with virtnic.open(netns.netdev) as port, netns.packet_socket() as raw:
        assert "GUEST_CSUM" not in accepted(port)
        assert {"CSUM", "HOST_TSO4", "HOST_TSO6"} <= accepted(port)
        raw.send(numbered(netns.mac, 1))
        assert port.recv(1, timeout=5.0).offload is None
    with virtnic.open(netns.netdev, offload=True) as port, netns.packet_socket() as raw:
        raw.send(numbered(netns.mac, 1))
        burst = port.recv(1, timeout=5.0)
        assert burst.offload is not None
        assert list(burst.offload) == [Offload()]
        burst.release()
        assert len(burst.offload) == 0


def test_as_a_structured_array(netns: Netns) -> None:
    numpy = pytest.importorskip("numpy")
    with virtnic.open(netns.netdev, offload=True) as port, netns.open_socket() as client:
        netns.run("ip", "neigh", "add", US, "lladdr", port.mac, "dev", netns.tap)
        netns.wait_for_carrier()
        for _ in range(5):
            client.sendto(b"y" * 50, (US, 2000))
        burst = collect(port, 5)
        offloads = burst.offload
        assert offloads is not None
        array = numpy.asarray(offloads)
        names = ("flags", "gso_type", "hdr_len", "gso_size", "csum_start", "csum_offset")
        assert (array.dtype.names, array.dtype.itemsize, array.shape) == (names, 10, (5,))
        assert (array["flags"] == 1).all()
        assert (array["csum_start"] == 34).all()
        assert (array["csum_offset"] == 6).all()
        assert not array.flags.writeable
        assert [o.checksum_start for o in offloads] == [34] * 5
        assert offloads[-1] == offloads[0] == offloads[1:2][0]
        with pytest.raises(IndexError):
            offloads[5]
        # The snapshot outlives the frames.
        burst.release()
        assert offloads[4].checksum == "needed"


def test_the_stack_completes_checksums(netns: Netns) -> None:
    with virtnic.open(netns.netdev, offload=True) as port:
        stack = virtnic.Stack(port)
        stack.configure("10.99.0.2/24")
        with netns.start_ping("10.99.0.2", 50) as ping:
            while ping.poll() is None:
                stack.poll(0.05)
            assert ping.stdout is not None
            assert "50 received" in ping.stdout.read()


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"offload": True, "jumbo_buffers": 0}, r"GUEST_TSO4.*up to 65550 bytes.*no jumbo buffers"),
        (
            {"features": {"GUEST_TSO4": True, "MRG_RXBUF": False}},
            "GUEST_TSO4 cannot be insisted on without MRG_RXBUF",
        ),
        (
            {"features": {"GUEST_TSO4": True, "GUEST_CSUM": False}},
            "GUEST_TSO4 cannot be insisted on without GUEST_CSUM",
        ),
    ],
)
def test_what_cannot_be_received(netns: Netns, options: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        virtnic.open(netns.netdev, **options)


def test_prerequisites_come_along(netns: Netns) -> None:
    with virtnic.open(netns.netdev, features={"GUEST_TSO4": True}) as port:
        assert {"GUEST_TSO4", "GUEST_CSUM", "MRG_RXBUF"} <= accepted(port)
        assert "GUEST_TSO6" not in accepted(port)
    # Preferred, but of no use without merging; and buffers that need none.
    with virtnic.open(netns.netdev, offload=True, features={"MRG_RXBUF": False}) as port:
        whys = {name: why for name, _, _, _, why in port.features}
        assert "GUEST_CSUM" in accepted(port)
        assert whys["GUEST_TSO4"] == "needs MRG_RXBUF"
    memory = virtnic.Memory("32M", buffer_size=65550, jumbo_buffers=0)
    with virtnic.open(netns.netdev, memory=memory, queue_size=64, offload=True) as port:
        assert "GUEST_TSO4" in accepted(port)
        assert "MRG_RXBUF" not in accepted(port)


def test_what_is_offered_is_accepted(netns: Netns) -> None:
    """Also what no peer here makes use of: ECN, UFO and USO for IPv6, received."""
    send = {"CSUM", "HOST_TSO4", "HOST_TSO6", "HOST_ECN", "HOST_UFO", "HOST_USO"}
    receive = {f"GUEST_{name}" for name in ("CSUM", "TSO4", "TSO6", "ECN", "UFO", "USO4", "USO6")}
    for offload, wanted in ((True, send | receive), (None, send), (False, set())):
        with virtnic.open(netns.netdev, offload=offload) as port:
            assert {"GUEST_ECN", "GUEST_UFO", "HOST_ECN"} <= offered(port)
            assert accepted(port) & (send | receive) == offered(port) & wanted


def test_slirp_offers_nothing(port: virtnic.Port) -> None:
    assert not {"CSUM", "GUEST_CSUM", "HOST_TSO4"} & offered(port)


# --- What we pass on -----------------------------------------------------------------


@contextlib.contextmanager
def two_kernels(
    first: dict[str, Any], second: dict[str, Any], *, memories: int = 1
) -> Iterator[tuple[Netns, Netns, virtnic.Port, virtnic.Port]]:
    """Two namespaces with a port each, of one memory or of two."""
    memory = virtnic.Memory("64M")
    other = memory if memories == 1 else virtnic.Memory("64M")
    with (
        Netns(address=KERNEL + "/24") as left,
        Netns(address=US + "/24") as right,
        virtnic.open(left.netdev, memory=memory, qemu=left.qemu_command, **first) as a,
        virtnic.open(right.netdev, memory=other, qemu=right.qemu_command, **second) as b,
    ):
        left.wait_for_carrier()
        right.wait_for_carrier()
        yield left, right, a, b


def transfer(left: Netns, right: Netns, count: int, progress: list[bool]) -> tuple[str, str]:
    """Send bytes by the kernels' TCP from left to right; return the two sides' hashes."""
    hashes: dict[str, str] = {}
    with (
        right.open_socket(kind=socket.SOCK_STREAM) as listener,
        left.open_socket(kind=socket.SOCK_STREAM) as client,
    ):
        listener.bind((US, 5000))
        listener.listen()
        listener.settimeout(20)
        client.settimeout(20)

        def receive() -> None:
            digest = hashlib.sha256()
            server, _ = listener.accept()
            with server:
                server.settimeout(20)
                while data := server.recv(1 << 20):
                    digest.update(data)
            hashes["right"] = digest.hexdigest()

        def send() -> None:
            digest = hashlib.sha256()
            client.connect((US, 5000))
            block = filling(1 << 20)
            for number in range(count >> 20):
                data = number.to_bytes(8, "big") + block[8:]
                digest.update(data)
                client.sendall(data)
            client.shutdown(socket.SHUT_WR)
            hashes["left"] = digest.hexdigest()

        threads = [threading.Thread(target=run) for run in (receive, send)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        progress.append(True)
    return hashes["left"], hashes["right"]


def move(
    left: Netns, right: Netns, a: virtnic.Port, b: virtnic.Port, count: int = 32 << 20
) -> virtnic.Result:
    """Transfer through ``virtnic.forward``; the two sides must have the same bytes."""
    done: list[bool] = []
    hashes: list[tuple[str, str]] = []

    def run() -> None:
        try:
            hashes.append(transfer(left, right, count, done))
        finally:
            done.append(True)

    thread = threading.Thread(target=run)
    thread.start()
    result = virtnic.forward(a, b, seconds=60, progress=lambda _: not done)
    thread.join()
    ((sent, received),) = hashes
    assert sent == received
    return result


@pytest.mark.parametrize(
    ("first", "second"),
    [("split", "split"), ("packed", "split"), ("legacy", "packed"), ("split", "only-legacy")],
)
def test_forward_keeps_segmentation(qemu_command: str, first: str, second: str) -> None:
    """TSO from one kernel to the other: long frames all the way, whatever the header's length."""
    with two_kernels({**KINDS[first], "offload": True}, {**KINDS[second], "offload": True}) as (
        left,
        right,
        a,
        b,
    ):
        result = move(left, right, a, b)
        assert result.no_offload == 0
        stats = b.stats()
        assert (stats["tx_no_offload"], stats["tx_bad_offload"], stats["tx_copied"]) == (0, 0, 0)
        assert stats["tx_bytes"] / stats["tx_packets"] > 5000
        assert stats["tx_bytes"] > 32 << 20


def test_forward_copies_metadata_between_memories(qemu_command: str) -> None:
    with two_kernels({"offload": True}, {"offload": True}, memories=2) as (left, right, a, b):
        assert move(left, right, a, b, 8 << 20).no_offload == 0
        stats = b.stats()
        assert stats["tx_copied"] == stats["tx_packets"]
        assert stats["tx_bytes"] / stats["tx_packets"] > 3000


@pytest.mark.parametrize("memories", [1, 2])
def test_forward_calculates_what_the_other_port_cannot(qemu_command: str, memories: int) -> None:
    """The receiving kernel verifies every checksum that was calculated in software."""
    with two_kernels({"features": {"GUEST_CSUM": True}}, {"offload": False}, memories=memories) as (
        left,
        right,
        a,
        b,
    ):
        assert "CSUM" not in accepted(b)
        before = errors(right)
        assert move(left, right, a, b, 8 << 20).no_offload == 0
        assert errors(right) == before


def errors(netns: Netns) -> list[int]:
    """Return how many wrong checksums the namespace's kernel saw: of IP, TCP, UDP."""
    lines = netns.run("cat", "/proc/net/snmp").splitlines()
    found = {}
    for names, values in itertools.pairwise(lines):
        if names.split(":")[0] == values.split(":")[0] and "InCsumErrors" in names:
            at = names.split().index("InCsumErrors")
            found[names.split(":")[0]] = int(values.split()[at])
    return [found[name] for name in ("Tcp", "Udp")]


@pytest.mark.parametrize("memories", [1, 2])
@pytest.mark.parametrize("how", ["forward", "send"])
def test_what_cannot_be_segmented_is_dropped_and_counted(
    qemu_command: str, how: str, memories: int
) -> None:
    with two_kernels(
        {"offload": True}, {"offload": False, "features": {"MRG_RXBUF": True}}, memories=memories
    ) as (left, _, a, b):
        long = tcp(
            (left.mac, b.mac), (KERNEL, US), (1, 2), payload=filling(30_000), flags=ACK | CWR
        )
        # A packet socket with a vnet header: what comes to the port is what is said here.
        with left.packet_socket() as raw:
            raw.setsockopt(263, 15, 1)  # SOL_PACKET, PACKET_VNET_HDR
            short = udp((left.mac, b.mac), (KERNEL, US), (3, 4), b"short")
            raw.send(struct.pack("<BBHHHH", 1, 1, 54, 1000, 34, 16) + long)
            raw.send(struct.pack("<BBHHHH", 1, 0, 0, 0, 34, 6) + short)
        if how == "forward":
            result = virtnic.forward(a, b, packets=1, seconds=10)
            assert (result.sent, result.no_offload, result.ring_full) == (1, 1, 0)
        else:
            burst = collect(a, 2)
            offloads = list(burst.offload or ())
            assert [o.segmentation for o in offloads] == ["tcp4", None]
            assert b.send(burst) == 1
            assert not burst
        assert b.stats()["tx_no_offload"] == 1
        memory = a.memory
        b.reclaim()
        a.close()
        b.close()
    assert memory.jumbo_buffers_free == memory.jumbo_buffers
    assert memory.buffers_free == memory.buffers


@pytest.mark.parametrize("memories", [1, 2])
@pytest.mark.parametrize("viewed", [False, True])
def test_a_burst_keeps_its_metadata_when_it_is_sent(
    qemu_command: str, viewed: bool, memories: int
) -> None:
    """By hand in Python, with and without views of the frames; and said explicitly."""
    with two_kernels({"offload": True}, {"offload": True}, memories=memories) as (
        left,
        right,
        a,
        b,
    ):
        right_mac = right.mac
        left.run("ip", "neigh", "add", US, "lladdr", right_mac, "dev", left.tap)
        with left.open_socket() as source, right.open_socket() as sink:
            sink.bind((US, 2000))
            sink.settimeout(5)
            for explicit in (False, True):
                before = errors(right)
                source.sendto(b"first", (US, 2000))
                source.sendto(b"second", (US, 2000))
                burst = collect(a, 2)
                views = list(burst) if viewed else []
                offloads = burst.offload
                sent = b.send(burst, offload=offloads) if explicit else b.send(burst)
                assert (sent, len(burst)) == (2, 0)
                assert [sink.recv(100), sink.recv(100)] == [b"first", b"second"]
                assert errors(right) == before
                del views


# --- The object ----------------------------------------------------------------------


def test_offloads_are_values() -> None:
    one = Offload(checksum="needed", checksum_start=34, checksum_offset=6)
    assert one == Offload(checksum="needed", checksum_start=34, checksum_offset=6)
    assert hash(one) == hash(Offload(checksum="needed", checksum_start=34, checksum_offset=6))
    assert one != Offload()
    assert (bool(one), bool(Offload())) == (True, False)
    assert repr(one) == "Offload(checksum='needed', checksum_start=34, checksum_offset=6)"
    assert eval(repr(one)) == one
    full = Offload(
        checksum="needed",
        checksum_start=34,
        checksum_offset=16,
        segmentation="tcp6",
        segment_size=1000,
        header_length=74,
        ecn=True,
    )
    assert eval(repr(full)) == full
    assert (full.segmentation, full.ecn, full.header_length) == ("tcp6", True, 74)
    assert Offload(checksum="valid").checksum == "valid"
    assert (full.coalesced_segments, full.duplicate_acks) == (0, 0)
    with pytest.raises(AttributeError):
        one.checksum_start = 3  # type: ignore[misc]
    wrongs: list[tuple[dict[str, Any], str]] = [
        ({"checksum": "maybe"}, "checksum is None, 'needed' or 'valid', not \"maybe\""),
        ({"segmentation": "sctp"}, "segmentation is None, 'tcp4'"),
        ({"segment_size": 65536}, "segment_size is 0 to 65535, not 65536"),
        ({"checksum_start": -1}, "checksum_start is 0 to 65535, not -1"),
    ]
    for wrong, says in wrongs:
        with pytest.raises(ValueError, match=says):
            Offload(**wrong)
