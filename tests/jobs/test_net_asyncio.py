"""`virtnic.aio.net`: asyncio's streams and transports on a stack, with the kernel as the peer."""

import asyncio
import contextlib
import hashlib
import os
import resource
import socket
from collections.abc import AsyncIterator, Callable, Coroutine
from pathlib import Path
from typing import Any, cast

import pytest
import trio

from peers.kernel import DATAGRAM, KERNEL, LONG, STACK, STREAM, listen, pattern
from peers.names import NameServer
from peers.netns import Netns
from support.certificate import Certificate
from virtnic import aio, net

FAMILIES = pytest.mark.parametrize("family", list(KERNEL), ids=["ipv4", "ipv6"])
Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]


@contextlib.asynccontextmanager
async def opened(dual: Netns, **options: Any) -> AsyncIterator[aio.net.Stack]:
    """A stack whose peer is the kernel."""
    async with (
        aio.open(dual.netdev) as port,
        aio.net.Stack(port, address=["10.99.0.2/24", "fd99::2/64"], **options) as stack,
    ):
        dual.wait_for_carrier()
        yield stack


def run(main: Coroutine[Any, Any, None]) -> None:
    """Run a program on asyncio's own event loop, which says what is not waited for."""

    async def limited() -> None:
        async with asyncio.timeout(LONG):
            await main

    asyncio.run(limited(), debug=True)


async def kernel_streams(server: socket.socket) -> Streams:
    """Accept a connection of the kernel, as streams."""
    server.setblocking(False)
    theirs, _ = await asyncio.get_running_loop().sock_accept(server)
    return await asyncio.open_connection(sock=theirs)


async def pair(stack: aio.net.Stack, dual: Netns, family: int, **options: Any) -> tuple[Any, ...]:
    """Connect the stack to the kernel: our reader and writer, and the kernel's."""
    with listen(dual, family) as server:
        accepting = asyncio.create_task(kernel_streams(server))
        host, port = server.getsockname()[:2]
        ours = await stack.open_connection(host, port, **options)
        return *ours, *await accepting


@FAMILIES
def test_streams_both_ways(dual: Netns, family: int) -> None:
    data = pattern(4 << 20)

    async def main() -> None:
        async with opened(dual) as stack:
            reader, writer, their_reader, their_writer = await pair(stack, dual, family)
            assert writer.get_extra_info("peername")[0] == KERNEL[family]
            assert writer.get_extra_info("sockname")[0] == STACK[family]
            assert writer.get_extra_info("socket").family == family
            for sink, source in ((writer, their_reader), (their_writer, reader)):
                reading = asyncio.create_task(source.read())
                sink.write(data[: 1 << 20])
                sink.writelines([data[1 << 20 : 2 << 20], data[2 << 20 :]])
                await sink.drain()
                sink.write_eof()  # a half: the other direction goes on
                digest = hashlib.sha256(await reading).digest()
                assert digest == hashlib.sha256(data).digest()
            for end in (writer, their_writer):
                end.close()
                await end.wait_closed()

    run(main())


@FAMILIES
def test_a_server(dual: Netns, family: int) -> None:
    ended = asyncio.Queue[None]()

    async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(100):
            writer.write(data.upper())
            await writer.drain()
        writer.close()
        await writer.wait_closed()
        ended.put_nowait(None)

    async def main() -> None:
        async with opened(dual) as stack:
            server = await stack.start_server(echo, family=family, port=8080)
            assert server.sockets[0].getsockname()[1] == 8080

            async def client(number: int) -> None:
                theirs = dual.open_socket(family, STREAM)
                theirs.setblocking(False)
                loop = asyncio.get_running_loop()
                await loop.sock_connect(theirs, (STACK[family], 8080))
                reader, writer = await asyncio.open_connection(sock=theirs)
                writer.write(b"client %d" % number)
                assert await reader.readexactly(8) == b"CLIENT %d" % number
                writer.write_eof()
                assert await reader.read() == b""
                writer.close()
                await writer.wait_closed()
                await ended.get()

            async with server:
                await asyncio.gather(*(client(number) for number in range(10)))
            assert not [one for one in stack.connections() if one.state == "listen"]

    run(main())


