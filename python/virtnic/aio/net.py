r"""TCP, UDP and name resolution for asyncio, on any port: see :mod:`virtnic.net`.

>>> async with virtnic.aio.open("user") as port, aio.net.Stack(port, dhcp=True) as stack:
...     reader, writer = await stack.open_connection("10.0.2.2", 80)
...     writer.write(b"GET / HTTP/1.0\r\n\r\n")
...     print(await reader.read())

Readers, writers, transports and servers are asyncio's own, on sockets of the stack. Flow control,
half-close, TLS and cancellation work as with kernel sockets.
"""

from __future__ import annotations

import asyncio
import functools
import socket as std
import weakref
from typing import TYPE_CHECKING, Any, Self, TypeVar, cast

from virtnic.aio.port import Port
from virtnic.aio.racing import race
from virtnic.aio.threads import in_thread
from virtnic.arguments import check_names, suggest_options
from virtnic.async_library import running
from virtnic.net.addresses import family_of, is_numeric
from virtnic.net.racing import interleave
from virtnic.net.stack import Stack as BlockingStack
from virtnic.net.stack import StackOptions
from virtnic.teardown import Owner

if TYPE_CHECKING:
    import ssl as ssl_
    from collections.abc import Awaitable, Callable, Generator
    from types import TracebackType
    from typing import Unpack

    from virtnic.net import ArpReply, Connection, Lease, PingReply, Socket
    from virtnic.net.addresses import Address
    from virtnic.net.stack import Info
    from virtnic.protocols import PacketPort

    _Connected = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None] | None]

__all__ = ["Stack"]

_T = TypeVar("_T")
_P = TypeVar("_P", bound=asyncio.BaseProtocol)
#: Bytes that a StreamReader buffers before it stops reading: asyncio's default.
_LIMIT = 1 << 16


