"""``virtnic capture``: writes what ports send and receive to a pcapng file."""

from __future__ import annotations

import argparse
import functools
import os
from pathlib import Path
from typing import TYPE_CHECKING

import virtnic
from virtnic.cli import options

if TYPE_CHECKING:
    from virtnic.cli.output import Output

__all__ = ["add", "run"]

EXAMPLES = f"""\
examples:
  virtnic capture --port tap,ifname=tap0 -w run.pcapng
      everything that one port receives
  virtnic capture --port tap,ifname=tap0 --port vhost-user,path=/run/vhu0 -w run.pcapng
      everything that passes between two ports
  virtnic capture --port tap,ifname=tap0 -w run.pcapng -s 128 --rotate 1G:10 -f 'udp port 53'

{options.ENDING}"""


def add(parser: argparse.ArgumentParser) -> None:
    """Describe the command."""
    parser.description = (
        "Receive every frame and write it to a pcapng file, with a time stamp in nanoseconds.\n"
        "With two ports, forward between them and write what passes."
    )
    parser.epilog = EXAMPLES
    parser.set_defaults(run=run, check=check, imports=("virtnic.capture", *options.LOOP_IMPORTS))
    group = parser.add_argument_group("capture")
    options.add_ports(group, "once or twice")
    group.add_argument(
        "-w",
        "--write",
        type=options.path,
        metavar="FILE",
        help="the file; one that exists is replaced",
    )
    group.add_argument(
        "-s",
        "--snaplen",
        type=options.positive,
        metavar="BYTES",
        help="bytes of each frame to keep (default: all)",
    )
    group.add_argument(
        "-f",
        "--filter",
        metavar="EXPRESSION",
        help="keep only frames that match a filter in the language of tcpdump; needs libpcap",
    )
    group.add_argument(
        "--rotate",
        type=_rotation,
        metavar="SIZE[:FILES]",
        help="start another file (FILE_00002 and so on) at this size, and keep at most this number "
        "of files (default: one file of any size)",
    )
    group.add_argument("--comment", metavar="TEXT", help="a comment at the start of the file")
    options.add_device(group)
    options.add_loop(parser)
    options.add_session(parser, recover=True)


def check(arguments: argparse.Namespace) -> str | None:
    """Return what is wrong with the options together."""
    if wrong := options.check_ports(arguments, 2):
        return wrong
    if not arguments.write:
        return "-w FILE is required: the file for the frames"
    if arguments.write == "-" or _is_stdout(arguments.write):
        return (
            "-w takes a file: standard output is for the text of this command; write to a named "
            "pipe (mkfifo), which another program can read"
        )
    return None


def _is_stdout(path: str) -> bool:
    """Whether a path leads to where standard output goes, other than /dev/null."""
    try:
        named = Path(path).stat()
        same = os.path.samestat(os.fstat(1), named)
        return same and not os.path.samestat(Path(os.devnull).stat(), named)
    except OSError:
        return False


def _rotation(text: str) -> tuple[int, int | None]:
    from virtnic.capture.writing import parse_rotation

    try:
        rotation = parse_rotation(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    assert rotation is not None
    return rotation


def run(arguments: argparse.Namespace, output: Output) -> int:
    """Run the loop, and print the counts of the file."""
    from dataclasses import asdict

    from virtnic.capture import Filter, Writer
    from virtnic.cli.loops import looping

    if arguments.filter is not None:
        Filter(arguments.filter)  # report errors before a QEMU starts
    with looping(arguments, output) as loop:
        writer = Writer(
            arguments.write,
            *loop.ports,
            names=loop.netdevs,
            snaplen=arguments.snaplen,
            filter=arguments.filter,
            rotate=arguments.rotate,
            comment=arguments.comment,
        )
        move = virtnic.forward if len(loop.ports) == 2 else virtnic.drop
        with writer:
            title = f"CAPTURE {' <-> '.join(loop.netdevs)} to {arguments.write}"
            outcome = loop.run(title, functools.partial(move, *loop.ports))
        counts = writer.counts
    status = loop.finish(outcome, file=arguments.write, capture=asdict(counts))
    output.line(
        f"{counts.written} of {counts.seen} frames written, {counts.filtered} filtered out, "
        f"{counts.dropped} dropped because the file was too slow; {counts.bytes} bytes in "
        f"{counts.files} file{'' if counts.files == 1 else 's'}"
    )
    return status
