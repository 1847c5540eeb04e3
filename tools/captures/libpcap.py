"""libpcap's own reader, through ctypes: an independent reading of a file."""

import ctypes
import ctypes.util
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

_NANOSECONDS = 1


class _Header(ctypes.Structure):
    """``struct pcap_pkthdr``."""

    _fields_ = (
        ("seconds", ctypes.c_long),
        ("fraction", ctypes.c_long),
        ("held", ctypes.c_uint32),
        ("length", ctypes.c_uint32),
    )


@dataclass(frozen=True)
class Record:
    """A frame with its metadata."""

    timestamp: int
    length: int
    frame: bytes


class Refused(Exception):
    """libpcap's error about a file, and the frames that it had read before."""


def _library() -> ctypes.CDLL:
    library = ctypes.CDLL(ctypes.util.find_library("pcap") or "libpcap.so.0.8")
    library.pcap_open_offline_with_tstamp_precision.restype = ctypes.c_void_p
    library.pcap_open_offline_with_tstamp_precision.argtypes = [
        *(ctypes.c_char_p, ctypes.c_uint, ctypes.c_char_p)
    ]
    library.pcap_next_ex.argtypes = [ctypes.c_void_p, *[ctypes.POINTER(ctypes.c_void_p)] * 2]
    library.pcap_geterr.restype = ctypes.c_char_p
    library.pcap_geterr.argtypes = library.pcap_close.argtypes = [ctypes.c_void_p]
    library.pcap_datalink.argtypes = [ctypes.c_void_p]
    return library


def read(path: Path) -> Iterator[Record]:
    """Yield a file's frames. Raises Refused."""
    library = _library()
    said = ctypes.create_string_buffer(256)
    handle = library.pcap_open_offline_with_tstamp_precision(str(path).encode(), _NANOSECONDS, said)
    if not handle:
        raise Refused(said.value.decode())
    try:
        header, data = ctypes.c_void_p(), ctypes.c_void_p()
        while True:
            result = library.pcap_next_ex(handle, ctypes.byref(header), ctypes.byref(data))
            if result == -2:
                return
            if result != 1 or header.value is None:
                raise Refused(library.pcap_geterr(handle).decode())
            found = _Header.from_address(header.value)
            frame = ctypes.string_at(data, found.held) if found.held else b""
            when = found.seconds * 10**9 + found.fraction
            yield Record(when, found.length, frame)
    finally:
        library.pcap_close(handle)
