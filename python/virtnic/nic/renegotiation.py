"""A port continues with a vhost-user backend that came back with fewer features.

QEMU negotiates a device's features when it is plugged in, and disconnects from a backend with
fewer. So the device is replugged on the same QEMU while the interposer holds the backend. The port,
its queues and their frames are kept.
"""

from __future__ import annotations

import logging
import threading
import weakref
from typing import TYPE_CHECKING

from virtnic import background
from virtnic._native import QemuDied
from virtnic.errors import VirtnicError, message_of
from virtnic.teardown import Latch

if TYPE_CHECKING:
    from collections.abc import Callable

    from virtnic._native import NetPort
    from virtnic.nic.attachment import Attachment
    from virtnic.nic.backend import Backend
    from virtnic.nic.devices import Devices

__all__ = ["Renegotiation"]

_log = logging.getLogger(__name__)

#: Seconds between attempts.
_PAUSE = 0.1


class Renegotiation:
    """Replugs one port's device when its backend is held, in a thread.

    The thread exists only meanwhile. ``failed`` is called with the reason of a failed attempt.
    """

    def __init__(
        self,
        attachment: Attachment,
        devices: Devices,
        backend: Backend,
        failed: Callable[[str], None],
    ) -> None:
        self._attachment = weakref.ref(attachment)
        self._devices = devices
        self._backend = backend
        self._failed = failed
        self._lock = threading.RLock()
        self._stop = Latch()
        self._thread: threading.Thread | None = None
        #: Features that the port lost, until they are reported.
        self.lost: list[str] = []

    @property
    def busy(self) -> bool:
        """Whether the device is being replugged."""
        return self._thread is not None

    def begin(self) -> None:
        """Start, unless already running. Any thread may call it."""
        with self._lock:
            if self._thread is not None or self._stop.is_set():
                return
            thread = threading.Thread(target=self._run, name="virtnic-renegotiate", daemon=True)
            try:
                thread.start()  # it needs the lock before it ends
            except RuntimeError as error:
                _log.warning("the backend must wait: %s; retrying in a second", error)
                if (attachment := self._attachment()) is not None:
                    again = self._backend.interposer.changed.signal
                    attachment.machine.monitor.loop.later(1.0, again)
                return
            self._thread = thread

    def end(self) -> None:
        """Prevent further attempts."""
        self._stop.set()

    def close(self) -> None:
        """Stop, waiting for a running attempt. Repeated calls are allowed."""
        self.end()
        thread = self._thread
        if thread is not None and thread is not threading.current_thread():
            thread.join()

    def _run(self) -> None:
        background.begin()
        try:
            self._go_on()
        except Exception:
            _log.exception("a port could not continue with fewer features")
            self._stop.wait(1.0)
        with self._lock:
            self._thread = None
        self._backend.interposer.changed.signal()  # makes the backend's state be checked again

    def _go_on(self) -> None:
        failures = 0
        while not self._stop.is_set():
            attachment = self._attachment()
            if attachment is None:
                return
            try:
                if self._attempt(attachment):
                    return
            except QemuDied:
                return  # left to the supervisor, if there is one
            except (VirtnicError, OSError, ValueError) as error:  # TimeoutError is an OSError
                failures += 1
                self._failed(message_of(error))
                most = self._backend.attempts
                if most is not None and failures >= most:
                    path, why = self._backend.path, message_of(error)
                    attachment.abandon(f"the backend {path} offers fewer features, and {why}")
                    return
            del attachment  # a forgotten one must be collected
            if self._stop.wait(_PAUSE):
                return

    def _attempt(self, attachment: Attachment) -> bool:
        """Replug the device once the backend is there; return whether the work is done."""
        if not self._devices.take(self._stop):
            return True
        try:
            port = attachment.made()
            if port is None or port.closed:
                return True
            if self._stop.is_set() or attachment.leaving or attachment.is_lost:
                return True
            interposer = self._backend.interposer
            if interposer.given_up is not None:
                return True
            if interposer.held is None and not port.away:
                return True  # it is gone; the device can wait for the next one
            if not self._backend.is_there:
                return False  # it went meanwhile; wait for the next one
            before = _accepted(port)
            if attachment.plugged is not None:
                attachment.driver.suspend()
                self._devices.remove(attachment)
                attachment.plugged = attachment.function = None
            self._devices.replug(attachment)
            now = _accepted(port)
            self.lost += [name for name in before if name not in now]
        finally:
            self._devices.lock.release()
        if attachment.driver.link != attachment.callbacks.link:
            attachment.link_changed()
        return True


def _accepted(port: NetPort) -> list[str]:
    """Return the negotiated features."""
    return [feature.name for feature in port.features if feature.accepted]
