"""File systems without room: a clear error, and nothing is left.

Each program is in a mount namespace of its own, where a small tmpfs lies at a directory.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

import virtnic

pytestmark = [pytest.mark.needs("qemu", "root")]

#: Reports the error of a call, and what it has left.
BEGIN = """
import errno, gc, os, sys, virtnic
place, small = sys.argv[1], virtnic.Memory("8M", hugepages=None)
virtnic.open("user", memory=small).close()  # what is made once for all is made

def tried(call):
    fds, files = len(os.listdir("/proc/self/fd")), sorted(os.listdir(place))
    try: call()
    except (OSError, virtnic.VirtnicError) as error: said = f"{type(error).__name__}: {error}"
    else: said = ""
    gc.collect()
    assert sorted(os.listdir(place)) == files, os.listdir(place)
    assert len(os.listdir("/proc/self/fd")) == fds
    children = open(f"/proc/self/task/{os.getpid()}/children").read()
    assert not children, children
    return said
"""


def program(text: str, place: Path, options: str, kind: str = "tmpfs", **environment: str) -> str:
    """Run a program with a file system of this kind and these options at ``place``."""
    made = not place.exists()
    place.mkdir(exist_ok=True)
    script = f'mount -t {kind} -o "$1" none "$2" && exec "$3" -c "$4" "$2"'
    words = [options, str(place), sys.executable, BEGIN + text]
    argv = ["unshare", "--mount", "sh", "-c", script, "sh", *words]
    done = subprocess.run(
        argv,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
        env={**os.environ, **environment},
    )
    if made:
        place.rmdir()
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_a_directory_of_sockets_that_is_full(qemu_command: str, scratch: Path) -> None:
    """Whichever file is the first without room: the directory, the firmware, a socket."""
    place = scratch / "run"
    said = program(
        """
number = 0
try:
    while True:
        os.mkdir(f"{place}/{number}")
        number += 1
except OSError as error:
    assert error.errno == errno.ENOSPC
for more in range(8):
    print(tried(lambda: virtnic.open("user", memory=small).close()))
    os.rmdir(f"{place}/{more}")
""",
        place,
        "nr_inodes=20",
        XDG_RUNTIME_DIR=str(place),
    ).splitlines()
    assert "" in said, "there was never enough room"
    failed = said[: said.index("")]
    assert len(failed) >= 3
    assert all("No space left on device" in line for line in failed), failed
    assert all("directory=" in line for line in failed if line.startswith("OSError")), failed
    assert not any(said[len(failed) :])


def test_a_memory_that_does_not_fit_its_directory(qemu_command: str, scratch: Path) -> None:
    place = scratch / "memory"
    said = program(
        """
for size in ("8M", "2M"):
    make = lambda: virtnic.Memory(size, directory=place, hugepages=None)
    print(tried(make))
    print(tried(lambda: virtnic.open("user", memory=make(), shmem="plain").close()))
with open(f"{place}/fill", "wb", buffering=0) as file:
    while file.tell() < 3 << 20: file.write(bytes(1 << 16))
print(tried(make))
""",
        place,
        "size=4M",
    ).splitlines()
    for line in said[:2]:
        assert f"Unavailable: {place} has 4 MiB of 4 MiB free, not 8 MiB: ask for less" in line
        assert line.endswith("or remount it with a larger size")
    assert said[2:4] == ["", ""]
    assert f"{place} has 1 MiB of 4 MiB free, not 2 MiB" in said[4]


def test_a_memory_that_does_not_fit_its_hugetlbfs(qemu_command: str, scratch: Path) -> None:
    """The pool has enough of them, the mount has not."""
    from peers.components import needs

    needs("hugepages")
    place = scratch / "huge"
    said = program(
        """
print(tried(lambda: virtnic.Memory("8M", directory=place)))
print(tried(lambda: virtnic.Memory("4M", directory=place)))
""",
        place,
        "pagesize=2M,size=4M",
        kind="hugetlbfs",
    ).splitlines()
    assert f"{place} has 4 MiB of 4 MiB free, not 8 MiB" in said[0]
    assert said[1] == ""


def test_more_hugepages_than_there_are(qemu_command: str) -> None:
    for size in ("64G", "32G"):
        with pytest.raises(virtnic.MemoryUnavailable, match=r"hugepages.*nr_hugepages"):
            virtnic.open("user", size=size, hugepages="2M")


def test_a_full_shm_is_not_needed(qemu_command: str) -> None:
    """Packet memory has no file there; QEMU neither."""
    said = program(
        """
with open(f"{place}/fill", "wb", buffering=0) as file:
    try:
        while file.write(bytes(1 << 12)): pass
    except OSError as error: assert error.errno == errno.ENOSPC
def use():
    with virtnic.Qemu(small) as qemu, qemu.attach("user") as port:
        virtnic.net.Stack(port, dhcp=True).close()
print(tried(use))
""",
        Path("/dev/shm"),
        "size=64k",
    )
    assert said == "\n"


def test_a_capture_on_a_full_disk(qemu_command: str, scratch: Path) -> None:
    """What is there are whole blocks; the port goes on, and the command says why it ended."""
    place = scratch / "captures"
    said = program(
        """
import subprocess, virtnic.capture
port = virtnic.open("user", memory=small)
file = f"{place}/run.pcapng"
writer = virtnic.capture.Writer(file, port)
for _ in range(2000):
    port.send_all([bytes([2]) + bytes(1513)] * 4)
try: writer.close()
except OSError as error: print(error)
else: raise AssertionError("there was room")
writer.close()
assert port.send([bytes(60)]) == 1
read = sum(1 for _ in virtnic.capture.read(file))
assert 0 < read <= writer.counts.written, (read, writer.counts)
port.close()
os.unlink(file)
words = ["capture", "--port", "user", "-w", file, "--seconds", "0.1", "--hugepages", "none"]
with open(f"{place}/fill", "wb", buffering=0) as fill:
    try:
        while fill.write(bytes(1 << 10)): pass
    except OSError as error: assert error.errno == errno.ENOSPC
done = subprocess.run(
    [sys.executable, "-m", "virtnic.cli", *words], capture_output=True, text=True
)
print(done.returncode, done.stderr, done.stdout)
""",
        place,
        "size=1M",
    ).splitlines()
    assert "No space left on device" in said[0]
    assert str(place) in said[0]
    assert said[1].startswith("3 virtnic: "), said
    assert "No space left on device" in "".join(said[1:])
    assert "Traceback" not in "".join(said)
