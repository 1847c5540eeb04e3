"""`Stack`: a TCP/IP stack on a port, served by a native thread."""

from __future__ import annotations

import contextlib
import socket as std
from typing import TYPE_CHECKING, Any, Self, TypedDict

from virtnic._native import NetPort, NetQueue, NetStack, StackWire
from virtnic.arguments import check_names, suggest_options
from virtnic.deadline import seconds
from virtnic.net.addresses import Address, family_of, is_numeric, show
from virtnic.net.carrier import carry
from virtnic.net.racing import interleave, race
from virtnic.net.resolver import Resolver
from virtnic.net.socket import Socket
from virtnic.teardown import Closing

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from virtnic.protocols import PacketPort

__all__ = ["Info", "Stack", "StackOptions"]

#: One result of `getaddrinfo`.
Info = tuple[std.AddressFamily, std.SocketKind, int, str, Address]
_PROTOCOLS = {std.SOCK_STREAM: std.IPPROTO_TCP, std.SOCK_DGRAM: std.IPPROTO_UDP}


class StackOptions(TypedDict, total=False):
    """The options of :class:`Stack`, for those who pass them on."""

    dhcp: bool
    ipv6: bool
    address: str | Iterable[str]
    gateway: str | Iterable[str]
    dns: Iterable[str]
    search: Iterable[str]
    hosts: str | Path | None
    mtu: int | None
    timeout: float | None


