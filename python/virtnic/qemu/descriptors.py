"""Netdevs by descriptor: descriptors of this process, passed to QEMU, where they have names.

A number would refer to QEMU's own descriptor table, perhaps to its QMP socket. So each descriptor
is passed by SCM_RIGHTS (QMP ``getfd``), and the netdev gets its name in QEMU. Descriptors are
checked before QEMU sees them, because some QEMUs abort on a wrong one.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import fcntl
import io
import os
import socket
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from virtnic.errors import QemuDied, QemuError
from virtnic.qemu import netdevs
from virtnic.teardown import uninterrupted

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from virtnic.qemu.monitor import Monitor
    from virtnic.qemu.netdevs import DescriptorKind
    from virtnic.qemu.spec import Spec

__all__ = ["Copies", "check", "handed_over", "names_in_qemu", "numbers", "tap_name"]

#: ioctl of a TAP descriptor: its device (Linux: include/uapi/linux/if_tun.h).
_TUNGETIFF = 0x800454D2
_IFREQ = 40
_IFNAMSIZ = 16
_IFF_TAP = 2
#: From Linux' include/uapi/asm-generic/socket.h; not in any supported Python.
_SO_ACCEPTCONN = getattr(socket, "SO_ACCEPTCONN", 30)


def numbers(spec: Spec) -> dict[str, list[int]]:
    """Return the descriptors of a netdev by option.

    Raises ValueError for a non-number.
    """
    found = {}
    for option in netdevs.kind_of(spec.type).descriptors:
        value = _get(spec.options, option)
        if value is not None:
            found[option] = [_number(option, item) for item in _items(option, value)]
    return found


def check(spec: Spec) -> None:
    """Raise ValueError if a descriptor of the netdev is not open or of the wrong kind."""
    for option, fds in numbers(spec).items():
        for fd in fds:
            _check(option, fd, netdevs.kind_of(spec.type).descriptors[option])


def tap_name(fd: int) -> str:
    """Return the name of a TAP descriptor's device. Raises OSError for any other descriptor."""
    request = fcntl.ioctl(fd, _TUNGETIFF, bytes(_IFREQ))
    flags = int.from_bytes(request[_IFNAMSIZ : _IFNAMSIZ + 2], "little")
    if not flags & _IFF_TAP:
        raise OSError("a TUN device carries no Ethernet frames")
    return os.fsdecode(request[:_IFNAMSIZ].rstrip(b"\0"))


class Copies:
    """Our own descriptors for a netdev that is created again when the caller's may be closed."""

    def __init__(self) -> None:
        self._files: list[io.FileIO] = []

    def of(self, spec: Spec) -> Spec:
        """Return the netdev with duplicated descriptors. Raises OSError."""

        def copied(fd: int) -> str:
            self._files.append(io.FileIO(os.dup(fd), "r"))
            return str(self._files[-1].fileno())

        return uninterrupted(lambda: _replaced(spec, copied))

    def close(self) -> None:
        """Close them. A second call does nothing."""
        for file in self._files:
            file.close()


def names_in_qemu(spec: Spec, netdev_id: str) -> list[str]:
    """Return the names of a netdev's descriptors in QEMU before it takes them."""
    count = sum(len(fds) for fds in numbers(spec).values())
    return [f"{netdev_id}-fd{index}" for index in range(count)]


@contextlib.contextmanager
def handed_over(monitor: Monitor, spec: Spec, netdev_id: str) -> Iterator[Spec]:
    """Pass the descriptors of a netdev to QEMU; yield the netdev with their names in QEMU.

    Those that QEMU has not used in the body are closed there. Raises as :meth:`Monitor.execute`.
    """
    names = names_in_qemu(spec, netdev_id)
    left = iter(names)

    def send(fd: int) -> str:
        name = next(left)
        monitor.send_descriptor(fd, name)
        return name

    try:
        yield _replaced(spec, send)
    finally:
        for name in names:
            with contextlib.suppress(QemuError, QemuDied, TimeoutError):
                monitor.execute("closefd", fdname=name)  # not found if QEMU took it


def _replaced(spec: Spec, new: Callable[[int], str]) -> Spec:
    given = numbers(spec)
    if not given:
        return spec
    options = copy.deepcopy(spec.options)
    for option, fds in given.items():
        *parents, last = option.split(".")
        where = options
        for parent in parents:
            where = where[parent]
        where[last] = ":".join([new(fd) for fd in fds])
    return dataclasses.replace(spec, options=options)


def _get(options: Mapping[str, Any], option: str) -> Any:
    """Return an option's value; None if it is not given or not a descriptor."""
    *parents, last = option.split(".")
    where: Any = options
    for parent in parents:
        where = where.get(parent)
        if not isinstance(where, Mapping) or where.get("type") != "fd":
            return None
    return where.get(last)


def _items(option: str, value: Any) -> list[Any]:
    if not option.endswith("s"):
        return [value]
    return value.split(":") if isinstance(value, str) else list(value)


def _number(option: str, value: Any) -> int:
    if isinstance(value, str) and value.isascii() and value.isdigit():
        return int(value)
    if isinstance(value, int) and not isinstance(value, bool) and value >= 0:
        return value
    raise ValueError(
        f"{option}={value!r} is not a descriptor: give the number of one that is open in this "
        "process (QEMU gets a duplicate)"
    )


def _check(option: str, fd: int, kind: DescriptorKind) -> None:
    try:
        mode = os.fstat(fd).st_mode
    except (OSError, OverflowError):
        raise ValueError(f"{option}={fd}: this process has no open descriptor {fd}") from None
    what = _what(fd, mode, kind)
    if what is not None:
        raise ValueError(f"{option}={fd} is {what}, and must be a {kind}")


def _what(fd: int, mode: int, kind: DescriptorKind) -> str | None:
    """Return what a descriptor is instead of the required kind; None if it is of that kind."""
    if kind == "character device":
        return None if stat.S_ISCHR(mode) else _file(fd)
    if kind == "TAP":
        try:
            tap_name(fd)
        except OSError as error:
            return f"{_file(fd)} ({error.strerror or error})"
        return None
    if not stat.S_ISSOCK(mode):
        return _file(fd)
    with socket.socket(fileno=os.dup(fd)) as sock:
        if kind != "datagram socket" and sock.getsockopt(socket.SOL_SOCKET, _SO_ACCEPTCONN):
            return "a listening socket; accept a connection, or give QEMU the address"
        if sock.type not in _SOCKETS[kind]:
            return f"a socket of type {socket.SocketKind(sock.type).name}"
    return None


_SOCKETS: dict[DescriptorKind, tuple[int, ...]] = {
    "socket": (socket.SOCK_STREAM, socket.SOCK_DGRAM),
    "stream socket": (socket.SOCK_STREAM,),
    "datagram socket": (socket.SOCK_DGRAM,),
}


def _file(fd: int) -> str:
    return str(Path(f"/proc/self/fd/{fd}").readlink())
