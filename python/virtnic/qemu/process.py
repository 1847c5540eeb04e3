"""The QEMU process: it ends with ours, and its last output is kept."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import shlex
import signal
import threading
import weakref
from typing import TYPE_CHECKING

from virtnic import _native
from virtnic.errors import QemuError, QemuNotFound, message_of
from virtnic.qemu import environment, loop
from virtnic.qemu.ending import Ending
from virtnic.qemu.find import INSTALL
from virtnic.qemu.stderr import StderrLog
from virtnic.teardown import Owner, uninterrupted

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from virtnic.errors import QemuDied

_log = logging.getLogger(__name__)

#: Seconds between checks of a QEMU that has closed its socket, at first and at last.
_LOOKS = 0.001, 0.2


class Process(Owner):
    """A QEMU started here.

    It ends with this process, even if that is killed or has changed its user.
    """

    def __init__(self, argv: Sequence[str]) -> None:
        self.argv = list(argv)
        self._ending = Ending()
        self._close_lock = threading.RLock()
        self._verdict: str | None = None
        self._stderr = StderrLog()
        self._child: _native.Child | None = None
        self._status: int | None = None
        self._ask: weakref.WeakMethod[Callable[[], object]] | None = None
        self._pid: int | None = None
        self._hold = loop.Hold()
        self._where: loop.LoopThread | None = None

    def start(self) -> None:
        """Start it. Raises QemuNotFound, OSError. After an interruption, call :meth:`close`."""
        self._where = where = self._hold.take()
        stderr = uninterrupted(lambda: self._stderr.open(where))
        try:
            self._child = child = _native.spawn(self.argv, environment.for_qemu(), stderr)
        except FileNotFoundError as error:
            raise QemuNotFound(
                f"cannot start `{self.argv[0]}`: {message_of(error)}; {INSTALL}"
            ) from error
        self._pid = child.pid
        self._stderr.set_process(child.pid)

    def disconnected(self) -> None:
        """Report its end once it has ended, after it closed a socket. In the loop's thread."""
        if self._where is not None:
            # The task must not keep this alive: a forgotten QEMU must end with its owner.
            self._where.begin(_watch_end(weakref.ref(self)))

    @property
    def pid(self) -> int:
        """The process number of QEMU, or of the command that wraps it."""
        if self._pid is None:
            raise QemuError(
                "this QEMU was not started"
            )  # a signal to 0 would go to our own process group
        return self._pid

    @property
    def where(self) -> str:
        """A description of which QEMU it is."""
        return f"pid {self._pid}"

    def wait(self, timeout: float | None = None) -> int | None:
        """Wait for its end. Return the exit status, or minus the signal; None after the timeout."""
        child = self._child
        return self._status if child is None else child.wait(timeout)

    @property
    def alive(self) -> bool:
        """Whether it is still running."""
        return self._child is not None and self.wait(0) is None

    @property
    def stderr(self) -> str:
        """The last 16 KiB that QEMU wrote to stderr."""
        return self._stderr.text()

    def stderr_position(self) -> int:
        """Return the current position in its stderr, for :meth:`stderr_since`."""
        return self._stderr.position()

    def stderr_since(self, position: int) -> str:
        """Return the output since a position, at most the last 16 KiB."""
        return self._stderr.since(position)

    def helpers(self) -> contextlib.AbstractContextManager[None]:
        """Collect the output of helpers that a command may start."""
        return self._stderr.helpers()

    def started(self) -> None:
        """Record the stderr position at the end of start-up."""
        self._stderr.mark()

    def death(self, timeout: float = 1.0) -> str:
        """Describe how it ended: exit status and last output. Waits up to ``timeout`` seconds."""
        status = self.wait(timeout)
        if self._verdict is not None:
            how = f"QEMU (pid {self.pid}) {self._verdict}, and was killed"
        elif status is None:
            how = f"QEMU (pid {self.pid}) closed its socket but still runs"
        elif status < 0:
            how = f"QEMU (pid {self.pid}) was killed by {_signal_name(-status)}"
        else:
            how = f"QEMU (pid {self.pid}) ended with exit status {status}"
        if self._where is not None and self._where.is_deaf:
            return f"{how}: {loop.DEAF}"
        last = [line for line in self._stderr.since_mark().splitlines() if line.strip()][-4:]
        if last:
            return f"{how}; it printed: " + " | ".join(last)
        return f"{how} and printed nothing"

    def on_death(self, callback: Callable[[QemuDied], object]) -> None:
        """Call back once, in the loop's thread, when it ends unexpectedly (at once if it has)."""
        self._ending.add(callback, self.death)

    def condemn(self, why: str) -> None:
        """Kill a hanging QEMU; ``why`` is added to the description of its end."""
        child = self._child
        if child is not None and self.alive:
            self._verdict = why
            child.kill()

    def reap(self, grace: float = 1.0) -> None:
        """Wait for its end, with SIGKILL after ``grace`` seconds, and report it."""
        if self.wait(grace) is None and self._child is not None:
            self._child.kill()
            self.wait(5.0)
        self.tell_end()

    def set_quit(self, ask: Callable[[], object]) -> None:
        """Set how to ask it to end, by its monitor, for when it must not be signalled."""
        self._ask = weakref.WeakMethod(ask)

    def close(self, grace: float = 1.0) -> None:
        """End it: SIGTERM, and after ``grace`` seconds SIGKILL. A second call finishes the first.

        If it now runs as another user it is asked to quit. Raises QemuError if it does not react:
        it then stays until our process ends.
        """
        self._ending.forget()
        with self._close_lock:
            child = self._child
            if child is not None:
                self._end(child, grace)
            uninterrupted(self._stderr.close)
            self._child = None
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
                f"QEMU (pid {self.pid}) still runs: it does not answer, and the current user "
                f"{os.geteuid()} may not kill it; it ends with this process"
            )

    def tell_end(self) -> None:
        """Report that it has ended."""
        self._ending.tell(self.death)

    def wait_told(self, timeout: float) -> None:
        """Wait until another thread has reported its end, at most ``timeout`` seconds."""
        self._ending.wait_told(timeout)

    def __repr__(self) -> str:
        return f"<Process {self._pid}: {shlex.join(self.argv[:1])}>"


async def _watch_end(weak: weakref.ref[Process]) -> None:
    """Check repeatedly whether it has ended, without using a descriptor."""
    pause, most = _LOOKS
    while (process := weak()) is not None:
        if not process.alive:
            process.tell_end()
            return
        del process
        await asyncio.sleep(pause)
        pause = min(2.0 * pause, most)


def _signal_name(number: int) -> str:
    with contextlib.suppress(ValueError):
        return signal.Signals(number).name
    return f"signal {number}"