def test_a_slow_peer_makes_drain_wait(dual: Netns) -> None:
    """And ours, which does not read, makes the peer wait."""
    data = bytes(32 << 20)

    async def main() -> None:
        async with opened(dual) as stack:
            reader, writer, their_reader, their_writer = await pair(stack, dual, socket.AF_INET)
            for sink, source in ((writer, their_reader), (their_writer, reader)):
                sink.write(data)
                with pytest.raises(TimeoutError):
                    async with asyncio.timeout(0.3):
                        await sink.drain()
                assert sink.transport.get_write_buffer_size() > 1 << 20
                draining = asyncio.create_task(sink.drain())
                assert len(await source.readexactly(len(data))) == len(data)
                await draining
                assert sink.transport.get_write_buffer_size() <= 1 << 16
            writer.close()
            their_writer.close()

    run(main())


class Recorder(asyncio.Protocol):
    """Writes down what it is told."""

    def __init__(self) -> None:
        self.told: list[str] = []
        self.data = b""
        self.changed = asyncio.Event()

    def tell(self, what: str) -> None:
        self.told.append(what)
        self.changed.set()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.tell("made")

    def data_received(self, data: bytes) -> None:
        self.data += data
        self.changed.set()

    def eof_received(self) -> bool:
        self.tell("eof")
        return True

    def pause_writing(self) -> None:
        self.tell("pause")

    def resume_writing(self) -> None:
        self.tell("resume")

    def connection_lost(self, exc: Exception | None) -> None:
        self.tell(f"lost {type(exc).__name__}")

    async def until(self, condition: Callable[[], object]) -> None:
        while not condition():
            self.changed.clear()
            await self.changed.wait()


def test_a_transport_tells_its_protocol(dual: Netns) -> None:
    async def main() -> None:
        async with opened(dual) as stack:
            with listen(dual, socket.AF_INET) as server:
                accepting = asyncio.create_task(kernel_streams(server))
                transport, protocol = await stack.create_connection(Recorder, *server.getsockname())
                theirs, their_writer = await accepting
            transport.set_write_buffer_limits(high=1000, low=100)
            size = 16 << 20
            transport.write(bytes(size))
            assert protocol.told == ["made", "pause"]
            await theirs.readexactly(size)
            await protocol.until(lambda: protocol.told[-1] == "resume")
            transport.pause_reading()
            their_writer.write(b"later")
            await asyncio.sleep(0.05)
            assert protocol.data == b""
            transport.resume_reading()
            await protocol.until(lambda: protocol.data == b"later")
            their_writer.write_eof()
            await protocol.until(lambda: protocol.told[-1] == "eof")
            transport.write(b"still")
            assert await theirs.readexactly(5) == b"still"
            transport.abort()
            await protocol.until(lambda: protocol.told[-1] == "lost NoneType")
            assert await theirs.read() == b""
            their_writer.close()
            # A peer that resets.
            with listen(dual, socket.AF_INET) as server:
                accepting = asyncio.create_task(kernel_streams(server))
                transport, protocol = await stack.create_connection(Recorder, *server.getsockname())
                theirs, their_writer = await accepting
            kernel = their_writer.get_extra_info("socket")
            kernel.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
            their_writer.transport.abort()
            await protocol.until(lambda: protocol.told[-1] == "lost ConnectionResetError")

    run(main())


def test_what_is_not_reached(dual: Netns) -> None:
    async def main() -> None:
        async with opened(dual) as stack:
            with pytest.raises(ConnectionRefusedError):
                await stack.open_connection(KERNEL[socket.AF_INET], 1)
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.1):
                    await stack.open_connection("10.99.0.77", 9)
            connecting = asyncio.create_task(stack.open_connection("10.99.0.77", 9))
            await asyncio.sleep(0.05)
            connecting.cancel()
            with pytest.raises(asyncio.CancelledError):
                await connecting
            with pytest.raises(socket.gaierror, match="no name server"):
                await stack.open_connection("name.test", 80)
            # What was given up is gone.
            assert stack.connections() == []
            with pytest.raises(ValueError, match="host and a port"):
                await stack.open_connection()
            with pytest.raises(ValueError, match="need ssl"):
                await stack.open_connection("10.99.0.1", 1, ssl_handshake_timeout=1)
            one = stack.stack.socket()
            with one, pytest.raises(ValueError, match="takes the place"):
                await stack.open_connection("10.99.0.1", 1, sock=one)
        assert stack.closed

    run(main())


