"""Checks whether this machine can run virtnic, and what to do if it cannot.

Everything is tried for real: an accelerator counts only if a QEMU starts with it.
"""

from __future__ import annotations

import importlib.metadata
import os
import platform
import resource
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from virtnic import _native
from virtnic.errors import QemuError, message_of
from virtnic.qemu import quirks
from virtnic.qemu.command import sandbox_options
from virtnic.qemu.find import ACCELERATORS, INSTALL, Binary, find_qemu

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

#: ``ok``: nothing to do; ``warn``: something optional is missing; ``missing``: nothing works
#: without it.
Status = Literal["ok", "warn", "missing"]


@dataclass(frozen=True, slots=True)
class Check:
    """One finding.

    Attributes
    ----------
    name
        What was checked.
    status
        ``ok``: nothing to do; ``warn``: something optional is missing; ``missing``: nothing works
        without it.
    found
        What was found.
    advice
        What to do; empty if nothing.

    """

    name: str
    status: Status
    found: str
    advice: str = ""


def checks(qemu: str | None = None) -> list[Check]:
    """Run all checks. ``qemu``: as for :func:`virtnic.open`. Never raises."""
    findings: list[Check] = []
    for group in (
        lambda: _qemu(qemu),
        _hugepages,
        _memory,
        _capabilities,
        _devices,
        _peers,
        _extras,
    ):
        findings += _guarded(group)
    return findings


def _guarded(group: Callable[[], Iterator[Check]]) -> list[Check]:
    """Run one group of checks; a failure of the group itself becomes a finding."""
    found = []
    try:
        for check in group():
            found.append(check)  # noqa: PERF402 - keep what came before an error
    except (OSError, QemuError, ValueError) as error:
        found.append(Check("doctor", "warn", f"a check failed: {message_of(error)}", "report this"))
    return found


def _qemu(given: str | None) -> Iterator[Check]:
    try:
        binary = find_qemu(given)
        version = binary.version
        banner = binary.banner
        binary.check("pc")
    except QemuError as error:
        yield Check("QEMU", "missing", str(error).removesuffix(f"; {INSTALL}"), INSTALL)
        return
    old = version < quirks.OLDEST
    yield Check(
        "QEMU",
        "warn" if old else "ok",
        f"{banner} ({binary})",
        f"older than the tested versions: use {quirks.OLDEST} or later" if old else "",
    )
    for device in ("virtio-net-pci", "ivshmem-doorbell"):
        has = binary.has_device(device)
        yield Check(
            f"QEMU device {device}",
            "ok" if has else "missing",
            "built in" if has else "this QEMU was built without it",
            "" if has else "use a QEMU with all devices, such as Debian's or Fedora's",
        )
    denied = binary.error_with(*sandbox_options(True))
    yield Check(
        "QEMU sandbox",
        "ok" if denied is None else "warn",
        "system calls are filtered" if denied is None else denied,
        "" if denied is None else "pass sandbox=False, or use a QEMU built with seccomp",
    )
    yield from _accelerators(binary)


_ACCELERATOR_ADVICE = {
    "qtest": "not needed: a parked TCG or KVM processor works as well",
    "tcg": "needed only if QEMU has no qtest accelerator",
    "kvm": "not needed; requires a writable /dev/kvm",
}


def _accelerators(binary: Binary) -> Iterator[Check]:
    errors = {name: binary.accelerator_error(name) for name in ACCELERATORS}
    usable = [name for name, error in errors.items() if error is None]
    yield Check(
        "accelerator",
        "ok" if usable else "missing",
        f"auto uses {usable[0]}"
        if usable
        else "QEMU does not start with any of " + ", ".join(errors),
        "" if usable else INSTALL,
    )
    for name, error in errors.items():
        if error is None:
            yield Check(f"accelerator {name}", "ok", "starts")
        else:
            yield Check(f"accelerator {name}", "warn", error, _ACCELERATOR_ADVICE[name])


def _hugepages() -> Iterator[Check]:
    sizes = _native.hugepages()
    if not sizes:
        yield Check(
            "hugepages",
            "warn",
            "this kernel has no huge pages",
            "ordinary pages are used, which cannot be physically contiguous",
        )
    for size, total, free in sizes:
        kib = size // 1024
        name = f"hugepages {_size(size)}"
        found = f"{free} of {total} free"
        if free:
            yield Check(name, "ok", found)
        elif size == 2 << 20:
            yield Check(
                name,
                "warn",
                found,
                "slower without huge pages: reserve some with `sysctl vm.nr_hugepages=128`",
            )
        else:
            where = f"/sys/kernel/mm/hugepages/hugepages-{kib}kB/nr_hugepages"
            yield Check(name, "ok", found, f"optional: `echo 1 > {where}`, or at boot")


