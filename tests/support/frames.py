"""Make and find test frames."""

import struct

BROADCAST = "ff:ff:ff:ff:ff:ff"
#: slirp's own addresses (QEMU: docs/system/devices/net).
GUEST, GATEWAY = "10.0.2.15", "10.0.2.2"


def mac_bytes(mac: str) -> bytes:
    """Return the six bytes of ``52:54:00:12:34:56``."""
    return bytes.fromhex(mac.replace(":", ""))


def ip_bytes(address: str) -> bytes:
    """Return the four bytes of ``10.0.2.2``."""
    return bytes(map(int, address.split(".")))


def arp_request(mac: str, sender: str = GUEST, target: str = GATEWAY) -> bytes:
    """Ask who has ``target`` (RFC 826)."""
    ethernet = mac_bytes(BROADCAST) + mac_bytes(mac) + b"\x08\x06"
    header = struct.pack("!HHBBH", 1, 0x0800, 6, 4, 1)
    return ethernet + header + mac_bytes(mac) + ip_bytes(sender) + bytes(6) + ip_bytes(target)


def is_arp_reply(frame: bytes | memoryview, sender: str = GATEWAY) -> bool:
    """Whether it answers a request for ``sender``."""
    data = bytes(frame)
    return data[12:14] == b"\x08\x06" and data[20:22] == b"\0\2" and data[28:32] == ip_bytes(sender)


#: All bytes in turn, from any of them on for longer than the longest frame.
_CYCLE = bytes(range(256)) * 258


def numbered(mac: str, number: int, length: int = 60, destination: str = BROADCAST) -> bytes:
    """Make a frame of an experimental type (IEEE 802, 0x88b5) that carries a number."""
    head = mac_bytes(destination) + mac_bytes(mac) + b"\x88\xb5" + struct.pack("!I", number)
    first = number & 0xFF
    return head + _CYCLE[first : first + max(0, length - len(head))]


def number_of(frame: bytes | memoryview) -> int | None:
    """Return the number of a frame of :func:`numbered`, None for others."""
    data = bytes(frame[:18])
    return struct.unpack("!I", data[14:18])[0] if data[12:14] == b"\x88\xb5" else None
