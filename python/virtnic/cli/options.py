"""Options that commands share.

They are described here for argparse, and read; :mod:`virtnic.cli.session` makes of them a memory,
a QEMU and ports. What takes long to import is imported when a value is read: help is quick.
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
    "MACHINES",
    "MODES",
    "SANDBOXES",
    "add_address",
    "add_common",
    "add_connect",
    "add_device",
    "add_loop",
    "add_memory",
    "add_port",
    "add_qemu",
    "add_recover",
    "check_address",
    "ip",
    "ipv4",
    "mac",
    "path",
    "port_options",
    "positive",
    "seconds",
    "table",
    "whole",
]

# The choices of the types that the API has; a test compares them.
ACCELERATORS = ("auto", "qtest", "tcg", "kvm")
MACHINES = ("pc", "q35")
INTERRUPTS = ("msix", "intx", "none")
MODES = ("io", "mac", "macswap")
_RINGS = ("split", "packed")
_NOTIFIES = ("eventfd", "qtest")
SANDBOXES: dict[str, bool | Literal["spawn"]] = {"on": True, "spawn": "spawn", "off": False}

ENDING = f"""\
Without --seconds and --packets it goes on until Ctrl-C or SIGTERM. That is its end then, not
an interruption: the summary is printed and the status is 0. With one of them, a signal cuts it
short: the summary is printed as well, and the status is 130 (Ctrl-C) or 143 (SIGTERM).

Bytes and L2 rates are of Ethernet frames with their checksum: the shortest has 64 bytes. L1 adds
the preamble and the gap, 20 bytes a frame: what the line carries. Occupied is the share of the
loop's turns that moved frames, each a burst.

{EXIT_STATUSES}"""


def table(rows: Iterable[tuple[str, str]]) -> str:
    """Return the lines of two columns, for an epilog."""
    listed = list(rows)
    width = max(len(first) for first, _ in listed) + 2
    return "\n".join(f"  {first:<{width}}{second}" for first, second in listed)


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
        type=path,
        metavar="PATH",
        help="the QEMU to start: a path or a quoted command line (default: $VIRTNIC_QEMU, else "
        "qemu-system-x86_64 in PATH)",
    )
    group.add_argument(
        "--accel",
        choices=ACCELERATORS,
        default="auto",
        help="accelerator; auto takes qtest where this QEMU has it, else tcg with a parked "
        "processor (default: %(default)s)",
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
        help="what QEMU may do: nothing but its work, also run the helpers and scripts that a "
        "netdev needs (spawn), or anything (default: %(default)s)",
    )


def add_connect(parser: argparse.ArgumentParser) -> None:
    """Add the choice of a QEMU that runs already."""
    parser.add_argument_group("QEMU started elsewhere").add_argument(
        "--connect",
        type=path,
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
        type=_size,
        metavar="SIZE",
        help="size of the shared packet memory, a power of two: 64M, 64MiB, 64 MB, 1g (default: "
        "32M, or one page where pages are larger)",
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
    group.add_argument(
        "--mac", type=mac, metavar="MAC", help="its MAC address (default: what QEMU gives it)"
    )
    add_device(group)


def add_device(group: argparse._ArgumentGroup) -> None:
    """Add how a port's rings are and how both sides tell each other of frames."""
    group.add_argument(
        "--interrupts",
        choices=INTERRUPTS,
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
        "--queues",
        type=positive,
        metavar="N",
        help="pairs of queues, where the netdev has several (default: 1)",
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


def add_loop(parser: argparse.ArgumentParser) -> None:
    """Add when a loop ends, and how often it is shown."""
    group = parser.add_argument_group("loop")
    group.add_argument(
        "--seconds",
        type=seconds,
        metavar="N",
        help="how long (default: until Ctrl-C)",
    )
    group.add_argument(
        "--packets",
        type=positive,
        metavar="N",
        help="how many frames (default: until Ctrl-C)",
    )
    group.add_argument(
        "--cpus",
        type=_cpus,
        default=(),
        metavar="N,N",
        help="the processors to run on: of the thread of each queue pair, in turn (default: any)",
    )
    group.add_argument(
        "--interval",
        type=seconds,
        metavar="SECONDS",
        help="from one refresh of the live table to the next; 0 for none "
        "(default: 0.5 on a terminal, else 1)",
    )
    group.add_argument(
        "--xstats",
        action="store_true",
        help="count lengths and destinations of frames too, and print what each queue has counted",
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


def _cpus(text: str) -> tuple[int, ...]:
    """Read numbers of processors, for argparse."""
    return tuple(whole(word) for word in text.split(","))


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
    import ipaddress

    try:
        return str(ipaddress.IPv4Address(text))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no IPv4 address") from None


def ip(text: str) -> str:
    """Check an address of IPv4 or IPv6, for argparse."""
    import ipaddress

    try:
        return str(ipaddress.ip_address(text))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no IPv4 or IPv6 address") from None


def _interface(text: str) -> str:
    import ipaddress

    if "/" not in text:
        raise argparse.ArgumentTypeError(f"{text!r} lacks its prefix; write {text}/24")
    try:
        return str(ipaddress.IPv4Interface(text))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no IPv4 address with prefix") from None


def path(text: str) -> str:
    """Refuse an empty path, for argparse: a shell's variable that is not set, in quotes."""
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
    """Read ``NETDEV[;OPTION=VALUE]...``, for argparse; ``;;`` is a semicolon of the netdev."""
    from virtnic.cli.ports import PortArguments

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
    return PortArguments(netdev.strip(), **given)


def _mac(_name: str, value: str) -> str:
    return mac(value)


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
    "mac": _mac,
    "interrupts": _one_of(*INTERRUPTS),
    "queue-size": _number,
    "ring": _one_of(*_RINGS),
    "notify": _one_of(*_NOTIFIES),
    "queues": _number,
}
