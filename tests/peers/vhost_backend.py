"""A vhost-user backend that a test scripts, message by message (QEMU: ``vhost-user.rst``).

It answers as a backend must, keeps what it was told, and moves no frames. A hook sees every
message before it is answered, and may have it answered otherwise: see :class:`ScriptedBackend`.
"""

from __future__ import annotations

import array
import contextlib
import enum
import os
import select
import socket
import struct
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from pathlib import Path
    from types import TracebackType

_HEADER = struct.Struct("=III")
_U64 = struct.Struct("=Q")
_STATE = struct.Struct("=II")
_VERSION, _REPLY, _NEED_REPLY = 1, 1 << 2, 1 << 3

#: Feature bits.
MRG_RXBUF, PROTOCOL_FEATURES, VERSION_1, RING_PACKED = 1 << 15, 1 << 30, 1 << 32, 1 << 34
MQ = 1 << 22
EVENT_IDX, INDIRECT_DESC = 1 << 29, 1 << 28
#: CSUM, GUEST_CSUM, GUEST_TSO4, GUEST_TSO6, GUEST_ECN, HOST_TSO4, HOST_TSO6 and HOST_ECN.
OFFLOADS = 1 << 0 | 1 << 1 | 1 << 7 | 1 << 8 | 1 << 9 | 1 << 11 | 1 << 12 | 1 << 13
#: Protocol feature bits.
PROTOCOL_MQ, PROTOCOL_REPLY_ACK = 1 << 0, 1 << 3


class Request(enum.IntEnum):
    """The messages of a frontend that have a meaning here."""

    GET_FEATURES = 1
    SET_FEATURES = 2
    SET_OWNER = 3
    SET_MEM_TABLE = 5
    SET_VRING_NUM = 8
    SET_VRING_ADDR = 9
    SET_VRING_BASE = 10
    GET_VRING_BASE = 11
    SET_VRING_KICK = 12
    SET_VRING_CALL = 13
    SET_VRING_ERR = 14
    GET_PROTOCOL_FEATURES = 15
    SET_PROTOCOL_FEATURES = 16
    GET_QUEUE_NUM = 17
    SET_VRING_ENABLE = 18


@dataclass(frozen=True, slots=True)
class Message:
    """One message; its descriptors are closed once it is handled."""

    request: int
    flags: int
    payload: bytes
    fds: tuple[int, ...] = ()

    @property
    def wants_ack(self) -> bool:
        """Whether it asks for an answer where there usually is none."""
        return bool(self.flags & _NEED_REPLY)

    @property
    def number(self) -> int:
        """The payload as one number."""
        return int(_U64.unpack_from(self.payload)[0])

    @property
    def state(self) -> tuple[int, int]:
        """The payload as a ring and a number."""
        ring, number = _STATE.unpack_from(self.payload)
        return ring, number

    def reply(self, payload: bytes) -> bytes:
        """Return an answer to it, as it is sent."""
        return _HEADER.pack(self.request, _VERSION | _REPLY, len(payload)) + payload

    def pack(self, payload: bytes) -> bytes:
        """Return it with another payload, as it is sent."""
        return _HEADER.pack(self.request, self.flags, len(payload)) + payload


@dataclass
class Connection:
    """One frontend, and what it has told."""

    socket: socket.socket
    features: int = 0
    protocol: int = 0
    messages: list[Message] = field(default_factory=list)
    enabled: dict[int, bool] = field(default_factory=dict)
    started: set[int] = field(default_factory=set)

    def send(self, data: bytes) -> None:
        """Send bytes as they are."""
        self.socket.sendall(data)

    def close(self) -> None:
        """Hang up."""
        with contextlib.suppress(OSError):
            self.socket.shutdown(socket.SHUT_RDWR)


class Hang(Exception):
    """Raised by a hook: nothing is read or said any more on this connection."""


#: Sees a message first; returns whether it has dealt with it.
Hook = Callable[[Connection, Message], bool]


def leave_it(_connection: Connection, _message: Message) -> bool:
    """Deal with nothing."""
    return False


