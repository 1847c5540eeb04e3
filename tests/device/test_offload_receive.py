"""Receiving frames without checksums and up to 64 KiB long from the kernel."""

import socket
import time

import pytest

import virtnic
from peers.netns import Netns
from support.negotiated import accepted
from support.offloads import KERNEL, KINDS, US, collect, download, filling, on_all_kinds
from support.packets import Packet, parse, tcp
from virtnic import Offload, net

pytestmark = pytest.mark.needs("qemu", "netns")

UDP_SEGMENT = 103


@on_all_kinds
def test_the_kernel_sends_long_tcp_frames(netns: Netns, kind: str) -> None:
    """Frames of up to 64 KiB, each with the metadata that says so."""
    payload = filling(4 << 20)
    with virtnic.open(netns.netdev, offload=True, **KINDS[kind]) as port:
        assert {"GUEST_CSUM", "GUEST_TSO4", "GUEST_TSO6", "MRG_RXBUF"} <= accepted(port)
        memory = port.memory
        netns.run("ip", "neigh", "add", US, "lladdr", port.mac, "dev", netns.tap)
        # 44 segments are the most. Where the link looks slow the kernel makes shorter frames.
        netns.run("sysctl", "-q", "net.ipv4.tcp_min_tso_segs=44")
        netns.wait_for_carrier()
        connection = download(netns, port, payload)
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
    """``set_guest_offloads``: the kernel then does the rest itself."""
    with virtnic.open(netns.netdev, offload=True) as port, netns.open_socket() as client:
        netns.run("ip", "neigh", "add", US, "lladdr", port.mac, "dev", netns.tap)
        netns.wait_for_carrier()

        def one() -> tuple[Offload, Packet]:
            client.sendto(b"x" * 100, (US, 2000))
            until = time.monotonic() + 20.0
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
            burst = port.recv(64, timeout=20.0)
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
    """RSC: QEMU merges consecutive segments into one frame, and reports how many."""
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
            burst = port.recv(64, timeout=20.0)
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
                    with pytest.raises(ValueError, match="coalesced on reception"):
                        port.send([frame], offload=offload)
        assert b"".join(got[at] for at in sorted(got)) == payload
        assert max(offload.coalesced_segments for offload in coalesced) > 1


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
    with (
        virtnic.open(netns.netdev, offload=True) as port,
        net.Stack(port, address="10.99.0.2/24"),
        netns.start_ping("10.99.0.2", 50) as ping,
    ):
        assert ping.stdout is not None
        assert "50 received" in ping.stdout.read()
