"""A vhost-user backend that a test scripts, message by message (QEMU: ``vhost-user.rst``).

It answers as a backend must, keeps what it was told, and moves no frames: for one that does, see
``ring_backend.py``. A hook sees every message before it is answered, and may have it answered
otherwise: see :class:`ScriptedBackend`.
"""

from __future__ import annotations

import contextlib
import os
import select
import socket
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from peers.vhost_user import (
    MQ,
    MRG_RXBUF,
    PROTOCOL_FEATURES,
    PROTOCOL_MQ,
    PROTOCOL_REPLY_ACK,
    RING_PACKED,
    STATE,
    U64,
    VERSION_1,
    Message,
    Request,
    receive,
)
from virtnic.teardown import Closing

if TYPE_CHECKING:
    from pathlib import Path


@dataclass
class Connection:
    """One front-end, and what it has sent."""

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
    """Raised by a hook: the connection stays open, but nothing more is read or sent on it."""


#: Called with each message first; returns whether it has handled it.
Hook = Callable[[Connection, Message], bool]


def leave_it(_connection: Connection, _message: Message) -> bool:
    """Handle nothing."""
    return False


class ScriptedBackend(Closing):
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
        """Wait until a condition holds that depends on messages or connections."""
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
        """Close the connection, like a backend that dies."""
        self.connections[-1].close()

    def close(self) -> None:
        """Close it, and remove its socket. A second call does nothing."""
        if self._thread.is_alive():
            os.write(self._stop_write, b"x")
            self._thread.join()
            os.close(self._stop_read)
            os.close(self._stop_write)
            self._listener.close()
            self.path.unlink(missing_ok=True)

    def base_of(self, ring: int) -> int:
        """Return the base of a ring that the front-end stops: that which it was started with."""
        del ring
        return 0

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
                # Until the front-end closes: its messages are not read.
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
                    connection.send(message.reply(STATE.pack(ring, self.base_of(ring))))
                    return
                case request if request in answers:
                    connection.send(message.reply(U64.pack(answers[Request(request)])))
                    return
        if message.wants_ack:
            connection.send(message.reply(U64.pack(0)))
