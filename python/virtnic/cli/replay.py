"""``virtnic replay``: a capture, sent again."""

from __future__ import annotations

import argparse
import functools
from typing import TYPE_CHECKING

from virtnic.cli import options
from virtnic.units import RATES

if TYPE_CHECKING:
    from virtnic.cli.output import Output

__all__ = ["add", "run"]

EXAMPLES = f"""\
examples:
  virtnic replay --port tap,ifname=tap0 run.pcapng
  virtnic replay --port tap,ifname=tap0 run.pcap.gz --speed 2x
  virtnic replay --port vhost-user,path=/run/vhu0 run.pcapng --speed max --loop 0 --seconds 10
  virtnic replay --port user run.pcapng --speed 10kpps --json | jq .late

rates:
{options.table(RATES)}

{options.ENDING}"""


_IMPORTS = ("virtnic.capture", "virtnic.cli.loops", "virtnic.cli.session", "virtnic.loops")


def add(parser: argparse.ArgumentParser) -> None:
    """Describe the command."""
    parser.description = (
        "Send the frames of a capture (pcapng or classic pcap, also packed by gzip or zstd), with\n"
        "the gaps that they had, faster, or at an even rate."
    )
    parser.epilog = EXAMPLES
    parser.set_defaults(run=run, check=check, imports=_IMPORTS)
    parser.add_argument("file", type=options.path, metavar="FILE", help="the capture")
    group = parser.add_argument_group("replay")
    group.add_argument(
        "--port",
        type=options.port_options,
        metavar="NETDEV[;OPTION=VALUE]...",
        help="what the port is connected to, with options as of `virtnic forward`",
    )
    group.add_argument(
        "--speed",
        type=_speed,
        default=1.0,
        metavar="FACTOR|max|RATE",
        help="how many times as fast as captured, such as 2x; max for as fast as frames are taken; "
        "or an even rate, such as 10kpps (default: 1x)",
    )
    group.add_argument(
        "--loop",
        type=options.whole,
        default=1,
        metavar="N",
        help="how often the file is sent; 0 for ever (default: once)",
    )
    group.add_argument(
        "--truncated",
        action="store_true",
        help="send what the file has of frames that it has in part, which are an error else",
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
    return None if arguments.port else "--port is required, as in `virtnic replay --port user FILE`"


def _speed(text: str) -> float | str:
    from virtnic.units import parse_rate

    try:
        speed: float | str = float(text)
    except ValueError:
        speed = text
    if isinstance(speed, float):
        if not 0 < speed < float("inf"):
            raise argparse.ArgumentTypeError(f"{text!r} is no factor above 0")
    elif speed.strip().lower() != "max" and not speed.strip().lower().endswith(("x", "×")):  # noqa: RUF001
        try:
            parse_rate(speed, 64)
        except ValueError as error:
            raise argparse.ArgumentTypeError(
                f"it is a factor such as 2x, max, or {error}"
            ) from None
    return speed


def run(arguments: argparse.Namespace, output: Output) -> int:
    """Send until it ends."""
    from virtnic.capture import read, replay
    from virtnic.capture.replaying import Replayed, parse_speed
    from virtnic.cli.loops import Loop
    from virtnic.cli.session import opened_ports

    # What is wrong with them is said before a QEMU starts.
    parse_speed(arguments.speed, arguments.file)
    next(iter(read(arguments.file)), None)
    port = arguments.port.otherwise(arguments)
    with opened_ports(arguments, [port]) as ports:
        loop = Loop(arguments, output, [port.netdev], ports)
        body = functools.partial(
            replay,
            ports[0],
            arguments.file,
            speed=arguments.speed,
            loop=arguments.loop or None,
            truncated=arguments.truncated,
        )
        speed = f"{arguments.speed:g}x" if isinstance(arguments.speed, float) else arguments.speed
        outcome = loop.run(f"REPLAY {arguments.file} on {port.netdev}, speed {speed}", body)
    result = outcome.result
    assert isinstance(result, Replayed)
    status = loop.finish(
        outcome,
        file=arguments.file,
        speed=arguments.speed,
        late=result.late,
        latest_us=result.latest * 1e6,
    )
    if speed != "max":
        output.line(
            f"{result.late} frames were sent more than 10 µs after they were due, "
            f"at most {result.latest * 1e6:.0f} µs"
        )
    return status
