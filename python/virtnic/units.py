"""Sizes, rates and counts as people write them.

One parser and one table of spellings for each; the tables are shown in the help of the commands and
in ``docs/commands.md``.
"""

from __future__ import annotations

import math
import re

__all__ = [
    "CHECKSUM",
    "COUNTS",
    "L1_OVERHEAD",
    "RATES",
    "SIZES",
    "TIMES",
    "parse_count",
    "parse_rate",
    "parse_size",
    "parse_time",
]

#: Bytes of the checksum at the end of an Ethernet frame, invisible to software (IEEE 802.3, 3.2.9).
CHECKSUM = 4
#: Bytes of preamble, start-of-frame delimiter and gap per frame on the wire (4.4.2).
L1_OVERHEAD = 20

#: Spellings and their meanings.
SIZES: tuple[tuple[str, str], ...] = (
    ("65536, 0x10000, 1e6", "bytes"),
    ("64K, 64k, 64KiB, 64 kB", "KiB: 1,024 bytes; M, G and T are powers of 1,024 too"),
    ("64M, 64MiB, 64 MB, 1g, 1.5G", "MiB, GiB"),
)
RATES: tuple[tuple[str, str], ...] = (
    ("1000, 10k, 1.5M, 1e6", "frames a second"),
    ("10kpps, 1.5Mpps, 10 kp/s, 10kfps, 100 frames/s", "frames a second"),
    ("100Mbps, 100Mbit/s, 1gbit, 1 Gb/s, 10G", "bits a second of frames including checksums (L2)"),
    ("125MB/s, 125 Mbytes/s", "bytes a second, likewise"),
)
TIMES: tuple[tuple[str, str], ...] = (
    ("10, 0.5, 1e3", "seconds"),
    ("10s, 0.5 sec, 500ms, 200us", "seconds, milliseconds, microseconds"),
    ("2m, 90 min, 1.5h, 1h30m, 2m30s", "minutes, hours, and sums"),
)
COUNTS: tuple[tuple[str, str], ...] = (
    ("1000, 1_000, 1e6", "a whole number"),
    ("10k, 1.5M, 2G", "thousands, millions, thousand millions"),
)

_UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}
_SIZE = re.compile(
    r"\s*(?P<number>0x[0-9a-f]+|\d[\d_]*(?:\.\d+)?(?:e\+?\d+)?)\s*"
    r"(?:(?P<unit>[KMGT])i?)?(?:B|bytes?)?\s*",
    re.ASCII | re.IGNORECASE,
)

#: A number, a prefix, and a unit per second: frames, bits or bytes (with a capital B).
_RATE = re.compile(
    r"\s*(?P<number>\d[\d_]*(?:\.\d*)?|\.\d+)(?P<exponent>[eE][+-]?\d+)?\s*"
    r"(?P<prefix>[kKmMgGtT]?)(?P<binary>i?)"
    r"(?P<unit>pps|PPS|(?:p|packets?|frames?)/s|(?:b|B|bits?|bytes?)(?:ps|/s|/sec)|BPS|fps|bits?)?\s*",
    re.ASCII,
)
_FACTORS = {"": 0, "k": 1, "m": 2, "g": 3, "t": 4}

_NUMBER = r"(?P<number>\d[\d_]*(?:\.\d*)?(?:e[+-]?\d+)?|\.\d+)"
_COUNT = re.compile(rf"\s*{_NUMBER}\s*(?P<prefix>[kmgt]?)\s*", re.ASCII | re.IGNORECASE)
_TIME = re.compile(
    rf"\s*{_NUMBER}\s*"
    r"(?P<unit>hours?|hrs?|h|minutes?|min|msec|ms|usec|[uµ]s|seconds?|sec|s|m)\s*",
    re.ASCII,
)
_PLAIN = re.compile(rf"\s*{_NUMBER}\s*", re.ASCII)
_SECONDS = {"h": 3600.0, "ms": 1e-3, "us": 1e-6, "µs": 1e-6, "mse": 1e-3, "use": 1e-6, "s": 1.0}


