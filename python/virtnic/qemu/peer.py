"""The peer of a ``stream`` netdev, whose presence only QEMU reports, by QMP.

The link of a virtio-net device is up even without a peer, and frames are then lost. So the link is
made to follow the peer (QMP ``set_link``), and with it interrupts, events and callbacks. See
``NETDEV_STREAM_CONNECTED`` in QEMU's documentation, "QMP Reference Manual".
"""

from __future__ import annotations

import re
import threading
import time
from typing import TYPE_CHECKING, Any

from virtnic.qemu.monitor import understanding

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from virtnic.qemu.monitor import Event, Monitor

__all__ = ["StreamPeer", "socket_is_connected"]

_CONNECTED = "NETDEV_STREAM_CONNECTED"
_DISCONNECTED = "NETDEV_STREAM_DISCONNECTED"
#: Most seconds that a local connection takes.
_LOCAL = 0.2
#: Seconds between queries to QEMU, and between checks of its events.
_PAUSE, _MOMENT = 0.02, 0.001


def socket_is_connected(monitor: Monitor, netdev_id: str) -> bool:
    """Ask QEMU whether a ``socket`` netdev has a peer, which it does not report by itself.

    A pending connection counts.
    """
    return re.search(r"type=socket,[ \t]*\S", _described(monitor, netdev_id)) is not None


def _described(monitor: Monitor, netdev_id: str) -> str:
    """Return a netdev's line of ``info network``."""
    words: dict[str, Any] = {"command-line": "info network"}
    said = monitor.execute("human-monitor-command", **words)
    with understanding("human-monitor-command"):
        lines = [line for line in said.splitlines() if f"{netdev_id}: index=" in line]
    return lines[0] if lines else ""


class StreamPeer:
    """The peer of one netdev. Create it before the netdev, to get all events."""

    def __init__(self, monitor: Monitor, netdev_id: str) -> None:
        self._monitor = monitor
        self._id = netdev_id
        self._nic: str | None = None
        self._lock = threading.RLock()
        self._tell: Callable[[bool, str], object] | None = None
        #: Whether there is a connection, and the peer's address.
        self.connected = False
        self.address = ""
        self._stop: Callable[[], None] | None = None

    def listen(self) -> None:
        """Start listening to QEMU's events."""
        self._stop = self._monitor.listen(self._seen, _CONNECTED, _DISCONNECTED)

    def wait(self, seconds: float) -> bool:
        """Wait for a connection."""
        deadline = time.monotonic() + seconds
        while not self.connected and time.monotonic() < deadline:
            time.sleep(_MOMENT)
        return self.connected

    def settle(self, wait: float | None, again: Callable[[], object] | None) -> str | None:
        """Wait for the peer; return why there is none, quoting QEMU if possible.

        ``again`` retries a refused connection; None if QEMU does so itself, or listens.
        """
        deadline = time.monotonic() + max(_LOCAL, wait or 0.0)
        while not self.wait(_PAUSE):
            why = self._why_not()
            late = time.monotonic() > deadline
            if late or (why and not wait):
                return why or "nobody connected"
            if why and again is not None:
                again()
        return None

    def follow(self, nic: str) -> None:
        """Make the link of a device follow the peer from now on."""
        self._monitor.loop.call(lambda: self._follow(nic), 10.0)
        if not self.connected:
            self._monitor.execute("query-status")  # earlier posted commands are done

    def tell(self, told: Callable[[bool, str], object], known: bool) -> None:
        """Call back when the peer connects or leaves, at once if that differs from ``known``."""
        with self._lock:
            self._tell = told
            if self.connected != known:
                told(self.connected, self.address)

    def close(self) -> None:
        """Stop listening."""
        if self._stop is not None:
            self._stop()

    async def _follow(self, nic: str) -> None:
        # In the loop's thread, as _seen is, so that the last posted command is correct.
        self._nic = nic
        if not self.connected:
            self._monitor.post("set_link", name=nic, up=False)

    def _seen(self, event: Event) -> None:
        data = event["data"]
        if data.get("netdev-id") != self._id:
            return
        with self._lock:
            self.connected = event["event"] == _CONNECTED
            if "addr" in data:
                self.address = _address(data["addr"])
            if self._tell is not None:
                self._tell(self.connected, self.address)
        if self._nic is not None:
            self._monitor.post("set_link", name=self._nic, up=self.connected)

    def _why_not(self) -> str:
        """Return QEMU's message about the connection; empty while it is pending."""
        # 7.2 says only "connection error", later versions "error: " and the reason.
        error = r"type=stream,(?:error: (.*)|(connection error))"
        found = re.search(error, _described(self._monitor, self._id))
        return "" if found is None else (found[1] or found[2]).strip()


def _address(data: Mapping[str, Any]) -> str:
    """Format QAPI's SocketAddress."""
    if not isinstance(data, dict):
        return ""
    if data.get("type") == "inet":
        return f"{data.get('host')}:{data.get('port')}"
    return str(data.get("path") or data.get("str") or data.get("cid") or "")
