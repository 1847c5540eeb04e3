"""The QEMU process: started to die with us, its last words kept."""

from __future__ import annotations

import contextlib
import io
import logging
import os
import shlex
import signal
import threading
import weakref
from typing import TYPE_CHECKING

from virtnic import _native
from virtnic.errors import QemuDied, QemuError, QemuNotFound
from virtnic.qemu import environment, loop
from virtnic.qemu.find import INSTALL
from virtnic.teardown import Owner, uninterrupted

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

_log = logging.getLogger(__name__)

#: Bytes of stderr that are kept.
_STDERR_KEPT = 16 * 1024
#: How QEMU begins what it warns of (its ``warn_report``), after its name; errors end it, or come as
#: the answer to a command.
_WARNING = ": warning: "
# What any QEMU of ours has warned of, which the next one will too; after so many it is enough.
_WARNINGS = 100
_warned: set[str] = set()


class _Stderr:
    """The reading end of a pipe, emptied into a bounded buffer.

    Its ends are file objects: a number that was closed could be another descriptor's by the next
    call. They are made and closed where nobody is interrupted between two steps.
    """

    def __init__(self) -> None:
        self._reader: io.FileIO | None = None
        self.writer: io.FileIO | None = None
        self._kept = bytearray()
        #: The beginning of a line whose end is yet to come.
        self._line = ""
        #: Bytes that came since :meth:`mark`.
        self._fresh = 0
        self._lock = threading.RLock()

    def open(self) -> None:
        reader, writer = os.pipe2(os.O_CLOEXEC)
        self._reader, self.writer = io.FileIO(reader), io.FileIO(writer, "w")
        os.set_blocking(reader, False)

    def fileno(self) -> int:
        assert self._reader is not None
        return self._reader.fileno()

    def close_writer(self) -> None:
        if self.writer is not None:
            self.writer.close()

    def drain(self) -> bool:
        """Take what is there; False at the end."""
        with self._lock:
            while self._reader is not None and not self._reader.closed:
                chunk = self._reader.read(65536)
                if chunk is None:
                    return True
                if not chunk:
                    return False
                self._log(chunk.decode(errors="replace"))
                self._kept += chunk
                self._fresh += len(chunk)
                del self._kept[:-_STDERR_KEPT]
            return False

    def _log(self, text: str) -> None:
        """Log it line by line; what QEMU warns of is for the user, who is told once."""
        *lines, self._line = (self._line + text).split("\n")
        if len(self._line) > _STDERR_KEPT:
            lines, self._line = [*lines, self._line], ""
        for line in lines:
            new = line not in _warned and len(_warned) < _WARNINGS
            warning = new and _WARNING in line
            if warning:
                _warned.add(line)
            _log.log(logging.WARNING if warning else logging.DEBUG, "QEMU: %s", line.rstrip())

    def text(self) -> str:
        self.drain()
        return self._kept.decode(errors="replace")

    def mark(self) -> None:
        self.drain()
        self._fresh = 0

    def since_mark(self) -> str:
        self.drain()
        old = max(0, len(self._kept) - self._fresh)
        return self._kept[old:].decode(errors="replace")

    def close(self) -> None:
        self.close_writer()
        self.drain()
        with self._lock:
            if self._reader is not None:
                self._reader.close()


