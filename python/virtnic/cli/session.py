"""The memory, QEMU and ports described by a command's options."""

from __future__ import annotations

import contextlib
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from virtnic.cli.options import SANDBOXES
from virtnic.cli.ports import PortArguments
from virtnic.memory import Memory
from virtnic.nic.port import Qemu

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterator

    import virtnic

__all__ = [
    "Session",
    "attach",
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
    qemu: Qemu
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
    with start_qemu(arguments, memory) as qemu, attach(arguments, qemu) as port:
        yield Session(memory, qemu, port)


@contextlib.contextmanager
def opened_ports(arguments: argparse.Namespace) -> Iterator[dict[virtnic.Port, str]]:
    """Open the ports on one QEMU and one memory, each with its netdev; close them at the end."""
    memory = make_memory(arguments)
    with start_qemu(arguments, memory) as qemu, ExitStack() as stack:
        yield {stack.enter_context(port.attach(qemu)): port.netdev for port in ports_of(arguments)}


def configure(arguments: argparse.Namespace, stack: virtnic.Stack) -> dict[str, Any]:
    """Give the stack the address from the options, or one from DHCP.

    Returns ``address`` with prefix length and ``gateway``, and from DHCP also ``server``, ``dns``,
    ``duration`` of the lease and ``elapsed`` seconds.

    Raises TimeoutError if no DHCP server answers.
    """
    more: dict[str, Any] = {}
    if arguments.address is not None:
        stack.configure(arguments.address, arguments.gateway)
    else:
        try:
            lease = stack.dhcp()
        except TimeoutError as error:
            error.add_note("Without a DHCP server, give --address A.B.C.D/N.")
            raise
        more = {name: getattr(lease, name) for name in ("server", "dns", "duration", "elapsed")}
    return {"address": stack.address, "gateway": stack.gateway, **more}
