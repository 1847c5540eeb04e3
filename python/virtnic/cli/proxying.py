"""A proxy on loopback whose connections leave through a stack."""

from __future__ import annotations

import asyncio
import collections
import contextlib
import errno
import itertools
import socket
import struct
import time
from typing import TYPE_CHECKING, Any

from virtnic.cli.proxy_requests import (
    HEAD,
    Refused,
    Request,
    answer,
    read_request,
    unpack,
    words,
    wrap,
)
from virtnic.net.addresses import is_numeric

if TYPE_CHECKING:
    from collections.abc import Callable

    from virtnic.aio.net import Stack

    #: Called for each event with its kind and its facts.
    Report = Callable[[str, dict[str, Any]], object]

__all__ = ["Proxy"]

#: The approximate number of bytes buffered for one direction of a connection.
_CHUNK = 1 << 16
#: Seconds in which a client must have sent its request.
_TIMEOUT = 30.0
#: Errors of accept() that pass when something ends: the client waits in the queue of the kernel.
_EXHAUSTED = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)
#: Seconds until accept() is tried again.
_PAUSE = 0.2
#: Keepalive, for peers that disappear without a FIN: seconds until the first probe, between probes,
#: and the number of probes without an answer that end a connection.
_KEEPALIVE = ((socket.TCP_KEEPIDLE, 60), (socket.TCP_KEEPINTVL, 15), (socket.TCP_KEEPCNT, 4))
#: Seconds between checks whether a client that has shut down sending is still connected.
_LOOK = 5.0
#: The state of a socket that is no longer connected, first in TCP_INFO (Linux: tcp_states.h).
_TCP_CLOSE = 7
#: The most bytes of datagrams that wait to be sent; more are dropped.
_WAITING = 1 << 18
#: Names in datagrams: the most that are resolved at a time, and cached.
_RESOLVING, _NAMES = 8, 64


class Proxy:
    """Serves clients of a listening socket: SOCKS5, HTTP CONNECT and plain HTTP."""

    def __init__(
        self, stack: Stack, listening: socket.socket, *, limit: int, timeout: float, report: Report
    ) -> None:
        """Take the sockets.

        ``limit`` connections at a time, further ones wait in the queue of the kernel; connecting
        may take ``timeout`` seconds.
        """
        self._stack = stack
        self._listening = listening
        self._free = asyncio.Semaphore(limit)
        self._timeout = timeout
        self._report = report
        self._numbers = itertools.count(1)
        self._tasks: set[asyncio.Task[None]] = set()
        self.served = self.failed = self.sent = self.received = 0

    async def run(self) -> None:
        """Serve until cancelled; the connections end with it."""
        loop = asyncio.get_running_loop()
        try:
            while True:
                await self._free.acquire()
                client, peer = await self._accept()
                task = loop.create_task(self._serve(client, peer))
                self._tasks.add(task)
                task.add_done_callback(self._ended)
        finally:
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _accept(self) -> tuple[socket.socket, tuple[Any, ...]]:
        """Return the next client; one that cannot be taken now waits."""
        loop = asyncio.get_running_loop()
        told = False
        while True:
            try:
                return await loop.sock_accept(self._listening)
            except ConnectionAbortedError:
                continue  # it has gone while it waited
            except OSError as error:
                if error.errno not in _EXHAUSTED:
                    raise
                if not told:
                    self._report("waiting", {"error": words(error)})
                    told = True
                await asyncio.sleep(_PAUSE)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        self._free.release()

    async def _serve(self, client: socket.socket, peer: tuple[Any, ...]) -> None:
        _keep_alive(client)
        reader, writer = await asyncio.open_connection(sock=client, limit=HEAD)
        try:
            await self._talk(reader, writer, peer)
        except (OSError, EOFError):
            pass  # the client disconnected
        finally:
            writer.transport.abort()

    async def _talk(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, peer: tuple[Any, ...]
    ) -> None:
        about: dict[str, Any] = {"id": next(self._numbers), "client": f"{peer[0]}:{peer[1]}"}
        began = time.monotonic()
        try:
            async with asyncio.timeout(_TIMEOUT):
                request = await read_request(reader, writer)
        except Refused as refused:
            self._refuse(about, str(refused))
            await _say_last(writer, refused.reply)
            return
        except TimeoutError:
            self._refuse(about, f"the client sent no request within {_TIMEOUT:g} s")
            return
        about |= {"protocol": request.protocol, "target": request.target}
        ends: _Connection | _Association
        try:
            if request.protocol == "socks5-udp":
                ends = await self._associate(request, writer)
            else:
                ends = await self._connect(request)
        except OSError as error:
            self._refuse(about, words(error))
            await _say_last(writer, answer(request, error))
            return
        self.served += 1
        self._report("open", about | {"remote": ends.remote, "seconds": time.monotonic() - began})
        counts = ends.counts
        try:
            await ends.carry(reader, writer)
        finally:
            self.sent += counts[0]
            self.received += counts[1]
            seconds = time.monotonic() - began
            closed = {"sent": counts[0], "received": counts[1], "seconds": seconds}
            self._report("close", about | closed)

    def _refuse(self, about: dict[str, Any], why: str) -> None:
        self.failed += 1
        self._report("refused", about | {"error": why})

    async def _connect(self, request: Request) -> _Connection:
        try:
            async with asyncio.timeout(self._timeout):
                streams = await self._stack.open_connection(
                    request.host, request.port, limit=_CHUNK
                )
        except TimeoutError:
            raise TimeoutError(
                f"no answer from {request.target} within {self._timeout:g} s"
            ) from None
        return _Connection(request, *streams)

    async def _associate(self, request: Request, writer: asyncio.StreamWriter) -> _Association:
        host = writer.get_extra_info("sockname")[0]
        client = writer.get_extra_info("peername")[0]
        association = _Association(self._stack, request, client)
        await association.open(host)
        return association


