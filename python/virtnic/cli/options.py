"""Options shared by commands.

They are described to argparse and parsed here; :mod:`virtnic.cli.session` turns them into a memory,
a QEMU and ports. Slow imports are made when a value is parsed, so that help is quick.
"""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any, Literal

from virtnic.cli.status import EXIT_STATUSES

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from virtnic.cli.ports import PortArguments

__all__ = [
    "ACCELERATORS",
    "ENDING",
    "INTERRUPTS",
    "LOOP_IMPORTS",
    "MACHINES",
    "MODES",
    "SANDBOXES",
    "add_address",
    "add_common",
    "add_device",
    "add_loop",
    "add_port",
    "add_ports",
    "add_qemu",
    "add_session",
    "check_address",
    "check_ports",
    "cpus",
    "given_for_qemu",
    "host",
    "ip",
    "ipv4",
    "mac",
    "path",
    "port_options",
    "positive",
    "seconds",
    "table",
    "up_to",
    "whole",
]

# The choices of the API's types; a test compares them.
ACCELERATORS = ("auto", "qtest", "tcg", "kvm")
MACHINES = ("pc", "q35")
INTERRUPTS = ("msix", "intx", "none")
MODES = ("io", "mac", "macswap")
_RINGS = ("split", "packed")
_NOTIFIES = ("eventfd", "qtest")
_FRONTENDS = ("qemu", "direct")
SANDBOXES: dict[str, bool | Literal["spawn"]] = {"on": True, "spawn": "spawn", "off": False}

_LONGEST = 1e9  # seconds
#: What the commands that run a loop import before they open anything.
LOOP_IMPORTS = ("virtnic.cli.loops", "virtnic.cli.session", "virtnic.loops")
ENDING = f"""\
Without --seconds and --packets the command runs until Ctrl-C or SIGTERM, prints the summary and
exits with status 0. With one of them, a signal ends it early: the summary is printed too, and the
status is 130 (Ctrl-C) or 143 (SIGTERM).

Bytes and L2 rates count Ethernet frames with their checksum: the shortest frame has 64 bytes. L1
adds the preamble and the gap, 20 bytes per frame: what the line carries. Occupied is the share of
the loop's iterations that moved frames, each a burst.

{EXIT_STATUSES}"""


def table(rows: Iterable[tuple[str, str]]) -> str:
    """Return two columns as lines for an epilog."""
    listed = list(rows)
    width = max(len(first) for first, _ in listed) + 2
    return "\n".join(f"  {first:<{width}}{second}" for first, second in listed)


def add_common(parser: argparse.ArgumentParser) -> None:
    """Add the options of every command."""
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
        help="print more on stderr; -vv for debugging, with tracebacks",
    )


def add_session(
    parser: argparse.ArgumentParser, *, connect: bool = True, recover: bool = False
) -> None:
    """Add the options of QEMU, the memory and the output, which stand at the end of the help."""
    add_qemu(parser)
    if connect:
        _add_connect(parser)
    if recover:
        _add_recover(parser)
    _add_memory(parser)
    add_common(parser)


def add_qemu(parser: argparse.ArgumentParser) -> None:
    """Add the options that choose a QEMU."""
    group = parser.add_argument_group("QEMU")
    group.add_argument(
        "--qemu",
        type=path,
        metavar="PATH",
        help="QEMU to start: a path or a quoted command line (default: $VIRTNIC_QEMU, else "
        "qemu-system-x86_64 in PATH)",
    )
    group.add_argument(
        "--accel",
        choices=ACCELERATORS,
        default="auto",
        help="accelerator; auto takes qtest if QEMU has it, else tcg with a parked processor "
        "(default: %(default)s)",
    )
    group.add_argument(
        "--machine",
        choices=MACHINES,
        default="pc",
        help="machine type (default: %(default)s)",
    )
    group.add_argument(
        "--sandbox",
        choices=tuple(SANDBOXES),
        default="on",
        help="what QEMU may do: nothing beyond its work, also run the helpers and scripts of a "
        "netdev (spawn), or anything (default: %(default)s)",
    )


