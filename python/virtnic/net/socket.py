"""`Socket`: a TCP or UDP socket of a stack, with the interface of Python's ``socket.socket``."""

from __future__ import annotations

import errno
import io
import os
import socket
from typing import TYPE_CHECKING, Any, Self

from virtnic.arguments import suggest_options
from virtnic.deadline import seconds
from virtnic.net.addresses import Address, is_numeric, show
from virtnic.net.options import get_option, set_option
from virtnic.teardown import Owner

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from types import TracebackType

    from typing_extensions import Buffer

    from virtnic._native import NetSocket

    #: Returns the numeric address of a name: (name, family).
    Resolve = Callable[[str, int], str]

__all__ = ["Socket"]

#: Bytes after which `sendmsg` gathers no more: longer than any datagram.
_AT_ONCE = 1 << 18


class Socket(Owner):
    """A socket of a stack, with the methods and exceptions of ``socket.socket``.

    Made by :meth:`Stack.socket`, :meth:`Stack.create_connection` and :meth:`Stack.create_server`.
    All methods may be called from any thread. The descriptor ``fileno`` returns can only be waited
    on, for reading and writing, with ``select``, ``selectors`` or ``poll``.
    """

    def __init__(self, native: NetSocket, family: int, type: int, resolve: Resolve) -> None:  # noqa: A002
        """Wrap a socket of the core."""
        self._native = native
        self._family = socket.AddressFamily(family)
        self._type = socket.SocketKind(type)
        self._resolve = resolve
        self._timeout: float | None = None
        self._closed = False
        self._io_refs = 0
        self._number: int | None = None

    @property
    def family(self) -> socket.AddressFamily:
        """``AF_INET`` or ``AF_INET6``."""
        return self._family

    @property
    def type(self) -> socket.SocketKind:
        """``SOCK_STREAM`` or ``SOCK_DGRAM``."""
        return self._type

    @property
    def proto(self) -> int:
        """``IPPROTO_TCP`` or ``IPPROTO_UDP``."""
        return socket.IPPROTO_TCP if self._type == socket.SOCK_STREAM else socket.IPPROTO_UDP

    @property
    def timeout(self) -> float | None:
        """The timeout of blocking calls in seconds; None: no timeout."""
        return self._timeout

    def settimeout(self, value: float | None) -> None:
        """Set the timeout in seconds; None: no timeout, 0: non-blocking."""
        self._timeout = seconds(value)

    def gettimeout(self) -> float | None:
        """Return the timeout in seconds, or None."""
        return self._timeout

    def setblocking(self, flag: bool) -> None:
        """Set blocking (no timeout) or non-blocking mode."""
        self.settimeout(None if flag else 0.0)

    def getblocking(self) -> bool:
        """Return whether calls block."""
        return self._timeout != 0

    def _numeric(self, address: Address) -> tuple[str, int]:
        if not isinstance(address, tuple) or len(address) < 2:
            raise TypeError(f"an address must be a tuple (host, port), not {address!r}")
        host, port = address[:2]
        if not 0 <= port <= 0xFFFF:
            raise OverflowError(f"a port must be 0 to 65535, not {port}")
        six = self._family == socket.AF_INET6
        if host == "":
            return ("::" if six else "0.0.0.0"), port  # noqa: S104
        if host == "<broadcast>":
            return "255.255.255.255", port
        if not is_numeric(host):
            host = self._resolve(host, self._family)
        return host, port

    def bind(self, address: Address) -> None:
        """Bind to an address and port; port 0 picks a free one."""
        self._native.bind(*self._numeric(address))

    def listen(self, backlog: int = 128) -> None:
        """Listen for connections; at most ``backlog`` wait to be accepted."""
        self._native.listen(max(backlog, 1))

    def accept(self) -> tuple[Self, Address]:
        """Return the next connection and its peer's address."""
        native, peer = self._native.accept(self._timeout)
        accepted = self.__class__(native, self._family, self._type, self._resolve)
        return accepted, show(self._family, peer)

    def connect(self, address: Address) -> None:
        """Connect to a peer. For UDP, only set the peer to send to and receive from."""
        host, port = self._numeric(address)
        self._native.connect(host, port, self._timeout)

    def connect_ex(self, address: Address) -> int:
        """Connect; return an ``errno`` instead of raising."""
        try:
            self.connect(address)
        except TimeoutError:
            return errno.EAGAIN
        except OSError as error:
            if error.errno is None:
                raise
            return error.errno
        return 0

    def send(self, data: Buffer, flags: int = 0, /) -> int:
        """Send as many bytes as fit, at least one; return how many."""
        self._check(flags, 0)
        return self._native.send(data, self._timeout)

    def sendall(self, data: Buffer, flags: int = 0, /) -> None:
        """Send all bytes."""
        self._check(flags, 0)
        self._native.send_all(data, self._timeout)

    def sendmsg(
        self, buffers: Iterable[Buffer], ancdata: Iterable[Any] = (), flags: int = 0
    ) -> int:
        """Send as many bytes of several buffers as fit, at least one; return how many.

        Ancillary data is not supported: it raises OSError (EOPNOTSUPP).
        """
        if list(ancdata):
            raise OSError(errno.EOPNOTSUPP, "a socket of a stack sends no ancillary data")
        some: list[Buffer] = []
        size = 0
        for buffer in buffers:
            some.append(buffer)
            size += memoryview(buffer).nbytes
            if size >= _AT_ONCE:
                break
        return self.send(some[0] if len(some) == 1 else b"".join(some), flags)

    def sendto(self, data: Buffer, *args: Any) -> int:
        """Send a datagram: ``sendto(data, address)`` or ``sendto(data, flags, address)``."""
        if not 1 <= len(args) <= 2:
            raise TypeError("sendto(data, [flags,] address)")
        if len(args) == 2:
            self._check(args[0], 0)
        address = args[-1]
        to = None if address is None else self._numeric(address)
        return self._native.send_to(data, to, self._timeout)

    def recv(self, bufsize: int, flags: int = 0, /) -> bytes:
        """Return up to ``bufsize`` bytes; empty at the end of the stream."""
        self._check(flags, socket.MSG_PEEK)
        return self._native.recv(_size(bufsize), self._timeout, bool(flags))

    def recv_into(self, buffer: Buffer, nbytes: int = 0, flags: int = 0) -> int:
        """Receive into a buffer; return the number of bytes."""
        self._check(flags, socket.MSG_PEEK)
        return self._native.recv_into(buffer, _size(nbytes), self._timeout, bool(flags))

    def recvfrom(self, bufsize: int, flags: int = 0, /) -> tuple[bytes, Address | None]:
        """Return a datagram, truncated to ``bufsize``, and its sender."""
        self._check(flags, socket.MSG_PEEK)
        data, _, peer = self._native.recv_from(_size(bufsize), self._timeout, bool(flags))
        return data, None if peer is None else show(self._family, peer)

    def recvfrom_into(
        self, buffer: Buffer, nbytes: int = 0, flags: int = 0
    ) -> tuple[int, Address | None]:
        """Receive a datagram into a buffer; return its length and sender."""
        self._check(flags, socket.MSG_PEEK)
        found = self._native.recv_from_into(buffer, _size(nbytes), self._timeout, bool(flags))
        count, _, peer = found
        return count, None if peer is None else show(self._family, peer)

    def shutdown(self, how: int) -> None:
        """Shut down one or both directions: ``SHUT_RD``, ``SHUT_WR``, ``SHUT_RDWR``."""
        self._native.shutdown(how)

    def getsockname(self) -> Address:
        """Return the local address."""
        return show(self._family, self._native.local())

    def getpeername(self) -> Address:
        """Return the peer's address."""
        return show(self._family, self._native.peer())

    def setsockopt(self, level: int, option: int, value: int | Buffer | None, *_: int) -> None:
        """Set an option. Unsupported options raise OSError (ENOPROTOOPT)."""
        if value is None:
            raise TypeError("the value must be a number or bytes, not None")
        set_option(self._native, level, option, value if isinstance(value, int) else bytes(value))

    def getsockopt(self, level: int, option: int, buflen: int = 0) -> int | bytes:
        """Return an option as a number, or as bytes if ``buflen`` is given."""
        return get_option(self._native, level, option, buflen)

    def fileno(self) -> int:
        """Return a descriptor to wait on with ``select`` etc.; -1 once closed.

        It is readable when ``recv`` or ``accept`` would return at once, writable when ``send``
        would.
        """
        if self._closed:
            return -1
        if self._number is None:
            self._number = self._native.fileno()
        return self._number

    @suggest_options
    def makefile(
        self,
        mode: str = "r",
        buffering: int | None = None,
        *,
        encoding: str | None = None,
        errors: str | None = None,
        newline: str | None = None,
    ) -> Any:
        """Return a file object for the connection, like ``socket.makefile``."""
        if not set(mode) <= {"r", "w", "b"}:
            raise ValueError(f"a mode may have r, w and b, not {mode!r}")
        writing = "w" in mode
        reading = "r" in mode or not writing
        raw = socket.SocketIO(self, "r" * reading + "w" * writing)  # type: ignore[arg-type]
        self._io_refs += 1
        if buffering is None or buffering < 0:
            buffering = io.DEFAULT_BUFFER_SIZE
        if buffering == 0:
            if "b" not in mode:
                raise ValueError("text needs a buffer: pass another buffering, or a mode with b")
            return raw
        buffer: Any
        if reading and writing:
            buffer = io.BufferedRWPair(raw, raw, buffering)
        elif reading:
            buffer = io.BufferedReader(raw, buffering)
        else:
            buffer = io.BufferedWriter(raw, buffering)
        if "b" in mode:
            return buffer
        return io.TextIOWrapper(buffer, encoding, errors, newline)

    def _decref_socketios(self) -> None:
        if self._io_refs > 0:
            self._io_refs -= 1
        if self._closed:
            self.close()

    def _check(self, flags: int, known: int) -> None:
        if flags & ~(known | socket.MSG_NOSIGNAL):
            raise OSError(
                errno.EOPNOTSUPP,
                f"{os.strerror(errno.EOPNOTSUPP)}: the only flags are MSG_NOSIGNAL and, for "
                "receiving, MSG_PEEK",
            )

    def stats(self) -> dict[str, Any]:
        """Return the counters: bytes, packets, retransmits, ``rtt`` in seconds, …."""
        return self._native.stats()

    def close(self) -> None:
        """Close it. Data already sent is still delivered; ``makefile`` files stay open."""
        self._closed = True
        if self._io_refs <= 0:
            self._native.close()

    def detach(self) -> int:
        """Raise: the descriptor is not a socket."""
        raise OSError(
            errno.EOPNOTSUPP, "cannot detach: the socket of a stack is not a socket of the kernel"
        )

    def __enter__(self) -> Self:
        """Return the socket."""
        return self

    def __exit__(
        self,
        kind: object,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Close it."""
        self.close()

    def __repr__(self) -> str:
        """Return its family, type and addresses."""
        ends = ""
        if not self._closed:
            try:
                ends = f", laddr={self.getsockname()}"
                ends += f", raddr={self.getpeername()}"
            except OSError:
                pass
        closed = "[closed] " if self._closed else ""
        return f"<virtnic.net.Socket {closed}{self._family.name}, {self._type.name}{ends}>"


def _size(value: int) -> int:
    if value < 0:
        raise ValueError(f"the number of bytes must be 0 or more, not {value}")
    return value
