"""Socket options: what ``setsockopt`` and ``getsockopt`` accept, and the stack's names for it."""

from __future__ import annotations

import errno
import os
import socket
import struct
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from virtnic._native import NetSocket

__all__ = ["get_option", "set_option"]

_SOCKET, _TCP, _IP, _IPV6 = (
    socket.SOL_SOCKET,
    socket.IPPROTO_TCP,
    socket.IPPROTO_IP,
    socket.IPPROTO_IPV6,
)
#: (level, option): (the stack's name, how many units of the option are one unit of the stack).
_NUMBERS: dict[tuple[int, int], tuple[str, float]] = {
    (_SOCKET, socket.SO_KEEPALIVE): ("keep_alive", 1),
    (_SOCKET, socket.SO_BROADCAST): ("broadcast", 1),
    (_SOCKET, socket.SO_REUSEADDR): ("reuse", 1),
    (_SOCKET, socket.SO_REUSEPORT): ("reuse", 1),
    (_SOCKET, socket.SO_RCVBUF): ("receive_buffer", 1),
    (_SOCKET, socket.SO_SNDBUF): ("send_buffer", 1),
    (_TCP, socket.TCP_NODELAY): ("no_delay", 1),
    (_TCP, socket.TCP_KEEPIDLE): ("keep_idle", 1),
    (_TCP, socket.TCP_KEEPINTVL): ("keep_interval", 1),
    (_TCP, socket.TCP_KEEPCNT): ("keep_count", 1),
    (_TCP, socket.TCP_USER_TIMEOUT): ("user_timeout", 1000),
    (_IP, socket.IP_TTL): ("hops", 1),
    (_IP, socket.IP_MULTICAST_TTL): ("multicast_hops", 1),
    (_IPV6, socket.IPV6_UNICAST_HOPS): ("hops", 1),
    (_IPV6, socket.IPV6_MULTICAST_HOPS): ("multicast_hops", 1),
}
#: Options with only one possible value: (level, option): value.
_FIXED = {
    # A multicast datagram is not looped back to its sender, and an IPv6 socket never does IPv4.
    (_IP, socket.IP_MULTICAST_LOOP): 0,
    (_IPV6, socket.IPV6_MULTICAST_LOOP): 0,
    (_IPV6, socket.IPV6_V6ONLY): 1,
}
_CONGESTION = (b"cubic", b"reno", b"none")
_GROUPS = {
    (_IP, socket.IP_ADD_MEMBERSHIP): True,
    (_IP, socket.IP_DROP_MEMBERSHIP): False,
    (_IPV6, socket.IPV6_JOIN_GROUP): True,
    (_IPV6, socket.IPV6_LEAVE_GROUP): False,
}


def _unknown(level: int, option: int) -> OSError:
    return OSError(
        errno.ENOPROTOOPT,
        f"{os.strerror(errno.ENOPROTOOPT)}: the stack has no option {option} at level {level}",
    )


def _number(value: int | bytes) -> int:
    if isinstance(value, int):
        return value
    return int(struct.unpack("i", value[:4])[0])


def set_option(native: NetSocket, level: int, option: int, value: int | bytes) -> None:
    """Set an option."""
    key = (level, option)
    if key in _GROUPS:
        if isinstance(value, int):
            raise TypeError(
                f"the value must be bytes: the group's address and the interface, not {value!r}"
            )
        family, length = (socket.AF_INET, 4) if level == _IP else (socket.AF_INET6, 16)
        native.membership(socket.inet_ntop(family, value[:length]), _GROUPS[key])
    elif key == (_TCP, socket.TCP_CONGESTION):
        name = bytes(value) if not isinstance(value, int) else b""
        if name.rstrip(b"\0") not in _CONGESTION:
            raise OSError(
                errno.ENOENT, f"congestion control must be cubic, reno or none, not {name!r}"
            )
        native.set_option("congestion", _CONGESTION.index(name.rstrip(b"\0")))
    elif key == (_SOCKET, socket.SO_LINGER):
        on, seconds = struct.unpack("ii", bytes(value)) if not isinstance(value, int) else (0, 0)
        # A lingering close is not offered, nor needed: the stack sends pending data after close.
        native.set_option("reset_on_close", float(bool(on) and seconds == 0))
    elif key in _FIXED:
        if _number(value) != _FIXED[key]:
            raise _unknown(level, option)
    elif key in _NUMBERS:
        name_, scale = _NUMBERS[key]
        native.set_option(name_, _number(value) / scale)
    elif key in {(_IP, socket.IP_MULTICAST_IF), (_IPV6, socket.IPV6_MULTICAST_IF)}:
        pass  # a stack has one interface
    else:
        raise _unknown(level, option)


def get_option(native: NetSocket, level: int, option: int, length: int) -> int | bytes:
    """Return an option: a number, or bytes if a length is given."""
    key = (level, option)
    if key == (_SOCKET, socket.SO_ERROR):
        value = native.take_error()
    elif key == (_TCP, socket.TCP_CONGESTION):
        return _CONGESTION[int(native.option("congestion"))].ljust(length or 16, b"\0")
    elif key == (_SOCKET, socket.SO_LINGER):
        return struct.pack("ii", int(native.option("reset_on_close")), 0)[: length or 8]
    elif key in _FIXED:
        value = _FIXED[key]
    elif key in _NUMBERS:
        name, scale = _NUMBERS[key]
        value = round(native.option(name) * scale)
    else:
        raise _unknown(level, option)
    return struct.pack("i", value)[:length] if length else value
