"""Build and parse TCP and UDP packets with checksums.

A packet for a device that offloads has in its checksum field the sum of the pseudo-header
(VIRTIO 1.3, section 5.1.6.2), as :func:`tcp` and :func:`udp` make it.
"""

import ipaddress
import socket
import struct
from dataclasses import dataclass

import virtnic
from support.frames import mac_bytes

FIN, SYN, RST, PSH, ACK, CWR = 1, 2, 4, 8, 16, 128
#: Bytes of an Ethernet header.
ETHERNET = 14


def ones_sum(data: bytes) -> int:
    """Return the ones' complement sum of 16-bit numbers (RFC 1071), not inverted."""
    padded = data + b"\0" * (len(data) % 2)
    total: int = sum(struct.unpack(f"!{len(padded) // 2}H", padded))
    while total > 0xFFFF:
        total = (total & 0xFFFF) + (total >> 16)
    return total


def pseudo_header(source: str, destination: str, protocol: int, length: int) -> bytes:
    """Return the pseudo-header of RFC 9293 or RFC 8200."""
    addresses = ipaddress.ip_address(source).packed + ipaddress.ip_address(destination).packed
    if ":" in source:
        return addresses + struct.pack("!II", length, protocol)
    return addresses + struct.pack("!HH", protocol, length)


def network(source: str, destination: str, protocol: int, length: int, ident: int = 7) -> bytes:
    """Return an IP header for so many bytes of payload."""
    packed = ipaddress.ip_address(source).packed + ipaddress.ip_address(destination).packed
    if ":" in source:
        return struct.pack("!IHBB", 6 << 28, length, protocol, 64) + packed
    fragments = 0x4000 if protocol == socket.IPPROTO_TCP else 0  # DF, as TCP has it
    head = struct.pack("!BBHHHBBH", 0x45, 0, 20 + length, ident, fragments, 64, protocol, 0)
    checksum = ones_sum(head + packed) ^ 0xFFFF
    return head[:10] + struct.pack("!H", checksum) + packed


def ethernet(source_mac: str, destination_mac: str, packet: bytes) -> bytes:
    """Put an IP packet into a frame."""
    kind = b"\x86\xdd" if packet[0] >> 4 == 6 else b"\x08\x00"
    return mac_bytes(destination_mac) + mac_bytes(source_mac) + kind + packet


def tcp(
    macs: tuple[str, str],
    addresses: tuple[str, str],
    ports: tuple[int, int],
    *,
    sequence: int = 0,
    acknowledgement: int = 0,
    flags: int = ACK,
    window: int = 0xFFFF,
    options: bytes = b"",
    payload: bytes = b"",
    complete: bool = False,
) -> bytes:
    """Make a TCP frame whose checksum is partial unless ``complete``."""
    header = struct.pack(
        "!HHIIBBHHH",
        *ports,
        sequence & 0xFFFFFFFF,
        acknowledgement & 0xFFFFFFFF,
        (20 + len(options)) // 4 << 4,
        flags,
        window,
        0,
        0,
    )
    segment = header + options + payload
    return _finish(macs, addresses, socket.IPPROTO_TCP, segment, 16, complete=complete)


def udp(
    macs: tuple[str, str],
    addresses: tuple[str, str],
    ports: tuple[int, int],
    payload: bytes,
    *,
    complete: bool = False,
) -> bytes:
    """Make a UDP frame whose checksum is partial unless ``complete``."""
    datagram = struct.pack("!HHHH", *ports, 8 + len(payload), 0) + payload
    return _finish(macs, addresses, socket.IPPROTO_UDP, datagram, 6, complete=complete)


def _finish(
    macs: tuple[str, str],
    addresses: tuple[str, str],
    protocol: int,
    payload: bytes,
    field: int,
    *,
    complete: bool,
) -> bytes:
    pseudo = pseudo_header(*addresses, protocol, len(payload))
    total = ones_sum(pseudo + payload) ^ 0xFFFF if complete else ones_sum(pseudo)
    payload = payload[:field] + struct.pack("!H", total) + payload[field + 2 :]
    return ethernet(*macs, network(*addresses, protocol, len(payload)) + payload)


@dataclass(frozen=True)
class Packet:
    """A TCP or UDP packet, taken apart."""

    protocol: int
    source: str
    destination: str
    ports: tuple[int, int]
    #: Of IPv4.
    ident: int
    #: Of TCP.
    sequence: int
    acknowledgement: int
    flags: int
    window: int
    header: int
    payload: bytes
    #: Whether the checksums are right.
    valid: bool
    #: Whether the transport checksum is the pseudo-header's sum.
    partial: bool


