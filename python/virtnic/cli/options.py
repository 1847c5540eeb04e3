"""Options that commands share, and the memory, QEMU and port that they describe."""

from __future__ import annotations

import argparse
import contextlib
import ipaddress
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal, get_args

import virtnic
from virtnic.nic.options import Interrupts
from virtnic.qemu.command import Accel, MachineType

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

__all__ = [
    "SANDBOXES",
    "PortOptions",
    "Session",
    "add_address",
    "add_common",
    "add_connect",
    "add_device",
    "add_memory",
    "add_port",
    "add_qemu",
    "add_recover",
    "attach",
    "check_address",
    "configure",
    "ipv4",
    "make_memory",
    "opened",
    "opened_ports",
    "port_options",
    "positive",
    "seconds",
    "start_qemu",
    "whole",
]

_RINGS = ("split", "packed")
_NOTIFIES = ("eventfd", "qtest")
SANDBOXES: dict[str, bool | Literal["spawn"]] = {"on": True, "spawn": "spawn", "off": False}


def add_common(parser: argparse.ArgumentParser) -> None:
    """Add what every command has."""
    group = parser.add_argument_group("output")
    group.add_argument(
        "--json",
        action="store_true",
        help='print one JSON object, on failure too: {"error": {"type": …, "message": …}}',
    )
    group.add_argument(
        "-v",
        "--verbose",
        action="count",
        default=0,
        help="say more on stderr; -vv for debugging, with tracebacks",
    )


def add_qemu(parser: argparse.ArgumentParser) -> None:
    """Add the choice of QEMU."""
    group = parser.add_argument_group("QEMU")
    group.add_argument(
        "--qemu",
        metavar="PATH",
        help="the QEMU to start: a path or a quoted command line (default: $VIRTNIC_QEMU, else "
        "qemu-system-x86_64 in PATH)",
    )
    group.add_argument(
        "--accel",
        choices=get_args(Accel),
        default="auto",
        help="accelerator; auto takes qtest where this QEMU has it, else tcg with a parked "
        "processor (default: %(default)s)",
    )
    group.add_argument(
        "--machine",
        choices=get_args(MachineType),
        default="pc",
        help="machine type (default: %(default)s)",
    )
    group.add_argument(
        "--sandbox",
        choices=tuple(SANDBOXES),
        default="on",
        help="what QEMU may do: nothing but its work, also run the helpers and scripts that a "
        "netdev needs (spawn), or anything (default: %(default)s)",
    )


def add_connect(parser: argparse.ArgumentParser) -> None:
    """Add the choice of a QEMU that runs already."""
    parser.add_argument_group("QEMU started elsewhere").add_argument(
        "--connect",
        metavar="DIR",
        help="start no QEMU, but drive the one whose sockets are in this directory; it was started "
        "as `virtnic qemu-args --directory` says",
    )


def add_recover(parser: argparse.ArgumentParser) -> None:
    """Add what becomes of a QEMU that dies."""
    parser.add_argument_group("when QEMU dies").add_argument(
        "--recover",
        action="store_true",
        help="start it again, with all its ports, up to ten times in a row (default: end with an "
        "error); a vhost-user backend that goes is waited for either way",
    )


def add_memory(parser: argparse.ArgumentParser) -> None:
    """Add the choice of memory."""
    group = parser.add_argument_group("memory")
    group.add_argument(
        "--memory",
        metavar="SIZE",
        help="size of the shared packet memory, a power of two such as 64M (default: 32M, or one "
        "page where pages are larger)",
    )
    group.add_argument(
        "--hugepages",
        choices=("auto", "1G", "2M", "none"),
        default="auto",
        help="pages that back it; auto takes the largest that are free (default: %(default)s)",
    )
    group.add_argument(
        "--iova",
        type=_iova,
        default="va",
        metavar="va|pa|ADDRESS",
        help="where the device sees it: at this process's own addresses, at the physical ones "
        "(needs CAP_SYS_ADMIN), or at an address such as 0x100000000 (default: %(default)s)",
    )


