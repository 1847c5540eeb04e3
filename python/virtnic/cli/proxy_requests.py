"""Requests to a proxy, SOCKS5 (RFC 1928) and HTTP (RFC 9110, section 9.3.6), and its replies.

Nothing here opens a connection: a request is read from a stream, and an answer is bytes.
"""

from __future__ import annotations

import errno
import ipaddress
import os
import socket
import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal
from urllib.parse import urlsplit

if TYPE_CHECKING:
    import asyncio

__all__ = ["HEAD", "Refused", "Request", "answer", "read_request", "unpack", "words", "wrap"]

#: The longest head of an HTTP request, in bytes.
HEAD = 1 << 16
_VERSION, _CONNECT, _ASSOCIATE = 5, 1, 3
_IPV4, _NAME, _IPV6 = 1, 3, 4
_OPEN, _UNACCEPTABLE = 0, 0xFF
#: Replies of SOCKS5 (RFC 1928, section 6).
_OK, _FAILED, _NETWORK, _HOST, _REFUSED, _COMMAND, _TYPE = 0, 1, 3, 4, 5, 7, 8
#: Hop-by-hop headers, in lower case.
_HOP = (b"connection", b"proxy-connection", b"proxy-authorization", b"keep-alive")

Protocol = Literal["socks5", "socks5-udp", "http-connect", "http"]


class Refused(Exception):
    """A request that is not served; ``reply`` is sent to the client before it is disconnected."""

    def __init__(self, why: str, reply: bytes = b"") -> None:
        super().__init__(why)
        self.reply = reply


