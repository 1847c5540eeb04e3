"""Frames that a command is given: in a capture file, or as hexadecimal digits."""

from __future__ import annotations

import re
import struct
from pathlib import Path

__all__ = ["from_hex", "from_pcap"]

#: First bytes of the classic format: the order of its bytes; times in micro- or nanoseconds.
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
    """Read a frame as tcpdump and Wireshark print it: digits, with spaces, colons or none.

    Raises ValueError.
    """
    digits = re.sub(r"0x|[\s:.-]", "", text)
    try:
        frame = bytes.fromhex(digits)
    except ValueError:
        raise ValueError(f"{text!r} is not hexadecimal digits, two for each byte") from None
    if not frame:
        raise ValueError("there are no digits, two for each byte")
    return frame


def from_pcap(path: str) -> list[bytes]:
    """Read the frames of a capture file (draft-ietf-opsawg-pcap). Raises ValueError, OSError."""
    with Path(path).open("rb") as file:
        data = file.read(_HEADER)
        order = _MAGIC.get(data[:4])
        if order is not None:  # a file that is something else may have no end
            data += file.read()
    if order is None or len(data) < _HEADER:
        advice = "; `editcap -F pcap` makes one of a pcapng file" if data[:4] == _PCAPNG else ""
        raise ValueError(f"{path} is no pcap file{advice}")
    (link,) = struct.unpack_from(order + "I", data, 20)
    if link & 0xFFFF != _ETHERNET:
        raise ValueError(f"{path} has frames of link type {link & 0xFFFF}, not of Ethernet (1)")
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
                f"{path} has {held} of the {length} bytes of frame {len(frames)}; capture whole "
                "frames, as with tcpdump -s 0"
            )
        frames.append(data[at : at + held])
        at += held
    if not frames:
        raise ValueError(f"{path} has no frames")
    return frames
