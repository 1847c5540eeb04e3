"""Calls that fail midway for want of descriptors, threads or memory: nothing is left of them."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.needs("qemu")

PROGRAM = """
import gc, os, resource, sys, time, virtnic

which, user, steps = getattr(resource, sys.argv[1]), int(sys.argv[2]), range(int(sys.argv[3]))
soft, hard = resource.getrlimit(which)
memory = virtnic.Memory("8M", hugepages=None)
with virtnic.open("user", memory=memory):
    pass

def held():
    # Threads of QEMU count as well; the spawner stays.
    if which == resource.RLIMIT_NPROC:
        return len(os.listdir("/proc/self/task"))
    return len(os.listdir("/proc/self/fd"))

def starve(more):
    resource.setrlimit(which, (held() + more, hard))

def settled(before, what):
    deadline = time.monotonic() + 5.0
    while held() > before:
        gc.collect()
        assert time.monotonic() < deadline, f"{held()} instead of {before} after {what}"
        time.sleep(0.005)

os.setresuid(user, user, user)  # the QEMUs to come belong to this user, too
before = held()
failures = set()
for more in steps:
    port = None
    starve(more)
    try:
        port = virtnic.open("user", memory=memory)
    except (OSError, virtnic.VirtnicError) as error:
        failures.add(type(error).__name__)
        said = str(error)
    resource.setrlimit(which, (soft, hard))
    if port is not None:
        port.close()
        port = None
    settled(before, f"open with {more} more")

port = virtnic.open("user", memory=memory)
pid = port.qemu.process.pid
starve(0)
port.close()
resource.setrlimit(which, (soft, hard))
assert not os.path.exists(f"/proc/{pid}")
port = None
settled(before, "close with no more")
print(len(failures) > 0)
"""


def starving(limit: str, steps: int, *, user: int = os.geteuid()) -> None:
    """Open a port with so little more of something, again and again; then close one without."""
    done = subprocess.run(
        [sys.executable, "-X", "dev", "-W", "error", "-c", PROGRAM, limit, str(user), str(steps)],
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == "True\n", "it never failed"
    assert "Traceback" not in done.stderr


def test_descriptors(qemu_command: str) -> None:
    starving("RLIMIT_NOFILE", 20)


@pytest.mark.skipif(os.geteuid() != 0, reason="chooses a user of its own: needs root")
def test_threads(qemu_command: str, scratch: Path) -> None:
    """Of a user who has nothing else: root has no such limit."""
    scratch.chmod(0o777)
    try:
        starving("RLIMIT_NPROC", 8, user=65_533)
    finally:
        scratch.chmod(0o700)
