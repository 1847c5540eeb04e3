"""Run the container tests, each with its own root: ``python tools/containers``.

The roots of program, QEMU and DPDK's backend are three Debian systems that mmdebstrap makes
under .cache/roots/containers; the program's has virtnic as it is built here. Then pytest
runs ``test_containers.py``, where each container has its root instead of the host's ``/usr``.
"""

import argparse
import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path

TOP = Path(__file__).resolve().parents[2]
#: The packages of each container, in addition to Debian's essential ones.
PACKAGES = {"program": "python3", "qemu": "qemu-system-x86", "backend": "dpdk-dev"}
#: Where the program's container has virtnic.
LIBRARY = "opt/virtnic"


def say(text: str) -> None:
    """Report progress."""
    print(text, file=sys.stderr, flush=True)


def make_root(name: str, suite: str, roots: Path) -> None:
    """Unpack a system with the packages of a container, unless it is there."""
    root = roots / name
    if root.exists():
        return
    if shutil.which("mmdebstrap") is None:
        raise SystemExit("mmdebstrap is missing: apt-get install mmdebstrap")
    say(f"{name}: making a root of Debian {suite} with {PACKAGES[name]}")
    roots.mkdir(parents=True, exist_ok=True)
    # Made aside and renamed when complete: an interrupted run leaves no half root.
    partial = roots / f"{name}.partial"
    shutil.rmtree(partial, ignore_errors=True)
    argv = ["mmdebstrap", "--quiet", "--variant=apt", f"--include={PACKAGES[name]}"]
    # fmt: off
    argv += [
        "--dpkgopt=path-exclude=/usr/share/doc/*", "--dpkgopt=path-exclude=/usr/share/man/*",
        suite, str(partial),
    ]
    # fmt: on
    subprocess.run(argv, check=True)
    shutil.rmtree(partial / "var/cache/apt", ignore_errors=True)
    # What bwrap mounts something at has to be there: the root is read-only.
    for place in ("srv/net", "run/virtnic", "sockets", "sys", "proc", "dev", "tmp", LIBRARY):
        (partial / place).mkdir(parents=True, exist_ok=True)
    partial.rename(root)


def install(root: Path) -> None:
    """Put virtnic, what it imports and what the tests do with it into the program's root."""
    library = root / LIBRARY
    shutil.rmtree(library)
    library.mkdir()
    spec = importlib.util.find_spec("qemu.qmp")
    if spec is None or spec.origin is None:
        raise SystemExit("qemu.qmp is not installed here; run `make build`")
    ignore = shutil.ignore_patterns("__pycache__")
    shutil.copytree(TOP / "python/virtnic", library / "virtnic", ignore=ignore)
    shutil.copytree(Path(spec.origin).parent, library / "qemu/qmp", ignore=ignore)
    shutil.copytree(TOP / "tests/support", library / "support", ignore=ignore)


def main() -> int:
    """Make the roots and run the tests."""
    parser = argparse.ArgumentParser(
        prog="python tools/containers",
        description="Run test_containers.py with a Debian root for each container.",
        epilog="Arguments after -- go to pytest, as in: -- -k killed -x",
    )
    parser.add_argument("--suite", default="trixie", help="the Debian release (%(default)s)")
    parser.add_argument(
        "--roots", type=Path, default=TOP / ".cache/roots/containers", help="where they are kept"
    )
    parser.add_argument("pytest", nargs="*", help="arguments for pytest")
    options = parser.parse_args()
    roots = options.roots.resolve() / options.suite
    for name in PACKAGES:
        make_root(name, options.suite, roots)
    install(roots / "program")
    argv = [
        sys.executable,
        "-m",
        "pytest",
        "-p",
        "no:cacheprovider",
        "tests/jobs/test_containers.py",
    ]
    done = subprocess.run(
        [*argv, *options.pytest],
        check=False,
        cwd=TOP,
        env={**os.environ, "CI": "true", "VIRTNIC_TEST_ROOTS": str(roots)},
    )
    return done.returncode


if __name__ == "__main__":
    sys.exit(main())
