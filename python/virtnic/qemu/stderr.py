"""The stderr output of all QEMUs, through one pair of sockets.

The kernel reports the sender of each message (``SCM_CREDENTIALS``, unix(7)), so the output of
several QEMUs can be distinguished without a descriptor for each.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
import socket
import struct
import threading
from pathlib import Path
from typing import TYPE_CHECKING

from virtnic.qemu import loop
from virtnic.qemu.identity import Identity, close_own
from virtnic.teardown import uninterrupted

if TYPE_CHECKING:
    from collections.abc import Iterator

    from virtnic.qemu.loop import LoopThread

__all__ = ["StderrLog"]

_log = logging.getLogger(__name__)

#: Bytes kept for each QEMU.
_KEPT = 16 * 1024
#: Most processes whose output is kept until their QEMU is known.
_UNKNOWN = 16
#: How many ancestors of a process are searched for its QEMU or the command that wraps it.
_ANCESTORS = 8
_CREDENTIALS = struct.Struct("3i")  # process, user, group
_MESSAGE = 65536
#: Messages read at a time.
_READS = 1024
#: Messages that need no action: the reason why QEMU ends, the end of a QTest client, and (from
#: "Failed to" on) a lost vhost-user backend, which the link and the events report.
_HARMLESS = re.compile(
    r"terminating on signal|g_timer_elapsed|^(?:qemu\S*: )?info: "
    r"|Failed to (?:set msg fds|(?:read|write) msg)|Unexpected end-of-file before all data"
    r"|vhost VQ \d+ ring restore failed"
)
#: Start of QEMU's warnings (``warn_report``), after its name. Errors end QEMU or are replies to
#: commands.
_WARNING = ": warning: "
# Warnings already logged, which every QEMU repeats; after this many no more are logged.
_WARNINGS = 100
_warned: set[str] = set()


class StderrLog:
    """The last 16 KiB of stderr output of one QEMU and its helpers."""

    def __init__(self) -> None:
        self._kept = bytearray()
        #: Bytes received so far, and at :meth:`mark`.
        self._total = 0
        self._marked = 0
        #: The start of an incomplete line.
        self._line = b""
        #: Complete lines that are not logged yet.
        self._pending: list[bytes] = []
        self._last = ""
        #: Until :meth:`mark`: output of unknown processes may belong to it, and why it does not
        #: start is reported by its starter.
        self.starting = True
        #: Number of commands in progress that may start a helper; see :meth:`helpers`.
        self._commands = 0

    def open(self, where: LoopThread) -> int:
        """Return the descriptor for a QEMU to write to. Raises OSError."""
        return _shared.join(self, where)

    def set_process(self, pid: int) -> None:
        """Collect the output of a process, its process group and its descendants."""
        _shared.set_owner(self, pid)

    def append(self, output: bytes) -> None:
        """Store output; :meth:`log` logs it."""
        self._kept += output
        self._total += len(output)
        del self._kept[:-_KEPT]
        *complete, self._line = (self._line + output)[-_MESSAGE:].split(b"\n")
        self._pending += complete

    def log(self) -> None:
        """Log new lines, without holding a lock: a log handler may read more.

        They are logged as warnings, unless QEMU is starting, ending or repeating itself.
        """
        while self._pending:
            line = self._pending.pop(0).decode(errors="replace").rstrip()
            warned = _WARNING in line
            harmless = not line or line == self._last or _HARMLESS.search(line) is not None
            self._last = line
            if warned:
                harmless = harmless or line in _warned or len(_warned) >= _WARNINGS
                _warned.add(line)
            loud = (warned or not self.starting) and not harmless
            _log.log(logging.WARNING if loud else logging.DEBUG, "QEMU: %s", line)

    def text(self) -> str:
        """Return everything kept."""
        _shared.drain()
        return self._kept.decode(errors="replace")

    def position(self) -> int:
        """Return the current position in the output, for :meth:`since`."""
        _shared.drain()
        return self._total

    def since(self, position: int) -> str:
        """Return the output since a position, as far as it is kept."""
        _shared.drain()
        old = max(0, len(self._kept) - (self._total - position))
        return self._kept[old:].decode(errors="replace")

    @contextlib.contextmanager
    def helpers(self) -> Iterator[None]:
        """Collect output of short-lived helpers, which may end before their QEMU is found."""
        self._commands += 1
        try:
            yield
        finally:
            _shared.drain()  # while their output still counts as its own
            self._commands -= 1

    @property
    def expects(self) -> bool:
        """Whether output of an ended, unknown process may belong to it."""
        return self.starting or self._commands > 0

    def mark(self) -> None:
        """Record the position at the end of start-up."""
        self._marked = self.position()
        self.starting = False

    def since_mark(self) -> str:
        """Return the output since :meth:`mark`."""
        return self.since(self._marked)

    def close(self) -> None:
        """Stop collecting. Earlier output is kept; repeated calls are allowed."""
        _shared.leave(self)


class _Sockets:
    """The two ends, and the watch that reads them."""

    def __init__(self, where: LoopThread) -> None:
        # A connected pair: unread data is limited by size, not to ten messages.
        self.ours, self.theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.ours.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
        self.ours.setblocking(False)
        self._known = [(end, Identity.of(end.fileno())) for end in (self.ours, self.theirs)]
        self.watch = loop.Watch(where, self.ours.fileno(), _shared.drain)

    def close(self) -> None:
        self.watch.close()
        self.close_ends()

    def close_ends(self) -> None:
        for end, known in self._known:
            close_own(end, known)

    @property
    def are_open(self) -> bool:
        """Whether nobody else has closed them."""
        return all(known.is_still for _, known in self._known)


class _Shared:
    """All logs. The loop's thread drains, so nobody waits for it with the lock held.

    No signal handler runs in a thread that holds the lock. One that closes waits for the loop's
    thread, and for another thread that must not be interrupted, and both take the lock.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._sockets: _Sockets | None = None
        self._logs: set[StderrLog] = set()
        #: Logs by process: that of QEMU or its wrapper, and those found later.
        self._owners: dict[int, StderrLog] = {}
        self._unknown: dict[int, bytearray] = {}

    def join(self, log: StderrLog, where: LoopThread) -> int:
        with self._lock:
            sockets = self._sockets
            stale: _Sockets | None = None
            if sockets is not None and not sockets.are_open:
                sockets, stale = None, sockets
            if sockets is None:
                sockets = self._sockets = _Sockets(where)
            self._logs.add(log)
        if stale is not None:
            stale.close()
        sockets.watch.begin()  # no effect for all but the first
        return sockets.theirs.fileno()

    def set_owner(self, log: StderrLog, pid: int) -> None:
        uninterrupted(lambda: self._set_owner(log, pid))

    def _set_owner(self, log: StderrLog, pid: int) -> None:
        with self._lock:
            self._owners[pid] = log
            for unknown in list(self._unknown):
                if self._owner(unknown) is log:
                    log.append(bytes(self._unknown.pop(unknown)))

    def leave(self, log: StderrLog) -> None:
        self.drain()
        with self._lock:
            self._logs.discard(log)
            self._owners = {pid: at for pid, at in self._owners.items() if at is not log}
            if self._logs:
                return
            self._unknown.clear()
            sockets, self._sockets = self._sockets, None
        if sockets is not None:
            sockets.close()

    def drain(self) -> None:
        """Distribute pending output, then log it."""
        for log in uninterrupted(self._read):
            log.log()

    def _read(self) -> list[StderrLog]:
        with self._lock:
            for _ in range(_READS):  # bounded, in case a process writes continuously
                if self._sockets is None:
                    break
                try:
                    output, notes, _flags, _address = self._sockets.ours.recvmsg(
                        _MESSAGE, socket.CMSG_SPACE(_CREDENTIALS.size)
                    )
                except OSError:  # nothing left, or closed from outside
                    break
                self._distribute(output, _sender(notes))
            return list(self._logs)

    def _distribute(self, output: bytes, pid: int) -> None:
        owner = self._owner(pid)
        if owner is not None:
            owner.append(output)
            return
        expecting = [log for log in self._logs if log.expects]
        if len(expecting) == 1 and not _lives(pid):
            expecting[0].append(output)  # its owner cannot be found any more
        else:
            kept = self._unknown.setdefault(pid, bytearray())
            kept += output
            del kept[:-_KEPT]
            while len(self._unknown) > _UNKNOWN:
                del self._unknown[next(iter(self._unknown))]

    def _owner(self, pid: int) -> StderrLog | None:
        """Return the log for a process: a QEMU or one of its helpers."""
        if pid in self._owners:
            return self._owners[pid]
        found = self._owners.get(_group(pid))
        above = pid
        for _ in range(_ANCESTORS):
            if found is not None or above <= 1:
                break
            above = _parent(above)
            found = self._owners.get(above)
        if found is not None:
            self._owners[pid] = found  # in case it has ended next time
        return found

    def leave_to_parent(self) -> None:
        """Close a forked child's copies; the loop that watches them is the parent's."""
        if self._sockets is not None:
            self._sockets.close_ends()


def _sender(notes: list[tuple[int, int, bytes]]) -> int:
    for level, kind, data in notes:
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_CREDENTIALS):
            pid: int = _CREDENTIALS.unpack_from(data)[0]
            return pid
    return 0


def _group(pid: int) -> int:
    with contextlib.suppress(OSError):
        return os.getpgid(pid) if pid > 0 else 0
    return 0


def _lives(pid: int) -> bool:
    return _group(pid) > 0


def _parent(pid: int) -> int:
    """Return the parent of a process; 0 if it is gone."""
    with contextlib.suppress(OSError, ValueError, IndexError):
        status = Path(f"/proc/{pid}/stat").read_text()
        return int(status.rpartition(")")[2].split()[1])  # proc(5): state, parent
    return 0


_shared = _Shared()


def _after_fork_in_child() -> None:
    global _shared
    inherited, _shared = _shared, _Shared()
    inherited.leave_to_parent()


os.register_at_fork(after_in_child=_after_fork_in_child)
