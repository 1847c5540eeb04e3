"""A port without QEMU that is forgotten, forked, interrupted, or changed without a backend."""

import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

import virtnic
from peers.vhost_backend import Connection, Hang, ScriptedBackend
from peers.vhost_user import Message, Request
from support.waiting import PROMPT, eventually


@pytest.fixture
def memory() -> virtnic.Memory:
    return virtnic.Memory("4M", hugepages=None)


@pytest.fixture
def backend(scratch: Path) -> Iterator[ScriptedBackend]:
    with ScriptedBackend(scratch / "vhu0") as backend:
        yield backend


def direct(backend: ScriptedBackend, memory: virtnic.Memory, queues: int = 1) -> virtnic.Port:
    netdev = f"vhost-user,path={backend.path}"
    return virtnic.open(netdev, frontend="direct", memory=memory, queues=queues)


def test_it_is_forgotten(backend: ScriptedBackend, memory: virtnic.Memory) -> None:
    """A warning says so; the backend is told to stop, and every buffer comes back."""
    ports = [direct(backend, memory)]
    with pytest.warns(ResourceWarning, match="unclosed <virtnic.Port"):
        ports.clear()
    assert backend.wait(lambda: not backend.connections[-1].started)
    assert eventually(lambda: memory.buffers_free == memory.buffers)


def test_a_forked_child_leaves_it_alone(backend: ScriptedBackend, memory: virtnic.Memory) -> None:
    with direct(backend, memory) as port:
        child = os.fork()
        if child == 0:
            status = 1
            try:
                port.close()
                with pytest.raises(virtnic.PortClosed, match="forked child"):
                    port.send([bytes(60)])
                status = 0
            finally:
                os._exit(status)
        assert os.waitpid(child, 0)[1] == 0
        assert port.link
        assert port.send([bytes(60)]) == 1
        assert backend.serving
    assert memory.buffers_free == memory.buffers


def test_who_waits_is_woken(backend: ScriptedBackend, memory: virtnic.Memory) -> None:
    port = direct(backend, memory)
    ended: list[BaseException] = []

    def wait() -> None:
        try:
            port.recv(1, timeout=60.0)
        except virtnic.PortClosed as error:
            ended.append(error)

    waiter = threading.Thread(target=wait)
    waiter.start()
    assert eventually(lambda: port.stats()["rx_sleeps"])
    port.close()
    waiter.join(PROMPT)
    assert ended


def test_what_is_asked_while_nobody_serves_is_told_to_the_next(
    backend: ScriptedBackend, memory: virtnic.Memory
) -> None:
    def deaf(connection: Connection, _message: Message) -> bool:
        connection.close()
        return True

    with direct(backend, memory, queues=2) as port:
        backend.hook = deaf
        backend.drop()
        assert eventually(lambda: not port.link)
        port.set_queues(1)
        port.restart()
        assert (port.restarts, port.queues, port.link) == (1, 1, False)
        backend.hook = lambda _connection, _message: False
        assert eventually(lambda: port.link)
        assert backend.wait(lambda: len(backend.connections[-1].enabled) == 4)
        assert backend.connections[-1].enabled == {0: True, 1: True, 2: False, 3: False}
    assert memory.buffers_free == memory.buffers


@pytest.mark.parametrize("waits", ["for a backend", "for an answer"])
def test_ctrl_c_while_it_is_opened(
    scratch: Path, memory: virtnic.Memory, waits: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def hang(_connection: Connection, message: Message) -> bool:
        if message.request == Request.SET_MEM_TABLE:
            raise Hang
        return False

    def interrupt(_number: int, _frame: object) -> None:
        raise KeyboardInterrupt

    path = scratch / "vhu0"
    before = signal.signal(signal.SIGALRM, interrupt)
    try:
        began = time.monotonic()
        if waits == "for a backend":
            netdev = f"vhost-user,path={path},server=on,wait=60"
            signal.setitimer(signal.ITIMER_REAL, 0.3)
            with pytest.raises(KeyboardInterrupt):
                virtnic.open(netdev, frontend="direct", memory=memory)
        else:
            monkeypatch.setattr("virtnic.nic.direct._TIMEOUT", 60.0)
            with ScriptedBackend(path, hook=hang) as backend:
                signal.setitimer(signal.ITIMER_REAL, 0.3)
                with pytest.raises(KeyboardInterrupt):
                    direct(backend, memory)
        assert time.monotonic() - began < PROMPT
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0.0)
        signal.signal(signal.SIGALRM, before)
    assert not path.exists()
    assert memory.buffers_free == memory.buffers
