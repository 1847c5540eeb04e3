"""Build the wheels and the source distribution, check them, and test them in minimal systems.

Each wheel is for one architecture and one C library. The stable ABI wheels work with every Python
from 3.11 on, the others with free-threaded Python 3.14. Steps that this machine cannot run are
listed as such, and are failures with CI=true.
"""

import argparse
import os
import shutil
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from . import build, checks, trial

#: The output directory, for `pip install --find-links` and for uploading.
DIST = build.TOP / "dist"


@dataclass
class Row:
    """A row of the table of results."""

    name: str
    result: str
    seconds: float = 0.0
    size: int = 0


def arguments() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        prog="make wheels ARGS='…'",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    names = [platform.name for platform in build.PLATFORMS]
    # fmt: off
    parser.add_argument(
        "--platform", action="append", choices=names, metavar="PLATFORM",
        help=f"only this one; repeatable: {', '.join(names)}",
    )
    parser.add_argument(
        "--abi", action="append", choices=(build.STABLE, build.FREE_THREADED),
        help="only this one; repeatable",
    )
    parser.add_argument(
        "--no-build", action="store_true", help=f"take the wheels that are in {DIST.name}/"
    )
    parser.add_argument(
        "--try", action="store_true", dest="trial",
        help="install each in bare Debian systems and send a ping as an ordinary user",
    )
    parser.add_argument(
        "--roots", type=Path, default=build.TOP / ".cache/roots", help="where those are kept"
    )
    # fmt: on
    options = parser.parse_args()
    options.platform = options.platform or names
    options.abi = options.abi or [build.STABLE, build.FREE_THREADED]
    options.roots = options.roots.resolve()
    return options


def say(text: str) -> None:
    """Report progress."""
    print(text, file=sys.stderr, flush=True)


def attempt(name: str, job: Callable[[], tuple[str, int]]) -> Row:
    """Run a job that returns its errors and a size."""
    say(f"{name} …")
    began = time.monotonic()
    try:
        wrong, size = job()
        row = Row(name, wrong or "ok", size=size)
    except (OSError, RuntimeError, ValueError) as error:
        row = Row(name, f"could not: {error}")
    row.seconds = time.monotonic() - began
    say(f"    {row.result}, {row.seconds:.1f} s")
    return row


def wanted(options: argparse.Namespace) -> list[tuple[build.Platform, str]]:
    """Return the requested platforms and ABIs."""
    platforms = [each for each in build.PLATFORMS if each.name in options.platform]
    return [(platform, abi) for abi in options.abi for platform in platforms]


def built(platform: build.Platform, abi: str) -> tuple[str, int]:
    """Build one wheel and check it."""
    return checked(build.build(platform, abi, DIST), checks.WHEEL)


def checked(file: Path, all_checks: tuple[Callable[[Path], str], ...]) -> tuple[str, int]:
    """Return the errors that the checks found, and the size."""
    found = [f"{check.__name__}: {wrong}" for check in all_checks if (wrong := check(file))]
    return "; ".join(found), file.stat().st_size


def main() -> int:
    """Run the requested steps, and print the table of results."""
    options = arguments()
    rows: list[Row] = []
    with build.directory(DIST):
        if not options.no_build:
            rows += [
                attempt(f"{abi} {platform.name}", partial(built, platform, abi))
                for platform, abi in wanted(options)
            ]
            rows.append(attempt("sources", lambda: checked(build.sdist(DIST), checks.SDIST)))
        if options.trial:
            rows += [
                attempt(f"in {place.name}", partial(trial.run, place, DIST, options.roots))
                for place in trial.PLACES
            ]
    width = max((len(row.name) for row in rows), default=0)
    for row in rows:
        size = f"{row.size / 1e6:6.2f} MB" if row.size else " " * 9
        print(f"{row.name:<{width}}  {row.seconds:6.1f} s  {size}  {row.result}")
    bad = [row for row in rows if row.result != "ok"]
    not_here = all(row.result.startswith("not here") for row in bad)
    return 1 if bad and (os.environ.get("CI") == "true" or not not_here) else 0


if __name__ == "__main__":
    if shutil.which("cargo") is None:
        sys.exit("cargo is missing: install Rust")
    sys.exit(main())
