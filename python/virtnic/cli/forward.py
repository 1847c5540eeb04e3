"""``virtnic forward``: frames from one port to another, or back."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

import virtnic
from virtnic.cli import options

if TYPE_CHECKING:
    import argparse

    from virtnic.cli.output import Output
    from virtnic.loops.engine import Mode

__all__ = ["add", "run"]

EXAMPLES = f"""\
examples:
  virtnic forward --port tap,ifname=tap0 --port tap,ifname=tap1
      a wire between two TAP devices
  virtnic forward --port vhost-user,path=/run/vhu0 --port vhost-user,path=/run/vhu1 --mode macswap
  virtnic forward --port 'tap,ifname=tap0;mac=02:00:00:00:00:01;queue-size=1024' --seconds 10
      one port: every frame goes back, with its two addresses exchanged
  virtnic forward --port user --packets 1000 --json | jq .pps

{options.ENDING}"""


_IMPORTS = ("virtnic.cli.loops", "virtnic.cli.session", "virtnic.loops")


def add(parser: argparse.ArgumentParser) -> None:
    """Describe the command."""
    parser.description = (
        "Forward every frame from one port to the other, in both directions; with one\n"
        "port, send every frame back. Both ports are on one memory: nothing is copied."
    )
    parser.epilog = EXAMPLES
    parser.set_defaults(run=run, check=check, imports=_IMPORTS)
    group = parser.add_argument_group("ports")
    group.add_argument(
        "--port",
        action="append",
        type=options.port_options,
        metavar="NETDEV[;OPTION=VALUE]...",
        help="what a port is connected to, as --netdev of the other commands takes it; once or "
        "twice. Options of this port alone follow: mac=, interrupts=, queue-size=, ring=, notify=",
    )
    group.add_argument(
        "--mode",
        choices=options.MODES,
        help="what is changed: nothing (io), the source address to that of the port it leaves by "
        "(mac), or the two addresses are exchanged (macswap) (default: io between two ports, "
        "macswap with one)",
    )
    group.add_argument(
        "--backpressure",
        action="store_true",
        default=True,
        help="while a transmit ring is full, leave frames for it in the ring they came by, so that "
        "their sender notices; after 0.1 s without any room drop them (default)",
    )
    group.add_argument(
        "--no-backpressure",
        dest="backpressure",
        action="store_false",
        help="drop at once what does not fit",
    )
    options.add_device(group)
    options.add_loop(parser)
    options.add_qemu(parser)
    options.add_connect(parser)
    options.add_recover(parser)
    options.add_memory(parser)
    options.add_common(parser)


def check(arguments: argparse.Namespace) -> str | None:
    """Return what is wrong with the options together."""
    count = len(arguments.port or ())
    if not count:
        return "--port is required, once or twice, as in `virtnic forward --port user`"
    return None if count <= 2 else f"--port is given once or twice, not {count} times"


def run(arguments: argparse.Namespace, output: Output) -> int:
    """Forward until it ends."""
    from virtnic.cli.loops import Loop
    from virtnic.cli.session import opened_ports

    wanted = [port.otherwise(arguments) for port in arguments.port]
    netdevs = [port.netdev for port in wanted]
    mode: Mode = arguments.mode or ("io" if len(wanted) == 2 else "macswap")
    with opened_ports(arguments, wanted) as ports:
        title = f"FORWARD {' <-> '.join(netdevs)}, mode {mode}"
        loop = Loop(arguments, output, netdevs, ports)
        move = virtnic.forward if len(ports) == 2 else virtnic.reflect
        body = functools.partial(move, *ports, mode=mode, backpressure=arguments.backpressure)
        outcome = loop.run(title, body)
    return loop.finish(outcome, mode=mode)
