"""A program that closes our descriptors.

Libraries that turn a program into a daemon do, and so does ``os.closerange``. QEMU goes with the
pipe that ties it to us. Nothing hangs, and every call says what happened.
"""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap

import pytest

#: Far less than the 15 s that waits for answers took one after another, and more than a busy
#: machine needs.
SECONDS = 8.0

PROGRAM = """
import logging, os, sys, threading, time, virtnic

CALLS = {
    "recv": lambda port: port.recv(timeout=None),
    "wait": lambda port: port.recv(timeout=5.0),
    "events": lambda port: waited.wait(0.5),
    "set_mac": lambda port: port.set_mac("52:54:00:00:00:01"),
    "execute": lambda port: port.qemu.execute("query-status"),
    "attach": lambda port: port.qemu.attach("user"),
    "wait_ready": lambda port: port.wait_ready(5.0),
    "nothing": lambda port: None,
}
call, meanwhile = CALLS[sys.argv[1]], sys.argv[2] == "meanwhile"
port = virtnic.open("user", size="4M")
waited = port.qemu.events()
pid = port.qemu.pid
began = time.monotonic()
if meanwhile:
    # While somebody waits: that it waits by then is likely, and nothing depends on it.
    threading.Timer(0.2, os.closerange, (3, 1000)).start()
else:
    os.closerange(3, 1000)
try:
    call(port)
except (virtnic.VirtnicError, OSError) as error:
    print("raised:", error)
port.close()
port.close()
print("seconds:", time.monotonic() - began)
for _ in range(1000):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        break
    time.sleep(0.01)
else:
    print("QEMU is left")
print("ended")
"""

USED_AGAIN = """
import gc, os, virtnic

kept = [virtnic.open("user", size="4M"), virtnic.Qemu(virtnic.Memory("16M", hugepages=None))]
kept += [kept[1].attach("user") for _ in range(2)]
os.closerange(3, 1000)
mine = [os.memfd_create(f"mine-{number}") for number in range(200)]
files = {fd: os.fstat(fd).st_ino for fd in mine}
del mine

def untouched(when):
    for fd, inode in files.items():
        assert os.fstat(fd).st_ino == inode, f"{when}: descriptor {fd} is another file's"

for owner in kept:
    owner.close()
untouched("closed")
del owner, kept
gc.collect()
untouched("collected")
with virtnic.open("user", size="4M") as port:
    port.qemu.execute("query-status")
untouched("opened again")
print("ended")
"""

OURS_AGAIN = """
import gc, os, virtnic

with virtnic.Qemu(virtnic.Memory("16M", hugepages=None)) as old:
    old.attach("user")
    os.closerange(3, 1000)
    # What these open has the numbers that the others had.
    news = [virtnic.Qemu(virtnic.Memory("16M", hugepages=None)) for _ in range(2)]
    ports = [new.attach("user") for new in news]
del old
gc.collect()
for new, port in zip(news, ports):
    new.execute("query-status")
    port.set_mac("52:54:00:00:00:01")
    more = new.attach("user")
    assert [mac for mac in (port.mac,)] == ["52:54:00:00:00:01"]
    more.close()
    new.close()
print("ended")
"""


def run(program: str, qemu_command: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program), *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, "VIRTNIC_QEMU": qemu_command},
    )


@pytest.mark.parametrize("program", [USED_AGAIN, OURS_AGAIN], ids=["by others", "by us"])
def test_numbers_that_are_used_again(qemu_command: str, program: str) -> None:
    """A descriptor that is closed late is closed only if it is still the same file."""
    done = run(program, qemu_command)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout == "ended\n"
    assert "Traceback" not in done.stderr


CALLS = ["recv", "wait", "events", "set_mac", "execute", "attach", "wait_ready", "nothing"]


@pytest.mark.parametrize("when", ["before", "meanwhile"])
@pytest.mark.parametrize("call", CALLS)
def test_descriptors_that_somebody_else_closes(qemu_command: str, call: str, when: str) -> None:
    done = run(PROGRAM, qemu_command, call, when)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "ended" in done.stdout
    assert "QEMU is left" not in done.stdout
    (seconds,) = [line for line in done.stdout.splitlines() if line.startswith("seconds: ")]
    assert float(seconds.split()[1]) < SECONDS, done.stderr
    assert "Traceback" not in done.stderr
    if when == "before":
        assert "closed from outside (os.closerange" in done.stdout + done.stderr
    for line in done.stdout.splitlines():
        if line.startswith("raised: ") and when == "before":
            assert "closed" in line, line
