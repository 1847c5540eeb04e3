"""Reports the end of a QEMU once to each callback."""

from __future__ import annotations

import _thread
import contextlib
import logging
from typing import TYPE_CHECKING

from virtnic.errors import QemuDied
from virtnic.teardown import Latch

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["Ending"]

_log = logging.getLogger(__name__)


class Ending:
    """The callbacks for an unexpected end of QEMU. Each call takes what describes the end."""

    def __init__(self) -> None:
        self._callbacks: list[Callable[[QemuDied], object]] = []
        # Taken to report the end, or when none is expected any more, and never released. No lock is
        # held during the report: a signal handler may close QEMU then, and waits for the loop's
        # thread, which may be about to report.
        self._over = _thread.allocate_lock()
        self._told = Latch()

    def add(self, callback: Callable[[QemuDied], object], death: Callable[[], str]) -> None:
        """Call back once when it ends; at once if it has."""
        self._callbacks.append(callback)
        if self._over.locked():
            with contextlib.suppress(ValueError):  # otherwise it is being or was called
                self._callbacks.remove(callback)
                callback(QemuDied(death()))

    def tell(self, death: Callable[[], str]) -> None:
        """Report that it has ended. Repeated calls are allowed."""
        if not self._over.acquire(blocking=False):
            return
        try:
            self._tell(QemuDied(death()))
        finally:
            self._told.set()

    def _tell(self, error: QemuDied) -> None:
        _log.warning("%s", error)
        while self._callbacks:
            try:
                callback = self._callbacks.pop(0)
            except IndexError:
                return  # who came meanwhile was told at once
            try:
                callback(error)
            except Exception:
                _log.exception("a callback for the death of QEMU failed")

    def wait_told(self, timeout: float) -> None:
        """Wait until a report in another thread is complete, at most ``timeout`` seconds."""
        self._told.wait(timeout)

    def forget(self) -> None:
        """Report nothing more: QEMU is about to be ended or left. A report under way goes on."""
        if self._over.acquire(blocking=False):
            self._callbacks.clear()
            self._told.set()