def test_names_and_both_families(dual: Netns) -> None:
    """``both.test`` has an IPv6 address that nobody has, and an IPv4 address."""

    async def main() -> None:
        async with opened(dual, dns=["10.99.0.1"]) as stack:
            infos = await stack.getaddrinfo("both.test", 80, type=STREAM)
            assert {info[4][0] for info in infos} == {"10.99.0.1", "fd99::77"}
            with listen(dual, socket.AF_INET) as server:
                accepting = asyncio.create_task(kernel_streams(server))
                port = server.getsockname()[1]
                _, writer = await stack.open_connection("both.test", port)
                _, their_writer = await accepting
            assert writer.get_extra_info("peername")[0] == "10.99.0.1"
            writer.close()
            their_writer.close()
            await writer.wait_closed()
            # Neither the attempt that lost, nor one of those that all fail.
            with pytest.raises(ConnectionRefusedError):
                await stack.open_connection("host.test", 1)
            assert not [one for one in stack.connections() if one.state.startswith("syn")]

    server = NameServer(dual)
    try:
        run(main())
    finally:
        server.close(dual)


@pytest.fixture
def certificate(tmp_path: Path) -> Certificate:
    return Certificate(tmp_path)


@FAMILIES
def test_tls(dual: Netns, family: int, certificate: Certificate) -> None:
    data = pattern(1 << 20)

    ended = asyncio.Queue[None]()

    async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(await reader.readexactly(len(data)))
        await writer.drain()
        writer.close()
        await writer.wait_closed()
        ended.put_nowait(None)

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        assert writer.get_extra_info("cipher")
        writer.write(data)
        assert await reader.readexactly(len(data)) == data
        assert await reader.read() == b""
        writer.close()
        await writer.wait_closed()
        await ended.get()

    async def main() -> None:
        async with opened(dual) as stack:
            # The stack as the client.
            listening = listen(dual, family)
            listening.setblocking(False)
            host, port = listening.getsockname()[:2]
            kernel = await asyncio.start_server(echo, sock=listening, ssl=certificate.server())
            options: dict[str, Any] = {"server_hostname": certificate.name}
            async with kernel:
                ours = await stack.open_connection(
                    host, port, ssl=certificate.client(), ssl_handshake_timeout=LONG, **options
                )
                await talk(*ours)
                # The same by a transport that becomes one of TLS.
                reader, writer = await stack.open_connection(host, port)
                await writer.start_tls(certificate.client(), **options)
                await talk(reader, writer)
                with pytest.raises(Exception, match="certificate verify failed"):
                    await stack.open_connection(host, port, ssl=True, **options)
            # As the server.
            server = await stack.start_server(echo, STACK[family], 443, ssl=certificate.server())
            async with server:
                theirs = dual.open_socket(family, STREAM)
                theirs.setblocking(False)
                loop = asyncio.get_running_loop()
                await loop.sock_connect(theirs, (STACK[family], 443))
                await talk(
                    *await asyncio.open_connection(sock=theirs, ssl=certificate.client(), **options)
                )

    run(main())


class Datagrams(asyncio.DatagramProtocol):
    """Keeps what comes."""

    def __init__(self) -> None:
        self.received: asyncio.Queue[tuple[bytes, Any]] = asyncio.Queue()
        self.errors: asyncio.Queue[Exception] = asyncio.Queue()

    def datagram_received(self, data: bytes, addr: Any) -> None:
        self.received.put_nowait((data, addr))

    def error_received(self, exc: Exception) -> None:
        self.errors.put_nowait(exc)


