"""The QMP side of vhost-user: chardevs, waiting for backends, versions (testpmd)."""

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from support.waiting import PROMPT
from virtnic import _native
from virtnic.errors import QemuError
from virtnic.qemu import Machine, Version, quirks
from virtnic.qemu.command import Accel


@pytest.fixture
def machine(memory: _native.Memory, qemu_command: str, accel: Accel) -> Iterator[Machine]:
    with Machine(memory, accel=accel) as machine:
        yield machine


def chardevs(machine: Machine) -> set[str]:
    return {chardev["label"] for chardev in machine.execute("query-chardev")} - {"shmem"}


def test_no_socket_fails_at_once(machine: Machine, scratch: Path) -> None:
    before = chardevs(machine)
    began = time.monotonic()
    with pytest.raises(QemuError, match=r"no vhost-user backend accepted us at .*/nothing.*wait="):
        machine.add_nic(f"vhost-user,path={scratch}/nothing")
    assert time.monotonic() - began < PROMPT
    assert chardevs(machine) == before
    assert machine.nics == []


def test_waiting_ends(machine: Machine, scratch: Path) -> None:
    began = time.monotonic()
    with pytest.raises(QemuError, match=r"within 0\.5 s"):
        machine.add_nic(f"vhost-user,path={scratch}/nothing,wait=0.5")
    assert 0.5 <= time.monotonic() - began < PROMPT
    with pytest.raises(QemuError, match=r"connected to .*/listen within 0\.3 s"):
        machine.add_nic(f"vhost-user,path={scratch}/listen,server=on,wait=0.3")
    # QEMU was never blocked and left no socket.
    assert machine.execute("query-status")["running"] is True
    (scratch / "listen").unlink(missing_ok=True)


def test_qemu_answers_while_we_wait(machine: Machine, scratch: Path) -> None:
    def wait() -> None:
        with pytest.raises(QemuError):
            machine.add_nic(f"vhost-user,path={scratch}/nothing,wait=1")

    waiting = threading.Thread(target=wait)
    waiting.start()
    answers = 0
    while waiting.is_alive():
        machine.qtest.inl(0xCF8)
        machine.execute("query-status")
        answers += 1
    waiting.join()
    assert answers > 3, "QEMU was blocked for the second in which it has no backend"


@pytest.mark.needs("testpmd")
def test_a_backend_that_is_there(machine: Machine, testpmd: Callable[..., Any]) -> None:
    backend = testpmd()
    path = backend.sockets[0]
    began = time.monotonic()
    handle = machine.add_nic(f"vhost-user,path={path}")
    assert time.monotonic() - began < PROMPT
    assert machine.nics == [handle]
    machine.remove_nic(handle, lambda: machine.qtest.outl(0xAE08, 1 << handle.slot))
    # Deleting the netdev deletes its chardev.
    assert not {name for name in chardevs(machine) if name.startswith("char")}


@pytest.mark.needs("testpmd")
def test_a_backend_that_connects_to_us(
    machine: Machine, testpmd: Callable[..., Any], scratch: Path
) -> None:
    path = scratch / "vhu0"
    handles: list[Any] = []
    adding = threading.Thread(
        target=lambda: handles.append(machine.add_nic(f"vhost-user,path={path},server=on,wait=20"))
    )
    adding.start()
    backend = testpmd(client=True)
    assert backend.sockets == [path]
    adding.join(25)
    assert machine.nics == handles
    assert len(handles) == 1


@pytest.mark.needs("testpmd")
def test_queue_vectors_are_refused_where_qemu_crashes(
    machine: Machine, testpmd: Callable[..., Any]
) -> None:
    backend = testpmd()
    handle = machine.add_nic(f"vhost-user,path={backend.sockets[0]}")
    assert handle.queue_vectors is (machine.version >= Version(10, 0))
    assert machine.add_nic("user").queue_vectors is True


def test_reconnect_by_version(machine: Machine, scratch: Path) -> None:
    # Which option a chardev takes is what the table says: the other one is refused.
    wanted, other = ("reconnect", "reconnect-ms")
    if not quirks.has(machine.version, "reconnect-in-seconds"):
        wanted, other = other, wanted

    def backend(option: str) -> dict[str, Any]:
        address = {"type": "unix", "data": {"path": f"{scratch}/nothing"}}
        data = {"addr": address, "server": False, option: 1}
        return {"type": "socket", "data": data}

    machine.execute("chardev-add", id="good", backend=backend(wanted))
    machine.execute("chardev-remove", id="good")
    if other == "reconnect-ms" or machine.version >= Version(10, 2):
        with pytest.raises(QemuError, match=f"{other}"):
            machine.execute("chardev-add", id="bad", backend=backend(other))
