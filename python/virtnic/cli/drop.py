"""``virtnic drop``: a receiver that counts."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

import virtnic
from virtnic.cli import options

if TYPE_CHECKING:
    import argparse

    from virtnic.cli.output import Output

__all__ = ["add", "run"]

EXAMPLES = f"""\
examples:
  virtnic drop --netdev tap,ifname=tap0
  virtnic drop --netdev vhost-user,path=/run/vhu0 --seconds 10 --json | jq .pps

{options.ENDING}"""


_IMPORTS = ("virtnic.cli.loops", "virtnic.cli.session", "virtnic.loops")


def add(parser: argparse.ArgumentParser) -> None:
    """Describe the command."""
    parser.description = "Receive, count and discard frames."
    parser.epilog = EXAMPLES
    parser.set_defaults(run=run, imports=_IMPORTS)
    options.add_loop(parser)
    options.add_port(parser)
    options.add_qemu(parser)
    options.add_connect(parser)
    options.add_recover(parser)
    options.add_memory(parser)
    options.add_common(parser)


def run(arguments: argparse.Namespace, output: Output) -> int:
    """Run the loop."""
    from virtnic.cli.loops import Loop
    from virtnic.cli.session import opened

    netdev: str = arguments.netdev
    with opened(arguments) as session:
        loop = Loop(arguments, output, [netdev], [session.port])
        outcome = loop.run(
            f"DROP what comes on {netdev}", functools.partial(virtnic.drop, session.port)
        )
    return loop.finish(outcome)
