"""Filters in tcpdump's language (pcap-filter(7)), which libpcap compiles and runs."""

from __future__ import annotations

import ctypes
import ctypes.util
import errno
import functools
import threading
from typing import Any

__all__ = ["Filter"]

#: The link type of Ethernet.
ETHERNET = 1
#: The longest frame that a filter can read.
_LONGEST = 262_144
#: Names of the library, if `ctypes.util.find_library` does not find it.
_NAMES = ("libpcap.so.1", "libpcap.so.0.8", "libpcap.so")
#: No address is a broadcast address: a port has no network mask.
_NO_MASK = 0xFFFFFFFF


class _Program(ctypes.Structure):
    """``struct bpf_program``."""

    _fields_ = (("length", ctypes.c_uint), ("instructions", ctypes.c_void_p))


#: Older libpcaps compile one at a time.
_compiling = threading.RLock()


@functools.cache
def _libpcap() -> Any:
    """Load libpcap. Raises FileNotFoundError where there is none."""
    found = ctypes.util.find_library("pcap")
    for name in (*((found,) if found else ()), *_NAMES):
        try:
            library = ctypes.CDLL(name)
        except OSError:
            continue
        library.pcap_open_dead.restype = ctypes.c_void_p
        library.pcap_open_dead.argtypes = [ctypes.c_int, ctypes.c_int]
        library.pcap_compile.argtypes = [
            *(ctypes.c_void_p, ctypes.POINTER(_Program), ctypes.c_char_p),
            *(ctypes.c_int, ctypes.c_uint32),
        ]
        library.pcap_geterr.restype = ctypes.c_char_p
        library.pcap_geterr.argtypes = [ctypes.c_void_p]
        library.pcap_freecode.argtypes = [ctypes.POINTER(_Program)]
        library.pcap_close.argtypes = [ctypes.c_void_p]
        library.bpf_filter.restype = ctypes.c_uint
        library.bpf_filter.argtypes = [
            *(ctypes.c_char_p, ctypes.c_char_p, ctypes.c_uint, ctypes.c_uint)
        ]
        return library
    raise FileNotFoundError(
        errno.ENOENT,
        "a filter is compiled by libpcap, which is not installed: `apt install libpcap0.8` or the "
        "like brings it",
    )


class Filter:
    """A filter such as ``"udp port 53"``, compiled; usable as a function of a frame's bytes."""

    def __init__(self, text: str, link_type: int = ETHERNET) -> None:
        """Compile it for frames of a link type.

        Raises ValueError with libpcap's words where it is wrong, FileNotFoundError where there is
        no libpcap.
        """
        self.text = text
        library = _libpcap()
        words = text.encode()
        if b"\0" in words:
            raise ValueError(f"a filter has no zero bytes: {text!r}")
        with _compiling:
            handle = library.pcap_open_dead(link_type, _LONGEST)
            if not handle:
                raise MemoryError("libpcap has no memory")
            program = _Program()
            try:
                if library.pcap_compile(handle, ctypes.byref(program), words, 1, _NO_MASK):
                    said = library.pcap_geterr(handle).decode(errors="replace")
                    raise ValueError(f"the filter {text!r} is wrong: {said}")
                #: The instructions, 8 bytes each.
                self.program = ctypes.string_at(program.instructions, 8 * program.length)
                library.pcap_freecode(ctypes.byref(program))
            finally:
                library.pcap_close(handle)
        self._run = library.bpf_filter

    @property
    def address(self) -> int:
        """Where libpcap's ``bpf_filter`` is, which runs the program."""
        return ctypes.cast(self._run, ctypes.c_void_p).value or 0

    def __call__(self, frame: bytes, length: int | None = None) -> bool:
        """Whether a frame passes, of which there may be fewer bytes than its ``length``."""
        wire = len(frame) if length is None else length
        return bool(self._run(self.program, frame, wire, len(frame)))

    def __repr__(self) -> str:
        return f"<virtnic.capture.Filter {self.text!r}: {len(self.program) // 8} instructions>"