class Stack(NetStack, Closing):
    """TCP, UDP, ICMP, IPv4 and IPv6 on a port, served by a native thread.

    The thread answers ARP, neighbour discovery and echo requests and renews the lease. On a
    virtnic port or queue no Python code runs between ring and socket; for any other object with
    ``send`` and ``recv``, two Python threads carry the frames. While a stack is on a port, the
    frames the port receives belong to the stack.
    """

    def __new__(cls, port: PacketPort, **options: Any) -> Self:
        """Create the stack on a port, a queue or a carrier."""
        check_names("virtnic.net.Stack()", StackOptions.__optional_keys__, options)
        wire = port if isinstance(port, (NetPort, NetQueue, StackWire)) else carry(port)
        ipv6, mtu = options.get("ipv6", True), options.get("mtu")
        return super().__new__(cls, wire, ipv6=ipv6, mtu=mtu)

    def __init__(
        self,
        port: PacketPort,  # noqa: ARG002 - it, `ipv6` and `mtu` are for __new__
        *,
        dhcp: bool = False,
        ipv6: bool = True,  # noqa: ARG002
        address: str | Iterable[str] = (),
        gateway: str | Iterable[str] = (),
        dns: Iterable[str] = (),
        search: Iterable[str] = (),
        hosts: str | Path | None = None,
        mtu: int | None = None,  # noqa: ARG002
        timeout: float | None = 10.0,
    ) -> None:
        """Start the stack.

        ``dhcp`` gets a lease within ``timeout`` seconds. ``address`` is one or more addresses with
        prefix length (``10.0.0.5/24``, ``fd00::5/64``), ``gateway`` at most one per family.
        ``ipv6`` configures a link-local address and one for each advertised prefix. ``dns`` are
        name servers to use before those from DHCP, ``search`` domains for names without a dot,
        ``hosts`` a file like ``/etc/hosts``. ``mtu`` is the maximum IP packet size in bytes, at
        most the port's MTU.

        Raises ValueError, TimeoutError.
        """
        seconds(timeout)
        self._dns = list(dns)
        self._resolver = Resolver(self.socket, self._all_servers, search, hosts)
        try:
            gateways = {family_of(one): one for one in _several(gateway)}
            for one in _several(address):
                self.configure(one, gateways.pop(family_of(one), None))
            if gateways:
                raise ValueError(
                    f"gateway {next(iter(gateways.values()))} needs an address of the same family"
                )
            if dhcp:
                self.dhcp(timeout)
        except BaseException:
            self.close()
            raise

    def _all_servers(self) -> list[str]:
        return [*self._dns, *self.name_servers]

    @property
    def address(self) -> str | None:
        """The IPv4 address with prefix length, ``10.0.2.15/24``, or None."""
        return next((one for one in self.addresses if ":" not in one), None)

    @property
    def gateway(self) -> str | None:
        """The IPv4 default gateway, or None."""
        return next((one for one in self.gateways if ":" not in one), None)

    def socket(
        self,
        family: int = std.AF_INET,
        type: int = std.SOCK_STREAM,  # noqa: A002 - as Python's own
        proto: int = 0,
    ) -> Socket:
        """Create a socket: ``AF_INET`` or ``AF_INET6``, ``SOCK_STREAM`` or ``SOCK_DGRAM``."""
        blocking = not type & std.SOCK_NONBLOCK
        type &= ~(std.SOCK_NONBLOCK | std.SOCK_CLOEXEC)  # noqa: A001
        if family not in (std.AF_INET, std.AF_INET6):
            raise ValueError(f"the family must be AF_INET or AF_INET6, not {family}")
        if type not in _PROTOCOLS or proto not in (0, _PROTOCOLS[std.SocketKind(type)]):
            raise ValueError(f"there is only TCP and UDP, not type {type} with protocol {proto}")
        native = self._open(type == std.SOCK_STREAM, family == std.AF_INET6)
        made = Socket(native, family, type, self._resolve_one)
        made.setblocking(blocking)
        return made

    def _resolve_one(self, host: str, family: int) -> str:
        return self._resolver.resolve(host, [family])[0]

    def create_connection(
        self,
        address: tuple[str, int],
        timeout: float | None = None,
        source_address: tuple[str, int] | None = None,
    ) -> Socket:
        """Connect to a host and port over TCP; return the socket.

        If the name has several addresses, they are tried in parallel with staggered starts, the
        families alternating (RFC 8305). Raises OSError, TimeoutError, socket.gaierror.
        """
        host, port = address
        timeout = seconds(timeout)
        found = self.getaddrinfo(host, port, type=std.SOCK_STREAM)
        addresses = interleave(info[4] for info in found)

        def make(to: Address) -> Socket:
            made = self.socket(family_of(to[0]))
            if source_address is not None:
                made.bind(source_address)
            return made

        if len(addresses) == 1:
            connection = make(addresses[0])
            try:
                connection.settimeout(timeout)
                connection.connect(addresses[0])
            except BaseException:
                connection.close()
                raise
        else:
            connection = race(addresses, make, timeout)
            connection.settimeout(timeout)
        return connection

    @suggest_options
    def create_server(
        self,
        address: tuple[str, int],
        *,
        family: int = std.AF_INET,
        backlog: int = 128,
        reuse_port: bool = False,
    ) -> Socket:
        """Return a TCP socket that listens on an address."""
        server = self.socket(family)
        try:
            if reuse_port:
                server.setsockopt(std.SOL_SOCKET, std.SO_REUSEPORT, 1)
            server.bind(address)
            server.listen(backlog)
        except BaseException:
            server.close()
            raise
        return server

    def getaddrinfo(
        self,
        host: str | None,
        port: str | int | None,
        family: int = 0,
        type: int = 0,  # noqa: A002 - as Python's own
        proto: int = 0,
        flags: int = 0,
    ) -> list[Info]:
        """Resolve a name like ``socket.getaddrinfo``, using the stack's name servers.

        Raises socket.gaierror.
        """
        number = _port(port)
        families = [family] if family else [std.AF_INET6, std.AF_INET]
        if host is None or host == "":
            any_ = ["::", "0.0.0.0"]  # noqa: S104
            here = any_ if flags & std.AI_PASSIVE else ["::1", "127.0.0.1"]
            hosts = [one for one in here if family_of(one) in families]
        elif is_numeric(host):
            hosts = [host] if family_of(host) in families else []
        elif flags & std.AI_NUMERICHOST:
            raise std.gaierror(std.EAI_NONAME, f"{host!r} is not a numeric address")
        else:
            if not family and not self._reaches_ipv6():
                families = [std.AF_INET]
            hosts = self._resolver.resolve(host, families)
        if not hosts:
            raise std.gaierror(std.EAI_ADDRFAMILY, f"{host!r} is of another family")
        kinds = [one for one in _PROTOCOLS if type in (0, one) and proto in (0, _PROTOCOLS[one])]
        infos: list[Info] = []
        for one in hosts:
            kin = std.AddressFamily(family_of(one))
            infos += [(kin, kind, _PROTOCOLS[kind], "", show(kin, (one, number))) for kind in kinds]
        return infos

    def _reaches_ipv6(self) -> bool:
        """Return whether the stack has an IPv6 address that is not link-local."""
        return any(":" in one and not one.startswith("fe80:") for one in self.addresses)

    def __repr__(self) -> str:
        """Show its addresses."""
        with contextlib.suppress(Exception):
            state = "closed" if self.closed else ", ".join(self.addresses)
            return f"<virtnic.net.Stack {state}>"
        return "<virtnic.net.Stack>"


def _several(given: str | Iterable[str]) -> list[str]:
    return [given] if isinstance(given, str) else list(given)


def _port(port: str | int | None) -> int:
    if port is None:
        return 0
    with contextlib.suppress(ValueError):
        return int(port)
    try:
        return std.getservbyname(str(port))
    except OSError:
        raise std.gaierror(std.EAI_SERVICE, f"there is no service {port!r}") from None
