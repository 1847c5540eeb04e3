"""httpcore on a stack: ``StackBackend(stack)`` (extra ``http``).

Names are resolved and connections made by the stack. For httpx, see
:mod:`virtnic.integrations.httpx`.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import select
import ssl
from typing import TYPE_CHECKING, Any, TypeVar

import httpcore

from virtnic.deadline import Deadline

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from virtnic import aio, net

__all__ = ["AsyncStackBackend", "StackBackend"]

_T = TypeVar("_T")
#: The longest record of TLS (RFC 8446, section 5.1).
_RECORD = 1 << 14


@contextlib.contextmanager
def _translated(late: type[Exception], failed: type[Exception]) -> Iterator[None]:
    """Translate exceptions to those of httpcore."""
    try:
        yield
    except TimeoutError as error:
        raise late(str(error)) from error
    except OSError as error:
        raise failed(str(error)) from error


_CONNECTING = httpcore.ConnectTimeout, httpcore.ConnectError
_READING = httpcore.ReadTimeout, httpcore.ReadError
_WRITING = httpcore.WriteTimeout, httpcore.WriteError


class StackBackend(httpcore.NetworkBackend):
    """Connects through a :class:`virtnic.net.Stack`, for a connection pool."""

    def __init__(self, stack: net.Stack) -> None:
        """Take the stack, which must be open as long as the pool is used."""
        self._stack = stack

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore.NetworkStream:
        """Connect. Raises ConnectTimeout, ConnectError."""
        source = None if local_address is None else (local_address, 0)
        with _translated(*_CONNECTING):
            connection = self._stack.create_connection((host, port), timeout, source)
            for option in socket_options or ():
                connection.setsockopt(*option)
        return _Stream(connection)


class _Stream(httpcore.NetworkStream):
    """A connection, with or without TLS."""

    def __init__(self, connection: net.Socket) -> None:
        self._connection = connection
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls: ssl.SSLObject | None = None

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        with _translated(*_READING):
            if self._tls is not None:
                return self._call_tls(functools.partial(self._tls.read, max_bytes), timeout)
            self._connection.settimeout(timeout)
            return self._connection.recv(max_bytes)

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        with _translated(*_WRITING):
            if self._tls is None:
                self._connection.settimeout(timeout)
                self._connection.sendall(buffer)
                return
            left = memoryview(buffer)
            while left:
                left = left[self._call_tls(functools.partial(self._tls.write, left), timeout) :]

    def _call_tls(self, call: Callable[[], _T], timeout: float | None) -> _T:
        """Call a TLS function; send and receive the records that it needs."""
        deadline = Deadline(timeout)
        while True:
            try:
                result = call()
            except ssl.SSLWantReadError:
                self._flush(deadline)
                self._connection.settimeout(deadline.left)
                if data := self._connection.recv(_RECORD):
                    self._incoming.write(data)
                else:
                    self._incoming.write_eof()
            else:
                self._flush(deadline)
                return result

    def _flush(self, deadline: Deadline) -> None:
        if data := self._outgoing.read():
            self._connection.settimeout(deadline.left)
            self._connection.sendall(data)

    def close(self) -> None:
        self._connection.close()

    def start_tls(
        self,
        ssl_context: ssl.SSLContext,
        server_hostname: str | None = None,
        timeout: float | None = None,
    ) -> httpcore.NetworkStream:
        tls = ssl_context.wrap_bio(self._incoming, self._outgoing, server_hostname=server_hostname)
        try:
            with _translated(*_CONNECTING):
                self._call_tls(tls.do_handshake, timeout)
        except BaseException:
            self.close()
            raise
        self._tls = tls
        return self

    def get_extra_info(self, info: str) -> Any:
        connection = self._connection
        if info == "ssl_object":
            return self._tls
        if info == "client_addr":
            return connection.getsockname()
        if info == "server_addr":
            return connection.getpeername()
        if info == "socket":
            return connection
        if info == "is_readable":  # if idle: the server has closed it
            return connection.fileno() < 0 or bool(select.select([connection], [], [], 0)[0])
        return None


class AsyncStackBackend(httpcore.AsyncNetworkBackend):
    """Connects through a :class:`virtnic.aio.net.Stack`, for an asynchronous connection pool."""

    def __init__(self, stack: aio.net.Stack) -> None:
        """Take the stack, which must be open as long as the pool is used."""
        self._stack = stack

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        """Connect. Raises ConnectTimeout, ConnectError."""
        source = None if local_address is None else (local_address, 0)
        with _translated(*_CONNECTING):
            async with asyncio.timeout(timeout):
                streams = await self._stack.open_connection(host, port, local_addr=source)
            connection = streams[1].get_extra_info("socket")
            for option in socket_options or ():
                connection.setsockopt(*option)
        return _AsyncStream(*streams)

    async def sleep(self, seconds: float) -> None:
        """Sleep before the next attempt."""
        await asyncio.sleep(seconds)


class _AsyncStream(httpcore.AsyncNetworkStream):
    """A connection as a pair of asyncio streams."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer

    async def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        with _translated(*_READING):
            async with asyncio.timeout(timeout):
                return await self._reader.read(max_bytes)

    async def write(self, buffer: bytes, timeout: float | None = None) -> None:
        with _translated(*_WRITING):
            async with asyncio.timeout(timeout):
                self._writer.write(buffer)
                await self._writer.drain()

    async def aclose(self) -> None:
        self._writer.close()
        with contextlib.suppress(OSError):
            await self._writer.wait_closed()

    async def start_tls(
        self,
        ssl_context: ssl.SSLContext,
        server_hostname: str | None = None,
        timeout: float | None = None,
    ) -> httpcore.AsyncNetworkStream:
        try:
            with _translated(*_CONNECTING):
                async with asyncio.timeout(timeout):
                    await self._writer.start_tls(ssl_context, server_hostname=server_hostname)
        except BaseException:
            self._writer.transport.abort()
            raise
        return self

    def get_extra_info(self, info: str) -> Any:
        names = {"client_addr": "sockname", "server_addr": "peername"}
        if info == "is_readable":
            return self._reader.at_eof() or self._writer.is_closing()
        return self._writer.get_extra_info(names.get(info, info))
