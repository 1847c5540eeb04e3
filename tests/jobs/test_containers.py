"""Program, QEMU and vhost-user backend in three containers that share one directory.

The containers are real (:mod:`peers.sandbox`): own namespaces of every kind, own unprivileged
users, own roots, the directory at a path of its own in each. ``make containers`` runs the same
tests with a system's root made for each container.
"""

import contextlib
import dataclasses
import itertools
import json
import os
import re
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from peers.sandbox import (
    BACKEND,
    GROUP,
    NAMESPACES,
    PROGRAM,
    PYTHON,
    QEMU,
    Container,
    Program,
    ProgramError,
    Sandboxed,
    innermost,
    namespaces,
    shared_memory,
)
from peers.testpmd import Testpmd

pytestmark = pytest.mark.needs("root", "bwrap", "qemu", "testpmd")

READY = Path(__file__).resolve().parents[2] / "docs/containers"
#: What the program sees.
DIRECTORY = PROGRAM.shared_at
NETDEV = f"vhost-user,path={DIRECTORY}/vhu0"


class Containers:
    """Starts containers on one directory."""

    def __init__(self, directory: Path, stack: contextlib.ExitStack) -> None:
        self.directory = directory
        self._stack = stack

    def qemu(self, umask: str = "0", container: Container = QEMU) -> Sandboxed:
        """Start what ``virtnic qemu-args --script`` prints."""
        command = [sys.executable, "-m", "virtnic.cli", "qemu-args", "--script"]
        command += ["--directory", container.shared_at]
        script = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        script = re.sub(r"^umask 0$", f"umask {umask}", script, count=1, flags=re.MULTILINE)
        return self.run(container, ["sh", "-c", script])

    def run(self, container: Container, command: Sequence[str]) -> Sandboxed:
        """Start anything."""
        return self._stack.enter_context(Sandboxed(container, self.directory, command))

    def program(self, container: Container = PROGRAM) -> Program:
        """Start a program."""
        return self._stack.enter_context(Program(self.directory, container))

    def backend(self, name: str = "vhu0") -> Testpmd:
        """Start DPDK's backend, which listens at that name."""

        def contain(argv: list[str]) -> list[str]:
            script = f"umask 0; exec {shlex.join(argv)}"
            return BACKEND.argv(self.directory, ["sh", "-c", script])

        path = self.directory / name
        return self._stack.enter_context(
            Testpmd([path], seen_at=BACKEND.shared_at, contain=contain)
        )


@pytest.fixture
def containers(scratch: Path) -> Iterator[Containers]:
    """A shared directory, for the group that all three users have, and what starts containers."""
    directory = scratch / "shared"
    directory.mkdir()
    os.chown(directory, -1, GROUP)
    directory.chmod(0o2770)
    with contextlib.ExitStack() as stack:
        yield Containers(directory, stack)
    for left in directory.iterdir():
        left.unlink()
    directory.rmdir()


CONNECT = f"qemu = virtnic.Qemu.connect({DIRECTORY!r}, timeout=20)"


def wait_until(condition: Callable[[], bool], what: str, seconds: float = 10.0) -> None:
    """Wait for something to become true."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.02)


def inner(backend: Testpmd) -> int:
    """Return the process id of testpmd itself."""
    return innermost(backend.pid)


@pytest.mark.parametrize("ring", ["packed", "split"])
def test_three_containers(containers: Containers, ring: str) -> None:
    """A backend polls our rings, though it shares nothing with us but the directory."""
    program, qemu, backend = containers.program(), containers.qemu(), containers.backend()
    program.run(CONNECT)
    program.run(f"port = qemu.attach({NETDEV!r}, ring={ring!r})")
    assert program.run("result = (port.ring, port.link)") == [ring, True]
    program.run("echo(port, 5000)")
    stats = program.run("result = port.stats()")
    assert stats["tx_packets"] == stats["rx_packets"] == 5000
    wait_until(lambda: backend.stats()["TX-packets"] == 5000, "testpmd counts its frames")

    # That they are separate, said by the kernel.
    pids = {"here": os.getpid(), "program": program.pid, "qemu": qemu.pid, "be": inner(backend)}
    found = {name: namespaces(pid) for name, pid in pids.items()}
    for kind in NAMESPACES:
        assert len({each[kind] for each in found.values()}) == 4, f"{kind} in common: {found}"
    for name, container in (("program", PROGRAM), ("qemu", QEMU), ("be", BACKEND)):
        status = Path(f"/proc/{pids[name]}/status").read_text()
        assert f"Uid:\t{container.user}\t{container.user}" in status
        assert "CapEff:\t0000000000000000" in status
        mounts = Path(f"/proc/{pids[name]}/mounts").read_text()
        assert "hugetlbfs" not in mounts
        assert mounts.count("/shared") == 0
        assert f" {container.shared_at} " in mounts
    # The packet memory is all that any two of them share, and all three share it.
    memory = program.run("""
found = os.fstat(port.memory.fileno())
result = f"{os.major(found.st_dev):02x}:{os.minor(found.st_dev):02x}", str(found.st_ino)
""")
    maps = [shared_memory(pids[name]) for name in ("program", "qemu", "be")]
    for one, other in itertools.combinations(maps, 2):
        assert one & other == {tuple(memory)}
    program.run("qemu.close()")
    wait_until(
        lambda: tuple(memory) not in shared_memory(pids["qemu"]), "QEMU gives our memory back"
    )
    left = {path.name for path in containers.directory.iterdir()}
    assert left == {"qemu.pid", "qmp.sock", "qtest.sock", "vhu0"}


def test_other_netdevs_are_in_qemus_network(containers: Containers) -> None:
    """slirp is in QEMU's container: it answers though neither network has an interface."""
    program = containers.program()
    containers.qemu()
    program.run(CONNECT)
    for interrupts in ("msix", "intx", "none"):
        program.run(f"port = qemu.attach('user', interrupts={interrupts!r})")
        program.run("stack = virtnic.net.Stack(port); lease = stack.dhcp()")
        assert program.run("result = stack.ping(lease.gateway, timeout=20.0).seconds") is not None
        program.run("stack.close()")
        program.run("qemu.detach(port)")
    program.run("qemu.close()")


