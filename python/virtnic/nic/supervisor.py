"""A QEMU that died is replaced by another, with the same ports on the same memory."""

from __future__ import annotations

import logging
import threading
import time
import weakref
from typing import TYPE_CHECKING

from virtnic import background
from virtnic._native import NetPort, QemuDied
from virtnic.errors import VirtnicError
from virtnic.nic.devices import PARTING
from virtnic.nic.policy import Recoveries
from virtnic.nic.watch import follow_peer
from virtnic.qemu.process import Process
from virtnic.teardown import Latch

if TYPE_CHECKING:
    from virtnic.nic.backend import Backend
    from virtnic.nic.policy import Recovery
    from virtnic.nic.port import Host, Port

__all__ = ["Supervisor"]

_log = logging.getLogger(__name__)


class Supervisor(Recoveries):
    """Brings one QEMU back, in a thread that lives as long as that takes."""

    def __init__(self, qemu: Host, policy: Recovery) -> None:
        super().__init__()
        self._qemu = weakref.ref(qemu)
        self.policy = policy
        self._lock = threading.RLock()
        self._stop = Latch()
        self._thread: threading.Thread | None = None
        self._again = False
        self._failures = 0
        self._recovered = 0.0  # when it last was

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
        background.begin()
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
        if qemu is None or qemu.closed or _whole(qemu):
            return
        began = time.monotonic()
        _set_aside(qemu)
        if began - self._recovered > self.policy.backoff_max:
            self._failures = 0
        else:
            self._failures += 1
        while not self._stop.is_set():
            if self._failures and self._stop.wait(self.policy.pause(self._failures)):
                return
            try:
                _restore(qemu)
            except (VirtnicError, OSError, ValueError) as error:  # TimeoutError is an OSError
                self._failures += 1
                # Its text: who keeps log records would keep all that the error refers to.
                _log.warning("QEMU is not back (attempt %d): %s", self._failures, str(error))
                if self._failures >= self.policy.attempts:
                    self._stop.set()
                    _abandon(qemu, f"QEMU was not brought back: {error}")
                    return
                continue
            self._recovered = time.monotonic()
            self.outage = self._recovered - began
            self.recoveries += 1
            _log.info("QEMU is back after %.0f ms", self.outage * 1e3)
            return


def _whole(qemu: Host) -> bool:
    """Whether QEMU runs, answers, and has all our ports."""
    alive = qemu.qtest.death is None and qemu.process.alive
    return alive and not any(port.away for port in qemu.ports)


def _set_aside(qemu: Host) -> None:
    """Make sure that QEMU is gone, and have the ports wait."""
    with qemu.devices.lock:
        qemu.qtest.close()
        assert isinstance(qemu.process, Process)  # only our own QEMUs are started again
        qemu.process.reap()  # whatever it was that it did last, it writes no more
        ports = _returning(qemu)
        down = [port for port in ports if _link(port)]
        for port in ports:
            _await_parting(port._attachment.backend)
            port.suspend()
    for port in down:
        port.link_changed()


def _restore(qemu: Host) -> None:
    """Start another QEMU, unless one runs, and attach the ports that wait.

    Raises what the first port failed with, once all were tried.
    """
    failures = []
    back = []
    with qemu.devices.lock:
        if qemu.closed:
            return
        if qemu.qtest.death is not None or not qemu.process.alive:
            qemu.relaunch()
            qemu.devices.take_bus()
        returning = _returning(qemu)
        for port in returning:
            if not port.away or port.closed:
                continue
            try:
                qemu.devices.replug(port, port._attachment)
                follow_peer(qemu.feed, port)
            except QemuDied:
                raise
            except (VirtnicError, OSError, ValueError) as error:
                failures.append(error)
            else:
                back.append(port)
        if qemu.keeps_little:
            qemu.keep_little()
    if back or not returning:
        qemu.feed.put("qemu-back")
    for port in back:
        if _link(port):
            port.link_changed()
    if failures:
        raise failures[0]


def _abandon(qemu: Host, why: str) -> None:
    """Give the ports up that did not come back."""
    for port in qemu.ports:
        if port.away:
            port.abandon(why)


def _returning(qemu: Host) -> list[Port]:
    """Return the ports that come back with QEMU."""
    return [port for port in qemu.ports if port._attachment.returns]


def _link(port: Port) -> bool:
    """Whether the link was up when last asked; a device that is gone cannot be asked."""
    return NetPort.link.__get__(port)  # type: ignore[no-any-return]


def _await_parting(backend: Backend | None) -> None:
    """Wait until a backend serves our rings no more, after its QEMU went."""
    deadline = time.monotonic() + PARTING
    while backend is not None and backend.interposer.connected and time.monotonic() < deadline:
        time.sleep(0.001)
