"""Frames for :func:`virtnic.generate`."""

from __future__ import annotations

import ipaddress
import re

from virtnic.arguments import suggest_options
from virtnic.units import parse_rate

__all__ = ["IMIX", "MAX_FRAME", "make_frame", "parse_mac", "parse_rate", "shortest_frame"]

#: The simple IMIX: frame sizes without checksum, in the ratio 7:4:1.
IMIX = (60,) * 7 + (590,) * 4 + (1514,)
_ETHERNET, _IPV4, _IPV6, _UDP, _TAG = 14, 20, 40, 8, 4
#: The longest frame: that of the longest IPv4 packet.
MAX_FRAME = _ETHERNET + 65_535

#: Addresses reserved for benchmarks: RFC 2544, appendix C, and RFC 5180, section 8.
_ADDRESSES = {4: ("198.18.0.1", "198.18.0.2"), 6: ("2001:2::1", "2001:2::2")}
_MAC = re.compile(
    r"[0-9a-f]{2}([:-]?)(?:[0-9a-f]{2}\1){4}[0-9a-f]{2}|(?:[0-9a-f]{4}\.){2}[0-9a-f]{4}",
    re.ASCII | re.IGNORECASE,
)

_Address = ipaddress.IPv4Address | ipaddress.IPv6Address


def parse_mac(mac: str) -> bytes:
    """Parse a MAC address: 02:00:00:00:00:01, with hyphens, 0200.0000.0001 or 020000000001."""
    if not _MAC.fullmatch(mac):
        raise ValueError(f"a MAC address must be six bytes such as 52:54:00:12:34:56, not {mac!r}")
    return bytes.fromhex(re.sub("[:.-]", "", mac))


@suggest_options
def make_frame(
    length: int | None,
    *,
    source: str = "02:00:00:00:00:01",
    destination: str = "02:00:00:00:00:02",
    source_ip: str | None = None,
    destination_ip: str | None = None,
    source_port: int = 9,
    destination_port: int = 9,
    vlan: int | None = None,
    payload: bytes = b"",
) -> bytes:
    """Make a UDP frame of ``length`` bytes, without checksum; ``source`` is its MAC address.

    By default its length follows from ``payload``, at least 60; if it is longer, zeros follow the
    payload. The IPv4 or IPv6 addresses default to those reserved for benchmarks (198.18.0.1 and
    198.18.0.2; 2001:2::1 and 2001:2::2), the port to that of ``discard``. ``vlan`` adds an 802.1Q
    tag. Raises ValueError.
    """
    source_address, destination_address = _addresses(source_ip, destination_ip)
    is_ipv6 = source_address.version == 6
    head = parse_mac(destination) + parse_mac(source)
    if vlan is not None:
        head += b"\x81\x00" + _number("a VLAN", vlan, 4094).to_bytes(2, "big")
    head += b"\x86\xdd" if is_ipv6 else b"\x08\x00"
    header = _IPV6 if is_ipv6 else _IPV4
    least, most = len(head) + header + _UDP, len(head) + 65_535
    filled = least + len(payload)
    if length is None:
        length = max(filled, 60)
    if not least <= length <= most:
        raise ValueError(f"a UDP frame has {least} to {most} bytes, not {length}")
    if filled > length:
        raise ValueError(
            f"a payload of {len(payload)} bytes makes a frame of {filled} bytes, not {length}"
        )
    datagram = length - len(head) - header
    ports = [_number("a port", port, 65_535) for port in (source_port, destination_port)]
    udp = b"".join(number.to_bytes(2, "big") for number in (*ports, datagram, 0))
    udp += payload + bytes(length - filled)
    pair = source_address.packed + destination_address.packed
    if not is_ipv6:
        ip = bytearray.fromhex("4500 0000 0000 0000 4011 0000") + pair
        ip[2:4] = (header + datagram).to_bytes(2, "big")
        ip[10:12] = _internet_checksum(ip).to_bytes(2, "big")
        return head + bytes(ip) + udp
    # Only over IPv4 can the UDP checksum be omitted (RFC 8200, section 8.1).
    pseudo = pair + datagram.to_bytes(4, "big") + b"\0\0\0\x11"
    checksum = _internet_checksum(pseudo + udp) or 0xFFFF
    ip = bytearray.fromhex("6000 0000 0000 1140") + pair
    ip[4:6] = datagram.to_bytes(2, "big")
    return head + bytes(ip) + udp[:6] + checksum.to_bytes(2, "big") + udp[8:]


def shortest_frame(*, is_ipv6: bool = False, tagged: bool = False) -> int:
    """Return the length of the shortest UDP frame, without checksum."""
    tag = _TAG if tagged else 0
    return max(60 + tag, _ETHERNET + tag + (_IPV6 if is_ipv6 else _IPV4) + _UDP)


def _addresses(source: str | None, destination: str | None) -> tuple[_Address, _Address]:
    """Return both addresses: if one is given, the other is of its version."""
    given = [ipaddress.ip_address(text) for text in (source, destination) if text is not None]
    kinds = {address.version for address in given}
    if len(kinds) == 2:
        raise ValueError(f"{source} and {destination} are not both IPv4 or both IPv6")
    usual = _ADDRESSES[kinds.pop() if kinds else 4]
    return (
        ipaddress.ip_address(source or usual[0]),
        ipaddress.ip_address(destination or usual[1]),
    )


def _internet_checksum(data: bytes | bytearray) -> int:
    """Return the checksum of RFC 1071."""
    total = sum(
        int.from_bytes(data[i : i + 2].ljust(2, b"\0"), "big") for i in range(0, len(data), 2)
    )
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def _number(what: str, value: int, most: int) -> int:
    if not 0 <= value <= most:
        raise ValueError(f"{what} must be a number from 0 to {most}, not {value}")
    return value
