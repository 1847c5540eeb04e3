"""Netdevs by descriptor: ours, handed to QEMU, which knows them by a name.

A number would be one of QEMU's own table, whatever it is there: its QMP socket, perhaps.
So each goes by SCM_RIGHTS (QMP ``getfd``), and the netdev gets the name that it has in QEMU. What a
descriptor is, is looked at before QEMU sees it, because some QEMUs abort on a wrong one.
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

#: ioctl of a TAP descriptor: which device it is (Linux: include/uapi/linux/if_tun.h).
_TUNGETIFF = 0x800454D2
_IFREQ = 40
_IFNAMSIZ = 16
_IFF_TAP = 2
#: Of Linux' include/uapi/asm-generic/socket.h; Python names it on no release that is supported.
_SO_ACCEPTCONN = getattr(socket, "SO_ACCEPTCONN", 30)


def numbers(spec: Spec) -> dict[str, list[int]]:
    """Return the descriptors of a netdev by the options that they are given in.

    Raises ValueError for what is no number.
    """
    found = {}
    for option in netdevs.kind_of(spec.type).descriptors:
        value = _get(spec.options, option)
        if value is not None:
            found[option] = [_number(option, item) for item in _items(option, value)]
    return found


def check(spec: Spec) -> None:
    """Raise ValueError where a netdev's descriptor is not open, or not of its kind."""
    for option, fds in numbers(spec).items():
        for fd in fds:
            _check(option, fd, netdevs.kind_of(spec.type).descriptors[option])


def tap_name(fd: int) -> str:
    """Return the name of the device that a TAP descriptor is of. Raises OSError for any other."""
    request = fcntl.ioctl(fd, _TUNGETIFF, bytes(_IFREQ))
    flags = int.from_bytes(request[_IFNAMSIZ : _IFNAMSIZ + 2], "little")
    if not flags & _IFF_TAP:
        raise OSError("a TUN device carries no Ethernet frames")
    return os.fsdecode(request[:_IFNAMSIZ].rstrip(b"\0"))


class Copies:
    """Descriptors of our own, for a netdev that is made again when the caller's may be closed."""

    def __init__(self) -> None:
        self._files: list[io.FileIO] = []

    def of(self, spec: Spec) -> Spec:
        """Return the netdev with copies of its descriptors. Raises OSError."""

        def copied(fd: int) -> str:
            self._files.append(io.FileIO(os.dup(fd), "r"))
            return str(self._files[-1].fileno())

        return uninterrupted(lambda: _replaced(spec, copied))

    def close(self) -> None:
        """Close them. A second call does nothing."""
        for file in self._files:
            file.close()


def names_in_qemu(spec: Spec, netdev_id: str) -> list[str]:
    """Return the names that the descriptors of a netdev have in QEMU, until it takes them."""
    count = sum(len(fds) for fds in numbers(spec).values())
    return [f"{netdev_id}-fd{index}" for index in range(count)]


@contextlib.contextmanager
def handed_over(monitor: Monitor, spec: Spec, netdev_id: str) -> Iterator[Spec]:
    """Hand the descriptors of a netdev to QEMU; yields the netdev with their names there.

    What the body did not have QEMU use is closed there. Raises as :meth:`Monitor.execute`.
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
                monitor.execute("closefd", fdname=name)  # not found where QEMU took it


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
    """Return what an option is; None where it is not given, or is no descriptor."""
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
        f"{option}={value!r} is no descriptor: give the number of one that this process has open "
        "(QEMU gets a copy of it)"
    )


def _check(option: str, fd: int, kind: DescriptorKind) -> None:
    try:
        mode = os.fstat(fd).st_mode
    except (OSError, OverflowError):
        raise ValueError(f"{option}={fd}: this process has no open descriptor {fd}") from None
    what = _what(fd, mode, kind)
    if what is not None:
        raise ValueError(f"{option}={fd} is {what}, and has to be a {kind}")


def _what(fd: int, mode: int, kind: DescriptorKind) -> str | None:
    """Say what a descriptor is instead of what it has to be; None where it is that."""
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
            return "a socket that listens; accept a connection, or give QEMU the address"
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
