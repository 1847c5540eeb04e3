"""``virtnic demo``: the main job, step by step."""

from __future__ import annotations

from typing import TYPE_CHECKING

from virtnic.cli import options
from virtnic.cli.status import EXIT_STATUSES

if TYPE_CHECKING:
    import argparse

    from virtnic.cli.output import Output

__all__ = ["add", "run"]

EXAMPLES = f"""\
examples:
  virtnic demo
      everything on QEMU's user-mode network; needs no privilege
  virtnic demo --count 1000 --hugepages 2M
  virtnic demo --netdev tap,ifname=tap0 --address 192.168.7.2/24 --gateway 192.168.7.1
      the host's own kernel through a TAP device, without DHCP

{EXIT_STATUSES}"""


def add(parser: argparse.ArgumentParser) -> None:
    """Describe the command."""
    parser.description = (
        "Open a port, get a DHCP lease, resolve the gateway's address and ping it.\n"
        "Each step is printed with the time since the start."
    )
    parser.epilog = EXAMPLES
    parser.set_defaults(run=run, check=check, imports=("virtnic.cli.demonstration",))
    parser.add_argument(
        "-c",
        "--count",
        type=options.positive,
        default=10,
        metavar="N",
        help="number of pings (default: %(default)s)",
    )
    options.add_port(parser, frontend=False)
    options.add_address(parser)
    options.add_session(parser, connect=False)


def check(arguments: argparse.Namespace) -> str | None:
    """Check the combination of options; return an error message or None."""
    if arguments.address and not arguments.gateway:
        return "the demo pings the gateway: --address needs --gateway"
    if arguments.gateway and ":" in arguments.gateway[0]:
        return "the demo resolves the gateway by ARP: --gateway must be IPv4"
    return options.check_address(arguments)


def run(arguments: argparse.Namespace, output: Output) -> int:
    """Run the demo; return OK if a ping was answered."""
    from virtnic.cli.demonstration import demonstrate

    return demonstrate(arguments, output)
