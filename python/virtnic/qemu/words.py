"""What our QEMUs say on stderr: one pair of sockets for all of them.

The kernel says with each message which process wrote it (``SCM_CREDENTIALS``, unix(7)), so the
words of one QEMU are told from those of another, and cost no descriptor.
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

__all__ = ["Words"]

_log = logging.getLogger(__name__)

#: Bytes that are kept of each QEMU.
_KEPT = 16 * 1024
#: Processes that have spoken and are nobody's yet: their QEMU may not be known yet.
_STRANGERS = 16
#: How far above a process its QEMU, or the command that wraps it, is looked for.
_ANCESTORS = 8
_CREDENTIALS = struct.Struct("3i")  # process, user, group
_MESSAGE = 65536
#: Messages that are taken at once.
_READS = 1024
#: What QEMU says without there being anything to do: why it ends, at the end of a QTest client, and
#: (from "Failed to" on) that a vhost-user backend hung up, which the link and the events tell.
_HARMLESS = re.compile(
    r"terminating on signal|g_timer_elapsed|^(?:qemu\S*: )?info: "
    r"|Failed to (?:set msg fds|(?:read|write) msg)|Unexpected end-of-file before all data"
    r"|vhost VQ \d+ ring restore failed"
)
#: How QEMU begins what it warns of (its ``warn_report``), after its name; errors end it, or come as
#: the answer to a command.
_WARNING = ": warning: "
# What any QEMU of ours has warned of, which the next one will too; after so many it is enough.
_WARNINGS = 100
_warned: set[str] = set()


class Words:
    """What one QEMU says, and its helpers: the last 16 KiB."""

    def __init__(self) -> None:
        self._kept = bytearray()
        #: Bytes that came so far, and how many of them had at :meth:`mark`.
        self._total = 0
        self._marked = 0
        #: The beginning of a line whose end is yet to come.
        self._line = b""
        #: Lines that are complete and not logged yet.
        self._untold: list[bytes] = []
        self._told = ""
        #: Until :meth:`mark`: those that nobody can be found for may be its own, and why it does
        #: not start is told by who starts it.
        self.starting = True
        #: Commands under way that may start a helper, as :meth:`asked`.
        self._asked = 0

    def open(self, where: LoopThread) -> int:
        """Return the descriptor that a QEMU is to write to. Raises OSError."""
        return _shared.join(self, where)

    def belong_to(self, pid: int) -> None:
        """Take what this process says, the group that it leads, and what it starts."""
        _shared.know(self, pid)

    def hear(self, said: bytes) -> None:
        """Keep what was said; :meth:`tell` logs it."""
        self._kept += said
        self._total += len(said)
        del self._kept[:-_KEPT]
        *complete, self._line = (self._line + said)[-_MESSAGE:].split(b"\n")
        self._untold += complete

    def tell(self) -> None:
        """Log what QEMU says, without a lock of ours: a handler may ask for more.

        It is a warning, unless QEMU starts, ends or says the same again.
        """
        while self._untold:
            line = self._untold.pop(0).decode(errors="replace").rstrip()
            warned = _WARNING in line
            harmless = not line or line == self._told or _HARMLESS.search(line) is not None
            self._told = line
            if warned:
                harmless = harmless or line in _warned or len(_warned) >= _WARNINGS
                _warned.add(line)
            loud = (warned or not self.starting) and not harmless
            _log.log(logging.WARNING if loud else logging.DEBUG, "QEMU: %s", line)

    def text(self) -> str:
        """Return all that is kept."""
        _shared.drain()
        return self._kept.decode(errors="replace")

    def position(self) -> int:
        """Return how many bytes it has said so far: for :meth:`since`."""
        _shared.drain()
        return self._total

    def since(self, position: int) -> str:
        """Return what it has said since then, as far as it is kept."""
        _shared.drain()
        old = max(0, len(self._kept) - (self._total - position))
        return self._kept[old:].decode(errors="replace")

    @contextlib.contextmanager
    def asked(self) -> Iterator[None]:
        """Until then a helper may speak, and end, before it is known whose it is."""
        self._asked += 1
        try:
            yield
        finally:
            _shared.drain()  # while they are still its own
            self._asked -= 1

    @property
    def expects(self) -> bool:
        """Whether words of a process that has ended since may be its own."""
        return self.starting or self._asked > 0

    def mark(self) -> None:
        """Take what it said so far for its first words; its last ones are yet to come."""
        self._marked = self.position()
        self.starting = False

    def since_mark(self) -> str:
        """Return what it said since :meth:`mark`."""
        return self.since(self._marked)

    def close(self) -> None:
        """Listen no more. What was said stays; twice is fine."""
        _shared.leave(self)


class _Sockets:
    """The two ends, and the watch that empties them."""

    def __init__(self, where: LoopThread) -> None:
        # Connected to each other, so that what is unread is limited by size, not to ten messages.
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
    """Who listens. The loop's thread drains, so nobody waits for it with the lock held.

    Nor does a signal handler run in a thread that has the lock. One that closes would wait for the
    loop's thread, and for another that does what it may not be interrupted in, and both want it.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._sockets: _Sockets | None = None
        self._listeners: set[Words] = set()
        #: By the number of a process: that of QEMU or its wrapper, those that were found since.
        self._owners: dict[int, Words] = {}
        self._strangers: dict[int, bytearray] = {}

    def join(self, words: Words, where: LoopThread) -> int:
        with self._lock:
            sockets = self._sockets
            stale: _Sockets | None = None
            if sockets is not None and not sockets.are_open:
                sockets, stale = None, sockets
            if sockets is None:
                sockets = self._sockets = _Sockets(where)
            self._listeners.add(words)
        if stale is not None:
            stale.close()
        sockets.watch.begin()  # again for all but the first
        return sockets.theirs.fileno()

    def know(self, words: Words, pid: int) -> None:
        uninterrupted(lambda: self._know(words, pid))

    def _know(self, words: Words, pid: int) -> None:
        with self._lock:
            self._owners[pid] = words
            for stranger in list(self._strangers):
                if self._owner(stranger) is words:
                    words.hear(bytes(self._strangers.pop(stranger)))

    def leave(self, words: Words) -> None:
        self.drain()
        with self._lock:
            self._listeners.discard(words)
            self._owners = {pid: at for pid, at in self._owners.items() if at is not words}
            if self._listeners:
                return
            self._strangers.clear()
            sockets, self._sockets = self._sockets, None
        if sockets is not None:
            sockets.close()

    def drain(self) -> None:
        """Hand out what is there, then log it."""
        for words in uninterrupted(self._hear):
            words.tell()

    def _hear(self) -> list[Words]:
        with self._lock:
            for _ in range(_READS):  # one that writes for ever does not hold us up
                if self._sockets is None:
                    break
                try:
                    said, notes, _flags, _address = self._sockets.ours.recvmsg(
                        _MESSAGE, socket.CMSG_SPACE(_CREDENTIALS.size)
                    )
                except OSError:  # there is nothing more, or somebody else has closed it
                    break
                self._hand_out(said, _sender(notes))
            return list(self._listeners)

    def _hand_out(self, said: bytes, pid: int) -> None:
        owner = self._owner(pid)
        if owner is not None:
            owner.hear(said)
            return
        expecting = [words for words in self._listeners if words.expects]
        if len(expecting) == 1 and not _lives(pid):
            expecting[0].hear(said)  # whose it was cannot be found any more
        else:
            kept = self._strangers.setdefault(pid, bytearray())
            kept += said
            del kept[:-_KEPT]
            while len(self._strangers) > _STRANGERS:
                del self._strangers[next(iter(self._strangers))]

    def _owner(self, pid: int) -> Words | None:
        """Whose words those of a process are: QEMU's own, or those of one of its helpers."""
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
            self._owners[pid] = found  # where it is gone by the next time
        return found

    def leave_to_parent(self) -> None:
        """Close a forked child's copies; the loop that they are watched in is its parent's."""
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
    """Return the parent of a process; 0 where it is gone."""
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
