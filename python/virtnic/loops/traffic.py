"""Frames for :func:`virtnic.generate`, and rates as people write them."""

from __future__ import annotations

import ipaddress
import math
import re

__all__ = ["IMIX", "MAX_FRAME", "make_frame", "parse_mac", "parse_rate"]

#: The simple IMIX: sizes of frames, without checksum, in the proportion 7 : 4 : 1.
IMIX = (60,) * 7 + (590,) * 4 + (1514,)
_ETHERNET, _IPV4, _UDP, _TAG = 14, 20, 8, 4
#: With the longest IPv4 packet.
MAX_FRAME = _ETHERNET + 65_535

_MAC = re.compile(r"[0-9a-f]{2}([:-]?)(?:[0-9a-f]{2}\1){4}[0-9a-f]{2}", re.ASCII | re.IGNORECASE)
#: A number, a prefix, and a unit: frames, bits or bytes (which have a capital), a second.
_RATE = re.compile(
    r"\s*(?P<number>\d[\d_]*(?:\.\d*)?|\.\d+)(?P<exponent>[eE][+-]?\d+)?\s*"
    r"(?P<prefix>[kKmMgGtT]?)(?P<binary>i?)"
    r"(?P<unit>pps|PPS|(?:p|packets?|frames?)/s|(?:b|B|bits?|bytes?)(?:ps|/s|/sec)|BPS)?\s*",
    re.ASCII,
)
_FACTORS = {"": 0, "k": 1, "m": 2, "g": 3, "t": 4}


def parse_mac(mac: str) -> bytes:
    """Return the six bytes, which colons, hyphens or nothing may separate. Raises ValueError."""
    if not _MAC.fullmatch(mac):
        raise ValueError(f"a MAC address is six bytes such as 52:54:00:12:34:56, not {mac!r}")
    return bytes.fromhex(re.sub("[:-]", "", mac))


def make_frame(
    length: int,
    *,
    source: str = "02:00:00:00:00:01",
    destination: str = "02:00:00:00:00:02",
    source_ip: str = "198.18.0.1",
    destination_ip: str = "198.18.0.2",
    source_port: int = 9,
    destination_port: int = 9,
    vlan: int | None = None,
) -> bytes:
    """Make a UDP frame of ``length`` bytes, without checksum; ``source`` is its MAC address.

    The IP addresses are those set aside for benchmarks (RFC 2544, appendix C), the port is that of
    ``discard``. ``vlan`` puts an 802.1Q tag in it. Raises ValueError.
    """
    head = parse_mac(destination) + parse_mac(source)
    if vlan is not None:
        head += b"\x81\x00" + _number("a VLAN", vlan, 4094).to_bytes(2, "big")
    head += b"\x08\x00"
    least, most = len(head) + _IPV4 + _UDP, len(head) + 65_535
    if not least <= length <= most:
        raise ValueError(f"a UDP frame has {least} to {most} bytes, not {length}")
    total = length - len(head)
    header = bytearray.fromhex("4500 0000 0000 0000 4011 0000".replace(" ", ""))
    for address in (source_ip, destination_ip):
        header += ipaddress.IPv4Address(address).packed
    header[2:4] = total.to_bytes(2, "big")
    words = sum(int.from_bytes(header[i : i + 2], "big") for i in range(0, _IPV4, 2))
    words = (words & 0xFFFF) + (words >> 16)
    words = (words & 0xFFFF) + (words >> 16)
    header[10:12] = (~words & 0xFFFF).to_bytes(2, "big")
    datagram = total - _IPV4
    ports = [_number("a port", port, 65_535) for port in (source_port, destination_port)]
    udp = b"".join(number.to_bytes(2, "big") for number in (*ports, datagram, 0))
    return head + bytes(header) + udp + bytes(datagram - _UDP)


def _number(what: str, value: int, most: int) -> int:
    if not 0 <= value <= most:
        raise ValueError(f"{what} is a number from 0 to {most}, not {value}")
    return value


def parse_rate(rate: float | str, mean_length: float) -> float:
    """Return frames a second of a number of them, or of a rate as people write it.

    ``"10Mpps"`` or ``"10k packets/s"``; in bits of frames ``"1Gbps"``, ``"1gbps"`` or
    ``"1 Gbit/s"``; in bytes ``"1GB/s"``; as a mere number ``"1e6"``. Prefixes are powers of 1,000,
    with ``i`` (``"1Gibit/s"``) of 1,024. Raises ValueError.
    """
    if isinstance(rate, str):
        match = _RATE.fullmatch(rate)
        if not match:
            raise ValueError(
                "a rate is a number of frames a second, or such as '10Mpps', '1Gbps' or "
                f"'1Gbit/s', not {rate!r}"
            )
        value = float((match["number"] + (match["exponent"] or "")).replace("_", ""))
        value *= (1024 if match["binary"] else 1000) ** _FACTORS[match["prefix"].lower()]
        unit = match["unit"] or "pps"
        if unit[0] in "bB":
            is_bytes = unit.startswith(("byte", "B")) and unit != "BPS"
            value /= mean_length if is_bytes else 8 * mean_length
    else:
        value = float(rate)
    if not (value > 0 and math.isfinite(value)):
        raise ValueError(f"a rate is above 0 frames a second, not {rate}")
    return value
