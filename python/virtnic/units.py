"""Sizes and rates, as people write them.

One parser for each, and one table of spellings, which the help of the commands and
``docs/commands.md`` show.
"""

from __future__ import annotations

import math
import re

__all__ = ["CHECKSUM", "L1_OVERHEAD", "RATES", "SIZES", "parse_rate", "parse_size"]

#: Bytes of the checksum that ends an Ethernet frame, which no software sees (IEEE 802.3, 3.2.9).
CHECKSUM = 4
#: Bytes of preamble, start of frame and gap that a frame takes on the wire besides (4.4.2).
L1_OVERHEAD = 20

#: Spellings, and what they mean.
SIZES: tuple[tuple[str, str], ...] = (
    ("65536, 0x10000, 1e6", "bytes"),
    ("64K, 64k, 64KiB, 64 kB", "KiB: 1,024 bytes; so are M, G and T powers of 1,024"),
    ("64M, 64MiB, 64 MB, 1g, 1.5G", "MiB, GiB"),
)
RATES: tuple[tuple[str, str], ...] = (
    ("1000, 10k, 1.5M, 1e6", "frames a second"),
    ("10kpps, 1.5Mpps, 10 kp/s, 100 frames/s", "frames a second"),
    ("100Mbps, 100Mbit/s, 1 Gb/s, 10G", "bits a second of frames with their checksum (L2)"),
    ("125MB/s, 125 Mbytes/s", "bytes of such frames a second"),
)

_UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}
_SIZE = re.compile(
    r"\s*(?P<number>0x[0-9a-f]+|\d[\d_]*(?:\.\d+)?(?:e\+?\d+)?)\s*"
    r"(?:(?P<unit>[KMGT])i?)?(?:B|bytes?)?\s*",
    re.ASCII | re.IGNORECASE,
)

#: A number, a prefix, and a unit: frames, bits or bytes (which have a capital), a second.
_RATE = re.compile(
    r"\s*(?P<number>\d[\d_]*(?:\.\d*)?|\.\d+)(?P<exponent>[eE][+-]?\d+)?\s*"
    r"(?P<prefix>[kKmMgGtT]?)(?P<binary>i?)"
    r"(?P<unit>pps|PPS|(?:p|packets?|frames?)/s|(?:b|B|bits?|bytes?)(?:ps|/s|/sec)|BPS)?\s*",
    re.ASCII,
)
_FACTORS = {"": 0, "k": 1, "m": 2, "g": 3, "t": 4}


def parse_size(size: int | str) -> int:
    """Return bytes: an integer as it is, ``"64M"`` as 64 MiB (K, M, G and T are binary).

    ``"64m"``, ``"64MB"``, ``"64 MiB"`` and ``"0x4000000"`` are the same; ``"1.5G"`` and ``"1e6"``
    are whole numbers of bytes. Raises ValueError for anything else.
    """
    if isinstance(size, int) and not isinstance(size, bool):
        if not 0 < size < 1 << 63:
            raise ValueError(f"a size is a power of two, not {size}")
        return size
    match = _SIZE.fullmatch(size) if isinstance(size, str) else None
    if match:
        number = match["number"].replace("_", "")
        unit = _UNITS[(match["unit"] or "").upper()]
        value = int(number, 0) * unit if number[:2] == "0x" else float(number) * unit
        if value < 1 << 63 and value == int(value) > 0:
            return int(value)
    raise ValueError(f"a size is a number of bytes or text such as '64M', not {size!r}")


def parse_rate(rate: float | str, length: float) -> float:
    """Return frames a second of a number of them, or of a rate as people write it.

    ``"10Mpps"`` or ``"10k packets/s"``; in bits of frames ``"1Gbps"``, ``"1gbps"``,
    ``"1 Gbit/s"`` or ``"1G"``; in bytes ``"1GB/s"``; as a mere number ``"1e6"``. ``length``: bytes
    of a frame on average, with the checksum. Prefixes are powers of 1,000, with ``i``
    (``"1Gibit/s"``) of 1,024. Raises ValueError.
    """
    if isinstance(rate, str):
        match = _RATE.fullmatch(rate)
        if not match:
            raise ValueError(
                "a rate is a number of frames a second, or such as '10Mpps', '1Gbps' or "
                f"'1Gbit/s', not {rate!r}"
            )
        value = float((match["number"] + (match["exponent"] or "")).replace("_", ""))
        prefix = match["prefix"].lower()
        value *= (1024 if match["binary"] else 1000) ** _FACTORS[prefix]
        # Links are named so, 10G; nobody sends as many frames.
        unit = match["unit"] or ("bps" if prefix in ("g", "t") else "pps")
        if unit[0] in "bB":
            is_bytes = unit.startswith(("byte", "B")) and unit != "BPS"
            value /= length if is_bytes else 8 * length
    else:
        value = float(rate)
    if not (value > 0 and math.isfinite(value)):
        raise ValueError(f"a rate is above 0 frames a second, not {rate}")
    return value