def _size(size: int) -> str:
    for shift, unit in ((30, "GiB"), (20, "MiB"), (10, "KiB")):
        if size >= 1 << shift:
            return f"{size >> shift} {unit}"
    return f"{size} B"


def _memory() -> Iterator[Check]:
    try:
        os.close(os.memfd_create("virtnic-doctor", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING))
    except OSError as error:
        yield Check("memfd", "missing", message_of(error), "Linux 3.17 or later is needed")
    else:
        yield Check("memfd", "ok", f"Linux {platform.release()}")
    soft, _hard = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    if soft == resource.RLIM_INFINITY:
        yield Check("memlock", "ok", "no limit")
    else:
        # Nothing in virtnic locks memory; vhost-vdpa and VFIO backends do.
        yield Check("memlock", "ok", f"{_size(soft)}", "vhost-vdpa may need `ulimit -l unlimited`")


# Bits of /proc/self/status CapEff: capabilities(7).
_CAPABILITIES = (
    (21, "CAP_SYS_ADMIN", "iova='pa'"),
    (12, "CAP_NET_ADMIN", "making TAP devices"),
)


def _capabilities() -> Iterator[Check]:
    effective = 0
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith("CapEff:"):
            effective = int(line.split()[1], 16)
    for bit, name, purpose in _CAPABILITIES:
        if effective >> bit & 1:
            yield Check(name, "ok", "held")
        else:
            yield Check(
                name, "warn", "not held", f"needed for {purpose} only: run as root or grant it"
            )


_DEVICES = (
    ("/dev/net/tun", "tun", "TAP netdevs"),
    ("/dev/vhost-net", "vhost_net", "tap,vhost=on"),
    ("/dev/kvm", "kvm", "accel='kvm'"),
)


def _devices() -> Iterator[Check]:
    for path, module, purpose in _DEVICES:
        state = module_state(module)
        if not Path(path).exists():
            can = state in ("available", "loaded")
            yield Check(
                path,
                "warn",
                f"not present (module {module}: {state})",
                f"needed for {purpose} only: "
                + (f"`modprobe {module}`" if can else f"a kernel with {module}"),
            )
        elif not os.access(path, os.R_OK | os.W_OK):
            owner = Path(path).stat()
            yield Check(
                path,
                "warn",
                f"no permission (mode {owner.st_mode & 0o777:o}, group {owner.st_gid})",
                f"needed for {purpose} only: join its group or run as root",
            )
        else:
            known = "" if state == "absent" else f" (module {module}: {state})"
            yield Check(path, "ok", f"usable{known}")


def module_state(name: str, root: Path = Path("/")) -> str:
    """Return ``loaded``, ``built in``, ``available`` or ``absent`` for a kernel module."""
    try:
        loaded = (root / "proc/modules").read_text(encoding="utf-8").splitlines()
    except OSError:
        loaded = []
    if any(line.split(" ", 1)[0] == name for line in loaded):
        return "loaded"
    if (root / "sys/module" / name).is_dir():
        return "built in"
    modules = root / "lib/modules" / platform.release()
    for file, state in (("modules.builtin", "built in"), ("modules.dep", "available")):
        try:
            lines = (modules / file).read_text(encoding="utf-8").splitlines()
        except OSError:
            continue
        names = (Path(line.split(":")[0]).name.split(".ko")[0] for line in lines)
        if name in (found.replace("-", "_") for found in names):
            return state
    return "absent"


def _peers() -> Iterator[Check]:
    path = shutil.which("dpdk-testpmd")
    yield Check(
        "dpdk-testpmd",
        "ok" if path else "warn",
        path or "not found",
        "" if path else "a vhost-user backend for tests and benchmarks: install dpdk or dpdk-dev",
    )


_EXTRAS = (
    ("numpy", "numpy", "computing on bursts"),
    ("shtab", "cli", "completions in a shell"),
)


def _extras() -> Iterator[Check]:
    for package, extra, purpose in _EXTRAS:
        try:
            version = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            yield Check(
                f"Python package {package}",
                "warn",
                "not installed",
                f"for {purpose}: pip install 'virtnic[{extra}]'",
            )
        else:
            yield Check(f"Python package {package}", "ok", version)
