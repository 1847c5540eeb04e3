"""TAP devices: their state in the host's kernel, and remedies.

QEMU's link is up whatever the state of the device, and its errors are the kernel's numbers. The
state is read in QEMU's network namespace, as far as ``/proc`` shows it.
"""

from __future__ import annotations

import contextlib
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from virtnic.qemu import descriptors

if TYPE_CHECKING:
    from virtnic.qemu.spec import Spec

__all__ = ["Tap", "device_of", "tap_advice"]

# Linux: include/uapi/linux/if.h and if_tun.h.
_IFF_UP = 1
_IFF_TAP = 2
_IFF_MULTI_QUEUE = 0x100


@dataclass(frozen=True, slots=True)
class Tap:
    """A network device, as described by the kernel."""

    name: str
    up: bool
    #: Whether the kernel sends on it: up to a second after a TAP was opened.
    running: bool
    #: Flags of a TUN or TAP device; None for any other.
    flags: int | None

    @classmethod
    def look(cls, name: str, pid: int | None = None) -> Tap | None:
        """Read a device's state in the namespace of a process; None if it is unknown."""
        if not name or "/" in name:
            return None
        root = Path("/" if pid is None else f"/proc/{pid}/root")
        folder = root / "sys/class/net" / name
        try:
            listed = Path(f"/proc/{'self' if pid is None else pid}/net/dev").read_text()
            # sysfs may be that of another namespace than the process's.
            if not re.search(rf"^\s*{re.escape(name)}:", listed, re.MULTILINE):
                return None
            up = bool(int((folder / "flags").read_text(), 16) & _IFF_UP)
            running = (folder / "operstate").read_text().strip() in ("up", "unknown")
        except (OSError, ValueError):
            return None
        flags = None
        with contextlib.suppress(OSError, ValueError):
            flags = int((folder / "tun_flags").read_text(), 16)
        return cls(name, up, running, flags)

    def trouble(self) -> str | None:
        """Return why no frames pass, and the remedy; None if there is no reason."""
        if not self.up:
            return f"{self.name} is down: no frames pass until `ip link set {self.name} up`"
        if not self.running:
            return f"the kernel has not noticed yet that {self.name} was opened"
        return None


def device_of(spec: Spec, pid: int | None) -> Tap | None:
    """Return the device that a netdev is connected to, if known."""
    if spec.kind.peer != "host":
        return None
    if name := spec.options.get("ifname"):
        return None if pid is None else Tap.look(str(name), pid)
    for fds in descriptors.numbers(spec).values():
        with contextlib.suppress(OSError):
            return Tap.look(descriptors.tap_name(fds[0]))
    return None


def tap_advice(spec: Spec, words: str, pid: int | None) -> str:
    """Return advice for a refused TAP, from the state of the device.

    ``pid`` is QEMU's; None if unknown, so that its namespace is unknown too.
    """
    if spec.type != "tap" or "tun" not in words.lower():
        return ""
    name = str(spec.options.get("ifname") or "tap0")
    several = str(spec.options.get("queues", 1)) != "1"
    create = (
        f"`ip tuntap add dev {name} mode tap user {os.geteuid()} vnet_hdr"
        f"{' multi_queue' if several else ''}`, `ip link set {name} up`"
    )
    if "busy" in words:
        return f"another program has {name} open: end it, or use another device; {create}"
    if pid is None:
        return ""
    tap = Tap.look(name, pid)
    forbidden = "not permitted" in words
    if tap is None:
        why = f"there is no {name}, and creating one needs CAP_NET_ADMIN"
        return f"{why}; as root: {create}" if forbidden else ""
    if tap.flags is None:
        return f"{name} is not a TAP device; create one, and connect the two by a bridge: {create}"
    if not tap.flags & _IFF_TAP:
        return f"{name} is a TUN device, which does not carry Ethernet frames; as root: {create}"
    has_several = bool(tap.flags & _IFF_MULTI_QUEUE)
    delete = f"`ip tuntap del dev {name} mode tap{' multi_queue' if has_several else ''}`"
    if several != has_several:
        made, wanted = ("with", "one queue pair") if has_several else ("without", "several")
        why = f"{name} was made {made} multi_queue, and the port needs {wanted}"
        return f"{why}; as root: {delete}, {create}"
    if forbidden:
        return f"{name} belongs to another user; as root: {delete}, {create}"
    return ""