async def _say_last(writer: asyncio.StreamWriter, reply: bytes) -> None:
    """Send a client the reason why it is not served, and wait until it has read that."""
    writer.write(reply)
    async with asyncio.timeout(_TIMEOUT):
        await writer.drain()
        writer.close()
        await writer.wait_closed()


def _keep_alive(sock: Any) -> None:
    """Have a connection end whose peer has gone without a word."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for option, value in _KEEPALIVE:
        sock.setsockopt(socket.IPPROTO_TCP, option, value)


async def _look_after(client: Any) -> None:
    """Raise ConnectionResetError when a client is no longer connected.

    After a client has ended its direction asyncio waits for nothing of its socket, so it does not
    learn that the client has gone altogether, and a silent server would hold the connection for
    ever.
    """
    while client.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0] != _TCP_CLOSE:
        await asyncio.sleep(_LOOK)
    raise ConnectionResetError(errno.ECONNRESET, "the client has gone")


class _Connection:
    """A connection to a server."""

    def __init__(
        self, request: Request, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        self._request = request
        self._reader, self._writer = reader, writer
        peer = writer.get_extra_info("peername")
        self.remote = f"[{peer[0]}]:{peer[1]}" if ":" in peer[0] else f"{peer[0]}:{peer[1]}"
        #: Bytes to the server, and from it.
        self.counts = [0, 0]

    async def carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Forward both directions until both have ended; if one fails, the other ends too."""
        _keep_alive(self._writer.get_extra_info("socket"))
        local = self._writer.get_extra_info("sockname")[:2]
        writer.write(answer(self._request, bound=local))
        self._writer.write(self._request.first)
        try:
            async with asyncio.TaskGroup() as group:
                looking = group.create_task(_look_after(writer.get_extra_info("socket")))
                pumps = (
                    group.create_task(self._pump(reader, self._writer, 0)),
                    group.create_task(self._pump(self._reader, writer, 1)),
                )
                await asyncio.wait(pumps)
                looking.cancel()
            for one in (writer, self._writer):
                one.close()
                await one.wait_closed()
        except* OSError:
            # One of them has reset it. After the client's FIN, closing tells the server nothing.
            with contextlib.suppress(OSError):
                self._writer.get_extra_info("socket").setsockopt(
                    socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0)
                )
        finally:
            self._writer.transport.abort()

    async def _pump(
        self, source: asyncio.StreamReader, sink: asyncio.StreamWriter, way: int
    ) -> None:
        while data := await source.read(_CHUNK):
            sink.write(data)
            self.counts[way] += len(data)
            await sink.drain()
        sink.write_eof()