def given_for_qemu(arguments: argparse.Namespace) -> list[str]:
    """Return the options for a QEMU that were given."""
    usual = {"qemu": None, "accel": "auto", "machine": "pc", "sandbox": "on", "connect": None}
    return [
        f"--{name}" for name, value in usual.items() if getattr(arguments, name, value) != value
    ]


def _add_connect(parser: argparse.ArgumentParser) -> None:
    """Add the option for a QEMU started elsewhere."""
    parser.add_argument_group("QEMU started elsewhere").add_argument(
        "--connect",
        type=path,
        metavar="DIR",
        help="do not start a QEMU but use the one whose sockets are in this directory, started as "
        "`virtnic qemu-args --directory` says",
    )


def _add_recover(parser: argparse.ArgumentParser) -> None:
    """Add the option for a QEMU that dies."""
    parser.add_argument_group("when QEMU dies").add_argument(
        "--recover",
        action="store_true",
        help="restart it with all its ports, up to ten times in a row (default: fail); "
        "a lost vhost-user backend is waited for in any case",
    )


def _add_memory(parser: argparse.ArgumentParser) -> None:
    """Add the options of the memory."""
    group = parser.add_argument_group("memory")
    group.add_argument(
        "--memory",
        type=_size,
        metavar="SIZE",
        help="size of the packet memory, a power of two: 64M, 64MiB, 64 MB, 1g (default: "
        "32M, or one page where pages are larger)",
    )
    group.add_argument(
        "--hugepages",
        choices=("auto", "1G", "2M", "none"),
        default="auto",
        help="page size; auto takes the largest with free pages (default: %(default)s)",
    )
    group.add_argument(
        "--iova",
        type=_iova,
        default="va",
        metavar="va|pa|ADDRESS",
        help="address at which the device sees it: this process's own (va), the physical one (pa, "
        "needs CAP_SYS_ADMIN), or one such as 0x100000000 (default: %(default)s)",
    )


def add_port(parser: argparse.ArgumentParser, *, frontend: bool = True) -> None:
    """Add the options of a port: netdev, MAC address, device, and whether it has a QEMU."""
    group = parser.add_argument_group("port")
    group.add_argument(
        "--netdev",
        default="user",
        metavar="NETDEV",
        help="what the NIC is connected to, as QEMU's -netdev takes it without id "
        "(default: %(default)s)",
    )
    group.add_argument(
        "--mac", type=mac, metavar="MAC", help="its MAC address (default: chosen by QEMU)"
    )
    add_device(group, frontend=frontend)


def add_ports(group: argparse._ArgumentGroup, how_often: str) -> None:
    """Add the option that names a port with its own options."""
    group.add_argument(
        "--port",
        action="append",
        type=port_options,
        metavar="NETDEV[;OPTION=VALUE]...",
        help=f"netdev of a port, as --netdev of other commands; {how_often}. Options of this port "
        f"may follow: {', '.join(f'{name}=' for name in _PORT_OPTIONS)}",
    )


def add_device(group: argparse._ArgumentGroup, *, frontend: bool = True) -> None:
    """Add the options of a device's rings and notifications."""
    if frontend:
        group.add_argument(
            "--frontend",
            choices=_FRONTENDS,
            help="who drives a vhost-user backend, or the kernel's vhost-net with "
            "tap,ifname=NAME,vhost=on: QEMU, or this process alone (default: qemu)",
        )
    group.add_argument(
        "--interrupts",
        choices=INTERRUPTS,
        default="msix",
        help="how the device signals: by message to an eventfd, by interrupt line, or not at all, "
        "so it is polled (default: %(default)s)",
    )
    group.add_argument(
        "--queue-size",
        type=positive,
        metavar="N",
        help="entries of each ring, a power of two (default: the device's own)",
    )
    group.add_argument(
        "--queues",
        type=positive,
        metavar="N",
        help="number of queue pairs, if the netdev has several (default: 1)",
    )
    group.add_argument(
        "--ring",
        choices=_RINGS,
        help="ring format (default: packed if a vhost-user backend offers it, else split)",
    )
    group.add_argument(
        "--notify",
        choices=_NOTIFIES,
        help="how a vhost-user backend is notified: by its own eventfd or through QEMU "
        "(default: eventfd)",
    )


