"""Frames from a command's options: a capture file, or hexadecimal digits."""

from __future__ import annotations

import re

__all__ = ["from_hex", "from_pcap"]

_ETHERNET = 1


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
    """Read the frames of a capture file. Raises ValueError, OSError."""
    from virtnic.capture import read

    frames: list[bytes] = []
    for captured in read(path):
        if captured.link_type != _ETHERNET:
            raise ValueError(
                f"{path} has frames of link type {captured.link_type}, not of Ethernet (1)"
            )
        if len(captured.frame) < captured.length:
            raise ValueError(
                f"{path} has {len(captured.frame)} of the {captured.length} bytes of frame "
                f"{len(frames)}; capture whole frames, as with tcpdump -s 0"
            )
        frames.append(captured.frame)
    if not frames:
        raise ValueError(f"{path} has no frames")
    return frames