@FAMILIES
def test_datagrams(dual: Netns, family: int) -> None:
    async def main() -> None:
        async with opened(dual) as stack:
            loop = asyncio.get_running_loop()
            with listen(dual, family, DATAGRAM) as theirs:
                theirs.setblocking(False)
                peer = theirs.getsockname()
                transport, protocol = await stack.create_datagram_endpoint(
                    Datagrams, local_addr=(STACK[family], 5000)
                )
                transport.sendto(b"question", peer)
                data, sender = await loop.sock_recvfrom(theirs, 100)
                assert (data, sender[:2]) == (b"question", (STACK[family], 5000))
                await loop.sock_sendto(theirs, b"answer", sender)
                assert await protocol.received.get() == (b"answer", peer)
                transport.close()
                connected, protocol = await stack.create_datagram_endpoint(
                    Datagrams, remote_addr=peer[:2]
                )
                assert connected.get_extra_info("peername") == peer
                connected.sendto(b"again")
                assert await loop.sock_recv(theirs, 100) == b"again"
            connected.sendto(b"nobody")
            assert isinstance(await protocol.errors.get(), ConnectionRefusedError)
            connected.close()

    run(main())


def test_a_file(dual: Netns, tmp_path: Path) -> None:
    """Sent by the event loop, which has a shortcut for sockets of the kernel."""
    data = pattern(2 << 20)
    (tmp_path / "file").write_bytes(data)

    async def main() -> None:
        async with opened(dual) as stack:
            _, writer, their_reader, their_writer = await pair(stack, dual, socket.AF_INET)
            reading = asyncio.create_task(their_reader.readexactly(len(data)))
            with (tmp_path / "file").open("rb") as file:
                loop = asyncio.get_running_loop()
                assert await loop.sendfile(writer.transport, file) == len(data)
            assert await reading == data
            for end in (writer, their_writer):
                end.close()
                await end.wait_closed()

    run(main())


def test_asks_and_answers(qemu_command: str) -> None:
    async def main() -> None:
        async with aio.open("user") as port:
            stack = await aio.net.Stack(port, dhcp=True)
            assert stack.address == stack.stack.address == "10.0.2.15/24"
            assert "10.0.2.15/24" in stack.addresses
            assert (stack.gateway, stack.name_servers) == ("10.0.2.2", ["10.0.2.3"])
            assert "10.0.2.2" in stack.gateways
            pings = [stack.ping("10.0.2.2", number, timeout=LONG) for number in range(5)]
            assert [reply.sequence for reply in await asyncio.gather(*pings)] == list(range(5))
            assert (await stack.arp("10.0.2.2", LONG)).mac.startswith("52:55:")
            assert (await stack.wait_ipv6(LONG)).startswith("fec0:")
            assert (await stack.dhcp(LONG)).address == "10.0.2.15"
            again = await aio.net.Stack(stack.stack)
            assert again.stack is stack.stack
            with pytest.raises(TypeError, match="no options: mtu"):
                aio.net.Stack(stack.stack, mtu=1400)
            stack.configure("fd01::1/64")
            assert "fd01::1/64" in stack.addresses
            assert stack.stats()["rx_frames"] > 0
            with pytest.raises(TimeoutError):
                await stack.ping("10.0.2.99", timeout=0.01)
            with pytest.raises(RuntimeError, match="already"):
                await stack
            await stack.close()
            assert stack.closed

    run(main())