class ScriptedBackend:
    """Listens at a path and takes one frontend after another, in a thread of its own.

    ``features``, ``protocol``, ``pairs`` and ``hook`` may be changed between connections.
    """

    def __init__(
        self,
        path: Path,
        *,
        features: int = PROTOCOL_FEATURES | VERSION_1 | RING_PACKED | MRG_RXBUF | MQ,
        protocol: int = PROTOCOL_MQ | PROTOCOL_REPLY_ACK,
        pairs: int = 4,
        hook: Hook = leave_it,
    ) -> None:
        self.path = path
        self.features, self.protocol, self.pairs, self.hook = features, protocol, pairs, hook
        #: Frontends so far, by connection.
        self.connections: list[Connection] = []
        self._changed = threading.Condition()
        self._stop_read, self._stop_write = os.pipe()
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(path))
        self._listener.listen()
        self._thread = threading.Thread(target=self._run, name="scripted-backend")
        self._thread.start()

    def wait(self, condition: Callable[[], object], seconds: float = 20.0) -> bool:
        """Wait until something holds that a message or a connection brings about."""
        with self._changed:
            return bool(self._changed.wait_for(condition, seconds))

    @property
    def serving(self) -> Connection | None:
        """The frontend whose first pair of rings is started and enabled."""
        for connection in self.connections[-1:]:
            enabled = {ring for ring, on in connection.enabled.items() if on}
            if {0, 1} <= connection.started and {0, 1} <= enabled:
                return connection
        return None

    def drop(self) -> None:
        """Hang up on the frontend, as a backend that dies does."""
        self.connections[-1].close()

    def close(self) -> None:
        """End it, and remove its socket. Twice is fine."""
        if self._thread.is_alive():
            os.write(self._stop_write, b"x")
            self._thread.join()
            os.close(self._stop_read)
            os.close(self._stop_write)
            self._listener.close()
            self.path.unlink(missing_ok=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    # The thread's.

    def _run(self) -> None:
        while self._readable(self._listener):
            client, _ = self._listener.accept()
            with client:
                connection = Connection(client)
                with self._changed:
                    self.connections.append(connection)
                    self._changed.notify_all()
                with contextlib.suppress(OSError):
                    self._serve(connection)
                with self._changed:
                    connection.started.clear()
                    self._changed.notify_all()

    def _readable(self, what: socket.socket) -> bool:
        """Wait for input; False when it is to end."""
        ready, _, _ = select.select([what.fileno(), self._stop_read], [], [])
        return self._stop_read not in ready

    def _serve(self, connection: Connection) -> None:
        while self._readable(connection.socket):
            message = receive(connection.socket)
            if message is None:
                return
            try:
                if not self.hook(connection, message):
                    self._handle(connection, message)
            except Hang:
                # Until the frontend has had enough: what it says is not read.
                poll = select.poll()
                poll.register(connection.socket, select.POLLRDHUP | select.POLLHUP)
                poll.register(self._stop_read, select.POLLIN)
                poll.poll()
                return
            finally:
                for fd in message.fds:
                    os.close(fd)
            with self._changed:
                connection.messages.append(message)
                self._changed.notify_all()

    def _handle(self, connection: Connection, message: Message) -> None:
        answers = {
            Request.GET_FEATURES: self.features,
            Request.GET_PROTOCOL_FEATURES: self.protocol,
            Request.GET_QUEUE_NUM: self.pairs,
        }
        with self._changed:
            match message.request:
                case Request.SET_FEATURES:
                    connection.features = message.number
                case Request.SET_PROTOCOL_FEATURES:
                    connection.protocol = message.number
                case Request.SET_VRING_KICK:
                    connection.started.add(message.number & 0xFF)
                case Request.SET_VRING_ENABLE:
                    ring, on = message.state
                    connection.enabled[ring] = bool(on)
                case Request.GET_VRING_BASE:
                    ring, _ = message.state
                    connection.started.discard(ring)
                    connection.send(message.reply(_STATE.pack(ring, 0)))
                    return
                case request if request in answers:
                    connection.send(message.reply(_U64.pack(answers[Request(request)])))
                    return
        if message.wants_ack:
            connection.send(message.reply(_U64.pack(0)))


def receive(connection: socket.socket) -> Message | None:
    """Read one message; None at the end. Descriptors come with the header."""
    fds = array.array("i")
    room = socket.CMSG_SPACE(32 * fds.itemsize)
    header = b""
    while len(header) < _HEADER.size:
        data, controls, _flags, _address = connection.recvmsg(_HEADER.size - len(header), room)
        for _level, _kind, control in controls:
            fds.frombytes(control[: len(control) - len(control) % fds.itemsize])
        if not data:
            return None
        header += data
    request, flags, size = _HEADER.unpack(header)
    payload = b""
    while len(payload) < size:
        data = connection.recv(size - len(payload))
        if not data:
            return None
        payload += data
    return Message(request, flags, payload, tuple(fds))
