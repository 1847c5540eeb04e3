"""What differs between vhost-user backends: one table, and nothing about programs elsewhere.

Each row says which program it is about, what is seen with it, what virtnic does about it, and
which test shows it. A backend is known by the name of the process at the other end of its
socket, which the kernel tells; where it is in another PID namespace it is nobody we know.
``docs/backends.md`` is this table for people.
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

    #: The program and its versions, for people.
    program: str
    #: A regular expression for the whole name of the process (``/proc/PID/comm``).
    comm: str
    symptom: str
    action: str
    test: str
    #: The most entries of a queue for which nobody asked; 0 where there is no such limit.
    queue_size: int = 0


BACKENDS: tuple[Peculiarity, ...] = (
    Peculiarity(
        program="passt, 2025 and 2026 (seen with that of Debian sid)",
        comm=r"passt(\.avx2)?",
        symptom="with queues of 1,024 entries its assertion in `tcp_vu.c` fails, and it dies, when "
        "much is downloaded through a large window; 256 and 512 entries are fine",
        action="queues have 512 entries unless `queue_size=` says otherwise",
        test="tests/device/test_vhost_user_backends.py::test_passt_gets_shorter_queues",
        queue_size=512,
    ),
    Peculiarity(
        program="DPDK's testpmd from 22.11 on, forwarding in mode `io`",
        comm=r"(dpdk-)?testpmd.*",
        symptom="it calculates the checksums of what it passes on, and drops the data of frames "
        "that are to be segmented (TSO), where the ports were told of offloads; 20.11 passes both "
        "on as they are",
        action="none: a vhost-user port asks for no offload by itself. With `offload=True` take "
        "another mode (`macswap`, `mac`), or no TSO",
        test="tests/device/test_offload_forward.py",
    ),
)


def process_of(fd: int) -> str | None:
    """Return the name of the process at the other end of a UNIX socket; None where it is hidden.

    The descriptor stays the caller's.
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
    """Return the most entries that a queue is to have for this backend; 0 for any number."""
    sizes = [
        row.queue_size
        for row in BACKENDS
        if row.queue_size and process is not None and re.fullmatch(row.comm, process)
    ]
    return min(sizes, default=0)
