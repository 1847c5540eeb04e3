"""The descriptors of a port on the kernel's vhost-net: those of the device, and of a TAP's queues.

Linux: include/uapi/linux/if_tun.h. One of each for a queue pair; the core hands them rings and
memory (``vhost_kernel``).
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import io
import os
import struct
from typing import TYPE_CHECKING

from virtnic.errors import NetdevUnavailable
from virtnic.qemu import descriptors
from virtnic.qemu.netdevs import advice_on, is_on
from virtnic.qemu.tap import tap_advice
from virtnic.teardown import uninterrupted

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from virtnic.qemu import Spec

__all__ = ["check_tap", "opened_pairs"]

_DEVICE, _TUN = "/dev/vhost-net", "/dev/net/tun"
_TUNSETIFF = 0x400454CA
#: Frames of Ethernet, nothing but a virtio-net header before them, and several queues.
_IFF_TAP, _IFF_NO_PI, _IFF_VNET_HDR, _IFF_MULTI_QUEUE = 0x0002, 0x1000, 0x4000, 0x0100
_IFREQ = struct.Struct("16sH22x")
#: Options that mean something here; what starts a program is QEMU's.
_KNOWN = {"ifname", "fd", "fds", "vhost", "vhostforce", "vhostfd", "vhostfds", "queues"}
_NOTHING = {"script": "no", "downscript": "no"}


def check_tap(spec: Spec) -> None:
    """Raise ValueError for options that a port without QEMU cannot have."""
    options = {name: value for name, value in spec.options.items() if value != _NOTHING.get(name)}
    if left := sorted(options.keys() - _KNOWN):
        raise ValueError(f"frontend='direct' knows no {', '.join(left)} of the netdev")
    if "vhost" in options and not is_on(options["vhost"]):
        raise ValueError("frontend='direct' on a TAP is vhost=on: the kernel moves the frames")
    if options.keys().isdisjoint(("ifname", "fd", "fds")):
        raise ValueError("frontend='direct' needs the TAP's ifname= or fd=, as in tap,ifname=tap0")


@contextlib.contextmanager
def opened_pairs(spec: Spec, pairs: int) -> Iterator[list[tuple[int, int]]]:
    """Open the vhost device and a queue of the TAP for each queue pair; close them at the end.

    Raises NetdevUnavailable and ValueError.
    """
    check_tap(spec)
    descriptors.check(spec)
    given = descriptors.numbers(spec)
    with contextlib.ExitStack() as stack:

        def opened(path: str) -> int:
            def call() -> io.FileIO:
                return stack.enter_context(io.FileIO(path, "r+"))

            return uninterrupted(call).fileno()

        def all_of(one: str, several: str, path: str) -> list[int]:
            fds = given.get(one) or given.get(several)
            if fds is None:
                return [opened(path) for _ in range(pairs)]
            if len(fds) < pairs:
                raise ValueError(f"{pairs} queue pairs need as many {several}=, not {len(fds)}")
            return fds[:pairs]

        try:
            vhosts = all_of("vhostfd", "vhostfds", _DEVICE)
        except OSError as error:
            raise NetdevUnavailable(_without_vhost(error)) from None
        try:
            taps = all_of("fd", "fds", _TUN)
            if not given.keys() & {"fd", "fds"}:
                for tap in taps:
                    _become(tap, str(spec.options["ifname"]), pairs > 1)
        except OSError as error:
            raise NetdevUnavailable(_without_tap(spec, error)) from None
        yield list(zip(vhosts, taps, strict=True))


def _become(fd: int, name: str, several: bool) -> None:
    """Make a descriptor of ``/dev/net/tun`` a queue of a TAP; create it if there is none."""
    flags = _IFF_TAP | _IFF_NO_PI | _IFF_VNET_HDR | (_IFF_MULTI_QUEUE if several else 0)
    raw = os.fsencode(name)
    if not 0 < len(raw) < 16:
        raise ValueError(f"ifname={name!r}: the name of a network device has 1 to 15 bytes")
    fcntl.ioctl(fd, _TUNSETIFF, _IFREQ.pack(raw, flags))


def _without_vhost(error: OSError) -> str:
    missing = error.errno in (errno.ENOENT, errno.ENODEV, errno.ENXIO)
    advice = (
        "frontend='direct' on a TAP needs the kernel's vhost-net: `modprobe vhost_net`; or leave "
        "frontend='direct' out: QEMU then moves the frames"
        if missing
        else f"{_DEVICE} must be readable and writable for this user (Debian: group kvm)"
    )
    return f"opening {_DEVICE} failed: {error.strerror}; {advice}"


def _without_tap(spec: Spec, error: OSError) -> str:
    words = f"could not configure /dev/net/tun: {error.strerror}"
    name: Mapping[str, object] = spec.options
    advice = tap_advice(spec, words, os.getpid()) or advice_on(spec.kind, f"{words} {_TUN}")
    what = f"opening the TAP {name.get('ifname')} failed: {error.strerror}"
    return f"{what}; {advice}" if advice else what
