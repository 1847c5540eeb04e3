"""The frames that ``virtnic generate`` sends."""

import signal
import socket
import struct
from pathlib import Path

import pytest

import virtnic
from peers.netns import Netns
from support.frames import numbered
from support.program import ended, started
from support.program import virtnic as run
from virtnic.cli import main
from virtnic.cli.generate import check_lengths
from virtnic.loops import make_frame

needs_kernel = pytest.mark.needs("qemu", "netns")

#: From <linux/if_packet.h>.
SOL_PACKET, PACKET_AUXDATA = 263, 8


def with_its_tag(raw: socket.socket) -> bytes:
    """Receive a frame, and put the VLAN tag back that the kernel keeps beside it (packet(7))."""
    frame, auxiliary, _, _ = raw.recvmsg(4096, 256)
    for _, kind, data in auxiliary:
        if kind == PACKET_AUXDATA:
            tag, protocol = struct.unpack_from("12x2x2xHH", data)
            if protocol:
                frame = frame[:12] + struct.pack("!HH", protocol, tag) + frame[12:]
    return frame


@needs_kernel
def test_generate_sends_the_frames_that_are_described(netns: Netns, scratch: Path) -> None:
    """With addresses, ports and a VLAN; from a capture; as digits."""
    capture = scratch / "frames.pcap"
    captured = [numbered("02:00:00:00:00:01", number, 60 + number) for number in (7, 8)]
    capture.write_bytes(
        struct.pack("<IHHiIII", 0xA1B2C3D4, 2, 4, 0, 0, 65535, 1)
        + b"".join(struct.pack("<IIII", 0, 0, len(f), len(f)) + f for f in captured)
    )
    made = make_frame(
        64,
        source="02:00:00:00:00:0a",
        destination="02:00:00:00:00:0b",
        source_ip="10.0.0.1",
        destination_ip="10.0.0.2",
        source_port=1000,
        destination_port=2000,
        vlan=5,
    )
    described = [
        *("--source-mac", "02-00-00-00-00-0a", "--destination-mac", "0200.0000.000b"),
        *("--source", "10.0.0.1", "--destination", "10.0.0.2"),
        *("--source-port", "1000", "--destination-port", "2000", "--vlan", "5"),
    ]
    digits = [word for frame in captured for word in ("--frame", frame.hex(":"))]
    try:
        for words, wanted in (
            (described, [made]),
            (["--pcap", str(capture)], captured),
            (digits, captured),
        ):
            with netns.packet_socket() as raw:
                raw.setsockopt(SOL_PACKET, PACKET_AUXDATA, 1)
                run("generate", "--netdev", netns.netdev, *words, "--packets", "4")
                got = [with_its_tag(raw) for _ in range(4)]
            assert got == wanted * (4 // len(wanted))
    finally:
        capture.unlink()


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (b"", "is empty"),
        (b"\x0a\x0d\x0d\x0a" + bytes(40), "is no capture"),
        (b"no capture" * 100, "is no capture"),
        (struct.pack(">IHHiIII", 0xA1B2C3D4, 2, 4, 0, 0, 65535, 1), "has no frames"),
        (
            struct.pack("<IHHiIII4Ix", 0xA1B23C4D, 2, 4, 0, 0, 65535, 113, 0, 0, 1, 1),
            "link type 113",
        ),
        (struct.pack("<IHHiIII10x", 0xA1B2C3D4, 2, 4, 0, 0, 65535, 1), "cut after its first 0"),
        (struct.pack("<IHHiIII4I", 0xA1B2C3D4, 2, 4, 0, 0, 65535, 1, 0, 0, 60, 60), "cut after"),
        (
            struct.pack("<IHHiIII4I4x", 0xA1B2C3D4, 2, 4, 0, 0, 65535, 1, 0, 0, 4, 60),
            "4 of the 60 bytes",
        ),
    ],
)
def test_a_capture_that_cannot_be_sent_is_2(
    scratch: Path, content: bytes, complaint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    capture = scratch / "bad.pcap"
    capture.write_bytes(content)
    try:
        assert main(["generate", "--pcap", str(capture)]) == 2
    finally:
        capture.unlink()
    assert complaint in " ".join(capsys.readouterr().err.split())


def test_a_capture_that_is_not_there_is_3(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["generate", "--pcap", "/nonexistent.pcap"]) == 3
    assert "/nonexistent.pcap" in capsys.readouterr().err


@needs_kernel
def test_generate_sends_ipv6_with_a_payload(netns: Netns) -> None:
    """The kernel has sums of its own: what it takes is right."""
    netns.add_ipv6("2001:db8::1/64")
    with (
        netns.inside(lambda: socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)) as udp,
        started(
            *(
                "generate",
                "--netdev",
                netns.netdev,
                "--rate",
                "100",
                "--destination-mac",
                netns.mac,
            ),
            *("--source", "2001:db8::2", "--destination", "2001:db8::1"),
            *("--destination-port", "5001", "--payload", "68 65 6c 6c 6f"),
        ) as process,
    ):
        udp.bind(("2001:db8::1", 5001))
        udp.settimeout(30)
        data, sender = udp.recvfrom(100)
        assert (data, sender[:2]) == (b"hello", ("2001:db8::2", 9))
        ended(process, signal.SIGINT)


@pytest.mark.parametrize(
    ("mtu", "length", "complaint"),
    [
        (1500, 1518, None),
        (1500, 1519, "the MTU of this port is 1500"),
        (None, 2048, None),
        (None, 2049, "a buffer"),
        (None, 14, None),
        (None, 13, "an Ethernet header has 14"),
    ],
)
def test_a_frame_that_the_port_cannot_send_is_refused(
    qemu_command: str, mtu: int | None, length: int, complaint: str | None
) -> None:
    """Longer than the MTU with a tag, than a buffer, or shorter than an Ethernet header."""
    frames = [bytes(60), bytes(length)]
    properties = {} if mtu is None else {"host_mtu": str(mtu)}
    memory = virtnic.Memory("1M", hugepages=None)
    with virtnic.open("user", memory=memory, properties=properties) as port:
        assert port.mtu == (mtu or 1500)
        if complaint is None:
            check_lengths(frames, port)
            return
        with pytest.raises(ValueError, match=f"frame 1 to send has {length} bytes.*{complaint}"):
            check_lengths(frames, port)
