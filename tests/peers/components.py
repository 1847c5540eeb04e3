"""What a test needs from the machine: skip or fail without it."""

import os
import shutil
import subprocess
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import pytest

from virtnic.testing.namespace import find_ip
from virtnic.testing.ovs import find_vswitchd
from virtnic.testing.programs import ProgramNotFound, free_hugepages
from virtnic.testing.testpmd import find_testpmd


def qemu_command() -> str:
    """Return the QEMU that tests use by default, as a command line."""
    return os.environ.get("VIRTNIC_QEMU") or "qemu-system-x86_64"


def _program(name: str) -> Callable[[], bool]:
    return lambda: shutil.which(name) is not None


def _qemu() -> bool:
    return "VIRTNIC_QEMU" in os.environ or shutil.which("qemu-system-x86_64") is not None


def _root() -> bool:
    return os.geteuid() == 0


def _found(find: Callable[[], str]) -> Callable[[], bool]:
    def found() -> bool:
        try:
            find()
        except ProgramNotFound:
            return False
        return True

    return found


def has_netem() -> bool:
    """Whether the kernel can make a link lossy and slow (tc-netem(8))."""
    if not _found(find_ip)() or shutil.which("tc") is None:
        return False
    probe = ["unshare", "--net", "tc", "qdisc", "add", "dev", "lo", "root", "netem"]
    return subprocess.run(probe, check=False, capture_output=True).returncode == 0


def _frame_numbers() -> bool:
    """Whether /proc/self/pagemap shows frame numbers: that takes CAP_SYS_ADMIN."""
    with Path("/proc/self/pagemap").open("rb", buffering=0) as pagemap:
        anything = bytearray(b"x")
        address = id(anything)
        pagemap.seek(address // os.sysconf("SC_PAGESIZE") * 8)
        entry = int.from_bytes(pagemap.read(8), "little")
    return entry & ((1 << 55) - 1) != 0


def _vm() -> bool:
    """Whether `make vm` has its programs, and a kernel or a place to get one."""
    shares = ("/usr/libexec/virtiofsd", "/usr/lib/qemu/virtiofsd", "virtiofsd")
    if not _root() or not _qemu() or not any(map(shutil.which, shares)):
        return False
    if any(Path(__file__).parents[2].glob(".cache/vm/linux-image-*/boot")):
        return True
    if shutil.which("apt-cache") is None:
        return False
    probe = ["apt-cache", "pkgnames", "linux-image-"]
    return b"-cloud-amd64" in subprocess.run(probe, check=False, capture_output=True).stdout


# Name: (is it there, what to do).
COMPONENTS: dict[str, tuple[Callable[[], bool], str]] = {
    "qemu": (_qemu, "apt-get install qemu-system-x86, or set VIRTNIC_QEMU"),
    "testpmd": (_found(find_testpmd), "apt-get install dpdk-dev"),
    "ovs": (_found(find_vswitchd), "apt-get install openvswitch-switch-dpdk"),
    "vde": (_program("vde_switch"), "apt-get install vde2"),
    "passt": (_program("passt"), "apt-get install passt"),
    "ping": (_program("ping"), "apt-get install iputils-ping"),
    "curl": (_program("curl"), "apt-get install curl"),
    "bwrap": (_program("bwrap"), "apt-get install bubblewrap"),
    "bash": (_program("bash"), "apt-get install bash"),
    "zsh": (_program("zsh"), "apt-get install zsh"),
    "fish": (_program("fish"), "apt-get install fish"),
    "valgrind": (
        Path("/usr/include/valgrind/callgrind.h").exists,
        "apt-get install valgrind, with its headers",
    ),
    "root": (_root, "run as root"),
    "netns": (_found(find_ip), "run as root with iproute2 installed and /dev/net/tun present"),
    "gevent": (lambda: find_spec("gevent") is not None, "pip install gevent"),
    "tshark": (_program("tshark"), "apt-get install tshark"),
    "ray": (lambda: find_spec("ray") is not None, "pip install 'virtnic[ray]'"),
    "vm": (_vm, "as root on Debian: apt-get install virtiofsd, apt-get update; see `make vm`"),
    "openssl": (_program("openssl"), "apt-get install openssl"),
    "shtab": (lambda: find_spec("shtab") is not None, "pip install 'virtnic[cli]'"),
    "hugepages": (lambda: free_hugepages() >= 64, "sysctl vm.nr_hugepages=512"),
    "frame-numbers": (_frame_numbers, "run with CAP_SYS_ADMIN: /proc/self/pagemap hides frames"),
}


def needs(*names: str) -> None:
    """Skip the running test when the machine lacks a component; with CI=true, fail it."""
    for name in names:
        present, remedy = COMPONENTS[name]
        if present():
            continue
        message = f"needs {name}: {remedy}"
        if os.environ.get("CI") == "true":
            pytest.fail(f"{message} (CI=true: a missing component is a failure)", pytrace=False)
        pytest.skip(message)
