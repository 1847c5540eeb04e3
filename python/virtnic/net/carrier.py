"""Frames between a stack and any object that sends and receives them."""

from __future__ import annotations

import random
import threading
import time
from typing import TYPE_CHECKING, Any

from virtnic._native import StackWire

if TYPE_CHECKING:
    from virtnic.protocols import PacketPort

__all__ = ["carry"]

#: How long a thread waits before it looks whether the stack is still there.
_LOOK = 0.2
#: A port that takes no frame is asked again so much later.
_RETRY = 0.001


def carry(port: PacketPort) -> StackWire:
    """Return a wire whose frames two threads carry from and to a port, until its stack ends."""
    wire = StackWire(_mac(port), _mtu(port))
    for work in (_receive, _send):
        name = f"virtnic-stack{work.__name__}"
        threading.Thread(target=work, args=(port, wire), name=name, daemon=True).start()
    return wire


def _mac(port: Any) -> list[int]:
    mac = getattr(port, "mac", None)
    if isinstance(mac, str):
        return list(bytes.fromhex(mac.replace(":", "")))
    return [0x52, 0x54, 0x00, *random.SystemRandom().randbytes(3)]


def _mtu(port: Any) -> int:
    mtu = getattr(port, "mtu", None)
    return mtu if isinstance(mtu, int) else 1500


def _receive(port: PacketPort, wire: StackWire) -> None:
    try:
        while not wire.ended:
            frames = port.recv(256, _LOOK)
            if len(frames):
                wire.feed(frames.tobytes())
    except Exception as error:
        wire.fail(f"{type(error).__name__}: {error}")


def _send(port: PacketPort, wire: StackWire) -> None:
    try:
        while (frames := wire.take(60.0)) is not None:
            sent = 0
            while sent < len(frames) and not wire.ended:
                count = port.send(frames[sent:])
                sent += count
                if not count:
                    time.sleep(_RETRY)
    except Exception as error:
        wire.fail(f"{type(error).__name__}: {error}")
