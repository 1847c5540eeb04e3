"""The benchmark machine: processors, priority, hugepages."""

import contextlib
import os
import platform
import re
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HUGEPAGES = Path("/sys/kernel/mm/hugepages/hugepages-2048kB")
AUTOGROUP = Path("/proc/self/autogroup")


@dataclass(frozen=True)
class Cores:
    """Who runs where: the two ends that poll have a core each, all else shares them."""

    backend: int
    frontend: int

    @classmethod
    def find(cls) -> "Cores":
        """Take the last two this process may use: the first handles most interrupts."""
        cpus = sorted(os.sched_getaffinity(0))
        if len(cpus) < 2:
            raise SystemExit("the benchmarks need two processors: both ends poll")
        return cls(backend=cpus[-1], frontend=cpus[-2])


def describe() -> dict[str, Any]:
    """Return the facts about the machine that matter for the figures."""
    from peers.components import qemu_command

    cpuinfo = Path("/proc/cpuinfo").read_text()
    model = re.search(r"model name\s*: (.*)", cpuinfo)
    return {
        "processor": model[1] if model else platform.machine(),
        "processors": os.cpu_count(),
        "virtual": "hypervisor" in cpuinfo,
        "kernel": platform.release(),
        "python": platform.python_version(),
        "qemu": _version([*qemu_command().split(), "--version"], r"version (\S+)"),
        "dpdk": _version(["dpdk-testpmd", "--version"], r"DPDK (\S+)"),
        "load": os.getloadavg()[0],
    }


def _version(argv: list[str], pattern: str) -> str | None:
    if shutil.which(argv[0]) is None:
        return None
    done = subprocess.run(argv, check=False, capture_output=True, text=True)
    match = re.search(pattern, done.stdout + done.stderr)
    return match[1] if match else None


@contextlib.contextmanager
def priority() -> Iterator[None]:
    """Go before everything else on the machine, for both sides of each comparison alike.

    Linux groups tasks by session (sched(7), "autogroup"), and a nice value counts only
    within the group: so the group's is set as well, and put back.
    """
    nice = os.getpriority(os.PRIO_PROCESS, 0)
    group = re.search(r"nice (-?\d+)", AUTOGROUP.read_text()) if AUTOGROUP.exists() else None
    try:
        os.setpriority(os.PRIO_PROCESS, 0, -20)
        if group:
            AUTOGROUP.write_text("-20")
    except PermissionError:
        raise SystemExit("--priority needs root") from None
    try:
        yield
    finally:
        os.setpriority(os.PRIO_PROCESS, 0, nice)
        if group:
            AUTOGROUP.write_text(group[1])


@contextlib.contextmanager
def reserve_hugepages(wanted: int) -> Iterator[int]:
    """Have so many 2 MiB pages free, as far as root and memory allow; puts the number back."""
    free, total = _pages("free_hugepages"), _pages("nr_hugepages")
    more = max(0, wanted - free)
    changed = False
    if more and os.geteuid() == 0 and HUGEPAGES.exists():
        (HUGEPAGES / "nr_hugepages").write_text(str(total + more))
        changed = True
    try:
        yield _pages("free_hugepages")
    finally:
        # Only our own part: somebody else may have changed the number meanwhile.
        if changed:
            now = _pages("nr_hugepages")
            (HUGEPAGES / "nr_hugepages").write_text(str(max(total, now - more)))


def _pages(name: str) -> int:
    file = HUGEPAGES / name
    return int(file.read_text()) if file.exists() else 0
