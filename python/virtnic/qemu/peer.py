"""The peer of a ``stream`` netdev: QEMU tells by QMP that it came or went, and nothing else does.

A virtio-net device has its link up whoever is there, and what it sends to nobody vanishes. So the
link is made to follow the peer (QMP ``set_link``), and with it interrupts, events and callbacks.
See ``NETDEV_STREAM_CONNECTED`` in QEMU's documentation, "QMP Reference Manual".
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
#: Seconds that a local connection takes at most.
_LOCAL = 0.2
#: Seconds between two questions to QEMU, and between two looks at what it told.
_PAUSE, _MOMENT = 0.02, 0.001


def socket_is_connected(monitor: Monitor, netdev_id: str) -> bool:
    """Ask QEMU whether somebody is at the other end of a ``socket`` netdev: it tells by itself not.

    A connection that is being made counts.
    """
    return re.search(r"type=socket,[ \t]*\S", _described(monitor, netdev_id)) is not None


def _described(monitor: Monitor, netdev_id: str) -> str:
    """Return the line of ``info network`` that is about a netdev."""
    words: dict[str, Any] = {"command-line": "info network"}
    said = monitor.execute("human-monitor-command", **words)
    with understanding("human-monitor-command"):
        lines = [line for line in said.splitlines() if f"{netdev_id}: index=" in line]
    return lines[0] if lines else ""


class StreamPeer:
    """Who is at the other end of one netdev. It is to listen from before there is one."""

    def __init__(self, monitor: Monitor, netdev_id: str) -> None:
        self._monitor = monitor
        self._id = netdev_id
        self._nic: str | None = None
        self._lock = threading.RLock()
        self._tell: Callable[[bool, str], object] | None = None
        #: Whether somebody is connected, and who it is or was.
        self.connected = False
        self.address = ""
        self._stop: Callable[[], None] | None = None

    def listen(self) -> None:
        """Listen to what QEMU tells from now on."""
        self._stop = self._monitor.listen(self._seen, _CONNECTED, _DISCONNECTED)

    def wait(self, seconds: float) -> bool:
        """Wait until somebody is connected."""
        deadline = time.monotonic() + seconds
        while not self.connected and time.monotonic() < deadline:
            time.sleep(_MOMENT)
        return self.connected

    def settle(self, wait: float | None, again: Callable[[], object] | None) -> str | None:
        """Wait for the peer; say why there is none, in QEMU's words where it has some.

        ``again`` tries a connection that was refused once more; None where QEMU does, or listens.
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
        """Have the link of a device follow the peer from now on."""
        self._monitor.loop.call(lambda: self._follow(nic), 10.0)
        if not self.connected:
            self._monitor.execute("query-status")  # what was posted before it is done

    def tell(self, told: Callable[[bool, str], object], known: bool) -> None:
        """Call back when the peer comes or goes, at once where it did since it was ``known``."""
        with self._lock:
            self._tell = told
            if self.connected != known:
                told(self.connected, self.address)

    def close(self) -> None:
        """Listen no more."""
        if self._stop is not None:
            self._stop()

    async def _follow(self, nic: str) -> None:
        # In the loop's thread, as _seen is: what is posted last is what is true.
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
        """Return what QEMU says of the connection: empty while it is being made."""
        # 7.2 says "connection error" and no more, later ones "error: " and why.
        error = r"type=stream,(?:error: (.*)|(connection error))"
        found = re.search(error, _described(self._monitor, self._id))
        return "" if found is None else (found[1] or found[2]).strip()


def _address(data: Mapping[str, Any]) -> str:
    """Return QAPI's SocketAddress in words."""
    if not isinstance(data, dict):
        return ""
    if data.get("type") == "inet":
        return f"{data.get('host')}:{data.get('port')}"
    return str(data.get("path") or data.get("str") or data.get("cid") or "")
