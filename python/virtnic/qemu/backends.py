"""Differences between vhost-user backends: one table, and no backend names elsewhere.

Each row gives the program, the symptom, what virtnic does, and a test. A backend is identified by
the name of the process at the other end of its socket, as reported by the kernel; in another PID
namespace it is unknown. ``docs/backends.md`` is this table for users.
"""

from __future__ import annotations

import re
import socket
import struct
from dataclasses import dataclass
from pathlib import Path

__all__ = ["BACKENDS", "Peculiarity", "process_of", "queue_size_for"]

#: pid, uid and gid of ``struct ucred`` (unix(7), SO_PEERCRED).
_UCRED = struct.Struct("3i")


@dataclass(frozen=True, slots=True)
class Peculiarity:
    """One row of the table."""

    #: The program and its versions.
    program: str
    #: A regular expression for the whole process name (``/proc/PID/comm``).
    comm: str
    symptom: str
    action: str
    test: str
    #: Most entries of a queue when no size was requested; 0 for no limit.
    queue_size: int = 0


BACKENDS: tuple[Peculiarity, ...] = (
    Peculiarity(
        program="passt, 2025 and 2026 (seen with Debian sid's)",
        comm=r"passt(\.avx2)?",
        symptom="with queues of 1,024 entries an assertion in `tcp_vu.c` fails and it dies when "
        "much is downloaded through a large window; 256 and 512 entries work",
        action="queues have 512 entries unless `queue_size=` is given",
        test="tests/device/test_vhost_user_backends.py::test_passt_gets_shorter_queues",
        queue_size=512,
    ),
    Peculiarity(
        program="passt, 2025 (Debian trixie's)",
        comm=r"passt(\.avx2)?",
        symptom="it offers no GUEST_CSUM, and vouches for the checksums of TCP (and of UDP over "
        "IPv6) without setting them: frames have wrong ones, and `DATA_VALID` in their headers",
        action="the stacks, `FaultyPort` and `Burst.tobytes(checksums=True)` take the device's "
        "word, as Linux does; `recv` and captures show the frames as they are",
        test="tests/device/test_vouched_checksums.py::test_a_connection",
    ),
    Peculiarity(
        program="DPDK's testpmd from 22.11 on",
        comm=r"(dpdk-)?testpmd.*",
        symptom="with offloads negotiated, it calculates the checksums of frames that it forwards, "
        "and forgets how they are to be segmented (TSO): a frame of 9,000 bytes arrives as one, "
        "and not at all at a port without `offload=True`. Without its option `tso=1` it takes no "
        "such frames",
        action="none: a vhost-user port negotiates no offloads by default. With `offload=True`, "
        "give `net_vhost` the option `legacy-ol-flags=1`: it then forwards both unchanged, as "
        "20.11 does",
        test="tests/device/test_vhost_user_backends.py::test_what_testpmd_does_to_offloads",
    ),
)


def process_of(fd: int) -> str | None:
    """Return the name of the process at the other end of a UNIX socket; None if it is hidden.

    The descriptor remains the caller's.
    """
    with socket.socket(fileno=fd) as peer:
        try:
            data = peer.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size)
        finally:
            peer.detach()
    pid = _UCRED.unpack(data)[0]
    if pid <= 0:
        return None
    try:
        return Path(f"/proc/{pid}/comm").read_text().rstrip("\n")
    except OSError:
        return None


def queue_size_for(process: str | None) -> int:
    """Return the most queue entries for this backend; 0 for no limit."""
    sizes = [
        row.queue_size
        for row in BACKENDS
        if row.queue_size and process is not None and re.fullmatch(row.comm, process)
    ]
    return min(sizes, default=0)
