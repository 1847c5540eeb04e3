"""Whether frames pass a port, whose peer may not be there yet.

What is checked for each netdev is a column of the table in :mod:`virtnic.qemu.netdevs`.
"""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING

from virtnic._native import PortClosed, QemuError
from virtnic.deadline import Deadline
from virtnic.nic.attachment import Attachment
from virtnic.qemu.peer import socket_is_connected
from virtnic.qemu.tap import device_of

if TYPE_CHECKING:
    from virtnic._native import NetPort
    from virtnic.nic.attachment import Driven
    from virtnic.qemu.tap import Tap

__all__ = ["PAUSE", "Readiness", "trouble_at_open"]

#: Seconds between two checks.
PAUSE = 0.005
#: "Loopback" of Ethernet's Configuration Testing Protocol: stations ignore unknown types.
_LOOPBACK = b"\x90\x00"
_SHORTEST_FRAME = 60
_TAKES_NONE = "the backend takes no frames (testpmd: `start`)"


def _device(attachment: Driven) -> Tap | None:
    """Return the host's network device behind a port, if known."""
    pid: int | None = os.getpid()
    if isinstance(attachment, Attachment):
        try:
            pid = attachment.machine.process.pid
        except QemuError:
            pid = None  # started elsewhere
    # As given by the user: names of descriptors in QEMU are of no use here.
    return None if attachment.spec is None else device_of(attachment.spec, pid)


def _nobody(attachment: Attachment) -> str | None:
    """Return an error if a ``socket`` netdev, whose link is always up, has no peer."""
    handle = attachment.handle
    if handle.spec.type != "socket" or handle.spec.options.keys().isdisjoint(("connect", "listen")):
        return None
    if socket_is_connected(attachment.machine.monitor, handle.netdev_id):
        return None
    return (
        "the socket has no peer, and a failed connection is not retried; the netdev stream "
        "reports its peer, and has wait= and reconnect-ms="
    )


def trouble_at_open(attachment: Attachment) -> str | None:
    """Return why no frames pass a port whose link is up, and the remedy."""
    device = _device(attachment)
    if device is not None and not device.up:
        return device.trouble()
    # A listener has no peer at first.
    return None if "listen" in attachment.handle.spec.options else _nobody(attachment)


class Readiness:
    """Checks repeatedly whether a port's peer is ready."""

    def __init__(self, port: NetPort, attachment: Driven | None) -> None:
        """``attachment`` is None for a port of virtnic.testing, whose device is a script."""
        self._port, self._attachment = port, attachment
        #: Frames finished before the probe was sent; None before that.
        self._finished: int | None = None
        self._missing = "it was not checked"

    def look(self) -> bool:
        """Return whether frames pass, as far as can be determined. Raises as ``send``."""
        missing = self._look()
        self._missing = missing or ""
        return missing is None

    def wait(self, timeout: float | None) -> None:
        """Wait until they do. Raises TimeoutError, and as ``send``."""
        deadline = Deadline(timeout)
        while not self.look():
            if deadline.is_over:
                raise self.late(timeout)
            time.sleep(PAUSE)

    def late(self, timeout: float | None) -> TimeoutError:
        """Return the timeout error."""
        return TimeoutError(f"the port is not ready after {timeout or 0.0:g} s: {self._missing}")

    def _look(self) -> str | None:
        """Return what is missing; None if nothing is."""
        port = self._port
        if port.closed:
            raise PortClosed("the port is closed")
        attachment = self._attachment
        if attachment is None:
            return None
        if not isinstance(attachment, Attachment):
            return self._without_qemu(attachment)
        spec = attachment.handle.spec
        if port.away:
            return "its QEMU or backend is gone, and not back yet"
        if not port.link:
            if attachment.handle.peer is not None:
                return "the stream has no peer"
            return "the link is down"
        device = _device(attachment)
        if device is not None and (trouble := device.trouble()) is not None:
            return trouble
        if (trouble := _nobody(attachment)) is not None:
            return trouble
        if spec.type == "vhost-user" and not self._taken():
            return _TAKES_NONE
        return None

    def _without_qemu(self, driven: Driven) -> str | None:
        """Return what is missing to a port that has no QEMU."""
        if (device := _device(driven)) is not None:
            return device.trouble()
        if self._port.away or not self._port.link:
            return "its backend is gone, and not back yet"
        return None if self._taken() else _TAKES_NONE

    def _taken(self) -> bool:
        """Whether the backend has taken a frame since the first check."""
        port = self._port
        port.reclaim()
        finished = port.stats()["tx_completed"]
        if self._finished is None:
            own = bytes.fromhex(port.mac.replace(":", ""))
            if port.send([(own + own + _LOOPBACK).ljust(_SHORTEST_FRAME, b"\0")]):
                self._finished = finished
            return False
        return finished > self._finished
