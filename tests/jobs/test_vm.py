"""The virtual machine of ``make vm``, and in it what needs kernel modules."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from support.waiting import eventually

TOP = Path(__file__).resolve().parents[2]
#: A busy machine emulates slowly.
LONGEST = 2400

pytestmark = [
    pytest.mark.needs("vm", "netns"),
    pytest.mark.slow,
    pytest.mark.timeout(LONGEST),
]


def vm(*words: str) -> list[str]:
    """Return the command line of the program."""
    return [sys.executable, "-m", "vm", *words]


@pytest.fixture
def environment() -> dict[str, str]:
    """Where the program is found."""
    return {**os.environ, "PYTHONPATH": str(TOP / "tools")}


def test_the_status_is_the_commands(environment: dict[str, str]) -> None:
    """Its root is this machine's, read-only; it has the modules, and a folder for results."""
    script = (
        "set -e; test -c /dev/vhost-net; test -c /dev/net/tun; ! touch Makefile 2>/dev/null; "
        f"{sys.executable} -c 'import virtnic'; echo found; echo kept > build/vm/kept; exit 3"
    )
    kept = TOP / "build/vm/kept"
    done = subprocess.run(
        vm("--", "sh", "-c", script), check=False, env=environment, capture_output=True, text=True
    )
    assert (done.returncode, done.stdout.split()) == (3, ["found"]), done.stderr
    assert kept.read_text() == "kept\n"
    kept.unlink()


def test_ctrl_c_leaves_nothing(environment: dict[str, str]) -> None:
    """Neither a QEMU nor what shares the root."""
    with subprocess.Popen(vm("--", "sleep", "600"), env=environment) as process:
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
        assert eventually(lambda: len(children.read_text().split()) == 3)
        pids = children.read_text().split()
        process.send_signal(signal.SIGINT)
        assert process.wait() == 130
    # What was just being started dies with its parent, by the kernel's hand.
    assert eventually(lambda: not [pid for pid in pids if Path(f"/proc/{pid}").exists()])


def test_what_needs_kernel_modules(environment: dict[str, str]) -> None:
    """The tests of ``tests/vm`` that are not slow."""
    command = vm("--limit", str(LONGEST - 30), "--quick")
    done = subprocess.run(command, check=False, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
