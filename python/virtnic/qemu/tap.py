"""TAP devices: what the host's kernel says of one, and how to mend it.

QEMU's link is up whatever state the device is in, and its refusals are the kernel's error numbers.
What is looked at is the network namespace that QEMU runs in, as far as ``/proc`` shows it.
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
    """A network device, as the kernel describes it."""

    name: str
    up: bool
    #: Whether the kernel sends by it: up to a second after a TAP was opened.
    running: bool
    #: Flags of a TUN or TAP device; None for any other.
    flags: int | None

    @classmethod
    def look(cls, name: str, pid: int | None = None) -> Tap | None:
        """Look at a device in the namespace of a process; None where nothing is known of it."""
        if not name or "/" in name:
            return None
        root = Path("/" if pid is None else f"/proc/{pid}/root")
        folder = root / "sys/class/net" / name
        try:
            listed = Path(f"/proc/{'self' if pid is None else pid}/net/dev").read_text()
            # sysfs may be that of another namespace than the process is in.
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
        """Say why no frame passes it, and what mends that; None where there is no reason."""
        if not self.up:
            return f"{self.name} is down: no frame passes it until `ip link set {self.name} up`"
        if not self.running:
            return f"the kernel has not noticed yet that {self.name} was opened"
        return None


def device_of(spec: Spec, pid: int | None) -> Tap | None:
    """Return the device that a netdev is connected to, where that is known."""
    if spec.kind.peer != "host":
        return None
    if name := spec.options.get("ifname"):
        return None if pid is None else Tap.look(str(name), pid)
    for fds in descriptors.numbers(spec).values():
        with contextlib.suppress(OSError):
            return Tap.look(descriptors.tap_name(fds[0]))
    return None


def tap_advice(spec: Spec, words: str, pid: int | None) -> str:
    """Return what to do about a refusal of a TAP, by the state that the device is in.

    ``pid`` is QEMU's; None where nobody knows it, and so not where the device is.
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
        return f"another program has {name} open: end that, or take another device; {create}"
    if pid is None:
        return ""
    tap = Tap.look(name, pid)
    forbidden = "not permitted" in words
    if tap is None:
        why = f"there is no {name}, and making one takes CAP_NET_ADMIN"
        return f"{why}; as root: {create}" if forbidden else ""
    if tap.flags is None:
        return f"{name} is no TAP device; make one, and join the two by a bridge: {create}"
    if not tap.flags & _IFF_TAP:
        return f"{name} is a TUN device, which carries no Ethernet frames; as root: {create}"
    has_several = bool(tap.flags & _IFF_MULTI_QUEUE)
    delete = f"`ip tuntap del dev {name} mode tap{' multi_queue' if has_several else ''}`"
    if several != has_several:
        made, wanted = ("with", "one queue pair") if has_several else ("without", "several")
        why = f"{name} was made {made} multi_queue, and the port is to have {wanted}"
        return f"{why}; as root: {delete}, {create}"
    if forbidden:
        return f"{name} belongs to another user; as root: {delete}, {create}"
    return ""