def add_port(parser: argparse.ArgumentParser) -> None:
    """Add the choice of netdev, and of how the device reports."""
    group = parser.add_argument_group("port")
    group.add_argument(
        "--netdev",
        default="user",
        metavar="NETDEV",
        help="what the NIC is connected to, as QEMU's -netdev takes it without id "
        "(default: %(default)s)",
    )
    group.add_argument("--mac", metavar="MAC", help="its MAC address (default: what QEMU gives it)")
    add_device(group)


def add_device(group: argparse._ArgumentGroup) -> None:
    """Add how a port's rings are and how both sides tell each other of frames."""
    group.add_argument(
        "--interrupts",
        choices=get_args(Interrupts),
        default="msix",
        help="how the device tells us: by a message to an eventfd, an interrupt line, or not at "
        "all, which means polling (default: %(default)s)",
    )
    group.add_argument(
        "--queue-size",
        type=positive,
        metavar="N",
        help="entries of each ring, a power of two (default: what the device has)",
    )
    group.add_argument(
        "--ring",
        choices=_RINGS,
        help="the format of the rings (default: packed where a vhost-user backend offers it, "
        "else split)",
    )
    group.add_argument(
        "--notify",
        choices=_NOTIFIES,
        help="how a vhost-user backend is woken: by its own eventfd or through QEMU "
        "(default: eventfd)",
    )


def add_address(parser: argparse.ArgumentParser) -> None:
    """Add the IP address, for networks without DHCP."""
    group = parser.add_argument_group("IP")
    group.add_argument(
        "--address",
        type=_interface,
        metavar="A.B.C.D/N",
        help="our address and prefix (default: ask DHCP)",
    )
    group.add_argument(
        "--gateway", type=ipv4, metavar="A.B.C.D", help="the gateway, with --address"
    )


def check_address(arguments: argparse.Namespace) -> str | None:
    """Return what is wrong with the IP options together."""
    if arguments.gateway and not arguments.address:
        return "--gateway goes with --address; DHCP brings its own"
    return None


def whole(text: str) -> int:
    """Read a whole number, for argparse."""
    if not text.isascii() or not text.isdigit():
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number")
    return int(text)


def positive(text: str) -> int:
    """Read a whole number above 0, for argparse."""
    number = whole(text)
    if number == 0:
        raise argparse.ArgumentTypeError(f"{text!r} is not above 0")
    return number


def seconds(text: str) -> float:
    """Read a number of seconds, for argparse."""
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0.0 <= value < 1e6:
        raise argparse.ArgumentTypeError(f"{text!r} is no number of seconds")
    return value


def _iova(text: str) -> str | int:
    if text in ("va", "pa"):
        return text
    try:
        return int(text, 0)
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"{text!r} is neither va nor pa nor an address such as 0x100000000"
        ) from None


def ipv4(text: str) -> str:
    """Check an IPv4 address, for argparse."""
    try:
        return str(ipaddress.IPv4Address(text))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no IPv4 address") from None


def _interface(text: str) -> str:
    if "/" not in text:
        raise argparse.ArgumentTypeError(f"{text!r} lacks its prefix; write {text}/24")
    try:
        return str(ipaddress.IPv4Interface(text))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no IPv4 address with prefix") from None


@dataclass(frozen=True, slots=True)
class Session:
    """What a command works with."""

    memory: virtnic.Memory
    qemu: virtnic.Qemu
    port: virtnic.Port


def make_memory(arguments: argparse.Namespace) -> virtnic.Memory:
    """Make the memory that the options describe."""
    hugepages = None if arguments.hugepages == "none" else arguments.hugepages
    options: dict[str, Any] = {"hugepages": hugepages, "iova": arguments.iova}
    size = arguments.memory or ("1G" if hugepages == "1G" else None)
    if size is not None:
        options["size"] = size
    return virtnic.Memory(**options)


def start_qemu(arguments: argparse.Namespace, memory: virtnic.Memory) -> virtnic.Qemu:
    """Start the QEMU that the options describe."""
    return virtnic.Qemu(
        memory,
        qemu=arguments.qemu,
        accel=arguments.accel,
        machine=arguments.machine,
        sandbox=SANDBOXES[arguments.sandbox],
        connect=getattr(arguments, "connect", None),
        recover=getattr(arguments, "recover", False),
    )


