"""Calls that fail for lack of descriptors, threads or memory leak nothing."""

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
    deadline = time.monotonic() + 20.0
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
pid = port.qemu.pid
starve(0)
port.close()
resource.setrlimit(which, (soft, hard))
assert not os.path.exists(f"/proc/{pid}")
port = None
settled(before, "close with no more")
print(len(failures) > 0)
"""


def starving(limit: str, steps: int, *, user: int = os.geteuid()) -> None:
    """Open a port with slightly more of a resource each time; then close one without any."""
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


MEMORY = """
import gc, os, resource, virtnic
from virtnic.nic.port import host_of

gc.disable()
SMALL = {"hugepages": None, "jumbo_buffers": 0}
soft, hard = resource.getrlimit(resource.RLIMIT_AS)
memory = virtnic.Memory("16M", **SMALL)
qemu = virtnic.Qemu(memory)

def held():
    return len(os.listdir("/proc/self/fd")), len(os.listdir("/proc/self/task"))

def starve(more):
    with open("/proc/self/statm") as file:
        pages = int(file.read().split()[0])
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + more, hard))

def feed():
    resource.setrlimit(resource.RLIMIT_AS, (soft, hard))

for _ in range(2):
    with qemu.attach("user"), virtnic.open("user", memory=memory):
        pass
before = held()
failures = {}
for name, call in {
    "Memory": lambda: virtnic.Memory("8M", **SMALL),
    "open": lambda: virtnic.open("user", memory=memory),
    "Qemu": lambda: virtnic.Qemu(memory),
    "attach": lambda: qemu.attach("user"),
}.items():
    for more in (0, 16 << 10, 1 << 20, 6 << 20):
        made = None
        starve(more)
        try:
            made = call()
        except (MemoryError, OSError, virtnic.VirtnicError) as error:
            feed()
            failures.setdefault(name, set()).add(type(error).__name__)
        feed()
        if name != "Memory" and made is not None:
            made.close()
        made = None
        assert host_of(qemu).machine.nics == [], (name, more)
        with qemu.attach("user") as port:
            assert port.link
        assert held()[0] == before[0] and held()[1] <= before[1], (name, more, held(), before)
assert failures["Memory"] == {"MemoryUnavailable"}, failures
assert "open" in failures, failures
qemu.close()
"""


def test_memory(qemu_command: str) -> None:
    """Address space: for the packets, for a thread's stack, for objects."""
    done = subprocess.run(
        [sys.executable, "-X", "dev", "-c", MEMORY],
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr, done.stderr


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