@dataclass(frozen=True, slots=True)
class Request:
    """A client's request."""

    protocol: Protocol
    host: str
    port: int
    #: Bytes for the server that arrived with it.
    first: bytes = b""

    @property
    def target(self) -> str:
        """The host and the port, as in a URL."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


async def read_request(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> Request:
    """Read a request, in either protocol. Raises Refused, EOFError."""
    first = await reader.readexactly(1)
    if first == bytes([_VERSION]):
        return await _socks(reader, writer)
    if first == b"\x04":
        # Obsoleted by RFC 1928; its reply is 0 and 91 (rejected).
        raise Refused("SOCKS4; use SOCKS5 (`curl --socks5-hostname`)", b"\0\x5b" + bytes(6))
    if not first.isalpha():
        raise Refused(f"neither SOCKS5 nor HTTP: it begins with {first!r}")
    return await _http(first, reader)


async def _socks(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> Request:
    methods = await reader.readexactly((await reader.readexactly(1))[0])
    if _OPEN not in methods:
        raise Refused(
            "the client offers no method without a password", bytes([_VERSION, _UNACCEPTABLE])
        )
    writer.write(bytes([_VERSION, _OPEN]))
    await writer.drain()
    version, command, _, kind = await reader.readexactly(4)
    if version != _VERSION:
        raise Refused(f"a SOCKS request of version {version}", pack(_FAILED))
    if kind == _NAME:
        raw = await reader.readexactly((await reader.readexactly(1))[0])
        try:
            host = raw.decode()
        except UnicodeDecodeError:
            raise Refused(f"a name that is not UTF-8: {raw!r}", pack(_FAILED)) from None
    elif kind in (_IPV4, _IPV6):
        host = str(ipaddress.ip_address(await reader.readexactly(4 if kind == _IPV4 else 16)))
    else:
        raise Refused(f"an address of unknown type {kind}", pack(_TYPE))
    (port,) = struct.unpack(">H", await reader.readexactly(2))
    if command == _CONNECT:
        return Request("socks5", host, port)
    if command == _ASSOCIATE:
        return Request("socks5-udp", host, port)
    raise Refused(f"SOCKS command {command}: only CONNECT and UDP ASSOCIATE", pack(_COMMAND))


async def _http(first: bytes, reader: asyncio.StreamReader) -> Request:
    import asyncio

    try:
        head = first + await reader.readuntil(b"\r\n\r\n")
    except asyncio.LimitOverrunError:
        raise Refused(
            f"a request whose head is longer than {HEAD} bytes",
            _page(431, "Request Header Fields Too Large", "The head of the request is too long."),
        ) from None
    line, *headers = head[:-4].split(b"\r\n")
    words = line.decode("latin-1").split(" ")
    wrong = _page(
        400, "Bad Request", "Expected CONNECT HOST:PORT or METHOD http://HOST[:PORT]/PATH."
    )
    if len(words) != 3 or not words[2].startswith("HTTP/1."):
        raise Refused(f"no request of HTTP/1: {line[:100]!r}", wrong)
    method, target, version = words
    try:
        parts = urlsplit(f"//{target}" if method == "CONNECT" else target)
        host, port = parts.hostname or "", parts.port
    except ValueError:
        raise Refused(f"a wrong target: {target[:100]!r}", wrong) from None
    if method == "CONNECT":
        if not host or port is None:
            raise Refused(f"a wrong target: {target[:100]!r}", wrong)
        return Request("http-connect", host, port)
    if parts.scheme != "http" or not host:
        raise Refused(f"a wrong target: {target[:100]!r}", wrong)
    # One request per connection: what follows is not parsed, so it must not be another request.
    path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    kept = [one for one in headers if one.partition(b":")[0].strip().lower() not in _HOP]
    again = [f"{method} {path} {version}".encode("latin-1"), *kept, b"Connection: close"]
    return Request("http", host, port or 80, b"\r\n".join(again) + b"\r\n\r\n")


def _page(status: int, reason: str, text: str) -> bytes:
    body = f"virtnic proxy: {text}\n".encode()
    head = f"HTTP/1.1 {status} {reason}\r\nContent-Type: text/plain; charset=utf-8\r\n"
    return f"{head}Content-Length: {len(body)}\r\nConnection: close\r\n\r\n".encode() + body


def answer(
    request: Request,
    error: BaseException | None = None,
    bound: tuple[str, int] = ("0.0.0.0", 0),  # noqa: S104
) -> bytes:
    """Return the reply to a client: success, or the error."""
    if request.protocol.startswith("socks5"):
        return pack(_OK if error is None else _reply(error), bound)
    if error is None:
        return b"HTTP/1.1 200 Connection established\r\n\r\n" * (request.protocol != "http")
    late = isinstance(error, TimeoutError)
    status, reason = (504, "Gateway Timeout") if late else (502, "Bad Gateway")
    return _page(status, reason, f"{request.target}: {words(error)}")


def words(error: BaseException) -> str:
    """Return the message of an error."""
    if isinstance(error, ConnectionError) and error.errno is not None:
        return os.strerror(error.errno)  # asyncio repeats the address
    return getattr(error, "strerror", None) or str(error) or type(error).__name__


def _reply(error: BaseException) -> int:
    if isinstance(error, (socket.gaierror, TimeoutError)):
        return _HOST
    if isinstance(error, ConnectionRefusedError):
        return _REFUSED
    number = error.errno if isinstance(error, OSError) else None
    found = {
        errno.ENETUNREACH: _NETWORK,
        errno.EHOSTUNREACH: _HOST,
        errno.EAFNOSUPPORT: _TYPE,
        errno.EADDRNOTAVAIL: _NETWORK,
    }
    return found.get(number or 0, _FAILED)


def pack(reply: int, bound: tuple[str, int] = ("0.0.0.0", 0)) -> bytes:  # noqa: S104
    """Return a SOCKS5 reply."""
    return bytes([_VERSION, reply, 0]) + _address(bound)


def _address(address: tuple[str, int]) -> bytes:
    ip = ipaddress.ip_address(address[0].partition("%")[0])
    kind = _IPV4 if ip.version == 4 else _IPV6
    return bytes([kind]) + ip.packed + struct.pack(">H", address[1])


def wrap(data: bytes, sender: tuple[str, int]) -> bytes:
    """Return a datagram as a client of UDP ASSOCIATE gets it (section 7)."""
    return bytes(3) + _address(sender) + data


def unpack(datagram: bytes) -> tuple[str, int, bytes]:
    """Return the destination of a client's datagram (host and port) and its payload.

    Raises ValueError for a fragment, and for what is no datagram of SOCKS5.
    """
    if len(datagram) < 5:
        raise ValueError("it is too short")
    if datagram[2]:
        raise ValueError("it is a fragment")
    kind = datagram[3]
    if kind == _NAME:
        start, length = 5, datagram[4]
    elif kind in (_IPV4, _IPV6):
        start, length = 4, 4 if kind == _IPV4 else 16
    else:
        raise ValueError(f"its address is of unknown type {kind}")
    end = start + length
    raw, number = datagram[start:end], datagram[end : end + 2]
    if len(number) != 2:
        raise ValueError("it is too short")
    host = raw.decode() if kind == _NAME else str(ipaddress.ip_address(raw))
    return host, int.from_bytes(number, "big"), datagram[end + 2 :]