class Process(Owner):
    """A QEMU that is started here.

    It dies with us, even when we are killed, or run as another user by then.
    """

    def __init__(self, argv: Sequence[str]) -> None:
        self.argv = list(argv)
        self._callbacks: list[Callable[[QemuDied], object]] = []
        self._lock = threading.RLock()
        self._close_lock = threading.RLock()
        self._reported = False
        self._verdict: str | None = None
        self._stderr = _Stderr()
        self._child: _native.Child | None = None
        self._status: int | None = None
        self._ask: weakref.WeakMethod[Callable[[], object]] | None = None
        self._pid: int | None = None
        self._hold = loop.Hold()
        self._watches: list[loop.Watch] = []

    def start(self) -> None:
        """Start it. Raises QemuNotFound, OSError. Whoever is interrupted closes it."""
        uninterrupted(self._stderr.open)
        assert self._stderr.writer is not None
        try:
            self._child = child = _native.spawn(
                self.argv, environment.for_qemu(), self._stderr.writer.fileno()
            )
        except FileNotFoundError as error:
            raise QemuNotFound(f"cannot start `{self.argv[0]}`: {error}; {INSTALL}") from error
        self._stderr.close_writer()
        self._pid = child.pid
        where = self._hold.take()
        # The loop must not keep us alive: an abandoned QEMU has to go with its owner.
        ended = loop.Watch(where, child.fileno(), _weak(self._on_exit))
        readable = loop.Watch(where, self._stderr.fileno(), _weak(self._on_stderr))
        self._watches = [readable, ended]
        readable.begin()
        ended.begin()

    @property
    def pid(self) -> int:
        """Its number: of QEMU, or of the command that wraps it."""
        if self._pid is None:
            raise QemuError("this QEMU was not started")  # a signal to 0 would reach ourselves
        return self._pid

    @property
    def where(self) -> str:
        """Which it is, for people."""
        return f"pid {self._pid}"

    def wait(self, timeout: float | None = None) -> int | None:
        """Wait for its end: exit status, or minus the signal; None after the timeout."""
        child = self._child
        return self._status if child is None else child.wait(timeout)

    @property
    def alive(self) -> bool:
        """Whether it still runs."""
        return self._child is not None and self.wait(0) is None

    @property
    def stderr(self) -> str:
        """The last 16 KiB that QEMU wrote to stderr."""
        return self._stderr.text()

    def started(self) -> None:
        """Take what it said so far for its first words; its last ones are yet to come."""
        self._stderr.mark()

    def death(self, patience: float = 1.0) -> str:
        """Say how it ended: exit status and last words. Waits up to ``patience`` seconds."""
        status = self.wait(patience)
        if self._verdict is not None:
            how = f"QEMU (pid {self.pid}) {self._verdict}, and was killed"
        elif status is None:
            how = f"QEMU (pid {self.pid}) closed its socket but still runs"
        elif status < 0:
            how = f"QEMU (pid {self.pid}) was killed by {_signal_name(-status)}"
        else:
            how = f"QEMU (pid {self.pid}) ended with exit status {status}"
        words = [line for line in self._stderr.since_mark().splitlines() if line.strip()][-4:]
        if words:
            return f"{how}; it said: " + " | ".join(words)
        return f"{how} and said nothing"

    def on_death(self, callback: Callable[[QemuDied], object]) -> None:
        """Call back once, in the loop's thread, when it ends unasked (at once if it has)."""
        with self._lock:
            if not self._reported:
                self._callbacks.append(callback)
                return
        callback(QemuDied(self.death()))

    def condemn(self, why: str) -> None:
        """End one that hangs: ``why`` goes into what is said of its death."""
        child = self._child
        if child is not None and self.alive:
            self._verdict = why
            child.kill()

    def bury(self, grace: float = 1.0) -> None:
        """See it end, by SIGKILL after ``grace`` seconds, and tell those who want to know."""
        if self.wait(grace) is None and self._child is not None:
            self._child.kill()
            self.wait(5.0)
        self._on_exit()

    def asked_by(self, ask: Callable[[], object]) -> None:
        """Know how to ask it to end, a method of its monitor: for when we may not signal it."""
        self._ask = weakref.WeakMethod(ask)

    def close(self, grace: float = 1.0) -> None:
        """End it: SIGTERM, after ``grace`` seconds SIGKILL. A second call finishes the first.

        One that runs as another user than we do by now is asked instead. Raises QemuError
        where it does not listen: it stays until our process ends.
        """
        with self._lock:
            self._reported = True
            self._callbacks.clear()
        with self._close_lock:
            child = self._child
            if child is not None:
                self._end(child, grace)
            for watch in self._watches:
                watch.close()
            uninterrupted(self._stderr.close)
            self._child = None  # and with it the pidfd
            self._hold.release()

    def _end(self, child: _native.Child, grace: float) -> None:
        ask = self._ask and self._ask()
        if not child.terminate() and ask is not None:
            ask()
        self._status = child.wait(grace)
        if self._status is None and child.kill():
            _log.warning("QEMU (pid %d) ignored SIGTERM for %.1f s: killed", self.pid, grace)
            self._status = child.wait(5.0)
        if self._status is None:
            raise QemuError(
                f"QEMU (pid {self.pid}) still runs: it does not answer, and user {os.geteuid()}, "
                "as whom we run by now, may not kill it; it ends with this process"
            )

    def _on_stderr(self) -> None:
        if not self._stderr.drain():
            for readable in self._watches[:1]:
                readable.close()

    def _on_exit(self) -> None:
        for ended in self._watches[1:]:
            ended.close()
        with self._lock:
            if self._reported:
                return
            self._reported = True
            callbacks, self._callbacks = self._callbacks, []
        error = QemuDied(self.death())
        _log.warning("%s", error)
        for callback in callbacks:
            try:
                callback(error)
            except Exception:
                _log.exception("a callback for the death of QEMU failed")

    def __repr__(self) -> str:
        return f"<Process {self._pid}: {shlex.join(self.argv[:1])}>"


def _weak(method: Callable[[], None]) -> Callable[[], None]:
    """Return what calls a method of an object that it does not keep alive."""
    weak = weakref.WeakMethod(method)

    def call() -> None:
        target = weak()
        if target is not None:
            target()

    return call


def _signal_name(number: int) -> str:
    with contextlib.suppress(ValueError):
        return signal.Signals(number).name
    return f"signal {number}"
