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


def add(parser: argparse.ArgumentParser) -> None:
    """Describe the command."""
    parser.description = "Receive, count and discard frames."
    parser.epilog = EXAMPLES
    parser.set_defaults(run=run, imports=options.LOOP_IMPORTS)
    options.add_loop(parser)
    options.add_port(parser)
    options.add_session(parser, recover=True)


def run(arguments: argparse.Namespace, output: Output) -> int:
    """Run the loop."""
    from virtnic.cli.loops import looping

    with looping(arguments, output) as loop:
        outcome = loop.run(
            f"DROP frames from {arguments.netdev}", functools.partial(virtnic.drop, *loop.ports)
        )
    return loop.finish(outcome)
