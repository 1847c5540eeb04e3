"""Backends that break the protocol with our front-end: a timely error, and no leaks."""

import functools
import os
import socket
import struct
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import virtnic
from peers.vhost_backend import Connection, Hang, Hook, ScriptedBackend
from peers.vhost_user import Message, Request
from support.waiting import PROMPT, eventually
from virtnic.nic import direct

_HEADER = struct.Struct("=III")
_REPLY = 1 | 1 << 2


def answer(request: int, flags: int = _REPLY, payload: bytes = bytes(8)) -> bytes:
    return _HEADER.pack(request, flags, len(payload)) + payload


def close(connection: Connection, _message: Message) -> None:
    connection.close()


def wrong_request(connection: Connection, message: Message) -> None:
    connection.send(answer(message.request + 1))


def wrong_flags(connection: Connection, message: Message) -> None:
    connection.send(answer(message.request, flags=1))


def short(connection: Connection, message: Message) -> None:
    connection.send(answer(message.request, payload=bytes(4)))


def long(connection: Connection, message: Message) -> None:
    connection.send(answer(message.request, payload=bytes(64)))


def endless(connection: Connection, message: Message) -> None:
    connection.send(_HEADER.pack(message.request, _REPLY, 0xFFFFFFFF))


def truncated(connection: Connection, message: Message) -> None:
    connection.send(answer(message.request)[:17])
    connection.close()


def descriptors(connection: Connection, message: Message) -> None:
    with Path(os.devnull).open() as null:
        socket.send_fds(connection.socket, [answer(message.request)], [null.fileno()] * 3)


def refused(connection: Connection, message: Message) -> None:
    connection.send(answer(message.request, payload=(22).to_bytes(8, "little")))


LIES = [close, wrong_request, wrong_flags, short, long, endless, truncated, descriptors]
#: The messages of a front-end that opens one queue pair with the scripted backend.
OPENING = (
    Request.GET_FEATURES,
    Request.GET_PROTOCOL_FEATURES,
    Request.GET_QUEUE_NUM,
    Request.SET_OWNER,
    Request.SET_FEATURES,
    Request.SET_MEM_TABLE,
    Request.SET_VRING_NUM,
    Request.SET_VRING_BASE,
    Request.SET_VRING_ADDR,
    Request.SET_VRING_KICK,
    Request.SET_VRING_CALL,
    Request.SET_VRING_ENABLE,
)


def at(request: int, lie: Callable[[Connection, Message], None]) -> Hook:
    """Handle one kind of message like this, and all others as usual."""

    def hook(connection: Connection, message: Message) -> bool:
        if message.request == request:
            lie(connection, message)
        return message.request == request

    return hook


def open_direct(path: Path, memory: virtnic.Memory, **options: Any) -> virtnic.Port:
    return virtnic.open(
        f"vhost-user,path={path}", frontend="direct", memory=memory, queue_size=64, **options
    )


@pytest.mark.parametrize("request_", OPENING, ids=lambda request: request.name)
def test_a_lie_while_it_is_opened(scratch: Path, request_: Request) -> None:
    """Each fault is detected and named; the next connection is served."""
    memory = virtnic.Memory("4M", hugepages=None)
    questions = (Request.GET_FEATURES, Request.GET_PROTOCOL_FEATURES, Request.GET_QUEUE_NUM)
    lies = LIES if request_ in questions else [*LIES, refused]
    with ScriptedBackend(scratch / "vhu0") as backend:
        for lie in lies:
            backend.hook = at(request_, lie)
            began = time.monotonic()
            with pytest.raises((virtnic.QemuError, virtnic.DeviceError), match="vhost-user") as why:
                open_direct(backend.path, memory)
            assert time.monotonic() - began < PROMPT
            if lie not in (close, truncated):
                named = request_.name in str(why.value) or "payload of" in str(why.value)
                assert named or "descriptors" in str(why.value), why.value
            assert memory.buffers_free == memory.buffers
        backend.hook = lambda _connection, _message: False
        with open_direct(backend.path, memory) as port:
            assert port.link
    assert memory.buffers_free == memory.buffers


def hang(_connection: Connection, _message: Message) -> None:
    raise Hang


@pytest.mark.parametrize("request_", [Request.SET_MEM_TABLE, Request.SET_VRING_ENABLE])
def test_silence_while_it_is_opened(
    scratch: Path, request_: Request, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(direct, "_TIMEOUT", 0.3)
    memory = virtnic.Memory("4M", hugepages=None)
    with (
        ScriptedBackend(scratch / "vhu0", hook=at(request_, hang)) as backend,
        pytest.raises(TimeoutError, match=f"did not answer {request_.name} in time"),
    ):
        open_direct(backend.path, memory)
    assert memory.buffers_free == memory.buffers


def came(backend: ScriptedBackend, more_than: int) -> bool:
    return len(backend.connections) > more_than


@pytest.mark.parametrize("request_", OPENING, ids=lambda request: request.name)
def test_a_lie_after_a_reconnect(scratch: Path, request_: Request) -> None:
    """It is not served, but the next one is."""
    memory = virtnic.Memory("4M", hugepages=None)
    with (
        ScriptedBackend(scratch / "vhu0") as backend,
        open_direct(backend.path, memory) as port,
    ):
        for lie in (close, wrong_request, truncated, descriptors):
            before = len(backend.connections)
            backend.hook = at(request_, lie)
            backend.drop()
            assert eventually(functools.partial(came, backend, before + 1))
            assert not port.link
            backend.hook = lambda _connection, _message: False
            assert eventually(lambda: port.link)
            assert backend.wait(lambda: backend.serving)
    assert memory.buffers_free == memory.buffers


@pytest.mark.parametrize("lie", [*LIES, hang], ids=lambda lie: lie.__name__)
def test_a_lie_at_the_end(
    scratch: Path,
    lie: Callable[[Connection, Message], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The port closes in bounded time and gets its buffers back: the connection was closed."""
    monkeypatch.setattr(direct, "_TIMEOUT", 0.3)
    memory = virtnic.Memory("4M", hugepages=None)
    with ScriptedBackend(scratch / "vhu0") as backend:
        port = open_direct(backend.path, memory)
        backend.hook = at(Request.GET_VRING_BASE, lie)
        began = time.monotonic()
        port.close()
        assert time.monotonic() - began < PROMPT
        assert memory.buffers_free == memory.buffers
        with pytest.raises(virtnic.PortClosed):
            port.send([bytes(60)])


def test_a_backend_that_talks_unasked(scratch: Path) -> None:
    """An unsolicited message is detected when a reply is expected; until then it costs nothing."""
    memory = virtnic.Memory("4M", hugepages=None)
    with (
        ScriptedBackend(scratch / "vhu0", pairs=2) as backend,
        open_direct(backend.path, memory, queues=2) as port,
    ):
        backend.connections[-1].send(answer(99) * 50)
        port.set_queues(1)
        assert eventually(lambda: came(backend, 1)), "it was cut off"
        assert eventually(lambda: port.link)
        (connection,) = backend.connections[1:]
        assert backend.wait(lambda: len(connection.enabled) == 4)
        assert connection.enabled == {0: True, 1: True, 2: False, 3: False}
