"""Frames that carry a number, for peers that echo."""

import random
import struct
import zlib

from support.frames import GATEWAY, GUEST, arp_request, ip_bytes, mac_bytes

_HEADER = struct.Struct("!HIQ")  # flow, life, number
_FILLING = random.Random(0).randbytes(2048)
_ETHERNET = 14


class Damaged(AssertionError):
    """A frame's bytes are not those that were sent."""


def _body(flow: int, life: int, number: int, length: int) -> bytes:
    start = number % 512
    head = _HEADER.pack(flow, life, number) + _FILLING[start : start + length]
    return head + zlib.crc32(head).to_bytes(4, "big")


def _read(flow: int, body: bytes) -> tuple[int, int]:
    if len(body) < _HEADER.size + 4 or zlib.crc32(body[:-4]) != int.from_bytes(body[-4:], "big"):
        raise Damaged(f"the checksum of a frame is wrong: {body[:32].hex(' ')}")
    of, life, number = _HEADER.unpack_from(body)
    if of != flow:
        raise Damaged(f"a frame of flow {of} came to flow {flow}")
    return life, number


class Echo:
    """A switch or backend that exchanges the addresses: testpmd's ``macswap``."""

    def __init__(self, flow: int, mac: str) -> None:
        self._flow = flow
        self._head = mac_bytes("02:00:00:00:00:fe") + mac_bytes(mac) + b"\x88\xb5"
        self._back = self._head[6:12] + self._head[:6] + b"\x88\xb5"

    def first(self) -> list[bytes]:
        """Return the frames to send first."""
        return []

    def frame(self, life: int, number: int) -> bytes:
        """Make a frame of 64 to 1,087 bytes."""
        return self._head + _body(self._flow, life, number, 32 + number * 7 % 1024)

    def parse(self, frame: bytes) -> tuple[int, int] | None:
        """Return life and number; None for what is not ours. Raises Damaged."""
        if frame[12:14] != b"\x88\xb5":
            return None
        if frame[:14] != self._back:
            raise Damaged(f"a frame came back as {frame[:14].hex(' ')}")
        return _read(self._flow, frame[14:])


class Ping:
    """slirp's gateway, which answers ICMP echo requests (RFC 792)."""

    def __init__(self, flow: int, mac: str) -> None:
        self._flow = flow
        self._mac = mac
        self._head = mac_bytes("52:55:0a:00:02:02") + mac_bytes(mac) + b"\x08\x00"

    def first(self) -> list[bytes]:
        """Tell slirp our address: otherwise it asks for it, and delays packets."""
        return [arp_request(self._mac)]

    def frame(self, life: int, number: int) -> bytes:
        """Make a frame of 96 to 607 bytes."""
        body = _body(self._flow, life, number, 32 + number * 7 % 512)
        icmp = struct.pack("!BBHHH", 8, 0, 0, self._flow, number & 0xFFFF) + body
        icmp = icmp[:2] + _checksum(icmp) + icmp[4:]
        total = 20 + len(icmp)
        ip = struct.pack("!BBHHHBBH", 0x45, 0, total, number & 0xFFFF, 0, 64, 1, 0)
        ip += ip_bytes(GUEST) + ip_bytes(GATEWAY)
        return self._head + ip[:10] + _checksum(ip) + ip[12:] + icmp

    def parse(self, frame: bytes) -> tuple[int, int] | None:
        """Return life and number; None for what is not ours. Raises Damaged."""
        if frame[12:14] != b"\x08\x00" or frame[23] != 1 or frame[34] != 0:
            return None
        total = int.from_bytes(frame[16:18], "big")
        return _read(self._flow, frame[_ETHERNET + 28 : _ETHERNET + total])


def _checksum(data: bytes) -> bytes:
    """The Internet checksum (RFC 1071): a sum of 16-bit words is one modulo 65535."""
    padded = data + b"\0" * (len(data) % 2)
    return (0xFFFF - int.from_bytes(padded, "big") % 0xFFFF).to_bytes(2, "big")
