"""Install a wheel in a minimal system, as a new user would, and send a ping.

The systems are Debian releases made by mmdebstrap, with their own packages of Python, pip and
QEMU. Only the kernel is that of this machine. pip runs in them without a network, so virtnic's
dependencies are downloaded before.
"""

import os
import re
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from matrix.qemus import SUITES, make_root

#: The ID of an unprivileged user in these systems.
USER = 65534
SETUP = """
set -eu
export HOME=/tmp/home
mkdir -p $HOME && cd $HOME
python3 -m venv venv
venv/bin/pip install --quiet --no-index --find-links /mnt 'virtnic[cli]'
venv/bin/virtnic --version
venv/bin/virtnic ping --count 2 --json 10.0.2.2
"""


@dataclass(frozen=True)
class Place:
    """A system to test wheels in."""

    suite: str

    @property
    def name(self) -> str:
        """The name in the table of results."""
        return f"Debian {self.suite}"


PLACES = tuple(Place(suite) for suite in ("bookworm", "trixie", "sid"))
PACKAGES = ("python3", "python3-venv", "qemu-system-x86")


def run(place: Place, dist: Path, roots: Path) -> tuple[str, int]:
    """Test the wheels; return what is wrong, and 0 as the size."""
    if os.geteuid() != 0 or shutil.which("bwrap") is None or shutil.which("mmdebstrap") is None:
        return "not here: wants root, bwrap and mmdebstrap", 0
    suite = next(suite for suite in SUITES if suite.name == place.suite)
    root = make_root(suite, roots, f"{place.suite}-wheels", PACKAGES)
    with tempfile.TemporaryDirectory() as name:
        wheels = Path(name)
        wheels.chmod(0o755)
        for wheel in dist.glob("*.whl"):
            shutil.copy(wheel, wheels)
        _download_dependencies(root, wheels)
        done = subprocess.run(
            [*_inside(root, wheels), "sh", "-c", SETUP], check=False, capture_output=True, text=True
        )
    if done.returncode:
        return f"status {done.returncode}: {(done.stdout + done.stderr).strip()[-1500:]}", 0
    if '"received":2' not in done.stdout.replace(" ", ""):
        return f"no two answers: {done.stdout[-500:]}", 0
    return "", 0


def _download_dependencies(root: Path, wheels: Path) -> None:
    """Download the dependencies of virtnic[cli] for the root's Python."""
    (python,) = [
        each
        for each in (root / "usr/bin").glob("python3.*")
        if re.fullmatch(r"python3\.\d+", each.name)
    ]
    argv = [
        sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check",
        "--only-binary=:all:", "--python-version", python.name.removeprefix("python"),
        "--dest", str(wheels), "qemu.qmp", "shtab",
    ]  # fmt: skip
    done = subprocess.run(argv, check=False, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"pip download failed:\n{done.stderr[-1000:]}")


def _inside(root: Path, wheels: Path) -> list[str]:
    """Return a command prefix that enters a root, unprivileged and in a separate network."""
    user = str(USER)
    return [
        "bwrap", "--die-with-parent", "--unshare-all", "--uid", user, "--gid", user,
        "--ro-bind", str(root), "/", "--dev", "/dev", "--proc", "/proc",
        "--perms", "1777", "--tmpfs", "/tmp", "--perms", "1777", "--tmpfs", "/dev/shm",
        "--ro-bind", str(wheels), "/mnt",
        "--clearenv", "--setenv", "PATH", "/usr/bin:/bin", "--setenv", "LC_ALL", "C.UTF-8", "--",
    ]  # fmt: skip
