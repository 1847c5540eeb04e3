"""Start a QEMU as `virtnic qemu-args` says, and connect to it."""

import contextlib
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import virtnic
from peers.process import mortal
from support.frames import arp_request, is_arp_reply
from virtnic.qemu.command import Accel

#: On both machine types: the fixture `machine`.
both_machines = pytest.mark.parametrize("machine", ["pc", "q35"], indirect=True)


def memory() -> virtnic.Memory:
    """Return memory that does not depend on free hugepages."""
    return virtnic.Memory("32M", hugepages=None)


def connect(directory: Path, **options: Any) -> virtnic.Qemu:
    """Connect with such a memory."""
    return virtnic.Qemu.connect(directory, memory(), **options)


def arp(port: virtnic.Port) -> None:
    """Ask slirp for its address, with timers that may only just have started."""
    deadline = time.monotonic() + 20.0
    while time.monotonic() < deadline:
        port.send([arp_request(port.mac)])
        if any(is_arp_reply(frame) for frame in port.recv(64, timeout=0.5)):
            return
    pytest.fail(f"slirp does not answer: {port.stats()}")


@contextlib.contextmanager
def shared(scratch: Path) -> Iterator[Path]:
    """Make the directory that is shared with QEMU; only QEMU's own files may remain in it."""
    path = scratch / "shared"
    path.mkdir(mode=0o700)
    yield path
    left = {file.name for file in path.iterdir()}
    for file in path.iterdir():
        file.unlink()
    path.rmdir()
    assert left <= {"qemu.pid", "qmp.sock", "qtest.sock"}


class Starter:
    """Starts what ``virtnic qemu-args`` says, with more options of QEMU, and ends it."""

    def __init__(self, directory: Path, machine: str, qemu: str, accel: Accel) -> None:
        command = [sys.executable, "-m", "virtnic.cli", "qemu-args", "--json", "--qemu", qemu]
        command += ["--directory", str(directory), "--machine", machine, "--accel", accel]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        self._argv: list[str] = json.loads(done.stdout)["argv"]
        self._processes: list[subprocess.Popen[bytes]] = []

    def __call__(self, *extra: str, name: str | None = None) -> "subprocess.Popen[bytes]":
        """Start one, optionally under another name."""
        argv = [*self._argv, *extra]
        if name is not None:
            argv[argv.index("-name") + 1] = name
        process = subprocess.Popen(mortal(argv), stdin=subprocess.DEVNULL)
        self._processes.append(process)
        return process

    def close(self) -> None:
        """End all."""
        for process in self._processes:
            process.kill()
            process.wait(20.0)


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
def running(start: Starter) -> "subprocess.Popen[bytes]":
    """A QEMU that somebody else started."""
    return start()


def in_the_way(qemu: virtnic.Qemu) -> list[str]:
    """Return the devices and objects in QEMU that belong to programs."""
    found = [item["name"] for item in qemu.execute("qom-list", path="/machine/peripheral")]
    found += [chardev["label"] for chardev in qemu.execute("query-chardev")]
    words: dict[str, Any] = {"command-line": "info network"}
    return [*found, qemu.execute("human-monitor-command", **words)]