def parse_size(size: int | str) -> int:
    """Parse a size in bytes: an integer, or text such as ``"64M"`` (binary: 64 MiB).

    ``"64m"``, ``"64MB"``, ``"64 MiB"`` and ``"0x4000000"`` mean the same; ``"1.5G"`` and ``"1e6"``
    are whole numbers of bytes. Raises ValueError.
    """
    if isinstance(size, int) and not isinstance(size, bool):
        if not 0 < size < 1 << 63:
            raise ValueError(f"the size must be a power of two, not {size}")
        return size
    match = _SIZE.fullmatch(size) if isinstance(size, str) else None
    if match:
        number = match["number"].replace("_", "")
        unit = _UNITS[(match["unit"] or "").upper()]
        value = int(number, 0) * unit if number[:2] == "0x" else float(number) * unit
        if value < 1 << 63 and value == int(value) > 0:
            return int(value)
    raise ValueError(f"the size must be a number of bytes or text such as '64M', not {size!r}")


def parse_count(text: str) -> int:
    """Parse a number of things: ``"1000"``, ``"10k"``, ``"1.5M"``, ``"1e6"``.

    Prefixes are powers of 1,000. Raises ValueError.
    """
    match = _COUNT.fullmatch(text)
    if match:
        number = match["number"].replace("_", "")
        factor: int = 1000 ** _FACTORS[match["prefix"].lower()]
        value = int(number) * factor if number.isdigit() else float(number) * factor
        if value < 1 << 63 and value == int(value):
            return int(value)
    raise ValueError(f"a count must be a whole number or such as '10k', not {text!r}")


def parse_time(text: str) -> float:
    """Parse a time to seconds: ``"10"``, ``"0.5s"``, ``"500ms"``, ``"2m"``, ``"1h30m"``.

    Raises ValueError.
    """
    plain = _PLAIN.fullmatch(text)
    if plain:
        return float(plain["number"])
    total, at, last = 0.0, 0, math.inf
    while match := _TIME.match(text, at):
        unit = match["unit"]
        factor = _SECONDS.get(unit[:3], _SECONDS.get(unit[0], 60.0))
        if factor >= last:
            break  # a larger unit behind a smaller one
        total += float(match["number"]) * factor
        at, last = match.end(), factor
    if at == 0 or at < len(text):
        raise ValueError(f"a time must be in seconds or such as '2m' or '500ms', not {text!r}")
    return total


#: A rate in frames per second that no device reaches; beyond it times between frames vanish.
_MOST_FRAMES = 1e12


def parse_rate(rate: float | str, length: float) -> float:
    """Convert a rate, a number or text, to frames a second.

    ``"10Mpps"`` or ``"10k packets/s"``; bits of frames: ``"1Gbps"``, ``"1gbps"``, ``"1 Gbit/s"`` or
    ``"1G"``; bytes: ``"1GB/s"``; a plain number: ``"1e6"``. ``length``: mean bytes of a frame
    including the checksum. Prefixes are powers of 1,000, or of 1,024 with ``i`` (``"1Gibit/s"``).
    Raises ValueError.
    """
    if isinstance(rate, str):
        match = _RATE.fullmatch(rate)
        if not match:
            raise ValueError(
                "the rate must be a number of frames a second, or such as '10Mpps', '1Gbps' or "
                f"'1Gbit/s', not {rate!r}"
            )
        value = float((match["number"] + (match["exponent"] or "")).replace("_", ""))
        prefix = match["prefix"].lower()
        value *= (1024 if match["binary"] else 1000) ** _FACTORS[prefix]
        # Links are named so ("10G"); nobody sends that many frames.
        unit = match["unit"] or ("bps" if prefix in ("g", "t") else "pps")
        if unit[0] in "bB":
            is_bytes = unit.startswith(("byte", "B")) and unit != "BPS"
            value /= length if is_bytes else 8 * length
    else:
        value = float(rate)
    if not (value > 0 and math.isfinite(value)):
        raise ValueError(f"the rate must be above 0 frames a second, not {rate}")
    if value > _MOST_FRAMES:
        raise ValueError(f"the rate must be at most {_MOST_FRAMES:g} frames a second, not {rate}")
    return value
