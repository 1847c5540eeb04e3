"""A QEMU that somebody else started, for the tests that connect to one."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

import pytest

from peers.elsewhere import Starter, shared

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Iterator
    from pathlib import Path

    from virtnic.qemu.command import Accel


@pytest.fixture
def directory(scratch: Path) -> Iterator[Path]:
    """The directory that we share with QEMU."""
    with shared(scratch) as path:
        yield path


@pytest.fixture
def machine(request: pytest.FixtureRequest) -> str:
    """The machine type: that of a test on both, else the usual one."""
    return str(getattr(request, "param", "pc"))


@pytest.fixture
def start(directory: Path, machine: str, qemu_command: str, accel: Accel) -> Iterator[Starter]:
    """Start what ``virtnic qemu-args`` says."""
    with contextlib.closing(Starter(directory, machine, qemu_command, accel)) as start:
        yield start


@pytest.fixture
def running(start: Starter) -> subprocess.Popen[bytes]:
    """A QEMU that somebody else started."""
    return start()
