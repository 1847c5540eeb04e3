"""httpx on a stack: ``httpx.Client(transport=StackTransport(stack))`` (extra ``http``)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import httpcore
import httpx

from virtnic.integrations.httpcore import AsyncStackBackend, StackBackend

if TYPE_CHECKING:
    import ssl

    from virtnic import aio, net

__all__ = ["AsyncStackTransport", "StackTransport"]


class StackTransport(httpx.HTTPTransport):
    """A transport that connects through a :class:`virtnic.net.Stack`."""

    def __init__(
        self,
        stack: net.Stack,
        *,
        verify: ssl.SSLContext | bool = True,
        max_connections: int | None = 100,
        max_keepalive_connections: int | None = 20,
        keepalive_expiry: float | None = 5.0,
        retries: int = 0,
    ) -> None:
        """Take the stack, which must be open as long as the client is used.

        The other options are those of ``httpx.HTTPTransport`` and ``httpx.Limits``.
        """
        self._pool = httpcore.ConnectionPool(
            ssl_context=httpx.create_ssl_context(verify),
            max_connections=max_connections,
            max_keepalive_connections=max_keepalive_connections,
            keepalive_expiry=keepalive_expiry,
            retries=retries,
            network_backend=StackBackend(stack),
        )


class AsyncStackTransport(httpx.AsyncHTTPTransport):
    """A transport for ``httpx.AsyncClient`` that uses a :class:`virtnic.aio.net.Stack`."""

    def __init__(
        self,
        stack: aio.net.Stack,
        *,
        verify: ssl.SSLContext | bool = True,
        max_connections: int | None = 100,
        max_keepalive_connections: int | None = 20,
        keepalive_expiry: float | None = 5.0,
        retries: int = 0,
    ) -> None:
        """Take the stack; options as for :class:`StackTransport`."""
        self._pool = httpcore.AsyncConnectionPool(
            ssl_context=httpx.create_ssl_context(verify),
            max_connections=max_connections,
            max_keepalive_connections=max_keepalive_connections,
            keepalive_expiry=keepalive_expiry,
            retries=retries,
            network_backend=AsyncStackBackend(stack),
        )
