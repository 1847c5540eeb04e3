"""Closed objects hold no descriptors, and closing wakes waiting threads.

Without the collector: what is given back is given back by closing alone.
"""

from __future__ import annotations

import asyncio
import gc
import json
import os
import select
import shutil
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import pytest
import trio
import trio.testing

import virtnic
import virtnic.aio
from peers.process import mortal
from peers.vhost_backend import ScriptedBackend
from support.inside import machine_of
from support.waiting import eventually
from virtnic.testing import ScriptedPort

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from peers.testpmd import Testpmd

pytestmark = pytest.mark.needs("qemu")

SMALL: dict[str, Any] = {"size": "4M", "hugepages": None}


def small() -> virtnic.Memory:
    return virtnic.Memory("16M", hugepages=None)


def held() -> dict[str, str]:
    """Every descriptor of this process, and what it is."""
    found = {}
    for name in os.listdir("/proc/self/fd"):  # noqa: PTH208
        try:
            found[name] = os.readlink(f"/proc/self/fd/{name}")  # noqa: PTH115
        except FileNotFoundError:  # that of the listing
            continue
    return found


class Held:
    """What is open that was not at the beginning."""

    def __init__(self) -> None:
        self.before = held()

    def now(self) -> list[str]:
        return [what for name, what in held().items() if name not in self.before]


@pytest.fixture(autouse=True)
def without_collector(qemu_command: str) -> Iterator[None]:
    gc.collect()
    gc.disable()
    yield
    gc.enable()
    gc.collect()


@pytest.fixture
def more(qemu_command: str) -> Iterator[Held]:
    """What the process opens once and keeps while it has a port is open already."""
    with virtnic.open("user", **SMALL):
        yield Held()


@pytest.mark.parametrize(
    "options",
    [{}, {"recover": True}, {"interrupts": "intx"}, {"interrupts": "none"}, {"legacy": True}],
    ids=lambda options: next(iter(options.items()), ("plain",))[-1],
)
def test_a_port_of_open(more: Held, options: dict[str, Any]) -> None:
    port = virtnic.open("user", **SMALL, **options)
    burst = port.recv()
    assert more.now()
    port.close()
    assert more.now() == []
    assert (port.closed, len(burst)) == (True, 0)
    with pytest.raises(virtnic.PortClosed):
        port.recv(timeout=None)


def test_a_qemu_its_ports_and_its_events(more: Held) -> None:
    memory = small()
    alone = len(more.now())
    qemu = virtnic.Qemu(memory)
    ports = [qemu.attach("user", interrupts=how) for how in ("msix", "intx", "none")]
    queue = ports[0].queue(0)
    events, ended = qemu.events(), qemu.events()
    held = len(more.now())
    ended.close()
    assert held - len(more.now()) == 1
    ports[1].close()
    assert held - len(more.now()) == 1 + 4
    qemu.close()
    assert len(more.now()) == alone
    assert [event.kind for event in events] == ["detached"] * 3
    with pytest.raises(virtnic.PortClosed):
        queue.recv()
    del memory, qemu, ports, queue, events


def test_a_qemu_that_made_its_memory(more: Held) -> None:
    qemu = virtnic.Qemu()
    qemu.attach("user")
    qemu.close()
    assert more.now() == []
    assert qemu.closed


def test_a_qemu_that_died(more: Held) -> None:
    """Its connections are closed as soon as that is known, the rest with the port."""
    port = virtnic.open("user", **SMALL)
    before = len(more.now())
    machine_of(port.qemu).process._child.kill()  # type: ignore[union-attr]
    with pytest.raises(virtnic.QemuDied):
        port.recv(timeout=None)
    assert eventually(lambda: len(more.now()) < before), "the QTest socket is still open"
    port.close()
    assert more.now() == []


def test_a_port_of_a_qemu_that_was_started_elsewhere(
    more: Held, scratch: Path, qemu_command: str
) -> None:
    directory = scratch / "shared"
    directory.mkdir(mode=0o700)
    command = [sys.executable, "-m", "virtnic.cli", "qemu-args", "--json", "--qemu", qemu_command]
    printed = subprocess.run([*command, "--directory", directory], check=True, capture_output=True)
    with subprocess.Popen(mortal(json.loads(printed.stdout)["argv"])) as process:
        try:
            alone = len(more.now())
            port = virtnic.open("user", connect=directory, **SMALL)
            port.close()
            assert len(more.now()) == alone
            assert port.closed
        finally:
            process.kill()
    shutil.rmtree(directory)


@pytest.mark.parametrize("interrupts", ["msix", "intx", "none"])
def test_a_vhost_user_port(more: Held, scratch: Path, interrupts: Any) -> None:
    with ScriptedBackend(scratch / "vhu0") as backend, virtnic.Qemu(small()) as qemu:
        with qemu.attach("user"):
            pass  # the vectors are the next port's
        alone = len(more.now())
        port = qemu.attach(f"vhost-user,path={backend.path}", interrupts=interrupts)
        assert backend.wait(lambda: backend.serving)
        assert len(more.now()) > alone
        port.close()
        assert backend.wait(lambda: backend.serving is None)
        # The other ends, which are ours as well, go when the backend's thread has seen it.
        assert eventually(lambda: len(more.now()) == alone), more.now()
        assert port.closed


