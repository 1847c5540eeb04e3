"""``virtnic replay``: sends the frames of a capture."""

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


def add(parser: argparse.ArgumentParser) -> None:
    """Describe the command."""
    parser.description = (
        "Send the frames of a capture (pcapng or classic pcap, also compressed by gzip or zstd),\n"
        "with their original gaps, with scaled gaps, or at a constant rate."
    )
    parser.epilog = EXAMPLES
    parser.set_defaults(run=run, check=check, imports=("virtnic.capture", *options.LOOP_IMPORTS))
    parser.add_argument("file", type=options.path, metavar="FILE", help="the capture file")
    group = parser.add_argument_group("replay")
    options.add_ports(group, "once")
    group.add_argument(
        "--speed",
        type=_speed,
        default=1.0,
        metavar="FACTOR|max|RATE",
        help="speed relative to the capture, such as 2x; max for as fast as possible; or a "
        "constant rate, such as 10kpps (default: 1x)",
    )
    group.add_argument(
        "--loop",
        type=options.whole,
        default=1,
        metavar="N",
        help="how often to send the file; 0 for ever (default: %(default)s)",
    )
    group.add_argument(
        "--truncated",
        action="store_true",
        help="send truncated frames as they are in the file (default: they are an error)",
    )
    options.add_device(group)
    options.add_loop(parser)
    options.add_session(parser, recover=True)


def check(arguments: argparse.Namespace) -> str | None:
    """Return what is wrong with the options together."""
    return options.check_ports(arguments)


def _speed(text: str) -> float | str:
    from virtnic.units import parse_rate

    try:
        speed: float | str = float(text)
    except ValueError:
        speed = text
    if isinstance(speed, float):
        if not 0 < speed < float("inf"):
            raise argparse.ArgumentTypeError(f"{text!r} is not a factor greater than 0")
    elif speed.strip().lower() != "max" and not speed.strip().lower().endswith(("x", "×")):  # noqa: RUF001
        try:
            parse_rate(speed, 64)
        except ValueError as error:
            raise argparse.ArgumentTypeError(
                f"{text!r} is neither a factor such as 2x, nor max, nor a rate: {error}"
            ) from None
    return speed


def run(arguments: argparse.Namespace, output: Output) -> int:
    """Run the loop, and print how many frames were late."""
    from virtnic.capture import read, replay
    from virtnic.capture.replaying import Replayed, parse_speed
    from virtnic.cli.loops import looping

    # Report errors before a QEMU starts.
    parse_speed(arguments.speed, arguments.file)
    next(iter(read(arguments.file)), None)
    with looping(arguments, output) as loop:
        (port,) = loop.ports
        body = functools.partial(
            replay,
            port,
            arguments.file,
            speed=arguments.speed,
            loop=arguments.loop or None,
            truncated=arguments.truncated,
        )
        speed = f"{arguments.speed:g}x" if isinstance(arguments.speed, float) else arguments.speed
        outcome = loop.run(f"REPLAY {arguments.file} on {loop.netdevs[0]}, speed {speed}", body)
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
            f"{result.late} frames were sent more than 10 µs late, the latest by "
            f"{result.latest * 1e6:.0f} µs"
        )
    return status
