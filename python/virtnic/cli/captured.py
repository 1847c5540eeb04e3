"""Frames given to a command: a capture file, or hexadecimal digits."""

from __future__ import annotations

import re
import struct
from pathlib import Path

__all__ = ["from_hex", "from_pcap"]

#: Magic numbers of the classic format: byte order; timestamps in micro- or nanoseconds.
_MAGIC = {
    b"\xa1\xb2\xc3\xd4": ">",
    b"\xa1\xb2\x3c\x4d": ">",
    b"\xd4\xc3\xb2\xa1": "<",
    b"\x4d\x3c\xb2\xa1": "<",
}
_PCAPNG = b"\x0a\x0d\x0d\x0a"
_ETHERNET = 1
_HEADER, _RECORD = 24, 16


def from_hex(text: str) -> bytes:
    """Parse a frame in hexadecimal, as tcpdump and Wireshark print it.

    Raises ValueError.
    """
    digits = re.sub(r"0x|[\s:.-]", "", text)
    try:
        frame = bytes.fromhex(digits)
    except ValueError:
        raise ValueError(f"{text!r} is not a hexadecimal string with two digits per byte") from None
    if not frame:
        raise ValueError("it has no hexadecimal digits")
    return frame


def from_pcap(path: str) -> list[bytes]:
    """Read the frames of a capture file (draft-ietf-opsawg-pcap). Raises ValueError, OSError."""
    with Path(path).open("rb") as file:
        data = file.read(_HEADER)
        order = _MAGIC.get(data[:4])
        if order is not None:  # another kind of file may be endless
            data += file.read()
    if order is None or len(data) < _HEADER:
        advice = "; `editcap -F pcap` makes one of a pcapng file" if data[:4] == _PCAPNG else ""
        raise ValueError(f"{path} is not a pcap file{advice}")
    (link,) = struct.unpack_from(order + "I", data, 20)
    if link & 0xFFFF != _ETHERNET:
        raise ValueError(f"{path} has link type {link & 0xFFFF}, not Ethernet (1)")
    frames: list[bytes] = []
    at = _HEADER
    while at < len(data):
        if at + _RECORD > len(data):
            raise ValueError(f"{path} ends within the header of frame {len(frames)}")
        _, _, held, length = struct.unpack_from(order + "4I", data, at)
        at += _RECORD
        if at + held > len(data):
            raise ValueError(f"{path} ends within frame {len(frames)}")
        if held < length:
            raise ValueError(
                f"{path} has only {held} of the {length} bytes of frame {len(frames)}; capture "
                "whole frames, as with tcpdump -s 0"
            )
        frames.append(data[at : at + held])
        at += held
    if not frames:
        raise ValueError(f"{path} has no frames")
    return frames
