"""Checks of a built wheel. Each check returns what is wrong, or an empty string."""

import os
import re
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

from elftools.elf.elffile import ELFFile
from elftools.elf.gnuversions import GNUVerNeedSection

from .build import TOP

#: The largest size of a wheel in bytes. Optimising everything but the core for size would save a
#: tenth, but cost speed.
LARGEST = 2_000_000
_GLIBC = re.compile(r"manylinux_(\d+)_(\d+)")


def _tool(*arguments: str) -> str:
    """Run a packaging tool; return its output if it fails."""
    done = subprocess.run(
        [sys.executable, "-m", *arguments], check=False, capture_output=True, text=True
    )
    return "" if done.returncode == 0 else (done.stdout + done.stderr).strip()[-1500:]


def metadata(wheel: Path) -> str:
    """Run twine's check: the README renders, and the metadata are complete."""
    return _tool("twine", "check", "--strict", str(wheel))


def contents(wheel: Path) -> str:
    """Run check-wheel-contents: no stray files."""
    # Two top-level names are intended: the package, and the launcher that runs before its imports.
    return _tool("check_wheel_contents", "--toplevel", "virtnic,_virtnic", str(wheel))


def stable_abi(wheel: Path) -> str:
    """Run abi3audit: no CPython symbol outside the stable ABI in the wheel's name."""
    return _tool("abi3audit", "--strict", str(wheel)) if "-abi3-" in wheel.name else ""


def size(wheel: Path) -> str:
    """Check that the wheel is not too large."""
    found = wheel.stat().st_size
    return f"{found:,} bytes, more than {LARGEST:,}" if found > LARGEST else ""


def paths(wheel: Path) -> str:
    """Check that no file contains a path of this machine."""
    home = str(Path.home())
    wanted = [each.encode() for each in {str(TOP), home, os.environ.get("CARGO_HOME", home)}]
    with zipfile.ZipFile(wheel) as archive:
        bad = [
            f"{name}: {found.decode()}"
            for name in archive.namelist()
            for found in wanted
            if len(found) > 1 and found + b"/" in archive.read(name)
        ]
    return "; ".join(bad)


def bill(wheel: Path) -> str:
    """Check that there is a software bill of materials."""
    with zipfile.ZipFile(wheel) as archive:
        found = [name for name in archive.namelist() if name.endswith(".cyclonedx.json")]
    return "" if found else "no software bill of materials"


def library(wheel: Path) -> str:
    """Check that the module is stripped, and needs no newer C library than the wheel's tag."""
    bad = []
    with zipfile.ZipFile(wheel) as archive:
        for name in archive.namelist():
            if not name.endswith(".so"):
                continue
            with archive.open(name) as file:
                elf = ELFFile(file)
                if elf.get_section_by_name(".symtab") or elf.get_section_by_name(".debug_info"):
                    bad.append(f"{name} is not stripped")
                promised = _GLIBC.search(wheel.name)
                newest = max(_needs(elf), default=(0, 0))
                if promised is None and newest != (0, 0):
                    bad.append(f"{name} needs GLIBC_{newest[0]}.{newest[1]}, and is not for it")
                elif promised is not None and newest > (int(promised[1]), int(promised[2])):
                    bad.append(f"{name} needs GLIBC_{newest[0]}.{newest[1]}")
    return "; ".join(bad)


def _needs(elf: ELFFile) -> Iterator[tuple[int, int]]:
    section = elf.get_section_by_name(".gnu.version_r")
    if not isinstance(section, GNUVerNeedSection):
        return
    for _file, versions in section.iter_versions():
        for version in versions:
            if version.name.startswith("GLIBC_"):
                major, minor = version.name.removeprefix("GLIBC_").split(".")[:2]
                yield int(major), int(minor)


def sources(archive: Path) -> str:
    """Check that the sources are complete for building, without tests and documentation."""
    with tarfile.open(archive) as tar:
        names = {name.partition("/")[2] for name in tar.getnames()}
    missing = {"pyproject.toml", "Cargo.lock", "README.md", "LICENSE-MIT", "LICENSE-APACHE"} - names
    extra = sorted({name.split("/")[0] for name in names} & {"tests", "tools", "docs", ".ci"})
    bad = [f"{name} is missing" for name in sorted(missing)]
    return "; ".join([*bad, *(f"{name}/ does not belong there" for name in extra)])


WHEEL: tuple[Callable[[Path], str], ...] = (
    metadata, contents, stable_abi, size, paths, bill, library,
)  # fmt: skip
SDIST: tuple[Callable[[Path], str], ...] = (metadata, sources)
