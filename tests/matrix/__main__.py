"""Run the end-to-end tests on several QEMUs: ``python tests/matrix --help``.

Each QEMU comes from a Debian release's own packages, unpacked by mmdebstrap under
.cache/roots and run through that root's own loader and libraries, so neither a
container nor a chroot is needed. For each, and for each accelerator that it has,
pytest runs the tests marked ``matrix``; one table says how that went.
"""

import argparse
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import time
import xml.etree.ElementTree as ET
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

TOP = Path(__file__).resolve().parents[2]
LIBRARIES = (
    "usr/lib/x86_64-linux-gnu",
    "lib/x86_64-linux-gnu",
    "usr/lib/x86_64-linux-gnu/pulseaudio",
)
LOADERS = ("usr/lib/x86_64-linux-gnu/ld-linux-x86-64.so.2", "lib/x86_64-linux-gnu/ld-2.31.so")


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


@dataclass
class Row:
    """One line of the table."""

    suite: str
    qemu: str
    accel: str
    result: str
    passed: int = 0
    failed: int = 0
    skipped: int = 0
    seconds: float = 0.0


def say(text: str) -> None:
    """Report progress."""
    print(text, file=sys.stderr, flush=True)


def make_root(suite: Suite, roots: Path) -> Path:
    """Unpack a release's QEMU, unless it is there, and return its root."""
    root = roots / suite.name
    if (root / "usr/bin/qemu-system-x86_64").exists():
        return root
    if shutil.which("mmdebstrap") is None:
        raise SystemExit("mmdebstrap is missing: apt-get install mmdebstrap")
    roots.mkdir(parents=True, exist_ok=True)
    # Made aside and renamed when complete: an interrupted run leaves no half root.
    partial = roots / f"{suite.name}.partial"
    shutil.rmtree(partial, ignore_errors=True)
    # A mirror may lag behind: a rolling release is then "expired" after a week.
    options = ['--aptopt=Acquire::Check-Valid-Until "false"'] if suite.rolling else []
    argv = [
        "mmdebstrap", "--quiet", "--variant=apt", "--include=qemu-system-x86", *options,
        suite.name, str(partial),
    ]  # fmt: skip
    say(f"{suite.name}: making a root with QEMU {suite.expects} (about half a minute)")
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
    argv += ["-L", str(root / "usr/share/qemu"), "-L", str(root / "usr/share/seabios")]
    wrapper = root.with_name(f"qemu-{root.name}")
    wrapper.write_text(
        f"#!/bin/sh\nexport QEMU_MODULE_DIR={shlex.quote(str(modules))}\n"
        f'exec {shlex.join(argv)} "$@"\n'
    )
    wrapper.chmod(0o755)
    return wrapper


def version_of(qemu: Path) -> str:
    """Ask a QEMU for its version."""
    output = subprocess.run(
        [str(qemu), "--version"], check=True, capture_output=True, text=True
    ).stdout
    match = re.search(r"version (\d+\.\d+(?:\.\d+)?)", output)
    if match is None:
        raise RuntimeError(f"{qemu} --version said: {output}")
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


def run_tests(suite: Suite, qemu: Path, accel: str, arguments: Sequence[str]) -> Row:
    """Run the marked tests on one QEMU with one accelerator."""
    version = version_of(qemu)
    if not has_accelerator(qemu, accel):
        return Row(suite.name, version, accel, "not in this build")
    report = TOP / "build" / "matrix" / f"{suite.name}-{accel}.xml"
    report.parent.mkdir(parents=True, exist_ok=True)
    report.unlink(missing_ok=True)
    argv = [
        sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-m", "matrix",
        f"--qemu={qemu}", f"--accel={accel}", f"--junitxml={report}", *arguments,
    ]  # fmt: skip
    say(f"{suite.name}: QEMU {version}, {accel}")
    started = time.monotonic()
    done = subprocess.run(
        argv, check=False, cwd=TOP, stdin=subprocess.DEVNULL, capture_output=True, text=True
    )
    row = Row(suite.name, version, accel, "ok", seconds=round(time.monotonic() - started, 1))
    if not report.exists():
        row.result = "pytest failed"
    else:
        for case in ET.parse(report).getroot().iter("testcase"):
            outcomes = {child.tag for child in case}
            if outcomes & {"failure", "error"}:
                row.failed += 1
            elif "skipped" in outcomes:
                row.skipped += 1
            else:
                row.passed += 1
        if row.failed:
            row.result = "FAILED"
        elif not row.passed:
            row.result = "nothing ran"
    if row.result != "ok":
        say(done.stdout[-8000:] + done.stderr[-2000:])
    return row


def table(rows: Sequence[Row]) -> str:
    """Lay the rows out in columns."""
    head = ("QEMU", "Debian", "accel", "passed", "failed", "skipped", "seconds", "result")
    lines = [head] + [
        (
            row.qemu, row.suite, row.accel, str(row.passed), str(row.failed), str(row.skipped),
            f"{row.seconds:.1f}", row.result,
        )
        for row in rows
    ]  # fmt: skip
    widths = [max(len(line[column]) for line in lines) for column in range(len(head))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in lines
    )


def main() -> int:
    """Run everything and print the table."""
    names = [suite.name for suite in SUITES]
    parser = argparse.ArgumentParser(
        prog="python tests/matrix",
        description="Run the tests marked 'matrix' on the QEMUs of several Debian releases.",
        epilog="Arguments after -- go to pytest, as in: -- -k dhcp -x",
    )
    parser.add_argument(
        "--suite", action="append", choices=names, help="only this release; repeatable"
    )
    parser.add_argument(
        "--accel", action="append", choices=("qtest", "tcg"), help="only this one; repeatable"
    )
    parser.add_argument(
        "--roots", type=Path, default=TOP / ".cache/roots", help="where the roots are kept"
    )
    parser.add_argument("--output", type=Path, default=TOP / "build/matrix.json", help="the result")
    parser.add_argument("pytest", nargs="*", help="arguments for pytest")
    options = parser.parse_args()

    rows: list[Row] = []
    for suite in SUITES:
        if options.suite and suite.name not in options.suite:
            continue
        try:
            qemu = make_wrapper(make_root(suite, options.roots.resolve()))
            rows += [
                run_tests(suite, qemu, accel, options.pytest)
                for accel in options.accel or ("qtest", "tcg")
            ]
        except (OSError, RuntimeError, subprocess.CalledProcessError) as error:
            say(f"{suite.name}: {error}")
            rows.append(Row(suite.name, suite.expects, "-", "no QEMU"))

    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(json.dumps([asdict(row) for row in rows], indent=2) + os.linesep)
    print(table(rows))
    bad = [row for row in rows if row.result not in ("ok", "not in this build")]
    return 1 if bad or not any(row.passed for row in rows) else 0


if __name__ == "__main__":
    sys.exit(main())
