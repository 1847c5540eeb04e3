"""What happens when QEMU dies: another is started, and the ports go on."""

from __future__ import annotations

import logging
import signal
import threading
import time
import weakref
from typing import TYPE_CHECKING

from virtnic.errors import VirtnicError
from virtnic.nic.restore import abandon, restore, set_aside, whole
from virtnic.teardown import Latch

if TYPE_CHECKING:
    from virtnic.nic.policy import Recovery
    from virtnic.nic.qemu import Qemu

__all__ = ["Recoverer"]

_log = logging.getLogger(__name__)


class Recoverer:
    """Brings one QEMU back, in a thread that lives as long as that takes."""

    def __init__(self, qemu: Qemu, policy: Recovery) -> None:
        self._qemu = weakref.ref(qemu)
        self.policy = policy
        self._lock = threading.RLock()
        self._stop = Latch()
        self._thread: threading.Thread | None = None
        self._again = False
        self._failures = 0
        self._recovered = 0.0  # when it last was
        #: How often QEMU was brought back, and the seconds that the last time took.
        self.recoveries = 0
        self.outage = 0.0

    @property
    def over(self) -> bool:
        """Whether QEMU is not brought back any more: too many attempts failed, or it was closed."""
        return self._stop.is_set()

    def lost(self, *_: object) -> bool:
        """Start to bring QEMU back; False where that is over. Any thread may call it, twice too."""
        with self._lock:
            if self._stop.is_set():
                return False
            if self._thread is not None:
                self._again = True
                return True
            thread = threading.Thread(target=self._run, name="virtnic-recover", daemon=True)
            try:
                thread.start()  # it waits for the lock before it ends
            except RuntimeError as error:
                _log.warning("QEMU is not brought back yet: %s; tried again in a second", error)
                self._try_later()
                return True
            self._thread = thread
        return True

    def _try_later(self) -> None:
        qemu = self._qemu()
        if qemu is not None and not qemu.closed:
            qemu.monitor.loop.later(1.0, self.lost)

    def close(self) -> None:
        """End it; waits for a step that is under way. Twice is fine."""
        self._stop.set()
        with self._lock:
            thread = self._thread
        if thread is not None and thread is not threading.current_thread():
            thread.join()

    def _run(self) -> None:
        signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())  # they are not for us
        while True:
            try:
                self._recover()
            except Exception:
                _log.exception("the recovery of QEMU failed")
            with self._lock:
                if not self._again or self._stop.is_set():
                    self._thread = None
                    return
                self._again = False

    def _recover(self) -> None:
        qemu = self._qemu()
        if qemu is None or qemu.closed or whole(qemu):
            return
        began = time.monotonic()
        set_aside(qemu)
        if began - self._recovered > self.policy.backoff_max:
            self._failures = 0
        else:
            self._failures += 1
        while not self._stop.is_set():
            if self._failures and self._stop.wait(self.policy.pause(self._failures)):
                return
            try:
                restore(qemu)
            except (VirtnicError, OSError, ValueError) as error:  # TimeoutError is an OSError
                self._failures += 1
                # Its text: who keeps log records would keep all that the error refers to.
                _log.warning("QEMU is not back (attempt %d): %s", self._failures, str(error))
                if self._failures >= self.policy.attempts:
                    self._stop.set()
                    abandon(qemu, f"QEMU was not brought back: {error}")
                    return
                continue
            self._recovered = time.monotonic()
            self.outage = self._recovered - began
            self.recoveries += 1
            _log.info("QEMU is back after %.0f ms", self.outage * 1e3)
            return