def test_closing_a_stack_wakes_who_waits(dual: Netns) -> None:
    """Every task that waits for one of its sockets, once; none waits for ever, none spins."""
    told: list[Exception] = []

    class Told(asyncio.DatagramProtocol):
        def error_received(self, exc: Exception) -> None:
            told.append(exc)

    async def fill(writer: asyncio.StreamWriter) -> None:
        while True:
            writer.write(bytes(1 << 16))
            await writer.drain()

    async def idle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()

    async def main() -> None:
        loop = asyncio.get_running_loop()
        async with opened(dual) as stack:
            reader, writer, _, theirs = await pair(stack, dual, socket.AF_INET)
            _, filled, _, unread = await pair(stack, dual, socket.AF_INET)
            unread.transport.pause_reading()
            endpoint, _ = await stack.create_datagram_endpoint(Told)
            datagrams = stack.stack.socket(type=DATAGRAM | socket.SOCK_NONBLOCK)
            datagrams.bind(("", 0))
            listening = stack.stack.create_server(("", 0))
            listening.setblocking(False)
            server = await stack.start_server(idle)
            waiting = {
                "read": reader.read(),
                "drain": fill(filled),
                "connect": stack.open_connection("10.99.0.77", 1),
                "sock_recv": loop.sock_recv(cast("Any", datagrams), 1),
                "sock_accept": loop.sock_accept(cast("Any", listening)),
                "serve": server.serve_forever(),
            }
            tasks = {name: asyncio.ensure_future(each) for name, each in waiting.items()}
            await asyncio.sleep(0.2)
            await stack.close()
            ended, _ = await asyncio.wait(tasks.values(), timeout=LONG / 3)
            late = [name for name, task in tasks.items() if task not in ended]
            assert not late
            assert tasks.pop("serve").cancelled()
            assert all(isinstance(task.exception(), OSError) for task in tasks.values())
            await asyncio.sleep(0.2)
            assert len(told) == 1
            # What is closed later is closed as usual.
            for end in (writer, filled, theirs, unread):
                end.close()
            endpoint.close()
            for one in (datagrams, listening):
                one.close()
                assert one.fileno() == -1

    run(main())


def test_accept_wakes_when_the_port_ends(dual: Netns) -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        async with aio.open(dual.netdev) as port:
            stack = await aio.net.Stack(port, address="10.99.0.2/24")
            listening = stack.stack.create_server(("", 0))
            listening.setblocking(False)
            accepting = asyncio.ensure_future(loop.sock_accept(cast("Any", listening)))
            await asyncio.sleep(0.1)
            await port.close()
            done, _ = await asyncio.wait([accepting], timeout=LONG / 3)
            assert done
            assert isinstance(accepting.exception(), OSError)
            await stack.close()

    run(main())


def test_a_server_waits_for_descriptors(dual: Netns) -> None:
    """Without one for a connection, the connection waits in the queue, as with the kernel."""

    async def hello(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"hello")
        writer.close()

    async def main() -> None:
        loop = asyncio.get_running_loop()
        said = asyncio.Event()
        loop.set_exception_handler(lambda _, context: said.set())
        async with opened(dual) as stack:
            await stack.start_server(hello, port=80)
            client = dual.open_socket(socket.AF_INET, STREAM)
            client.setblocking(False)
            few, most = resource.getrlimit(resource.RLIMIT_NOFILE)
            highest = os.open("/dev/null", os.O_RDONLY)
            os.close(highest)
            resource.setrlimit(resource.RLIMIT_NOFILE, (highest, most))
            try:
                await loop.sock_connect(client, ("10.99.0.2", 80))
                await said.wait()
            finally:
                resource.setrlimit(resource.RLIMIT_NOFILE, (few, most))
            reader, writer = await asyncio.open_connection(sock=client)
            assert await reader.read() == b"hello"
            writer.close()

    run(main())


def test_where_it_cannot_be_opened() -> None:
    stack = aio.net.Stack(cast("Any", object()), ipv6=False)
    with pytest.raises(RuntimeError, match="not open"):
        _ = stack.stack
    with pytest.raises(TypeError, match="did you mean 'dhcp'"):
        aio.net.Stack(cast("Any", object()), dhpc=True)  # type: ignore[call-arg]

    async def main() -> None:
        await stack

    with pytest.raises(RuntimeError, match="inside asyncio"):
        trio.run(main)

    class Other(asyncio.AbstractEventLoop):
        """One that knows sockets of the kernel only."""

    # As uvloop: the running loop, but none of asyncio's own.
    asyncio._set_running_loop(Other())  # type: ignore[abstract]
    try:
        with pytest.raises(RuntimeError, match=r"own event loop.*not .*Other"):
            main().send(None)
    finally:
        asyncio._set_running_loop(None)


def test_options_are_those_of_the_blocking_stack() -> None:
    import inspect

    names = set(inspect.signature(net.Stack.__init__).parameters) - {"self", "port"}
    assert set(net.stack.StackOptions.__optional_keys__) == names
