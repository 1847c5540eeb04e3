"""Run a command in a virtual machine whose root is this machine's own: ``make vm``.

The machine has kernel modules that this one may lack: vhost-net, vDPA. It runs under TCG, so that
it needs no KVM, and boots in seconds. Its root is this machine's, read-only, by virtiofs; /tmp,
/run and /dev are its own, and build/vm is shared for results. Without a command it runs pytest on
tests/vm. The status is the command's; 125 if the machine itself failed.
"""

from __future__ import annotations

import argparse
import hashlib
import inspect
import sys
from pathlib import Path

from vm import initramfs
from vm import kernel as kernels
from vm.machine import Failed, Machine

TOP = Path(__file__).resolve().parents[2]
CACHE = TOP / ".cache/vm"
RESULTS = TOP / "build/vm"
#: What is run by default. Emulation is slow: a test may take longer than on this machine.
TESTS = [
    *(".venv/bin/python", "-m", "pytest", "-p", "no:cacheprovider", "-o", "timeout=600"),
    *("--color=no", "-v", "tests/vm"),
]
QUICK = ["-m", "not slow"]
#: As env(1) and others: the program that was to run another has failed.
FAILED = 125


def say(text: str) -> None:
    """Report progress."""
    print(f"vm: {text}", file=sys.stderr, flush=True)


def prepare(package: str | None) -> tuple[Path, Path]:
    """Return a kernel and its initramfs; make what is not in the cache."""
    # What an earlier run has got is good enough: apt may be slow, or have no network.
    got = sorted(
        (path for path in CACHE.glob("linux-image-*") if path.suffix != ".partial"),
        key=lambda path: path.stat().st_mtime,
    )
    package = package or (got[-1].name if got else kernels.newest())
    kernel = kernels.Kernel(package, kernels.unpack(package, CACHE, say))
    busybox = kernels.unpack("busybox-static", CACHE, say) / "bin/busybox"
    if not busybox.exists():
        busybox = busybox.parents[1] / "usr/bin/busybox"
    version = hashlib.sha256(inspect.getsource(initramfs).encode()).hexdigest()[:12]
    file = CACHE / f"initramfs-{package}-{version}"
    if not file.exists():
        say(f"packing {file.name}")
        content, missing = initramfs.base(kernel, busybox)
        if missing:
            say(f"{package} has no {', '.join(missing)}")
        for old in CACHE.glob(f"initramfs-{package}-*"):
            old.unlink()
        partial = file.with_suffix(".partial")
        partial.write_bytes(content)
        partial.rename(file)
    return kernel.image, file


def main() -> int:
    """Boot, run, and return the status."""
    parser = argparse.ArgumentParser(
        prog="make vm", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kernel", metavar="PACKAGE", help="Debian package with the kernel")
    parser.add_argument("--cpus", type=int, default=2, help="processors (%(default)s)")
    parser.add_argument("--memory", default="2G", help="as QEMU's -m (%(default)s)")
    parser.add_argument("--hugepages", type=int, default=128, help="of 2 MiB (%(default)s)")
    parser.add_argument(
        "--limit", type=float, default=900, metavar="SECONDS", help="end after (%(default)g)"
    )
    parser.add_argument("--prepare", action="store_true", help="only get the kernel; do not boot")
    parser.add_argument("--quick", action="store_true", help="leave out the tests marked slow")
    parser.add_argument("command", nargs="*", help="what to run (default: pytest tests/vm)")
    arguments = parser.parse_args()
    image, packed = prepare(arguments.kernel)
    if arguments.prepare:
        return 0
    machine = Machine(
        kernel=image,
        initramfs=packed,
        folder=TOP,
        results=RESULTS,
        processors=arguments.cpus,
        memory=arguments.memory,
        hugepages=arguments.hugepages,
    )
    command = arguments.command or TESTS + QUICK * arguments.quick
    try:
        return machine.run(command, arguments.limit, say)
    except Failed as error:
        say(str(error))
        return FAILED


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
