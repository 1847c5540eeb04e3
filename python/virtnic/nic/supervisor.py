"""Replaces a dead QEMU by another one, with the same ports on the same memory."""

from __future__ import annotations

import logging
import threading
import time
import weakref
from typing import TYPE_CHECKING

from virtnic import background
from virtnic._native import QemuDied
from virtnic.errors import VirtnicError, message_of
from virtnic.nic.devices import PARTING
from virtnic.nic.policy import Recoveries
from virtnic.nic.watch import follow_peer
from virtnic.qemu.process import Process
from virtnic.teardown import Latch

if TYPE_CHECKING:
    from virtnic.nic.backend import Backend
    from virtnic.nic.devices import Devices
    from virtnic.nic.events import Feed
    from virtnic.nic.policy import Recovery

__all__ = ["Supervisor"]

_log = logging.getLogger(__name__)

#: Seconds to wait for the report of a death, before its consequences are reported.
_REPORT = 1.0


class Supervisor:
    """Recovers one QEMU, in a thread that exists only meanwhile."""

    def __init__(self, devices: Devices, feed: Feed, policy: Recovery) -> None:
        self._devices = weakref.ref(devices)
        self._feed = feed
        self._policy = policy
        #: The state visible to users.
        self.record = Recoveries()
        self._lock = threading.RLock()
        self._stop = Latch()
        self._thread: threading.Thread | None = None
        self._again = False
        self._failures = 0
        self._recovered = 0.0  # time of the last recovery

    def lost(self, *_: object) -> bool:
        """Start the recovery; False if it has ended for good. Any thread may call it."""
        with self._lock:
            if self._stop.is_set():
                return False
            if self._thread is not None:
                self._again = True
                return True
            thread = threading.Thread(target=self._run, name="virtnic-recover", daemon=True)
            try:
                thread.start()  # it needs the lock before it ends
            except RuntimeError as error:
                _log.warning("QEMU is not restarted yet: %s; retrying in a second", error)
                self._try_later()
                return True
            self._thread = thread
        return True

    def _try_later(self) -> None:
        devices = self._devices()
        if devices is not None and not devices.machine.closed:
            devices.machine.monitor.loop.later(1.0, self.lost)

    def close(self) -> None:
        """Stop, waiting for a running step. Repeated calls are allowed."""
        self._end()
        with self._lock:
            thread = self._thread
        if thread is not None and thread is not threading.current_thread():
            thread.join()

    def _end(self) -> None:
        self._stop.set()
        self.record.over = True

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
        devices = self._devices()
        if devices is None or devices.machine.closed or _whole(devices):
            return
        began = time.monotonic()
        _set_aside(devices, self._stop)
        if began - self._recovered > self._policy.backoff_max:
            self._failures = 0
        else:
            self._failures += 1
        while not self._stop.is_set():
            if self._failures and self._stop.wait(self._policy.pause(self._failures)):
                return
            try:
                _restore(devices, self._feed, self._stop)
            except (VirtnicError, OSError, ValueError) as error:  # TimeoutError is an OSError
                self._failures += 1
                # As text: a kept log record would keep all that the error refers to.
                _log.warning("QEMU is not back (attempt %d): %s", self._failures, message_of(error))
                if self._failures >= self._policy.attempts:
                    self._end()
                    _abandon(devices, f"QEMU could not be restarted: {message_of(error)}")
                    return
                continue
            self._recovered = time.monotonic()
            self.record.outage = self._recovered - began
            self.record.recoveries += 1
            _log.info("QEMU is back after %.0f ms", self.record.outage * 1e3)
            return


def _whole(devices: Devices) -> bool:
    """Whether QEMU runs, answers, and has all ports but those that are being detached."""
    alive = devices.machine.qtest.death is None and devices.machine.process.alive
    return alive and not any(port.away and not port.closed for _, port in devices.attached)


def _set_aside(devices: Devices, stop: Latch) -> None:
    """Make sure that QEMU is gone, and suspend the ports."""
    if not devices.take(stop):
        return
    try:
        devices.machine.qtest.close()
        process = devices.machine.process
        assert isinstance(process, Process)  # only a QEMU started here is restarted
        process.reap()  # from here on it does not write any more
        returning = [each for each, _ in devices.attached if each.returns]
        # As last reported: a device that is gone cannot be queried.
        down = [each for each in returning if each.driver.link]
        for attachment in returning:
            _await_parting(attachment.backend)
            attachment.driver.suspend()
    finally:
        devices.lock.release()
    process.wait_told(_REPORT)  # events come in order: the loop's thread may be reporting the death
    for attachment in down:
        attachment.link_changed()


def _restore(devices: Devices, feed: Feed, stop: Latch) -> None:
    """Start another QEMU, unless one runs, and attach the suspended ports.

    Raises the first port's error, after trying all.
    """
    machine = devices.machine
    failures = []
    back = []
    if not devices.take(stop):
        return
    try:
        if machine.closed:
            return
        if machine.qtest.death is not None or not machine.process.alive:
            machine.relaunch()
            devices.take_bus()
        returning = [(each, port) for each, port in devices.attached if each.returns]
        for attachment, port in returning:
            if not port.away or port.closed:
                continue
            try:
                devices.replug(attachment)
                follow_peer(feed, attachment)
            except QemuDied:
                raise
            except (VirtnicError, OSError, ValueError) as error:
                failures.append(error)
            else:
                back.append(attachment)
        if machine.keeps_little:
            machine.keep_little()
    finally:
        devices.lock.release()
    if back or not returning:
        feed.put("qemu-back")
    for attachment in back:
        if attachment.driver.link:
            attachment.link_changed()
    if failures:
        raise failures[0]


def _abandon(devices: Devices, why: str) -> None:
    """Give up the ports that did not come back."""
    for attachment, port in devices.attached:
        if port.away:
            attachment.abandon(why)


def _await_parting(backend: Backend | None) -> None:
    """Wait until a backend no longer serves the rings, after its QEMU has ended."""
    deadline = time.monotonic() + PARTING
    while backend is not None and backend.interposer.connected and time.monotonic() < deadline:
        time.sleep(0.001)
