"""The environment of QEMU: variables, and restrictions by the kernel."""

from __future__ import annotations

import mmap
import os
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["for_qemu", "forbids_jit", "libraries"]

#: Variables of the dynamic loader (ld.so(8)), which can keep QEMU from starting, and the separator
#: of their paths.
_LOADER = {"LD_LIBRARY_PATH": "[:;]", "LD_PRELOAD": "[: ]"}


def for_qemu() -> dict[str, str]:
    """Return the environment to start QEMU with.

    A bundled program sets the loader's variables to its own libraries, which QEMU must not use.
    PyInstaller keeps the original value under the same name with ``_ORIG``; without one, or with
    another bundling tool, paths inside the bundle are removed.
    """
    environment = dict(os.environ)
    bundles = _bundles(environment)
    for name, separator in _LOADER.items():
        original = environment.get(f"{name}_ORIG")
        if original is not None:
            environment[name] = original
        elif name in environment:
            paths = re.split(separator, environment[name])
            environment[name] = ":".join(path for path in paths if not _is_in(path, bundles))
        if not environment.get(name, "-"):
            del environment[name]
    return environment


def forbids_jit() -> bool:
    """Whether memory must not be both writable and executable, here and in child processes.

    So it is under systemd's ``MemoryDenyWriteExecute=``, PR_SET_MDWE and SELinux's execmem.
    """
    try:
        mmap.mmap(-1, 1, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC).close()
    except PermissionError:
        return True
    return False


def libraries() -> str:
    """Return the loader's variables as text; empty if none is set."""
    environment = for_qemu()
    return " and ".join(f"{name}={environment[name]}" for name in _LOADER if name in environment)


def _bundles(environment: Mapping[str, str]) -> list[Path]:
    """Return the directories of the bundle that the program runs from, if any."""
    # PyInstaller's unpacking directory, and AppImage's.
    found = (getattr(sys, "_MEIPASS", None), environment.get("APPDIR"))
    return [Path(place) for place in found if place]


def _is_in(path: str, bundles: list[Path]) -> bool:
    return any(Path(path).is_relative_to(bundle) for bundle in bundles)