def test_a_program_that_was_killed_comes_back(containers: Containers) -> None:
    """What it left in QEMU is removed; the backend and QEMU never restart."""
    qemu, backend = containers.qemu(), containers.backend()
    numbers = {qemu.pid, inner(backend)}
    for _ in range(3):
        program = containers.program()
        program.run(CONNECT)
        program.run(f"port = qemu.attach({NETDEV!r}); other = qemu.attach('user')")
        assert program.run("result = len(machine_of(qemu).nics)") == 2
        program.run("echo(port, 1000)")
        program.kill()
    assert {qemu.pid, inner(backend)} == numbers


def test_a_qemu_that_was_killed_is_an_error_and_comes_back(containers: Containers) -> None:
    program, qemu = containers.program(), containers.qemu()
    containers.backend()
    program.run(CONNECT)
    program.run("died = []; machine_of(qemu).on_death(died.append); port = qemu.attach('user')")
    qemu.kill()
    with pytest.raises(ProgramError, match="QemuDied: the QEMU at /srv/net closed its sockets"):
        program.run("port.recv(1, timeout=10)")
    assert program.run("time.sleep(0.1); result = [type(e).__name__ for e in died]") == ["QemuDied"]
    with pytest.raises(ProgramError, match="QemuDied"):
        program.run("qemu.attach('user')")
    program.run("qemu.close()")
    containers.qemu()
    program.run(CONNECT)
    program.run(f"port = qemu.attach({NETDEV!r}); echo(port, 1000); qemu.close()")


def test_a_backend_that_was_killed_comes_back(containers: Containers) -> None:
    """The interposer's socket is made anew, and QEMU of another user may connect to it again."""
    program, _qemu, backend = containers.program(), containers.qemu(), containers.backend()
    program.run(CONNECT)
    program.run(f"port = qemu.attach({NETDEV!r}); echo(port, 1000)")
    backend.kill()
    wait_until(lambda: program.run("result = port.link") is False, "the link goes down")
    # testpmd 24.11 sometimes hangs when a frontend comes while it starts: it gets its name later.
    containers.backend(name="vhu1")
    (containers.directory / "vhu1").rename(containers.directory / "vhu0")
    wait_until(lambda: program.run("result = port.link") is True, "the link comes up", 20.0)
    program.run("echo(port, 1000); qemu.close()")


def test_the_ready_scripts(containers: Containers) -> None:
    """Those of docs/containers, and the program as its Containerfile starts it."""
    for container, script in ((QEMU, "start-qemu"), (BACKEND, "start-backend")):
        there = dataclasses.replace(container, shared_at="/run/virtnic")
        command = ["sh", "-c", (READY / script).read_text(), script]
        containers.run(there, command)
    program = dataclasses.replace(PROGRAM, shared_at="/run/virtnic")
    text = (READY / "Containerfile.program").read_text().partition("\nCMD ")[2]
    words = [
        *json.loads(text.replace("\\\n", "")),
        "--packets",
        "1000",
        "--seconds",
        "30",
        "--json",
    ]
    drop = containers.run(program, [PYTHON, "-m", "virtnic.cli", *words])
    assert json.loads(drop.output())["packets"] >= 1000


def test_users_without_a_common_group(containers: Containers) -> None:
    """A directory that all may write to does as well: its own place says who is all."""
    containers.directory.chmod(0o777)
    os.chown(containers.directory, 0, 0)
    program = containers.program()
    containers.qemu()
    containers.backend()
    program.run(CONNECT)
    program.run(f"port = qemu.attach({NETDEV!r}); echo(port, 1000); qemu.close()")


def test_sockets_without_permission(containers: Containers) -> None:
    """Each side's refusal names the socket and what to do."""
    qemu = containers.qemu(umask="077")
    wait_until((containers.directory / "qmp.sock").exists, "QEMU makes its socket")
    program = containers.program()
    with pytest.raises(ProgramError, match=r"PermissionError: .*qmp\.sock belongs to.*umask 0"):
        program.run(CONNECT)
    qemu.kill()
    containers.directory.chmod(0o700)
    with pytest.raises(ProgramError, match=r"PermissionError: .*may not"):
        program.run(CONNECT)


def test_a_directory_without_permission(containers: Containers) -> None:
    """Where sockets of ours cannot be made, or QEMU cannot connect to them."""
    containers.qemu()
    wait_until((containers.directory / "qtest.sock").exists, "QEMU makes its sockets")
    program = containers.program()
    containers.directory.chmod(0o2750)
    with pytest.raises(
        ProgramError, match=r"PermissionError: .*shmem\.sock.*writable for our sockets"
    ):
        program.run(CONNECT)
    containers.directory.chmod(0o1777)
    with pytest.raises(ProgramError, match=r"QemuError: .*Permission denied.*sticky bit"):
        program.run(CONNECT)
    containers.directory.chmod(0o2770)
    program.run(CONNECT)
    program.run("qemu.attach('user'); qemu.close()")
