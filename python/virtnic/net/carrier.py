"""Carries frames between a stack and a port that is not virtnic's own."""

from __future__ import annotations

import random
import threading
import time
from typing import TYPE_CHECKING, Any

from virtnic._native import Burst, StackWire
from virtnic.background import take_no_signals

if TYPE_CHECKING:
    from virtnic.protocols import PacketPort

__all__ = ["carry"]

#: Seconds of one wait for frames; after each the thread checks whether the stack has ended.
_LOOK = 0.2
#: Seconds until frames are sent again that a full port did not take.
_RETRY = 0.001


def carry(port: PacketPort) -> StackWire:
    """Return a wire to give to a stack. Two threads carry its frames until the stack ends."""
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
    take_no_signals()
    try:
        while not wire.ended:
            frames = port.recv(256, _LOOK)
            if len(frames):
                if isinstance(frames, Burst):
                    # A wire has no metadata to say that a checksum is left out.
                    wire.feed(frames.tobytes(checksums=True))
                else:
                    wire.feed(frames.tobytes())
    except Exception as error:
        wire.fail(f"{type(error).__name__}: {error}")


def _send(port: PacketPort, wire: StackWire) -> None:
    take_no_signals()
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
