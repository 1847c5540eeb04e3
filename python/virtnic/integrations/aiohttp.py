"""aiohttp on a stack: ``ClientSession(connector=StackConnector(stack))`` (extra ``aiohttp``).

A server does not need this: ``web.SockSite(runner, stack.stack.create_server(("", 80)))``.
"""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING, Any

from aiohttp import TCPConnector
from aiohttp.abc import AbstractResolver, ResolveResult

if TYPE_CHECKING:
    from virtnic.aio.net import Stack

__all__ = ["StackConnector", "StackResolver"]


class StackResolver(AbstractResolver):
    """Resolves names with the name servers of a stack."""

    def __init__(self, stack: Stack) -> None:
        """Take a stack of :mod:`virtnic.aio.net`."""
        self._stack = stack

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        """Return the addresses of a name. Raises socket.gaierror."""
        infos = await self._stack.getaddrinfo(host, port, family=family, type=socket.SOCK_STREAM)
        return [
            ResolveResult(
                hostname=host,
                host=address[0],
                port=address[1],
                family=kin,
                proto=proto,
                flags=socket.AI_NUMERICHOST,
            )
            for kin, _, proto, _, address in infos
        ]

    async def close(self) -> None:
        """Do nothing: the caller closes the stack."""


class StackConnector(TCPConnector):
    """A connector that connects and resolves names through a stack."""

    def __init__(self, stack: Stack, **options: Any) -> None:
        """Take a stack of :mod:`virtnic.aio.net`, and the options of ``aiohttp.TCPConnector``.

        The options ``resolver`` and ``socket_factory`` are set by this class.
        """

        def make(info: Any) -> Any:
            return stack.stack.socket(*info[:3])

        super().__init__(resolver=StackResolver(stack), socket_factory=make, **options)
