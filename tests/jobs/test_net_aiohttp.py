"""aiohttp on a stack, as the client and as the server."""

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from peers.kernel import LONG, STACK, listen, pattern
from peers.names import NameServer
from peers.netns import Netns
from support.certificate import Certificate
from virtnic import aio

pytest.importorskip("aiohttp")

import aiohttp
from aiohttp import web

from virtnic.integrations.aiohttp import StackConnector

DATA = pattern(1 << 20)


@asynccontextmanager
async def serving(sock: Any, tmp_path: Path, **options: Any) -> AsyncIterator[None]:
    """Serve an application on a listening socket."""
    (tmp_path / "file").write_bytes(DATA)

    async def echo(request: web.Request) -> web.Response:
        return web.Response(body=await request.read())

    async def file(request: web.Request) -> web.FileResponse:
        return web.FileResponse(tmp_path / "file")

    async def talk(request: web.Request) -> web.WebSocketResponse:
        answer = web.WebSocketResponse()
        await answer.prepare(request)
        async for message in answer:
            await answer.send_str(message.data.upper())
        return answer

    application = web.Application(client_max_size=1 << 24)
    application.add_routes([web.post("/echo", echo), web.get("/file", file), web.get("/ws", talk)])
    runner = web.AppRunner(application)
    await runner.setup()
    try:
        await web.SockSite(runner, sock, **options).start()
        yield
    finally:
        await runner.cleanup()


async def use(session: aiohttp.ClientSession, url: str, **options: Any) -> None:
    """Ask everything of the application."""
    for _ in range(3):  # on one connection
        async with session.post(f"{url}/echo", data=DATA, **options) as response:
            assert await response.read() == DATA
    async with session.get(f"{url}/file", **options) as response:
        assert await response.read() == DATA
    async with session.ws_connect(f"{url}/ws", **options) as talk:
        await talk.send_str("hello")
        assert await talk.receive_str() == "HELLO"


@asynccontextmanager
async def opened(netns: Netns, **options: Any) -> AsyncIterator[aio.net.Stack]:
    async with (
        asyncio.timeout(LONG),
        aio.open(netns.netdev) as port,
        aio.net.Stack(port, address=["10.99.0.2/24"], **options) as stack,
    ):
        netns.wait_for_carrier()
        yield stack


def test_client(netns: Netns, tmp_path: Path) -> None:
    """By name and by address, with TLS and without."""
    certificate = Certificate(tmp_path)

    async def main() -> None:
        async with (
            opened(netns, dns=["10.99.0.1"]) as stack,
            aiohttp.ClientSession(connector=StackConnector(stack, limit=10)) as session,
        ):
            server = listen(netns, socket.AF_INET)
            port = server.getsockname()[1]
            async with serving(server, tmp_path):
                await asyncio.gather(
                    use(session, f"http://host.test:{port}"),
                    use(session, f"http://10.99.0.1:{port}"),
                )
                assert stack.stats()["connected"] >= 2
            with pytest.raises(aiohttp.ClientConnectorDNSError):
                await use(session, "http://none.test")
            with pytest.raises(aiohttp.ClientConnectorError):
                await use(session, "http://10.99.0.1:1")
            server = listen(netns, socket.AF_INET)
            port = server.getsockname()[1]
            async with serving(server, tmp_path, ssl_context=certificate.server()):
                await use(
                    session,
                    f"https://host.test:{port}",
                    ssl=certificate.client(),
                    server_hostname=certificate.name,
                )

    names = NameServer(netns)
    try:
        asyncio.run(main())
    finally:
        names.close(netns)


@pytest.mark.parametrize("tls", [False, True], ids=["plain", "tls"])
def test_server(netns: Netns, tmp_path: Path, tls: bool) -> None:
    certificate = Certificate(tmp_path)

    def make(info: Any) -> Any:
        return netns.open_socket(*info[:2])

    async def main() -> None:
        async with opened(netns) as stack:
            server = stack.stack.create_server((STACK[socket.AF_INET], 8080))
            options = {"ssl_context": certificate.server()} if tls else {}
            kernel = aiohttp.TCPConnector(socket_factory=make)
            async with (
                serving(server, tmp_path, **options),
                aiohttp.ClientSession(connector=kernel) as session,
            ):
                if tls:
                    await use(
                        session,
                        "https://10.99.0.2:8080",
                        ssl=certificate.client(),
                        server_hostname=certificate.name,
                    )
                else:
                    await use(session, "http://10.99.0.2:8080")

    asyncio.run(main())