def parse(frame: bytes) -> Packet | None:
    """Take a frame apart; None for what is neither TCP nor UDP."""
    kind, packet = frame[12:14], frame[ETHERNET:]
    ident = 0
    if kind == b"\x08\x00":
        if packet[9] not in (6, 17):
            return None
        total, ident = struct.unpack("!HH", packet[2:6])
        valid = ones_sum(packet[:20]) == 0xFFFF and packet[0] == 0x45
        protocol, rest = packet[9], packet[20:total]
        source, destination = (str(ipaddress.IPv4Address(packet[i : i + 4])) for i in (12, 16))
    elif kind == b"\x86\xdd" and packet[6] in (6, 17):
        (length,) = struct.unpack("!H", packet[4:6])
        protocol, rest, valid = packet[6], packet[40 : 40 + length], True
        source, destination = (str(ipaddress.IPv6Address(packet[i : i + 16])) for i in (8, 24))
    else:
        return None
    pseudo = pseudo_header(source, destination, protocol, len(rest))
    ports = struct.unpack("!HH", rest[:4])
    valid = valid and ones_sum(pseudo + rest) == 0xFFFF
    if protocol == socket.IPPROTO_TCP:
        sequence, acknowledgement, offset, flags, window = struct.unpack("!IIBBH", rest[4:16])
        header, field = offset >> 4 << 2, 16
    else:
        sequence = acknowledgement = flags = window = 0
        header, field = 8, 6
    partial = struct.unpack("!H", rest[field : field + 2])[0] == ones_sum(pseudo)
    return Packet(
        protocol,
        source,
        destination,
        (ports[0], ports[1]),
        ident,
        sequence,
        acknowledgement,
        flags,
        window,
        header,
        rest[header:],
        valid,
        partial,
    )


class TinyTcp:
    """One TCP connection from a kernel that sends: acknowledges everything.

    Checks that every frame is as its metadata says.
    """

    def __init__(self, port: virtnic.Port, address: str, peer_mac: str, *, mss: int = 1460) -> None:
        self.port, self.address, self.peer_mac, self.mss = port, address, peer_mac, mss
        self.received = bytearray()
        #: The length of each frame with payload, and its offload.
        self.frames: list[tuple[int, virtnic.Offload]] = []
        self._next = 0
        self._ended = False

    def run(self, timeout: float = 20.0) -> bytes:
        """Serve the connection until the peer closes it; return what it sent."""
        while not self._ended:
            burst = self.port.recv(64, timeout=timeout)
            if not burst:
                break
            offloads = burst.offload
            assert offloads is not None
            assert len(offloads) == len(burst)
            for frame, offload in zip(burst.tobytes(), offloads, strict=True):
                packet = parse(frame)
                if packet is not None and packet.destination == self.address:
                    self._take(frame, packet, offload)
        return bytes(self.received)

    def _take(self, frame: bytes, packet: Packet, offload: virtnic.Offload) -> None:
        # Whatever is not calculated yet says so, and is the pseudo-header's sum.
        assert packet.valid or (offload.checksum == "needed" and packet.partial), offload
        if offload.checksum == "needed":
            assert (offload.checksum_start, offload.checksum_offset) == (ETHERNET + 20, 16)
        if packet.flags & SYN:
            self._next = packet.sequence + 1
            self._reply(packet, SYN | ACK, struct.pack("!BBHBBBB", 2, 4, self.mss, 1, 3, 3, 10))
            return
        if packet.sequence == self._next & 0xFFFFFFFF and packet.payload:
            self.received += packet.payload
            self._next += len(packet.payload)
            self.frames.append((len(frame), offload))
        if packet.flags & FIN and packet.sequence + len(packet.payload) == self._next & 0xFFFFFFFF:
            self._next += 1
            self._ended = True
        if packet.payload or packet.flags & FIN:
            self._reply(packet, ACK | FIN if self._ended else ACK)

    def _reply(self, packet: Packet, flags: int, options: bytes = b"") -> None:
        frame = tcp(
            (self.port.mac, self.peer_mac),
            (self.address, packet.source),
            (packet.ports[1], packet.ports[0]),
            sequence=0 if flags & SYN else 1,
            acknowledgement=self._next,
            flags=flags,
            options=options,
            complete=True,
        )
        assert self.port.send([frame]) == 1
