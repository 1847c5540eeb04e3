"""The QEMUs of Debian releases, and a system for Pythons without an interpreter here.

mmdebstrap unpacks a release's own packages under .cache/roots. QEMU runs through that root's
loader and libraries, so that neither a container nor a chroot is needed.
"""

import re
import shlex
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from .rows import say

LIBRARIES = (
    "usr/lib/x86_64-linux-gnu",
    "lib/x86_64-linux-gnu",
    "usr/lib/x86_64-linux-gnu/pulseaudio",
)
LOADERS = ("usr/lib/x86_64-linux-gnu/ld-linux-x86-64.so.2", "lib/x86_64-linux-gnu/ld-2.31.so")
DATA = ("usr/share/qemu", "usr/share/seabios", "usr/lib/ipxe/qemu")


@dataclass(frozen=True)
class Suite:
    """A Debian release."""

    name: str
    expects: str
    rolling: bool = False


SUITES = (
    Suite("bullseye", "5.2"),
    Suite("bookworm", "7.2"),
    Suite("trixie", "10.0"),
    Suite("sid", "11.1 or later", rolling=True),
)


def make_root(
    suite: Suite, roots: Path, name: str = "", packages: Sequence[str] = ("qemu-system-x86",)
) -> Path:
    """Unpack packages of a release, unless they are there, and return their root."""
    root = roots / (name or suite.name)
    if root.exists():
        return root
    if shutil.which("mmdebstrap") is None:
        raise RuntimeError("mmdebstrap is missing: apt-get install mmdebstrap")
    roots.mkdir(parents=True, exist_ok=True)
    # Made aside and renamed when complete: an interrupted run leaves no half root.
    partial = root.with_name(f"{root.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    # A mirror may lag behind: a rolling release is then "expired" after a week.
    options = ['--aptopt=Acquire::Check-Valid-Until "false"'] if suite.rolling else []
    argv = [
        "mmdebstrap", "--quiet", "--variant=apt", f"--include={','.join(packages)}", *options,
        "--dpkgopt=path-exclude=/usr/share/doc/*", "--dpkgopt=path-exclude=/usr/share/man/*",
        suite.name, str(partial),
    ]  # fmt: skip
    say(f"making {root} with {' '.join(packages)} of Debian {suite.name}")
    done = subprocess.run(argv, check=False, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"mmdebstrap {suite.name} failed:\n{done.stderr[-2000:]}")
    shutil.rmtree(partial / "var/cache/apt", ignore_errors=True)
    partial.rename(root)
    return root


def make_wrapper(root: Path) -> Path:
    """Write the program that runs a root's QEMU, and return its path."""
    loader = next((root / path for path in LOADERS if (root / path).exists()), None)
    if loader is None:
        raise RuntimeError(f"{root} has no loader at {' or '.join(LOADERS)}")
    libraries = ":".join(str(root / path) for path in LIBRARIES)
    modules = root / "usr/lib/x86_64-linux-gnu/qemu"
    argv = [str(loader), "--library-path", libraries, str(root / "usr/bin/qemu-system-x86_64")]
    for data in DATA:
        argv += ["-L", str(root / data)]
    wrapper = root.with_name(f"qemu-{root.name}")
    wrapper.write_text(
        f"#!/bin/sh\nexport QEMU_MODULE_DIR={shlex.quote(str(modules))}\n"
        f'exec {shlex.join(argv)} "$@"\n'
    )
    wrapper.chmod(0o755)
    return wrapper


def version_of(*qemu: str) -> str:
    """Ask a QEMU, a command line, for its version."""
    argv = [*qemu, "--version"]
    output = subprocess.run(argv, check=True, capture_output=True, text=True).stdout
    match = re.search(r"version (\d+\.\d+(?:\.\d+)?)", output)
    if match is None:
        raise RuntimeError(f"{shlex.join(argv)} said: {output}")
    return match[1]


def has_accelerator(qemu: Path, accel: str) -> bool:
    """Find out by trying: ``-accel help`` does not list qtest even where it is built in."""
    argv = [str(qemu), "-machine", f"none,accel={accel}", "-display", "none", "-nodefaults"]
    done = subprocess.run(
        [*argv, "-monitor", "stdio"], input="quit\n", check=False, capture_output=True, text=True
    )
    if done.returncode and "invalid accelerator" not in done.stderr:
        raise RuntimeError(f"{qemu} with accel={accel}: {done.stderr.strip()}")
    return done.returncode == 0
