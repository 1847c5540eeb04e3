"""``virtnic forward``: forward between two ports, or back on one."""

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
      one port: send every frame back with its two addresses swapped
  virtnic forward --port user --packets 1000 --json | jq .pps

{options.ENDING}"""


def add(parser: argparse.ArgumentParser) -> None:
    """Describe the command."""
    parser.description = (
        "Forward frames between two ports in both directions; with one port, send\n"
        "every frame back. Both ports share one memory: nothing is copied."
    )
    parser.epilog = EXAMPLES
    parser.set_defaults(run=run, check=check, imports=options.LOOP_IMPORTS)
    group = parser.add_argument_group("ports")
    options.add_ports(group, "once or twice")
    group.add_argument(
        "--mode",
        choices=options.MODES,
        help="what to change: nothing (io), the source address to that of the sending port (mac), "
        "or swap the two addresses (macswap) (default: io between two ports, macswap with one)",
    )
    group.add_argument(
        "--backpressure",
        action="store_true",
        default=True,
        help="while a transmit ring is full, leave frames in the receive ring so that the sender "
        "slows down; drop them after 0.1 s without room (default)",
    )
    group.add_argument(
        "--no-backpressure",
        dest="backpressure",
        action="store_false",
        help="drop frames at once when a transmit ring is full",
    )
    options.add_device(group)
    options.add_loop(parser)
    options.add_session(parser, recover=True)


def check(arguments: argparse.Namespace) -> str | None:
    """Check the combination of options; return an error message or None."""
    return options.check_ports(arguments, 2)


def run(arguments: argparse.Namespace, output: Output) -> int:
    """Run the loop."""
    from virtnic.cli.loops import looping

    mode: Mode = arguments.mode or ("io" if len(arguments.port) == 2 else "macswap")
    with looping(arguments, output) as loop:
        title = f"FORWARD {' <-> '.join(loop.netdevs)}, mode {mode}"
        move = virtnic.forward if len(loop.ports) == 2 else virtnic.reflect
        body = functools.partial(move, *loop.ports, mode=mode, backpressure=arguments.backpressure)
        outcome = loop.run(title, body)
    return loop.finish(outcome, mode=mode)
