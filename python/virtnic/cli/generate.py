"""``virtnic generate``: frames, in turn and again and again, at a rate."""

from __future__ import annotations

import argparse
import functools
from typing import TYPE_CHECKING, Literal

import virtnic
from virtnic.cli import options
from virtnic.cli.loops import ENDING, Loop, add_loop
from virtnic.engine import parse_rate

if TYPE_CHECKING:
    from virtnic.cli.output import Output

__all__ = ["add", "run"]

EXAMPLES = f"""\
examples:
  virtnic generate --netdev tap,ifname=tap0 --rate 10kpps --seconds 10
  virtnic generate --netdev vhost-user,path=/run/vhu0 --size imix --rate 1Gbps
  virtnic generate --netdev user --packets 1000 --json | jq .pps

{ENDING}"""

_LEAST = 64


def add(parser: argparse.ArgumentParser) -> None:
    """Describe the command."""
    parser.description = (
        "Send UDP frames from 198.18.0.1 to 198.18.0.2 (the addresses of RFC 2544), as "
        "fast as\nthey are taken or at a rate, and count them."
    )
    parser.epilog = EXAMPLES
    parser.set_defaults(run=run)
    group = parser.add_argument_group("frames")
    group.add_argument(
        "--rate",
        type=_rate,
        metavar="RATE",
        help="10Mpps, 1.5kpps, 1Gbps (bits of frames), or a number of frames a second "
        "(default: as fast as they are taken)",
    )
    group.add_argument(
        "--size",
        type=_size,
        default=_LEAST,
        metavar="BYTES|imix",
        help="bytes of each on the wire, so with the four of the checksum; or imix for 64, 594 "
        "and 1518 in the proportion 7 : 4 : 1 (default: %(default)s)",
    )
    add_loop(parser)
    options.add_port(parser)
    options.add_qemu(parser)
    options.add_connect(parser)
    options.add_recover(parser)
    options.add_memory(parser)
    options.add_common(parser)


def _rate(text: str) -> float | str:
    try:
        rate: float | str = float(text)
    except ValueError:
        rate = text
    try:
        parse_rate(rate, _LEAST)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    return rate


def _size(text: str) -> int | Literal["imix"]:
    if text == "imix":
        return "imix"
    if not (text.isascii() and text.isdigit() and int(text) >= _LEAST):
        raise argparse.ArgumentTypeError(
            f"{text!r} is neither a number of bytes from {_LEAST} on nor imix"
        )
    return int(text)


def run(arguments: argparse.Namespace, output: Output) -> int:
    """Send until it ends."""
    netdev: str = arguments.netdev
    rate, size = arguments.rate, arguments.size
    with options.opened(arguments) as session:
        sizes = "the simple IMIX" if size == "imix" else f"{size} bytes"
        fast = "as fast as they are taken" if rate is None else f"rate {rate}"
        title = f"GENERATE on {netdev}, frames of {sizes}, {fast}"
        loop = Loop(arguments, output, [netdev], [session.port])
        outcome = loop.run(
            title, functools.partial(virtnic.generate, session.port, size=size, rate=rate)
        )
    return loop.finish(outcome, rate=rate, size=size)
