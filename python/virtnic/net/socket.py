"""`Socket`: what Python's ``socket.socket`` does, on a stack of the process."""

from __future__ import annotations

import errno
import io
import os
import socket
from typing import TYPE_CHECKING, Any, Self

from virtnic.net.addresses import Address, is_numeric, show
from virtnic.net.options import get_option, set_option

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType

    from typing_extensions import Buffer

    from virtnic._native import NetSocket

    #: Returns the numeric address of a name: (name, family).
    Resolve = Callable[[str, int], str]

__all__ = ["Socket"]


class Socket:
    """One socket of a stack, with the methods and the exceptions of Python's own.

    Made by :meth:`Stack.socket`, :meth:`Stack.create_connection` and :meth:`Stack.create_server`.
    All methods may be called from any thread. ``fileno`` is a descriptor that ``select``,
    ``selectors`` and ``poll`` can wait on for reading and for writing; nothing else can be done
    with it.
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
        """Seconds that a call waits; None: for ever."""
        return self._timeout

    def settimeout(self, value: float | None) -> None:
        """Have calls wait so many seconds; None: for ever, 0: not at all."""
        if value is not None and not value >= 0:
            raise ValueError(f"a timeout is 0 or more seconds, or None, not {value!r}")
        self._timeout = None if value is None else float(value)

    def gettimeout(self) -> float | None:
        """Return the seconds that a call waits."""
        return self._timeout

    def setblocking(self, flag: bool) -> None:
        """Have calls wait for ever, or not at all."""
        self.settimeout(None if flag else 0.0)

    def getblocking(self) -> bool:
        """Whether calls wait."""
        return self._timeout != 0

    def _numeric(self, address: Address) -> tuple[str, int]:
        if not isinstance(address, tuple) or len(address) < 2:
            raise TypeError(f"an address is a tuple of a host and a port, not {address!r}")
        host, port = address[:2]
        if not 0 <= port <= 0xFFFF:
            raise OverflowError(f"a port is 0 to 65535, not {port}")
        six = self._family == socket.AF_INET6
        if host == "":
            return ("::" if six else "0.0.0.0"), port  # noqa: S104
        if host == "<broadcast>":
            return "255.255.255.255", port
        if not is_numeric(host):
            host = self._resolve(host, self._family)
        return host, port

    def bind(self, address: Address) -> None:
        """Give it an address and a port; port 0: any that is free."""
        self._native.bind(*self._numeric(address))

    def listen(self, backlog: int = 128) -> None:
        """Let others connect; so many may wait to be accepted."""
        self._native.listen(max(backlog, 1))

    def accept(self) -> tuple[Self, Address]:
        """Return the next connection, and the address of its peer."""
        native, peer = self._native.accept(self._timeout)
        accepted = self.__class__(native, self._family, self._type, self._resolve)
        return accepted, show(self._family, peer)

    def connect(self, address: Address) -> None:
        """Connect to a peer. UDP only remembers whom to send to and to receive from."""
        host, port = self._numeric(address)
        self._native.connect(host, port, self._timeout)

    def connect_ex(self, address: Address) -> int:
        """Connect, and return the error's number in place of raising it."""
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
        """Send as much as there is room for, at least a byte; return how many."""
        self._check(flags, 0)
        return self._native.send(data, self._timeout)

    def sendall(self, data: Buffer, flags: int = 0, /) -> None:
        """Send all of it."""
        self._check(flags, 0)
        self._native.send_all(data, self._timeout)

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
        """Return up to so many bytes; none when the peer has ended its half."""
        self._check(flags, socket.MSG_PEEK)
        return self._native.recv(_size(bufsize), self._timeout, bool(flags))

    def recv_into(self, buffer: Buffer, nbytes: int = 0, flags: int = 0) -> int:
        """Receive into a buffer; return how many bytes."""
        self._check(flags, socket.MSG_PEEK)
        return self._native.recv_into(buffer, _size(nbytes), self._timeout, bool(flags))

    def recvfrom(self, bufsize: int, flags: int = 0, /) -> tuple[bytes, Address | None]:
        """Return a datagram and who sent it; what is longer is cut."""
        self._check(flags, socket.MSG_PEEK)
        data, _, peer = self._native.recv_from(_size(bufsize), self._timeout, bool(flags))
        return data, None if peer is None else show(self._family, peer)

    def recvfrom_into(
        self, buffer: Buffer, nbytes: int = 0, flags: int = 0
    ) -> tuple[int, Address | None]:
        """Receive a datagram into a buffer; return its length and who sent it."""
        self._check(flags, socket.MSG_PEEK)
        found = self._native.recv_from_into(buffer, _size(nbytes), self._timeout, bool(flags))
        count, _, peer = found
        return count, None if peer is None else show(self._family, peer)

    def shutdown(self, how: int) -> None:
        """End a half of the connection: ``SHUT_RD``, ``SHUT_WR`` or ``SHUT_RDWR``."""
        self._native.shutdown(how)

    def getsockname(self) -> Address:
        """Return its own address."""
        return show(self._family, self._native.local())

    def getpeername(self) -> Address:
        """Return its peer's address."""
        return show(self._family, self._native.peer())

    def setsockopt(self, level: int, option: int, value: int | Buffer | None, *_: int) -> None:
        """Set an option. Those that the stack does not have raise OSError (ENOPROTOOPT)."""
        if value is None:
            raise TypeError("an option's value is a number or bytes")
        set_option(self._native, level, option, value if isinstance(value, int) else bytes(value))

    def getsockopt(self, level: int, option: int, buflen: int = 0) -> int | bytes:
        """Return an option: a number, or bytes where ``buflen`` is given."""
        return get_option(self._native, level, option, buflen)

    def fileno(self) -> int:
        """Return a descriptor that ``select`` and the like can wait on; -1 once closed.

        It is readable when ``recv`` or ``accept`` would return at once, writable when ``send``
        would.
        """
        if self._closed:
            return -1
        if self._number is None:
            self._number = self._native.fileno()
        return self._number

    def makefile(
        self,
        mode: str = "r",
        buffering: int | None = None,
        *,
        encoding: str | None = None,
        errors: str | None = None,
        newline: str | None = None,
    ) -> Any:
        """Return a file that reads and writes the connection, as Python's sockets do."""
        if not set(mode) <= {"r", "w", "b"}:
            raise ValueError(f"a mode is made of r, w and b, not {mode!r}")
        writing = "w" in mode
        reading = "r" in mode or not writing
        raw = socket.SocketIO(self, "r" * reading + "w" * writing)  # type: ignore[arg-type]
        self._io_refs += 1
        if buffering is None or buffering < 0:
            buffering = io.DEFAULT_BUFFER_SIZE
        if buffering == 0:
            if "b" not in mode:
                raise ValueError("without a buffer only bytes can be read and written")
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
                f"{os.strerror(errno.EOPNOTSUPP)}: of the flags, only MSG_PEEK is known",
            )

    def stats(self) -> dict[str, Any]:
        """Return what was counted of it: bytes, packets, retransmits, ``rtt`` in seconds, …."""
        return self._native.stats()

    def close(self) -> None:
        """Close it; what was sent still goes out. Files that ``makefile`` made live on."""
        self._closed = True
        if self._io_refs <= 0:
            self._native.close()

    def detach(self) -> int:
        """Refuse: the descriptor is no socket."""
        raise OSError(
            errno.EOPNOTSUPP, "a socket of a stack has no descriptor of its own to detach"
        )

    def __enter__(self) -> Self:
        """Return it."""
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
        """Return its family, its type and its addresses."""
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
        raise ValueError(f"so many bytes cannot be received: {value}")
    return value
