"""How the end of a QEMU is told: once, to everybody who asked for it."""

from __future__ import annotations

import _thread
import contextlib
import logging
from typing import TYPE_CHECKING

from virtnic.errors import QemuDied

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["Ending"]

_log = logging.getLogger(__name__)


class Ending:
    """Who is called when a QEMU ends unasked. What says how it ended is given with each call."""

    def __init__(self) -> None:
        self._callbacks: list[Callable[[QemuDied], object]] = []
        # Taken by whoever tells of the end, or expects none any more, and never given back. No
        # lock is held while that is told: a signal handler may close QEMU there, and waits for the
        # loop's thread, which may be about to tell.
        self._over = _thread.allocate_lock()

    def add(self, callback: Callable[[QemuDied], object], death: Callable[[], str]) -> None:
        """Call back once when it ends; at once if it has."""
        self._callbacks.append(callback)
        if self._over.locked():
            with contextlib.suppress(ValueError):  # else it is called, or was
                self._callbacks.remove(callback)
                callback(QemuDied(death()))

    def tell(self, death: Callable[[], str]) -> None:
        """Tell that it has ended. Twice is fine."""
        if not self._over.acquire(blocking=False):
            return
        error = QemuDied(death())
        _log.warning("%s", error)
        while self._callbacks:
            try:
                callback = self._callbacks.pop(0)
            except IndexError:
                return  # it was closed meanwhile
            try:
                callback(error)
            except Exception:
                _log.exception("a callback for the death of QEMU failed")

    def forget(self) -> None:
        """Tell nobody: it is about to be ended, or left."""
        self._over.acquire(blocking=False)
        self._callbacks.clear()