class _Association:
    """Datagrams of one client (RFC 1928, section 7)."""

    remote = None

    def __init__(self, stack: Stack, request: Request, client: str) -> None:
        self._stack = stack
        self._request = request
        self._client = client
        #: The client's address: from its request, or from its first datagram.
        self._port = request.port
        self._names: collections.OrderedDict[str, str] = collections.OrderedDict()
        self._resolving: set[asyncio.Task[None]] = set()
        self._outside: dict[int, asyncio.DatagramTransport] = {}
        self._inside: asyncio.DatagramTransport | None = None
        self.counts = [0, 0]

    async def open(self, host: str) -> None:
        loop = asyncio.get_running_loop()
        self._inside, _ = await loop.create_datagram_endpoint(
            lambda: _Datagrams(self._from_client), local_addr=(host, 0)
        )
        try:
            for family in (socket.AF_INET, socket.AF_INET6):
                self._outside[family], _ = await self._stack.create_datagram_endpoint(
                    lambda: _Datagrams(self._from_network), family=family
                )
        except BaseException:
            self._close()
            raise

    async def carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serve until the client ends the connection that asked for it."""
        try:
            assert self._inside is not None
            bound = self._inside.get_extra_info("sockname")[:2]
            writer.write(answer(self._request, bound=bound))
            while await reader.read(_CHUNK):
                pass
        finally:
            self._close()

    def _close(self) -> None:
        for task in self._resolving:
            task.cancel()
        for transport in (self._inside, *self._outside.values()):
            if transport is not None:
                transport.abort()

    def _from_client(self, data: bytes, sender: tuple[Any, ...]) -> None:
        if sender[0] != self._client or self._port not in (0, sender[1]):
            return
        try:
            host, port, payload = unpack(data)
        except ValueError:
            return
        self._port = sender[1]
        address = host if is_numeric(host) else self._names.get(host)
        if address is not None:
            self._send(address, port, payload)
        elif len(self._resolving) < _RESOLVING:
            task = asyncio.get_running_loop().create_task(self._resolve(host, port, payload))
            self._resolving.add(task)
            task.add_done_callback(self._resolving.discard)

    async def _resolve(self, host: str, port: int, payload: bytes) -> None:
        try:
            infos = await self._stack.getaddrinfo(host, port, type=socket.SOCK_DGRAM)
        except OSError:
            return  # like a datagram to a host that does not exist
        address = infos[0][4][0]
        self._names[host] = address
        while len(self._names) > _NAMES:
            self._names.popitem(last=False)
        self._send(address, port, payload)

    def _send(self, address: str, port: int, payload: bytes) -> None:
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        transport = self._outside[family]
        if transport.is_closing() or _is_full(transport):
            return
        self.counts[0] += len(payload)
        transport.sendto(payload, (address, port))

    def _from_network(self, data: bytes, sender: tuple[Any, ...]) -> None:
        inside = self._inside
        if inside is None or not self._port or _is_full(inside):
            return
        self.counts[1] += len(data)
        inside.sendto(wrap(data, sender[:2]), (self._client, self._port))


def _is_full(transport: Any) -> bool:
    """Whether the queue is full, so that more datagrams are dropped."""
    return bool(transport.get_write_buffer_size() > _WAITING)


class _Datagrams(asyncio.DatagramProtocol):
    """Passes received datagrams on; ignores ICMP errors."""

    def __init__(self, hand: Callable[[bytes, tuple[Any, ...]], None]) -> None:
        self._hand = hand

    def datagram_received(self, data: bytes, addr: tuple[Any, ...]) -> None:
        self._hand(data, addr)