def test_a_port_in_front_of_testpmd(
    more: Held, qemu: virtnic.Qemu, testpmd: Callable[..., Testpmd]
) -> None:
    with qemu.attach("user"):
        pass
    peer = testpmd()
    alone = len(more.now())
    port = qemu.attach(f"vhost-user,path={peer.sockets[0]}")
    assert port.send_all([bytes(60)], timeout=5.0) == 1
    port.close()
    assert len(more.now()) == alone
    assert port.closed


def test_what_was_handed_out_stays_until_the_object_goes(more: Held) -> None:
    """Its number may be in a select or an event loop; it is readable, and no other file's."""
    port = virtnic.open("user", **SMALL)
    fd = port.fileno()
    port.close()
    assert len(more.now()) == 1
    assert select.select([port], [], [], 0)[0] == [port]
    assert port.fileno() == fd
    # A later caller gets an invalid descriptor as well.
    assert select.select([port.tx_fileno()], [], [], 0)[0]
    assert len(more.now()) == 2
    del port
    gc.collect()
    assert more.now() == []


@pytest.mark.parametrize("wait", ["recv", "wait_writable", "select", "epoll", "events"])
def test_a_thread_that_waits_learns_the_end(more: Held, wait: str) -> None:
    qemu = virtnic.Qemu(virtnic.Memory(**SMALL))
    port, events = qemu.attach("user"), qemu.events()
    ready = threading.Event()

    def until_the_end() -> object:
        if wait == "select":
            fd = port.fileno()
            ready.set()
            return select.select([fd], [], [])[0] == [fd]
        if wait == "epoll":
            with select.epoll() as epoll:
                epoll.register(port.fileno(), select.EPOLLIN)
                ready.set()
                return bool(epoll.poll())
        if wait == "wait_writable":
            qemu.execute("stop")  # the frames stay in the ring
        ready.set()
        if wait == "events":
            return [event.kind for event in events] == ["detached"]
        call = port.recv if wait == "recv" else full
        with pytest.raises(virtnic.PortClosed):
            call(timeout=None)
        return True

    def full(timeout: None) -> None:
        while True:
            port.send([bytes(60)] * 64)
            port.wait_writable(timeout)

    with ThreadPoolExecutor(1) as other:
        waiting = other.submit(until_the_end)
        assert ready.wait(10.0)
        qemu.close()
        assert waiting.result(10.0)
    assert port.closed


def on_asyncio(main: Callable[[], Any]) -> None:
    asyncio.run(main())


@pytest.mark.parametrize("run", [on_asyncio, trio.run])
@pytest.mark.parametrize("by_thread", [False, True], ids=["awaited", "another thread"])
def test_a_task_that_waits_learns_the_end(
    more: Held, run: Callable[..., None], by_thread: bool
) -> None:
    kept: list[object] = []

    async def main() -> None:
        qemu = virtnic.Qemu(virtnic.Memory(**SMALL))
        port = await virtnic.aio.attach(qemu, "user")
        changes, events = port.link_changes(), qemu.events()
        waiting: list[Callable[[], Any]] = [port.recv, changes.__anext__]
        told = 0

        async def until_the_end(wait: Callable[[], Any]) -> None:
            nonlocal told
            with pytest.raises(virtnic.PortClosed):
                await wait()
            told += 1

        async def until_the_last() -> None:
            nonlocal told
            async for event in events:
                assert event.kind == "detached"
            told += 1

        async def end() -> None:
            if by_thread:
                thread = threading.Thread(target=qemu.close)
                thread.start()
                await library.sleep(0)
                thread.join()
            else:
                await port.close()
                qemu.close()

        library = port._library
        calls = [lambda wait=wait: until_the_end(wait) for wait in waiting]
        if run is on_asyncio:
            async with asyncio.timeout(20.0), asyncio.TaskGroup() as group:
                for call in (*calls, until_the_last):
                    group.create_task(call())
                for _ in range(3):
                    await asyncio.sleep(0)
                await end()
        else:
            with trio.fail_after(20.0):
                async with trio.open_nursery() as nursery:
                    for call in (*calls, until_the_last):
                        nursery.start_soon(call)
                    await trio.testing.wait_all_tasks_blocked()
                    await end()
        assert told == 3
        kept.extend((qemu, port, changes, events))

    run(main)
    # Only the memory is the caller's, and its file with it.
    assert eventually(lambda: more.now() == ["/memfd:virtnic (deleted)"]), more.now()


def test_a_scripted_port() -> None:
    before = Held()
    port = ScriptedPort(iter(()))
    port.close()
    assert before.now() == []
    assert port.closed


def test_a_call_to_a_connection_that_ended(more: Held) -> None:
    """It raises an error, and does not write to another file that has the number now."""
    port = virtnic.open("user", **SMALL)
    qtest = machine_of(port.qemu).qtest
    port.close()
    read, write = os.pipe()
    try:
        with pytest.raises(virtnic.PortClosed):
            qtest.inl(0xCF8)
    finally:
        os.close(read)
        os.close(write)
