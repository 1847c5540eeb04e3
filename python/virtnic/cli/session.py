"""The memory, QEMU and ports described by a command's options."""

from __future__ import annotations

import contextlib
from contextlib import ExitStack
from dataclasses import dataclass
from errno import ENETDOWN
from socket import AF_INET, AF_INET6
from typing import TYPE_CHECKING, Any

from virtnic.cli.options import SANDBOXES, given_for_qemu
from virtnic.cli.ports import PortArguments
from virtnic.memory import Memory
from virtnic.net.addresses import is_numeric
from virtnic.nic.port import Qemu

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterator

    import virtnic
    from virtnic.net import Stack

__all__ = [
    "Session",
    "attach",
    "blamed",
    "configure",
    "make_memory",
    "opened",
    "opened_ports",
    "ports_of",
    "start_qemu",
]


@dataclass(frozen=True, slots=True)
class Session:
    """The objects that a command works with."""

    memory: Memory
    #: None for a port without QEMU.
    qemu: Qemu | None
    port: virtnic.Port


def make_memory(arguments: argparse.Namespace) -> Memory:
    """Create the memory described by the options."""
    hugepages = None if arguments.hugepages == "none" else arguments.hugepages
    options: dict[str, Any] = {"hugepages": hugepages, "iova": arguments.iova}
    size = arguments.memory or ("1G" if hugepages == "1G" else None)
    if size is not None:
        options["size"] = size
    return Memory(**options)


def start_qemu(arguments: argparse.Namespace, memory: Memory) -> Qemu:
    """Start the QEMU described by the options."""
    return Qemu(
        memory,
        qemu=arguments.qemu,
        accel=arguments.accel,
        machine=arguments.machine,
        sandbox=SANDBOXES[arguments.sandbox],
        connect=getattr(arguments, "connect", None),
        recover=getattr(arguments, "recover", False),
    )


def attach(arguments: argparse.Namespace, qemu: Qemu) -> virtnic.Port:
    """Plug in and start the NIC described by the options."""
    (wanted,) = ports_of(arguments)
    return wanted.attach(qemu)


def ports_of(arguments: argparse.Namespace) -> list[PortArguments]:
    """Return the ports described by --port, or the one described by --netdev and --mac."""
    if hasattr(arguments, "port"):
        found = arguments.port or [PortArguments("user")]
    else:
        found = [PortArguments(arguments.netdev, arguments.mac)]
    return [port.otherwise(arguments) for port in found]


@contextlib.contextmanager
def opened(arguments: argparse.Namespace) -> Iterator[Session]:
    """Create all three; close them at the end."""
    memory = make_memory(arguments)
    (wanted,) = ports_of(arguments)
    with ExitStack() as stack:
        # A port ends with its QEMU. Unplugging it first would wait for one that does not answer.
        if wanted.direct:
            qemu, port = None, stack.enter_context(_direct(arguments, wanted, memory))
        else:
            qemu = stack.enter_context(start_qemu(arguments, memory))
            port = wanted.attach(qemu)
        stack.enter_context(blamed(port))
        yield Session(memory, qemu, port)


def _direct(
    arguments: argparse.Namespace, wanted: PortArguments, memory: Memory, alone: bool = True
) -> virtnic.Port:
    """Open a port without QEMU. Raises ValueError for options of QEMU's if there is none."""
    if alone and (given := given_for_qemu(arguments)):
        raise ValueError(f"--frontend direct has no QEMU: leave out {', '.join(given)}")
    return wanted.open(memory, getattr(arguments, "recover", False))


@contextlib.contextmanager
def blamed(port: virtnic.Port) -> Iterator[None]:
    """Raise what ended the port, where a socket on it says that the network is down."""
    try:
        yield
    except OSError as error:
        if error.errno == ENETDOWN:
            port.recv(1)
        raise


@contextlib.contextmanager
def opened_ports(arguments: argparse.Namespace) -> Iterator[dict[virtnic.Port, str]]:
    """Open the ports on one memory, and one QEMU for those that need it; close them at the end."""
    memory = make_memory(arguments)
    with ExitStack() as stack:
        wanted = ports_of(arguments)
        qemu = None
        if not all(port.direct for port in wanted):
            qemu = stack.enter_context(start_qemu(arguments, memory))
        found = {}
        for each in wanted:
            if qemu is None or each.direct:
                alone = qemu is None
                port = stack.enter_context(_direct(arguments, each, memory, alone=alone))
            else:
                port = each.attach(qemu)
            found[port] = each.netdev
        yield found


def configure(
    arguments: argparse.Namespace, stack: Stack, *, family: int = AF_INET, target: str = ""
) -> dict[str, Any]:
    """Give the stack the addresses from the options, or from DHCP and routers.

    ``target`` is whom to reach: by a name, which takes a name server, or by an address of
    ``family``.

    Returns ``address`` with prefix length and ``gateway`` of that family, and from DHCP also
    ``server``, ``dns``, ``duration`` of the lease and ``elapsed`` seconds. Raises TimeoutError.
    """
    more: dict[str, Any] = {}
    given: list[str] = arguments.address or []
    gateways = {":" in gateway: gateway for gateway in arguments.gateway or ()}
    for address in given:
        stack.configure(address, gateways.pop(":" in address, None))
    six = family == AF_INET6
    local = target.lower().startswith("fe80:")
    if not given and not (six and is_numeric(target)):
        try:
            lease = stack.dhcp()
        except TimeoutError as error:
            error.add_note("Without a DHCP server, give --address A.B.C.D/N.")
            raise
        more = {name: getattr(lease, name) for name in ("server", "dns", "duration", "elapsed")}
    if six and not local and not any(":" in address for address in given):
        try:
            stack.wait_ipv6()
        except TimeoutError as error:
            error.add_note("Without a router, give --address IPv6/N.")
            raise
    own = [one for one in stack.addresses if (":" in one) == six]
    own.sort(key=lambda one: one.startswith("fe80:") != local)
    gateway = next((one for one in stack.gateways if (":" in one) == six), None)
    return {"address": own[0] if own else None, "gateway": gateway, **more}
