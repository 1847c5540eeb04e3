"""``virtnic capture``: what ports send and receive, in a pcapng file."""

from __future__ import annotations

import argparse
import functools
from typing import TYPE_CHECKING

import virtnic
from virtnic.cli import options

if TYPE_CHECKING:
    from virtnic.cli.output import Output

__all__ = ["add", "run"]

EXAMPLES = f"""\
examples:
  virtnic capture --port tap,ifname=tap0 -w run.pcapng
      everything that comes by one port
  virtnic capture --port tap,ifname=tap0 --port vhost-user,path=/run/vhu0 -w run.pcapng
      everything that passes between two, which are joined
  virtnic capture --port tap,ifname=tap0 -w run.pcapng -s 128 --rotate 1G:10 -f 'udp port 53'

{options.ENDING}"""


_IMPORTS = ("virtnic.capture", "virtnic.cli.loops", "virtnic.cli.session", "virtnic.loops")


def add(parser: argparse.ArgumentParser) -> None:
    """Describe the command."""
    parser.description = (
        "Receive every frame and write it to a pcapng file, with the time in nanoseconds; with\n"
        "two ports, forward between them and write what passes."
    )
    parser.epilog = EXAMPLES
    parser.set_defaults(run=run, check=check, imports=_IMPORTS)
    group = parser.add_argument_group("capture")
    group.add_argument(
        "--port",
        action="append",
        type=options.port_options,
        metavar="NETDEV[;OPTION=VALUE]...",
        help="what a port is connected to; once or twice, with options as of `virtnic forward`",
    )
    group.add_argument(
        "-w", "--write", type=options.path, metavar="FILE", help="the file, which is made anew"
    )
    group.add_argument(
        "-s",
        "--snaplen",
        type=options.positive,
        metavar="BYTES",
        help="keep so many bytes of each frame (default: all)",
    )
    group.add_argument(
        "-f",
        "--filter",
        metavar="EXPRESSION",
        help="keep only these frames: a filter in tcpdump's language; needs libpcap",
    )
    group.add_argument(
        "--rotate",
        type=_rotation,
        metavar="SIZE[:FILES]",
        help="begin another file, FILE_00002 and so on, after so many bytes, and keep so many of "
        "them (default: one file)",
    )
    group.add_argument("--comment", metavar="TEXT", help="a remark at the start of the file")
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
    if not 1 <= count <= 2:
        return "--port is required, once or twice, as in `virtnic capture --port user -w FILE`"
    return None if arguments.write else "-w FILE is required: where the frames go"


def _rotation(text: str) -> tuple[int, int | None]:
    from virtnic.capture.writing import parse_rotation

    try:
        rotation = parse_rotation(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    assert rotation is not None
    return rotation


def run(arguments: argparse.Namespace, output: Output) -> int:
    """Capture until it ends."""
    from dataclasses import asdict

    from virtnic.capture import Filter, Writer
    from virtnic.cli.loops import Loop
    from virtnic.cli.session import opened_ports

    if arguments.filter is not None:
        Filter(arguments.filter)  # what is wrong with it is said before a QEMU starts
    wanted = [port.otherwise(arguments) for port in arguments.port]
    netdevs = [port.netdev for port in wanted]
    with opened_ports(arguments, wanted) as ports:
        writer = Writer(
            arguments.write,
            *ports,
            names=netdevs,
            snaplen=arguments.snaplen,
            filter=arguments.filter,
            rotate=arguments.rotate,
            comment=arguments.comment,
        )
        loop = Loop(arguments, output, netdevs, ports)
        move = virtnic.forward if len(ports) == 2 else virtnic.drop
        with writer:
            title = f"CAPTURE {' <-> '.join(netdevs)} to {arguments.write}"
            outcome = loop.run(title, functools.partial(move, *ports))
        counts = writer.counts
    status = loop.finish(outcome, file=arguments.write, capture=asdict(counts))
    output.line(
        f"{counts.written} of {counts.seen} frames written, {counts.filtered} filtered out, "
        f"{counts.dropped} dropped for want of room; {counts.bytes} bytes in {counts.files} "
        f"file{'' if counts.files == 1 else 's'}"
    )
    return status
