"""A vhost-user proxy that hides some of a backend's features."""

from __future__ import annotations

import contextlib
import os
import select
import socket
import threading
import time
from typing import TYPE_CHECKING

from peers.vhost_user import Request, receive
from virtnic.teardown import Closing

if TYPE_CHECKING:
    from pathlib import Path


class Masked(Closing):
    """Listens at ``path`` in front of the backend at ``real``, for one frontend after another.

    ``hide`` are the feature bits that the next frontend does not see.
    """

    def __init__(self, path: Path, real: Path) -> None:
        self.hide = 0
        self._path, self._real = path, real
        self._ends: list[socket.socket] = []
        self._stopped = threading.Event()
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(path))
        self._listener.listen()
        self._thread = threading.Thread(target=self._run, name="masked-backend")
        self._thread.start()

    def drop(self) -> None:
        """Close both connections."""
        for end in list(self._ends):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def _run(self) -> None:
        while not self._stopped.is_set():
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            with client, socket.socket(socket.AF_UNIX) as backend, contextlib.suppress(OSError):
                self._ends = [client, backend]
                self._connect(backend)
                self._pass(client, backend)

    def _connect(self, backend: socket.socket) -> None:
        while not self._stopped.is_set():
            try:
                backend.connect(str(self._real))
            except (FileNotFoundError, ConnectionRefusedError):
                time.sleep(0.01)
            else:
                return

    def _pass(self, client: socket.socket, backend: socket.socket) -> None:
        hide = self.hide
        other = {client: backend, backend: client}
        while not self._stopped.is_set():
            ready, _, _ = select.select(list(other), [], [])
            for end in ready:
                message = receive(end)
                if message is None:
                    return
                payload = message.payload
                if end is backend and message.request == Request.GET_FEATURES:
                    payload = (message.number & ~hide).to_bytes(8, "little")
                try:
                    socket.send_fds(other[end], [message.pack(payload)], list(message.fds))
                finally:
                    for fd in message.fds:
                        os.close(fd)

    def close(self) -> None:
        """Close it. A second call does nothing."""
        self._stopped.set()
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self.drop()
        self._thread.join()
        self._listener.close()
        self._path.unlink(missing_ok=True)