@dataclass(frozen=True, slots=True)
class PortOptions:
    """What the options say of one port; None where they say nothing."""

    netdev: str
    mac: str | None = None
    interrupts: str | None = None
    queue_size: int | None = None
    ring: str | None = None
    notify: str | None = None

    def otherwise(self, arguments: argparse.Namespace) -> PortOptions:
        """Fill in what the options of :func:`add_device` say for every port."""
        names = ("interrupts", "queue_size", "ring", "notify")
        missing = {name: getattr(arguments, name) for name in names if getattr(self, name) is None}
        return replace(self, **missing)

    def attach(self, qemu: virtnic.Qemu) -> virtnic.Port:
        """Plug in and start this NIC."""
        options: dict[str, Any] = {
            "mac": self.mac,
            "interrupts": self.interrupts,
            "queue_size": self.queue_size or 0,
            "ring": self.ring,
            "notify": self.notify,
        }
        return qemu.attach(self.netdev, **options)


def port_options(text: str) -> PortOptions:
    """Read ``NETDEV[;OPTION=VALUE]...``, for argparse; ``;;`` is a semicolon of the netdev."""
    netdev, *words = [word.replace("\0", ";") for word in text.replace(";;", "\0").split(";")]
    given: dict[str, Any] = {}
    for word in words:
        name, equals, value = word.strip().partition("=")
        if name not in _PORT_OPTIONS or not equals:
            raise argparse.ArgumentTypeError(
                f"{word.strip()!r} in {text!r} is no option of a port, which are "
                f"{', '.join(f'{known}=' for known in _PORT_OPTIONS)}; a semicolon in a netdev is "
                "written twice"
            )
        given[name.replace("-", "_")] = _PORT_OPTIONS[name](name, value)
    return PortOptions(netdev.strip(), **given)


def _any(_name: str, value: str) -> str:
    return value


def _number(_name: str, value: str) -> int:
    return positive(value)


def _one_of(*choices: str) -> Callable[[str, str], str]:
    def check(name: str, value: str) -> str:
        if value not in choices:
            raise argparse.ArgumentTypeError(
                f"{name} is {', '.join(choices[:-1])} or {choices[-1]}, not {value!r}"
            )
        return value

    return check


_PORT_OPTIONS: dict[str, Callable[[str, str], Any]] = {
    "mac": _any,
    "interrupts": _one_of(*get_args(Interrupts)),
    "queue-size": _number,
    "ring": _one_of(*_RINGS),
    "notify": _one_of(*_NOTIFIES),
}


def attach(arguments: argparse.Namespace, qemu: virtnic.Qemu) -> virtnic.Port:
    """Plug in and start the NIC that the options describe."""
    return PortOptions(arguments.netdev, arguments.mac).otherwise(arguments).attach(qemu)


@contextlib.contextmanager
def opened(arguments: argparse.Namespace) -> Iterator[Session]:
    """Do all three; close them at the end."""
    memory = make_memory(arguments)
    with start_qemu(arguments, memory) as qemu, attach(arguments, qemu) as port:
        yield Session(memory, qemu, port)


@contextlib.contextmanager
def opened_ports(
    arguments: argparse.Namespace, wanted: Sequence[PortOptions]
) -> Iterator[list[virtnic.Port]]:
    """Open several ports of one QEMU on one memory; close them at the end."""
    memory = make_memory(arguments)
    with start_qemu(arguments, memory) as qemu, ExitStack() as stack:
        yield [stack.enter_context(each.attach(qemu)) for each in wanted]


def configure(arguments: argparse.Namespace, stack: virtnic.Stack) -> dict[str, Any]:
    """Give the stack the address of the options, or one from DHCP.

    Returns ``address`` with its prefix and ``gateway``, and from DHCP also ``server``, ``dns``,
    ``duration`` of the lease and ``elapsed``, the seconds that it took.

    Raises TimeoutError when no DHCP server answers.
    """
    more: dict[str, Any] = {}
    if arguments.address is not None:
        stack.configure(arguments.address, arguments.gateway)
    else:
        try:
            lease = stack.dhcp()
        except TimeoutError as error:
            error.add_note("Where there is no DHCP server, give --address A.B.C.D/N.")
            raise
        more = {name: getattr(lease, name) for name in ("server", "dns", "duration", "elapsed")}
    return {"address": stack.address, "gateway": stack.gateway, **more}
