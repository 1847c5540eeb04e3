"""What of our surroundings reaches QEMU: environment variables, and what the kernel denies us."""

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

#: What the dynamic loader obeys (ld.so(8)), and so decides whether QEMU starts; and what
#: separates the paths in it.
_LOADER = {"LD_LIBRARY_PATH": "[:;]", "LD_PRELOAD": "[: ]"}


def for_qemu() -> dict[str, str]:
    """Return the environment to start QEMU with.

    A program that is a bundle has its own libraries in the loader's variables, and QEMU would
    start with those. PyInstaller keeps what was there before under the same name and ``_ORIG``;
    where nothing was, or another tool made the bundle, what lies inside of it is left out.
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
    """Whether memory that is writable must not be executable, here and in what we start.

    So it is under systemd's ``MemoryDenyWriteExecute=``, PR_SET_MDWE and SELinux's execmem.
    """
    try:
        mmap.mmap(-1, 1, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC).close()
    except PermissionError:
        return True
    return False


def libraries() -> str:
    """Return what tells QEMU's loader where to look, in words; empty where nothing does."""
    environment = for_qemu()
    return " and ".join(f"{name}={environment[name]}" for name in _LOADER if name in environment)


def _bundles(environment: Mapping[str, str]) -> list[Path]:
    """Return the directories that hold our program with its libraries, if it is such a one."""
    # PyInstaller's, where it unpacks itself, and AppImage's.
    found = (getattr(sys, "_MEIPASS", None), environment.get("APPDIR"))
    return [Path(place) for place in found if place]


def _is_in(path: str, bundles: list[Path]) -> bool:
    return any(Path(path).is_relative_to(bundle) for bundle in bundles)
