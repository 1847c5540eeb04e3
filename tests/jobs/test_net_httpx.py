"""httpx and httpcore on a stack, with a web server of the kernel."""

import asyncio
import socket
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

import virtnic
from peers.kernel import LONG, listen
from peers.names import NameServer
from peers.netns import Netns
from peers.web import DATA, serving
from support.certificate import Certificate
from support.waiting import eventually
from virtnic import aio, net

pytest.importorskip("httpx")

import httpcore
import httpx

from virtnic.integrations.httpcore import StackBackend
from virtnic.integrations.httpx import AsyncStackTransport, StackTransport


@pytest.fixture
def certificate(tmp_path: Path) -> Certificate:
    return Certificate(tmp_path)


@pytest.fixture
def servers(dual: Netns, certificate: Certificate) -> Iterator[dict[str, str]]:
    """Addresses of web servers, by what is special of them."""
    names = NameServer(dual)
    try:
        with (
            serving(dual, socket.AF_INET) as four,
            serving(dual, socket.AF_INET6) as six,
            serving(dual, socket.AF_INET, certificate.server()) as tls,
        ):
            yield {
                "name": f"http://host.test:{four}",
                "ipv4": f"http://10.99.0.1:{four}",
                "ipv6": f"http://[fd99::1]:{six}",
                "tls": f"https://10.99.0.1:{tls}",
            }
    finally:
        names.close(dual)


OPTIONS: dict[str, Any] = {"address": ["10.99.0.2/24", "fd99::2/64"], "dns": ["10.99.0.1"]}


@pytest.fixture
def stack(dual: Netns) -> Iterator[net.Stack]:
    with virtnic.open(dual.netdev) as port, net.Stack(port, **OPTIONS) as stack:
        dual.wait_for_carrier()
        yield stack


def test_client(
    stack: net.Stack, dual: Netns, servers: dict[str, str], certificate: Certificate
) -> None:
    transport = StackTransport(stack, verify=certificate.client(), retries=1)
    extensions = {"sni_hostname": certificate.name}
    with httpx.Client(transport=transport, timeout=LONG) as client:
        for url in servers.values():
            for _ in range(3):  # on one connection
                answer = client.get(f"{url}/data", extensions=extensions)
                assert answer.content == DATA
            answer = client.post(url, content=DATA, extensions=extensions)
            assert answer.content == DATA
        assert stack.stats()["connected"] == len(servers)
        stream = answer.extensions["network_stream"]
        assert stream.get_extra_info("ssl_object").version() == "TLSv1.3"
        assert stream.get_extra_info("server_addr")[0] == "10.99.0.1"
        with pytest.raises(httpx.ConnectError):
            client.get("http://10.99.0.1:1/")
        with pytest.raises(httpx.ConnectError, match="none"):
            client.get("http://none.test/")
        with pytest.raises(httpx.ConnectTimeout):
            client.get("http://10.99.0.77/", timeout=0.1)
        with listen(dual, socket.AF_INET) as mute, pytest.raises(httpx.ReadTimeout):
            client.get(f"http://10.99.0.1:{mute.getsockname()[1]}/", timeout=0.5)
    with (
        httpx.Client(transport=StackTransport(stack)) as client,
        pytest.raises(httpx.ConnectError, match="certificate verify failed"),
    ):
        client.get(servers["tls"], extensions=extensions)


def test_an_idle_connection_that_the_server_ended(stack: net.Stack, dual: Netns) -> None:
    """It is not used again."""

    def serve() -> None:
        for _ in range(2):
            with server.accept()[0] as connection:
                assert connection.recv(4096)
                connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi")
                assert asked.wait(LONG)
                asked.clear()

    def states() -> list[str]:
        return [one.state for one in stack.connections()]

    asked = threading.Event()
    with (
        listen(dual, socket.AF_INET) as server,
        ThreadPoolExecutor(1) as executor,
        httpcore.ConnectionPool(network_backend=StackBackend(stack)) as pool,
    ):
        serving = executor.submit(serve)
        url = f"http://10.99.0.1:{server.getsockname()[1]}/"
        for _ in range(2):
            assert pool.request("GET", url).content == b"hi"
            assert pool.connections[0].is_idle()
            asked.set()
            assert eventually(lambda: states() == ["close-wait"])
        serving.result(LONG)


def test_async_client(dual: Netns, servers: dict[str, str], certificate: Certificate) -> None:
    async def main() -> None:
        async with (
            asyncio.timeout(LONG),
            aio.open(dual.netdev) as port,
            aio.net.Stack(port, **OPTIONS) as stack,
            httpx.AsyncClient(
                transport=AsyncStackTransport(stack, verify=certificate.client()), timeout=LONG
            ) as client,
        ):
            dual.wait_for_carrier()
            extensions = {"sni_hostname": certificate.name}

            async def use(url: str) -> None:
                for _ in range(3):
                    answer = await client.get(f"{url}/data", extensions=extensions)
                    assert answer.content == DATA
                answer = await client.post(url, content=DATA, extensions=extensions)
                assert answer.content == DATA

            await asyncio.gather(*map(use, servers.values()))
            with pytest.raises(httpx.ConnectError):
                await client.get("http://10.99.0.1:1/")
            with pytest.raises(httpx.ConnectTimeout):
                await client.get("http://10.99.0.77/", timeout=0.1)

    asyncio.run(main())