class Stack(Owner):
    """A TCP/IP stack on a port, for asyncio.

    ``stack`` is the underlying :class:`virtnic.net.Stack`. Use it with ``async with``, or ``await``
    it and ``await close()``. It belongs to the event loop in which it was opened. That must be
    asyncio's own: uvloop would read and write a socket's descriptor as if it were a kernel socket.
    """

    def __init__(
        self, port: PacketPort | Port | BlockingStack, **options: Unpack[StackOptions]
    ) -> None:
        """Take a port and the options of :class:`virtnic.net.Stack`, or an open stack.

        ``port`` may also be a :class:`virtnic.aio.Port`. The stack is created when this object is
        awaited or entered. Raises TypeError.
        """
        check_names("virtnic.aio.net.Stack()", StackOptions.__optional_keys__, options)
        if options and isinstance(port, BlockingStack):
            raise TypeError(f"an open stack takes no options: {', '.join(options)}")
        self._port = port.port if isinstance(port, Port) else port
        self._options = options
        self._stack: BlockingStack | None = None
        self._servers: weakref.WeakSet[asyncio.Server] = weakref.WeakSet()

    async def _open(self) -> Self:
        if self._stack is not None:
            raise RuntimeError("this stack has been opened already")
        _event_loop()
        if isinstance(self._port, BlockingStack):
            self._stack = self._port
            return self
        make = functools.partial(BlockingStack, self._port, **self._options)
        self._stack = await in_thread(running(), make, BlockingStack.close)
        return self

    def __await__(self) -> Generator[Any, Any, Self]:
        return self._open().__await__()

    async def __aenter__(self) -> Self:
        return await self._open()

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the stack: reset its connections, close its sockets and servers.

        Waiting tasks get OSError (EBADF). The port stays open.
        """
        for server in self._servers:
            server.close()
        if self._stack is not None:
            await in_thread(running(), self._stack.close)

    @property
    def stack(self) -> BlockingStack:
        """The underlying stack, whose calls block. Raises RuntimeError before it is opened."""
        if self._stack is None:
            raise RuntimeError("the stack is not open: use `async with` or `await` it first")
        return self._stack

    @property
    def address(self) -> str | None:
        """The IPv4 address with prefix length, ``10.0.2.15/24``, or None."""
        return self.stack.address

    @property
    def addresses(self) -> list[str]:
        """All addresses with prefix lengths."""
        return self.stack.addresses

    @property
    def gateway(self) -> str | None:
        """The IPv4 default gateway, or None."""
        return self.stack.gateway

    @property
    def gateways(self) -> list[str]:
        """The default gateways, IPv4's first."""
        return self.stack.gateways

    @property
    def name_servers(self) -> list[str]:
        """The name servers from DHCP."""
        return self.stack.name_servers

    @property
    def closed(self) -> bool:
        """Whether it was closed."""
        return self.stack.closed

    def configure(self, address: str, gateway: str | None = None) -> None:
        """Add an address; as :meth:`virtnic.net.Stack.configure`."""
        self.stack.configure(address, gateway)

    def remove_address(self, address: str) -> None:
        """Remove an address; as :meth:`virtnic.net.Stack.remove_address`."""
        self.stack.remove_address(address)

    def stats(self) -> dict[str, int]:
        """Return the counters."""
        return self.stack.stats()

    def connections(self) -> list[Connection]:
        """Return the sockets, as ``ss`` lists them."""
        return self.stack.connections()

    async def _call(self, call: Callable[..., _T], *arguments: Any) -> _T:
        """Call in the loop's executor. If cancelled, the call runs on and its result is dropped."""
        return await _event_loop().run_in_executor(None, call, *arguments)

    async def dhcp(self, timeout: float | None = 10.0) -> Lease:
        """Get an address from DHCP; as :meth:`virtnic.net.Stack.dhcp`."""
        return await self._call(self.stack.dhcp, timeout)

    async def wait_ipv6(self, timeout: float | None = 10.0) -> str:
        """Wait for an address from a router; as :meth:`virtnic.net.Stack.wait_ipv6`."""
        return await self._call(self.stack.wait_ipv6, timeout)

    async def arp(self, address: str, timeout: float | None = 1.0) -> ArpReply:
        """Resolve an IPv4 address; as :meth:`virtnic.net.Stack.arp`."""
        return await self._call(self.stack.arp, address, timeout)

    async def ping(
        self, address: str, sequence: int = 0, payload: int = 56, timeout: float | None = 1.0
    ) -> PingReply:
        """Send an echo request, wait for its reply; as :meth:`virtnic.net.Stack.ping`."""
        return await self._call(self.stack.ping, address, sequence, payload, timeout)

    @suggest_options
    async def getaddrinfo(
        self,
        host: str | None,
        port: str | int | None,
        *,
        family: int = 0,
        type: int = 0,  # noqa: A002 - asyncio's name
        proto: int = 0,
        flags: int = 0,
    ) -> list[Info]:
        """Resolve a name with the stack's name servers, like ``loop.getaddrinfo``.

        Raises socket.gaierror.
        """
        look = functools.partial(
            self.stack.getaddrinfo, host, port, family=family, type=type, proto=proto, flags=flags
        )
        return look() if not host or is_numeric(host) else await self._call(look)

    @suggest_options
    async def create_connection(
        self,
        protocol_factory: Callable[[], _P],
        host: str | None = None,
        port: int | None = None,
        *,
        ssl: ssl_.SSLContext | bool | None = None,
        server_hostname: str | None = None,
        family: int = 0,
        local_addr: tuple[str, int] | None = None,
        sock: Socket | None = None,
        ssl_handshake_timeout: float | None = None,
        ssl_shutdown_timeout: float | None = None,
    ) -> tuple[asyncio.Transport, _P]:
        """Connect over TCP; return asyncio's transport and the protocol.

        The addresses of a name are tried with staggered starts, the families alternating
        (RFC 8305). ``sock`` is a connected socket of the stack, instead of ``host`` and ``port``.
        The other options are those of ``loop.create_connection``.

        Raises OSError, socket.gaierror, ssl.SSLError.
        """
        options = _tls(ssl, server_hostname or host, ssl_handshake_timeout, ssl_shutdown_timeout)
        sock = await self._connected(host, port, family, local_addr, sock)
        try:
            return await _event_loop().create_connection(
                protocol_factory, sock=cast("Any", sock), **options
            )
        except BaseException:
            sock.close()
            raise

    @suggest_options
    async def open_connection(
        self,
        host: str | None = None,
        port: int | None = None,
        *,
        limit: int = _LIMIT,
        ssl: ssl_.SSLContext | bool | None = None,
        server_hostname: str | None = None,
        family: int = 0,
        local_addr: tuple[str, int] | None = None,
        sock: Socket | None = None,
        ssl_handshake_timeout: float | None = None,
        ssl_shutdown_timeout: float | None = None,
    ) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """Connect over TCP; return asyncio's reader and writer, like ``asyncio.open_connection``.

        Options as for :meth:`create_connection`; ``limit`` in bytes as for a StreamReader.

        Raises OSError, socket.gaierror, ssl.SSLError.
        """
        options = _tls(ssl, server_hostname or host, ssl_handshake_timeout, ssl_shutdown_timeout)
        sock = await self._connected(host, port, family, local_addr, sock)
        try:
            return await asyncio.open_connection(sock=cast("Any", sock), limit=limit, **options)
        except BaseException:
            sock.close()
            raise

    @suggest_options
    async def create_server(
        self,
        protocol_factory: Callable[[], asyncio.BaseProtocol],
        host: str | None = None,
        port: int | None = None,
        *,
        family: int = 0,
        sock: Socket | None = None,
        backlog: int = 100,
        ssl: ssl_.SSLContext | None = None,
        reuse_port: bool = False,
        ssl_handshake_timeout: float | None = None,
        ssl_shutdown_timeout: float | None = None,
        start_serving: bool = True,
    ) -> asyncio.Server:
        """Listen on one address and port; return asyncio's server, like ``loop.create_server``.

        Without a host, listen on all addresses of one family: ``family``, by default IPv4.
        ``sock`` is a bound socket of the stack, instead of ``host`` and ``port``. Raises OSError.
        """
        options = _tls(ssl, None, ssl_handshake_timeout, ssl_shutdown_timeout)
        sock = self._listening(host, port, family, sock, backlog, reuse_port)
        try:
            server = await _event_loop().create_server(
                protocol_factory,
                sock=cast("Any", sock),
                backlog=backlog,
                start_serving=start_serving,
                **options,
            )
        except BaseException:
            sock.close()
            raise
        self._servers.add(server)
        return server

    @suggest_options
    async def start_server(
        self,
        client_connected_cb: _Connected,
        host: str | None = None,
        port: int | None = None,
        *,
        limit: int = _LIMIT,
        family: int = 0,
        sock: Socket | None = None,
        backlog: int = 100,
        ssl: ssl_.SSLContext | None = None,
        reuse_port: bool = False,
        ssl_handshake_timeout: float | None = None,
        ssl_shutdown_timeout: float | None = None,
        start_serving: bool = True,
    ) -> asyncio.Server:
        """Call back with a reader and a writer for each connection, like ``asyncio.start_server``.

        Options as for :meth:`create_server`; ``limit`` in bytes as for a StreamReader.
        """
        options = _tls(ssl, None, ssl_handshake_timeout, ssl_shutdown_timeout)
        sock = self._listening(host, port, family, sock, backlog, reuse_port)
        try:
            server = await asyncio.start_server(
                client_connected_cb,
                sock=cast("Any", sock),
                limit=limit,
                backlog=backlog,
                start_serving=start_serving,
                **options,
            )
        except BaseException:
            sock.close()
            raise
        self._servers.add(server)
        return server

    @suggest_options
    async def create_datagram_endpoint(
        self,
        protocol_factory: Callable[[], _P],
        local_addr: tuple[str, int] | None = None,
        remote_addr: tuple[str, int] | None = None,
        *,
        family: int = 0,
        allow_broadcast: bool = False,
        sock: Socket | None = None,
    ) -> tuple[asyncio.DatagramTransport, _P]:
        """Create a UDP endpoint; return its transport, like ``loop.create_datagram_endpoint``.

        ``sock`` is a UDP socket of the stack, instead of the addresses.

        Raises OSError, socket.gaierror.
        """
        if sock is None:
            sock = await self._datagram(local_addr, remote_addr, family, allow_broadcast)
        elif local_addr or remote_addr or family or allow_broadcast:
            raise ValueError("sock= takes the place of addresses, family and allow_broadcast")
        try:
            sock.setblocking(False)
            return await _event_loop().create_datagram_endpoint(
                protocol_factory, sock=cast("Any", sock)
            )
        except BaseException:
            sock.close()
            raise

    async def _connected(
        self,
        host: str | None,
        port: int | None,
        family: int,
        local_addr: tuple[str, int] | None,
        sock: Socket | None,
    ) -> Socket:
        """Return a connected socket: the given one, or a new one."""
        loop = _event_loop()
        if sock is not None:
            if host is not None or port is not None or local_addr or family:
                raise ValueError("sock= takes the place of host, port, family and local_addr")
            sock.setblocking(False)
            return sock
        if host is None or port is None:
            raise ValueError("connecting needs a host and a port, or sock=")
        infos = await self.getaddrinfo(host, port, family=family, type=std.SOCK_STREAM)
        stack = self.stack

        async def attempt(address: Address) -> Socket:
            made = stack.socket(family_of(address[0]))
            try:
                made.setblocking(False)
                if local_addr is not None:
                    made.bind(local_addr)
                await loop.sock_connect(cast("Any", made), address)
            except BaseException:
                made.close()
                raise
            return made

        addresses = interleave(info[4] for info in infos)
        return await race([functools.partial(attempt, address) for address in addresses])

    def _listening(
        self,
        host: str | None,
        port: int | None,
        family: int,
        sock: Socket | None,
        backlog: int,
        reuse_port: bool,
    ) -> Socket:
        """Return a listening socket: the given one, or a new one."""
        _event_loop()
        if sock is None:
            host = host or ""
            family = family or family_of(host)
            made = self.stack.create_server(
                (host, port or 0), family=family, backlog=backlog, reuse_port=reuse_port
            )
        elif host is not None or port is not None or family or reuse_port:
            raise ValueError("sock= takes the place of host, port, family and reuse_port")
        else:
            made = sock
        made.setblocking(False)
        return made

    async def _datagram(
        self,
        local_addr: tuple[str, int] | None,
        remote_addr: tuple[str, int] | None,
        family: int,
        allow_broadcast: bool,
    ) -> Socket:
        remote = None
        if remote_addr is not None:
            infos = await self.getaddrinfo(*remote_addr, family=family, type=std.SOCK_DGRAM)
            remote = infos[0][4]
            family = infos[0][0]
        family = family or (family_of(local_addr[0]) if local_addr else std.AF_INET)
        made = self.stack.socket(family, std.SOCK_DGRAM)
        try:
            if allow_broadcast:
                made.setsockopt(std.SOL_SOCKET, std.SO_BROADCAST, 1)
            if remote is None or local_addr is not None:
                made.bind(local_addr or ("", 0))
            if remote is not None:
                made.connect(remote)
        except BaseException:
            made.close()
            raise
        return made

    def __repr__(self) -> str:
        return f"<virtnic.aio.net.Stack of {self._stack or self._port!r}>"


