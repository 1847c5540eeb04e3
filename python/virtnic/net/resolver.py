"""`Resolver`: resolves names through name servers on the stack and a hosts file."""

from __future__ import annotations

import errno
import random
import socket
import struct
import time
from pathlib import Path
from typing import TYPE_CHECKING

from virtnic.errors import message_of
from virtnic.net.dns import AAAA, A, Answer, Malformed, decode, encode

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from virtnic.net.socket import Socket

__all__ = ["Resolver"]

_PORT = 53
#: How often each server is asked, and how many seconds it may take each time.
_ROUNDS, _WAIT = 2, 2.0
#: The longest chain of aliases (CNAME records) that is followed.
_ALIASES = 8
_NXDOMAIN = 3
_KINDS: dict[int, int] = {socket.AF_INET: A, socket.AF_INET6: AAAA}


class _NoSuchName(Exception):
    """A server answered that the name does not exist."""


class Resolver:
    """Resolves names to addresses."""

    def __init__(
        self,
        open_socket: Callable[[int, int], Socket],
        servers: Callable[[], list[str]],
        search: Iterable[str] = (),
        hosts: str | Path | None = None,
    ) -> None:
        """Take the name servers and how to reach them.

        ``open_socket`` creates a socket of a family and a type, ``servers`` returns the name
        servers, ``search`` are domains for names without a dot, ``hosts`` is a hosts file.
        """
        self._open = open_socket
        self._servers = servers
        self._search = [domain.strip(".") for domain in search]
        self._hosts = None if hosts is None else Path(hosts)
        self._random = random.SystemRandom()

    def resolve(
        self, name: str, families: Iterable[int], timeout: float | None = None
    ) -> list[str]:
        """Return the addresses of a name, those of the first family first.

        Raises socket.gaierror: ``EAI_NONAME`` if the name does not exist, ``EAI_AGAIN`` if no
        server answers, ``EAI_NODATA`` if the name has no address of these families. Raises
        TimeoutError after ``timeout`` seconds.
        """
        families = list(families)
        found = self._in_hosts(name, families)
        if found:
            return found
        deadline = None if timeout is None else time.monotonic() + timeout
        servers = self._servers()
        if not servers:
            raise socket.gaierror(
                socket.EAI_AGAIN,
                f"{name!r} cannot be resolved: the stack has no name server; pass dns=[ADDRESS], "
                "or dhcp=True where the network offers one",
            )
        exists = False
        for candidate in self._candidates(name):
            try:
                found = [
                    address
                    for family in families
                    for address in self._ask_all(candidate, _KINDS[family], servers, deadline)
                ]
            except _NoSuchName:
                continue
            exists = True
            if found:
                return found
        if exists:
            raise socket.gaierror(
                socket.EAI_NODATA, f"{name!r} has no address of the requested family"
            )
        raise socket.gaierror(socket.EAI_NONAME, f"the name {name!r} does not exist")

    def _candidates(self, name: str) -> list[str]:
        if name.endswith("."):
            return [name]
        longer = [f"{name}.{domain}" for domain in self._search]
        # Like ndots:1 in resolv.conf.
        return [name, *longer] if "." in name else [*longer, name]

    def _in_hosts(self, name: str, families: list[int]) -> list[str]:
        if self._hosts is None:
            return []
        wanted = name.rstrip(".").lower()
        found = []
        for line in self._hosts.read_text(encoding="utf-8", errors="replace").splitlines():
            address, *names = line.partition("#")[0].split() or [""]
            if wanted in (other.lower() for other in names):
                found.append(address)
        kinds = {family: ":" if family == socket.AF_INET6 else "." for family in families}
        return [address for family in families for address in found if kinds[family] in address]

    def _ask_all(
        self, name: str, kind: int, servers: list[str], deadline: float | None
    ) -> tuple[str, ...]:
        for _ in range(_ALIASES):
            answer = self._ask(name, kind, servers, deadline)
            if answer.alias is None:
                return answer.addresses
            name = answer.alias
        raise socket.gaierror(
            socket.EAI_FAIL, f"{name!r} cannot be resolved: more than {_ALIASES} aliases"
        )

    def _ask(self, name: str, kind: int, servers: list[str], deadline: float | None) -> Answer:
        why = "no server answered"
        for _ in range(_ROUNDS):
            for server in servers:
                wait = _WAIT
                if deadline is not None:
                    wait = min(wait, deadline - time.monotonic())
                    if wait <= 0:
                        raise TimeoutError(f"{name!r} was not resolved in time: {why}")
                try:
                    answer = self._ask_one(server, name, kind, wait)
                except TimeoutError:
                    why = f"{server} did not answer"
                    continue
                except (OSError, Malformed) as error:
                    why = f"{server}: {message_of(error)}"
                    continue
                if answer.code == _NXDOMAIN:
                    raise _NoSuchName
                if answer.code == 0:
                    return answer
                why = f"{server} answered with error {answer.code}"
        raise socket.gaierror(socket.EAI_AGAIN, f"{name!r} cannot be resolved: {why}")

    def _ask_one(self, server: str, name: str, kind: int, wait: float) -> Answer:
        ident = self._random.getrandbits(16)
        question = encode(name, kind, ident)
        family = socket.AF_INET6 if ":" in server else socket.AF_INET
        until = time.monotonic() + wait
        with self._open(family, socket.SOCK_DGRAM) as asking:
            asking.settimeout(wait)
            asking.connect((server, _PORT))
            asking.send(question)
            while True:
                asking.settimeout(max(until - time.monotonic(), 0.001))
                try:
                    answer = decode(asking.recv(65535), name, kind, ident)
                except Malformed:
                    continue  # a late or forged message; the response may still come
                except BlockingIOError:
                    raise TimeoutError from None
                break
        if not answer.truncated:
            return answer
        with self._open(family, socket.SOCK_STREAM) as asking:
            asking.settimeout(max(until - time.monotonic(), 0.5))
            asking.connect((server, _PORT))
            asking.sendall(struct.pack(">H", len(question)) + question)
            length = struct.unpack(">H", _exactly(asking, 2))[0]
            return decode(_exactly(asking, length), name, kind, ident)


def _exactly(connection: Socket, length: int) -> bytes:
    data = b""
    while len(data) < length:
        more = connection.recv(length - len(data))
        if not more:
            raise OSError(errno.ECONNRESET, "the name server ended the connection early")
        data += more
    return data