def add_address(parser: argparse.ArgumentParser) -> None:
    """Add the options of IP addresses, for networks without DHCP."""
    group = parser.add_argument_group("IP")
    group.add_argument(
        "--address",
        action="append",
        type=_interface,
        metavar="IP/N",
        help="own address and prefix length; repeatable "
        "(default: IPv4 from DHCP, IPv6 from routers)",
    )
    group.add_argument(
        "--gateway",
        action="append",
        type=ip,
        metavar="IP",
        help="gateway, with --address; one for each family",
    )
    group.add_argument(
        "--dns",
        action="append",
        type=ip,
        metavar="IP",
        help="name server, before those of DHCP; repeatable",
    )


def add_loop(parser: argparse.ArgumentParser) -> None:
    """Add the options that end a loop and show its progress."""
    group = parser.add_argument_group("loop")
    group.add_argument(
        "--seconds",
        type=seconds,
        metavar="TIME",
        help="duration: 10, 0.5s, 2m, 1h30m (default: until Ctrl-C)",
    )
    group.add_argument(
        "--packets",
        type=positive,
        metavar="N",
        help="number of frames: 1000, 10k, 1.5M (default: until Ctrl-C)",
    )
    group.add_argument(
        "--cpus",
        type=cpus,
        default=(),
        metavar="N,N",
        help="processors for the threads of the queue pairs, in turn (default: any)",
    )
    group.add_argument(
        "--interval",
        type=seconds,
        metavar="TIME",
        help="time between refreshes of the live table; 0 for none "
        "(default: 0.5 on a terminal, else 1)",
    )
    group.add_argument(
        "--xstats",
        action="store_true",
        help="also count frame sizes and destination types, and print the counters of each queue",
    )


def check_ports(arguments: argparse.Namespace, most: int = 1) -> str | None:
    """Check how often --port was given; return an error message or None."""
    count, often = len(arguments.port or ()), "once or twice" if most == 2 else "once"
    if not count:
        return f"--port is required {often}, as in `virtnic {arguments.command} --port user`"
    return None if count <= most else f"--port may be given {often}, not {count} times"


def check_address(arguments: argparse.Namespace) -> str | None:
    """Check the combination of IP options; return an error message or None."""
    if arguments.gateway and not arguments.address:
        return "--gateway needs --address; DHCP provides its own"
    left = [":" in address for address in arguments.gateway or ()]
    for family in (":" in address for address in arguments.address or ()):
        if family in left:
            left.remove(family)
    if left:
        return "each --gateway needs an --address of the same family"
    return None


def whole(text: str) -> int:
    """Parse a whole number, which may have a prefix (``10k``), for argparse."""
    from virtnic.units import parse_count

    try:
        return parse_count(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number") from None


def positive(text: str) -> int:
    """Parse a whole number greater than 0, for argparse."""
    number = whole(text)
    if number == 0:
        raise argparse.ArgumentTypeError(f"{text!r} is not greater than 0")
    return number


def up_to(most: int) -> Callable[[str], int]:
    """Return a parser of whole numbers that are not greater than ``most``, for argparse."""

    def number(text: str) -> int:
        value = whole(text)
        if value > most:
            raise argparse.ArgumentTypeError(f"{text!r} is greater than {most}")
        return value

    return number


def cpus(text: str) -> tuple[int, ...]:
    """Parse a list of processors, for argparse."""
    return tuple(whole(word) for word in text.split(","))


def seconds(text: str) -> float:
    """Parse a time in seconds or another unit (``2m``), for argparse."""
    from virtnic.units import parse_time

    try:
        value = parse_time(text)
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"{text!r} is not a time such as 10, 0.5s, 2m or 1h30m"
        ) from None
    if value >= _LONGEST:
        raise argparse.ArgumentTypeError(f"{text!r} is longer than {_LONGEST:g} s")
    return value