def _event_loop() -> asyncio.AbstractEventLoop:
    """Return the running event loop. Raises RuntimeError unless it is asyncio's own."""
    try:
        loop = asyncio.get_running_loop()
    except RuntimeError:
        raise RuntimeError("virtnic.aio.net can wait only inside asyncio") from None
    if not isinstance(loop, asyncio.SelectorEventLoop):
        kind = f"{type(loop).__module__}.{type(loop).__qualname__}"
        raise RuntimeError(
            "virtnic.aio.net needs asyncio's own event loop (asyncio.SelectorEventLoop), not "
            f"{kind}: it would take the descriptor of a stack's socket for one of the kernel's"
        )
    return loop


def _tls(
    ssl: ssl_.SSLContext | bool | None,
    server_hostname: str | None,
    handshake: float | None,
    shutdown: float | None,
) -> dict[str, Any]:
    """Return asyncio's TLS options; an empty dictionary without TLS."""
    if not ssl:
        if handshake is not None or shutdown is not None:
            raise ValueError("ssl_handshake_timeout and ssl_shutdown_timeout need ssl=")
        return {}
    given = {
        "server_hostname": server_hostname,
        "ssl_handshake_timeout": handshake,
        "ssl_shutdown_timeout": shutdown,
    }
    return {"ssl": ssl} | {name: value for name, value in given.items() if value is not None}
