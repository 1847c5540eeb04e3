"""The Pythons: one abi3 wheel, and the quick tests with each interpreter, as in tox.

Which versions there are is what ``tox.ini`` says. An interpreter is looked for in PATH and
among those that pyenv made. One that is not there and that Debian sid has is run in a root of
sid, with sid's own QEMU, DPDK and Open vSwitch.
"""

import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from .qemus import SUITES, make_root, version_of
from .rows import BUILD, TOP, Row, report, run, say

#: What a system needs for the tests; the same as groups `qemu` and `test` of ``.ci/system``.
PACKAGES = (
    "python3", "qemu-system-x86", "dpdk-dev", "openvswitch-switch-dpdk", "iproute2",
    "iputils-ping", "bubblewrap",
)  # fmt: skip


def versions() -> list[str]:
    """Return the versions that ``tox.ini`` has, such as ``3.11``."""
    argv = [sys.executable, "-m", "tox", "list", "--no-desc", "-q"]
    done = subprocess.run(argv, check=True, cwd=TOP, capture_output=True, text=True)
    names = [line.strip() for line in done.stdout.splitlines() if line.startswith("py3")]
    return [f"3.{name.removeprefix('py3')}" for name in names]


def find(version: str) -> Path | None:
    """Find an interpreter that runs: a shim of pyenv may be there and run nothing."""
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv"))
    places = [Path(place) for place in os.environ.get("PATH", "").split(os.pathsep)]
    places += sorted(pyenv.glob(f"versions/{version}.*/bin"))
    for place in places:
        python = place / f"python{version}"
        if python.exists() and _version(str(python)).startswith(f"{version}."):
            return python
    return None


def _version(*python: str) -> str:
    argv = [*python, "-c", "import platform; print(platform.python_version())"]
    return subprocess.run(argv, check=False, capture_output=True, text=True).stdout.strip()


def build_wheel() -> Path:
    """Build the one wheel for all."""
    place = BUILD / "wheel"
    shutil.rmtree(place, ignore_errors=True)
    argv = [sys.executable, "-m", "maturin", "build", "--release", "--quiet", "--out", str(place)]
    done = subprocess.run(argv, check=False, cwd=TOP, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"maturin build failed:\n{done.stderr[-2000:]}")
    (wheel,) = place.glob("*-abi3-*.whl")
    return wheel


def run_tox(row: Row, version: str, python: Path, wheel: Path, arguments: Sequence[str]) -> None:
    """Run tox's environment for a version with the interpreter that was found."""
    row.python = _version(str(python))
    name = f"py{version.replace('.', '')}"
    argv = [
        sys.executable, "-m", "tox", "run", "-e", name, "--installpkg", str(wheel),
        "--discover", str(python), "--skip-missing-interpreters", "false",
        "--", f"--junitxml={report(name)}", *arguments,
    ]  # fmt: skip
    run(row, argv, name, {})


def run_in_root(row: Row, version: str, wheel: Path, roots: Path, arguments: Sequence[str]) -> None:
    """Run the same in a root of sid, if that has this version."""
    if shutil.which("bwrap") is None or os.geteuid() != 0:
        row.result = "not present"
        return
    root = make_root(SUITES[-1], roots, f"{SUITES[-1].name}-tests", PACKAGES)
    if not (root / f"usr/bin/python{version}").exists():
        row.result = "not present"
        return
    row.system = f"Debian {SUITES[-1].name}"
    name = f"py{version.replace('.', '')}"
    library = BUILD / f"{name}-packages"
    _install(version, wheel, library)
    inside = _inside(root, library, version)
    row.python = _version(*inside, f"python{version}")
    row.qemu = version_of(*inside, "qemu-system-x86_64")
    # fmt: off
    argv = [
        *inside, f"python{version}", "-m", "pytest", "-q", "-p", "no:cacheprovider",
        "-m", "not slow", f"--junitxml={report(name)}", *arguments,
    ]
    # fmt: on
    run(row, argv, name, {})


def _install(version: str, wheel: Path, place: Path) -> None:
    """Let pip fetch for that Python what tox would install, without running it."""
    shutil.rmtree(place, ignore_errors=True)
    argv = [
        sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check",
        "--target", str(place), "--python-version", version, "--only-binary=:all:",
        f"{wheel}[cli]", "--group", "test",
    ]  # fmt: skip
    say(f"    installing the wheel and the tests' packages in {place.relative_to(TOP)}")
    done = subprocess.run(argv, check=False, cwd=TOP, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"pip install for Python {version} failed:\n{done.stderr[-2000:]}")
    # pip's own script would run the Python that pip runs on.
    script = place / "bin" / "virtnic"
    script.write_text(f'#!/bin/sh\nexec python{version} -m virtnic.cli "$@"\n')
    script.chmod(0o755)


def _inside(root: Path, library: Path, version: str) -> list[str]:
    """Return what runs a command in a root, with all of the machine but its files."""
    packages = f"/usr/local/lib/python{version}/dist-packages"  # where Debian's Python looks
    return [
        "bwrap", "--die-with-parent", "--cap-add", "ALL", "--bind", str(root), "/",
        "--dev-bind", "/dev", "/dev", "--bind", "/proc", "/proc", "--bind", "/sys", "/sys",
        "--perms", "1777", "--tmpfs", "/tmp", "--tmpfs", "/run",
        "--ro-bind", str(TOP), str(TOP), "--bind", str(BUILD), str(BUILD), "--chdir", str(TOP),
        "--ro-bind", str(library), packages, "--ro-bind", str(library / "bin"), "/usr/local/bin",
        "--clearenv", "--setenv", "PATH", "/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        "--setenv", "HOME", "/root", "--setenv", "PYTHONDONTWRITEBYTECODE", "1",
        "--setenv", "LC_ALL", "C.UTF-8", "--",
    ]  # fmt: skip
