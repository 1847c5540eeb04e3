"""``virtnic ping``: ICMP echo through a port, printed as ping(8) does."""

from __future__ import annotations

from typing import TYPE_CHECKING

from virtnic.cli import options
from virtnic.cli.status import EXIT_STATUSES, Status

if TYPE_CHECKING:
    import argparse

    from virtnic.cli.output import Output

__all__ = ["add", "run"]

EXAMPLES = f"""\
examples:
  virtnic ping 10.0.2.2
      the gateway of QEMU's user-mode network, with an address from its DHCP server
  virtnic ping 10.0.2.2 --count 20 --interval 0 --json
      as fast as the replies come; one JSON object with every reply
  virtnic ping -6 fec0::2
      the same gateway by IPv6, with an address from its router advertisements
  virtnic ping -6 example.org
      a name, resolved by the name servers of DHCP or of --dns
  virtnic ping 192.168.7.1 --netdev tap,ifname=tap0 --address 192.168.7.2/24
      the host's own kernel through a TAP device, without DHCP

{EXIT_STATUSES}
As with ping(8), one reply is enough for status 0.
"""

#: Bytes of an ICMP echo header, which ping(8) includes in its count and --size does not.
_ICMP_HEADER = 8


_IMPORTS = ("virtnic.cli.echoes", "virtnic.cli.session", "virtnic.net")


def add(parser: argparse.ArgumentParser) -> None:
    """Describe the command."""
    parser.description = "Ping an address through a virtio-net NIC of this process."
    parser.epilog = EXAMPLES
    parser.set_defaults(run=run, check=check, imports=_IMPORTS)
    parser.add_argument(
        "target", metavar="TARGET", type=options.host, help="address or name to ping"
    )
    family = parser.add_mutually_exclusive_group()
    family.add_argument(
        "-4",
        dest="family",
        action="store_const",
        const=4,
        help="by IPv4 (default for names)",
    )
    family.add_argument("-6", dest="family", action="store_const", const=6, help="by IPv6")
    group = parser.add_argument_group("echo requests")
    group.add_argument(
        "-c",
        "--count",
        type=options.whole,
        default=4,
        metavar="N",
        help="number of requests; 0 until Ctrl-C (default: %(default)s)",
    )
    group.add_argument(
        "-i",
        "--interval",
        type=options.seconds,
        default=1.0,
        metavar="TIME",
        help="time between requests; 0 sends the next after each reply (default: %(default)s)",
    )
    group.add_argument(
        "-s",
        "--size",
        type=options.up_to(65_507),
        default=56,
        metavar="BYTES",
        help="payload bytes of each (default: %(default)s)",
    )
    group.add_argument(
        "-W",
        "--timeout",
        type=options.seconds,
        default=1.0,
        metavar="TIME",
        help="how long to wait for each reply (default: %(default)s)",
    )
    options.add_port(parser)
    options.add_address(parser)
    options.add_session(parser)


def check(arguments: argparse.Namespace) -> str | None:
    """Check the combination of options; return an error message or None."""
    target: str = arguments.target
    numeric = family_of(target)
    if numeric and arguments.family not in (None, numeric):
        other, option = ("IPv4", "-6") if numeric == 4 else ("IPv6", "-4")
        return f"{target} is an {other} address, which {option} excludes"
    return options.check_address(arguments)


def family_of(target: str) -> int:
    """Return the family of an address, 4 or 6; 0 for a name."""
    if ":" in target:
        return 6
    return 4 if target.rpartition(".")[2].isdigit() else 0


def run(arguments: argparse.Namespace, output: Output) -> int:
    """Ping; return OK if there was a reply."""
    from socket import AF_INET, AF_INET6

    from virtnic.cli.echoes import Echoes
    from virtnic.cli.session import configure, opened
    from virtnic.net import Stack

    name: str = arguments.target
    family = AF_INET6 if (arguments.family or family_of(name)) == 6 else AF_INET
    size: int = arguments.size
    with opened(arguments) as session, Stack(session.port, dns=arguments.dns or ()) as stack:
        lease = configure(arguments, stack, family=family, target=name)
        target: str = stack.getaddrinfo(name, None, family)[0][4][0]
        how = ", leased" if "server" in lease and family == AF_INET else ""
        output.line(
            f"PING {name}{'' if target == name else f' ({target})'} from {lease['address']}{how}, "
            f"netdev {arguments.netdev}: {size} data bytes"
        )

        def each(number: int, seconds: float | None) -> None:
            if seconds is None:
                output.line(f"no reply from {target}: seq={number} timeout={arguments.timeout:g} s")
            else:
                output.line(
                    f"{size + _ICMP_HEADER} bytes from {target}: seq={number} "
                    f"time={seconds * 1e3:.3f} ms"
                )

        echoes = Echoes()
        echoes.send(
            stack,
            target,
            count=arguments.count,
            interval=arguments.interval,
            size=size,
            timeout=arguments.timeout,
            each=each,
        )
    if echoes.interrupted:
        output.after_ctrl_c()
    output.line(f"--- {name} ping statistics ---")
    for line in echoes.text():
        output.line(line)
    summary = echoes.summary()
    output.result(
        {
            "target": name,
            "to": target,
            "netdev": arguments.netdev,
            **lease,
            "size": size,
            "replies": [
                {"sequence": number, "seconds": seconds}
                for number, seconds in enumerate(echoes.times)
            ],
            **summary,
            "interrupted": echoes.interrupted,
        }
    )
    if echoes.interrupted:
        return Status.INTERRUPTED
    return Status.OK if summary["received"] else Status.FAILED
