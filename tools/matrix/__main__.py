"""Test results for every QEMU and Python in one table.

First the tests of `--kind` that start a QEMU, on each QEMU with each accelerator that it
has. Then the quick tests of tox with each Python, from one abi3 wheel, on the machine's QEMU.
"""

import argparse
import json
import platform
import shlex
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

from peers.components import qemu_command

from . import pythons
from .qemus import SUITES, Suite, has_accelerator, make_root, make_wrapper, version_of
from .rows import KINDS, TOP, Row, files_of, report, run, say, table

ACCELERATORS = ("qtest", "tcg")


def arguments() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        prog="make matrix ARGS='…'",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="Arguments after -- go to pytest, as in: --suite sid -- -k dhcp -x. "
        "Ctrl-C ends the row that runs and prints the table so far; again: at once.",
    )
    # fmt: off
    parser.add_argument(
        "--suite", action="append", choices=[suite.name for suite in SUITES],
        help="only the QEMU of this Debian release, and no Python unless asked for; repeatable",
    )
    parser.add_argument(
        "--accel", action="append", choices=ACCELERATORS, help="only this one; repeatable"
    )
    parser.add_argument(
        "--kind", action="append", choices=list(KINDS), default=[],
        help="only these tests on each QEMU; repeatable",
    )
    parser.add_argument(
        "--python", action="append", metavar="3.X",
        help="only this Python, and no QEMU unless asked for; repeatable",
    )
    # fmt: on
    parser.add_argument(
        "--roots", type=Path, default=TOP / ".cache/roots", help="where the roots are kept"
    )
    parser.add_argument("--output", type=Path, default=TOP / "build/matrix.json", help="the result")
    parser.add_argument("pytest", nargs="*", help="arguments for pytest")
    options = parser.parse_args()
    options.roots = options.roots.resolve()
    everything = not options.suite and not options.python
    options.suite = options.suite or ([suite.name for suite in SUITES] if everything else [])
    options.python = options.python or (pythons.versions() if everything else [])
    return options


class Matrix:
    """The rows that were asked for, one after the other."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.rows: list[Row] = []
        self._wheel: Path | None = None
        suites = [suite for suite in SUITES if suite.name in options.suite]
        self._planned: list[Callable[[Row], None]] = []
        for suite in suites:
            for accel in options.accel or ACCELERATORS:
                self._plan(self._qemu(suite, accel), suite.expects, accel, suite)
        for version in options.python:
            self._plan(self._python(version), "", "auto", None, version)

    def _plan(
        self, job: Callable[[Row], None], qemu: str, accel: str, suite: Suite | None,
        python: str = platform.python_version(),
    ) -> None:  # fmt: skip
        system = f"Debian {suite.name}" if suite else "this one"
        self.rows.append(Row(qemu, accel, python, system))
        self._planned.append(job)

    def run(self) -> None:
        """Fill in all rows; a row that cannot run does not keep the others from it."""
        for number, (row, job) in enumerate(zip(self.rows, self._planned, strict=True), 1):
            say(f"[{number}/{len(self.rows)}] {row.name}")
            try:
                job(row)
            except (OSError, RuntimeError, subprocess.CalledProcessError) as error:
                row.result = "could not run"
                say(f"    {row.result}: {error}")
            if row.result.startswith("not "):
                say(f"    {row.result}")

    def _qemu(self, suite: Suite, accel: str) -> Callable[[Row], None]:
        def job(row: Row) -> None:
            qemu = make_wrapper(make_root(suite, self.options.roots))
            row.qemu = version_of(str(qemu))
            if not has_accelerator(qemu, accel):
                row.result = "not in this build"
                return
            name = f"{suite.name}-{accel}"
            argv = [
                sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider",
                "-m", "starts_qemu", f"--qemu={qemu}", f"--accel={accel}",
                f"--junitxml={report(name)}", *files_of(self.options.kind), *self.options.pytest,
            ]  # fmt: skip
            run(row, argv, name, {})

        return job

    def _python(self, version: str) -> Callable[[Row], None]:
        def job(row: Row) -> None:
            python = pythons.find(version)
            if self._wheel is None:
                say("    building the wheel")
                self._wheel = pythons.build_wheel()
            if python is None:
                row.qemu = "of sid"
                pythons.run_in_root(
                    row, version, self._wheel, self.options.roots, self.options.pytest
                )
                return
            row.qemu = version_of(*shlex.split(qemu_command()))
            pythons.run_tox(row, version, python, self._wheel, self.options.pytest)

        return job


def main() -> int:
    """Run everything, print the table and write it down."""
    options = arguments()
    # An interrupt, also where a shell started us in the background, which ignores it.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.default_int_handler)
    matrix = Matrix(options)
    interrupted = False
    try:
        matrix.run()
    except KeyboardInterrupt:
        interrupted = True
    options.output.parent.mkdir(parents=True, exist_ok=True)
    written = json.dumps([asdict(row) for row in matrix.rows], indent=2)
    options.output.write_text(written + "\n", encoding="utf-8")
    print(table(matrix.rows))
    if interrupted:
        return 130
    passed = any(row.result == "ok" for row in matrix.rows)
    return 1 if any(row.bad for row in matrix.rows) or not passed else 0


if __name__ == "__main__":
    sys.exit(main())