def _iova(text: str) -> str | int:
    if text in ("va", "pa"):
        return text
    try:
        return int(text, 0)
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"{text!r} is not va, pa or an address such as 0x100000000"
        ) from None


def ipv4(text: str) -> str:
    """Check an IPv4 address, for argparse."""
    import ipaddress

    try:
        return str(ipaddress.IPv4Address(text))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not an IPv4 address") from None


def ip(text: str) -> str:
    """Check an address of IPv4 or IPv6, for argparse."""
    import ipaddress

    try:
        return str(ipaddress.ip_address(text))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not an IPv4 or IPv6 address") from None


def host(text: str) -> str:
    """Check an address of IPv4 or IPv6, or a name, for argparse."""
    if any(character.isspace() for character in text):
        raise argparse.ArgumentTypeError(f"{text!r} is neither an address nor a name")
    last = text.rpartition(".")[2]
    return ip(text) if ":" in text or last.isdigit() or not text else text


def _interface(text: str) -> str:
    import ipaddress

    if "/" not in text:
        length = 64 if ":" in text else 24
        raise argparse.ArgumentTypeError(f"{text!r} has no prefix length; write {text}/{length}")
    try:
        return str(ipaddress.ip_interface(text))
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"{text!r} is not an IP address with prefix length"
        ) from None


def path(text: str) -> str:
    """Refuse an empty path, such as an unset shell variable in quotes, for argparse."""
    if not text:
        raise argparse.ArgumentTypeError("it is empty")
    return text


def mac(text: str) -> str:
    """Check a MAC address, for argparse."""
    from virtnic.loops.traffic import parse_mac

    try:
        return parse_mac(text).hex(":")
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _size(text: str) -> int:
    from virtnic.units import parse_size

    try:
        return parse_size(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def port_options(text: str) -> PortArguments:
    """Parse ``NETDEV[;OPTION=VALUE]...``, for argparse; ``;;`` is a semicolon in the netdev."""
    from virtnic.cli.ports import PortArguments

    netdev, *words = [word.replace("\0", ";") for word in text.replace(";;", "\0").split(";")]
    given: dict[str, Any] = {}
    for word in words:
        name, equals, value = word.strip().partition("=")
        if name not in _PORT_OPTIONS or not equals:
            raise argparse.ArgumentTypeError(
                f"{word.strip()!r} in {text!r} is not a port option; these are "
                f"{', '.join(f'{known}=' for known in _PORT_OPTIONS)}; a semicolon in a netdev is "
                "written twice"
            )
        given[name.replace("-", "_")] = _PORT_OPTIONS[name](name, value)
    return PortArguments(netdev.strip(), **given)


def _mac(_name: str, value: str) -> str:
    return mac(value)


def _number(_name: str, value: str) -> int:
    return positive(value)


def _one_of(*choices: str) -> Callable[[str, str], str]:
    def check(name: str, value: str) -> str:
        if value not in choices:
            raise argparse.ArgumentTypeError(
                f"{name} must be {', '.join(choices[:-1])} or {choices[-1]}, not {value!r}"
            )
        return value

    return check


_PORT_OPTIONS: dict[str, Callable[[str, str], Any]] = {
    "mac": _mac,
    "interrupts": _one_of(*INTERRUPTS),
    "queue-size": _number,
    "ring": _one_of(*_RINGS),
    "notify": _one_of(*_NOTIFIES),
    "queues": _number,
    "frontend": _one_of(*_FRONTENDS),
}
