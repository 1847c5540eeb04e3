"""The initramfs: busybox, modules, and a script that mounts this machine's root and goes there.

An initramfs is a cpio archive, or several one after the other (the kernel's
Documentation/driver-api/early-userspace/buffer-format.rst): one is kept, one is made for each run.
"""

from __future__ import annotations

import stat
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from vm.kernel import Kernel

__all__ = ["MODULES", "archive", "base"]

#: What is loaded, if it is not built in; the modules that these need come by themselves.
MODULES = (
    *("virtio_pci", "virtio_console", "virtio_rng", "virtiofs"),
    *("tun", "tap", "macvtap", "veth", "bridge", "sch_netem"),
    *("vhost_net", "vhost_vdpa", "vduse"),
)
#: A module without which there is no point in booting.
_ESSENTIAL = frozenset({"virtio_pci", "virtio_console", "virtiofs", "tun", "vhost_net"})

#: Runs before the root is there, so that it only has busybox.
_INIT = """\
#!/bin/busybox sh
b=/bin/busybox
fail() { echo "init: $1" >/dev/hvc0; $b poweroff -f; }
$b mount -t devtmpfs dev /dev; $b mount -t proc proc /proc
for module in /modules/*; do
    $b insmod $module || echo "init: cannot load $module" >/dev/hvc0
done
$b mount -t virtiofs -o ro root /root || fail "no root"
cd /root
$b mount -t proc proc proc && $b mount -t sysfs sys sys && $b mount -t devtmpfs dev dev &&
$b mount -t tmpfs run run && $b mount -t tmpfs tmp tmp || fail "no /proc, /sys, /dev, /run or /tmp"
$b mkdir -p dev/shm dev/pts dev/hugepages dev/net run/netns run/lock run/vm
$b mount -t tmpfs shm dev/shm; $b mount -t devpts pts dev/pts
$b mount -t hugetlbfs huge dev/hugepages
[ -e dev/net/tun ] || $b mknod dev/net/tun c 10 200
$b cp /bin/busybox /start run/vm/
exec $b switch_root /root /bin/sh /run/vm/start
"""


def archive(files: Mapping[str, tuple[int, bytes]]) -> bytes:
    """Return a cpio archive of the kind newc: each name with mode and content."""
    out = bytearray()
    entries = [*files.items(), ("TRAILER!!!", (0, b""))]
    for number, (name, (mode, content)) in enumerate(entries, 1):
        text = name.encode() + b"\0"
        # Inode, mode, owner, group, links, time, size, two devices twice, length of the name.
        fields = (number, mode, 0, 0, 1, 0, len(content), 0, 0, 0, 0, len(text), 0)
        for part in (b"070701" + b"".join(b"%08x" % field for field in fields) + text, content):
            out += part + bytes(-len(part) % 4)
    return bytes(out)


def base(kernel: Kernel, busybox: Path) -> tuple[bytes, list[str]]:
    """Return the archive that all runs share, and the names of modules that the kernel lacks."""
    modules, missing = kernel.modules(MODULES)
    if lacking := sorted(_ESSENTIAL.intersection(missing)):
        raise SystemExit(f"{kernel.package} has no {', '.join(lacking)}: name another by --kernel")
    folder, program = stat.S_IFDIR | 0o755, stat.S_IFREG | 0o755
    files = dict.fromkeys(("bin", "dev", "proc", "root", "modules"), (folder, b""))
    files["bin/busybox"] = (program, busybox.read_bytes())
    files["init"] = (program, _INIT.encode())
    for number, (name, content) in enumerate(modules):
        files[f"modules/{number:02}-{name}.ko"] = (stat.S_IFREG | 0o644, content)
    return archive(files), missing
