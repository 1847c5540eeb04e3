"""``virtnic generate``: frames, in turn and again and again, at a rate."""

from __future__ import annotations

import argparse
import functools
from typing import TYPE_CHECKING, Literal

import virtnic
from virtnic.cli import options
from virtnic.cli.captured import from_hex, from_pcap
from virtnic.cli.loops import ENDING, Loop, add_loop
from virtnic.loops.traffic import IMIX, MAX_FRAME, make_frame, parse_mac, parse_rate
from virtnic.memory import parse_size

if TYPE_CHECKING:
    from collections.abc import Callable

    from virtnic.cli.output import Output

__all__ = ["add", "run"]

EXAMPLES = f"""\
examples:
  virtnic generate --netdev tap,ifname=tap0 --rate 10kpps --seconds 10
  virtnic generate --netdev vhost-user,path=/run/vhu0 --size imix --rate 1Gbps
  virtnic generate --netdev tap,ifname=tap0 --destination 10.0.0.1 --destination-port 5001 --vlan 7
  virtnic generate --netdev tap,ifname=tap0 --pcap requests.pcap --rate 1000
  virtnic generate --netdev user --packets 1000 --json | jq .pps

{ENDING}"""

#: Bytes of the shortest frame on the wire, of its checksum, of a VLAN tag.
_LEAST, _CHECKSUM, _TAG = 64, 4, 4


def add(parser: argparse.ArgumentParser) -> None:
    """Describe the command."""
    parser.description = (
        "Send UDP frames from 198.18.0.1 to 198.18.0.2 (the addresses of RFC 2544), or others, as "
        "fast as\nthey are taken or at a rate, and count them."
    )
    parser.epilog = EXAMPLES
    parser.set_defaults(run=run, check=check)
    group = parser.add_argument_group("frames")
    group.add_argument(
        "--rate",
        type=_rate,
        metavar="RATE",
        help="10Mpps, 1.5kpps, 1Gbps or 1Gbit/s (bits of frames), or a number of frames a second "
        "(default: as fast as they are taken)",
    )
    group.add_argument(
        "--size",
        type=_size,
        metavar="BYTES|imix",
        help="bytes of each on the wire, so with the four of the checksum; or imix for 64, 594 "
        f"and 1518 in the proportion 7 : 4 : 1 (default: {_LEAST})",
    )
    for side, whose in (("source", "port's own"), ("destination", "02:00:00:00:00:02")):
        group.add_argument(
            f"--{side}-mac", type=_mac, metavar="MAC", help=f"{side} address (default: {whose})"
        )
    for side, address in (("source", "198.18.0.1"), ("destination", "198.18.0.2")):
        group.add_argument(
            f"--{side}",
            dest=f"{side}_ip",
            type=options.ipv4,
            metavar="A.B.C.D",
            help=f"{side} address of IPv4 (default: {address})",
        )
    for side in ("source", "destination"):
        group.add_argument(
            f"--{side}-port",
            type=_up_to(65_535),
            metavar="N",
            help=f"{side} port of UDP (default: 9, discard)",
        )
    group.add_argument(
        "--vlan", type=_up_to(4094), metavar="ID", help="with a tag of this VLAN (default: none)"
    )
    group.add_argument(
        "--frame",
        type=_hex,
        action="append",
        metavar="HEX",
        help="this frame in place of UDP ones, as hexadecimal digits without a checksum; "
        "several are sent in turn",
    )
    group.add_argument(
        "--pcap", metavar="FILE", help="the frames of this capture file, in turn, in place of these"
    )
    add_loop(parser)
    options.add_port(parser)
    options.add_qemu(parser)
    options.add_connect(parser)
    options.add_recover(parser)
    options.add_memory(parser)
    options.add_common(parser)


#: What :func:`virtnic.loops.make_frame` is told, by its own names and by those of the options.
_FIELDS = {
    "source_mac": "source",
    "destination_mac": "destination",
    "source_ip": "source_ip",
    "destination_ip": "destination_ip",
    "source_port": "source_port",
    "destination_port": "destination_port",
    "vlan": "vlan",
}


def check(arguments: argparse.Namespace) -> str | None:
    """Return what is wrong with the options together."""
    given = [name for name in ("pcap", "frame") if getattr(arguments, name)]
    made = [name for name in ("size", *_FIELDS) if getattr(arguments, name) is not None]
    if len(given) == 2:
        return "--pcap and --frame: the frames are taken from one of them"
    if given and made:
        option = made[0].removesuffix("_ip").replace("_", "-")
        return f"--{option} is for frames that are made here; --{given[0]} has its own"
    size = arguments.size
    if arguments.vlan is not None and size == _LEAST:
        return f"a frame with a tag has 68 bytes at least, --size {_LEAST} has not"
    return None


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
    if text.lower() == "imix":
        return "imix"
    try:
        size = parse_size(text)
    except ValueError:
        size = 0
    most = MAX_FRAME + _CHECKSUM
    if not _LEAST <= size <= most:
        raise argparse.ArgumentTypeError(
            f"{text!r} is neither a number of bytes, {_LEAST} to {most}, nor imix"
        )
    return size


def _mac(text: str) -> str:
    try:
        return parse_mac(text).hex(":")
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _hex(text: str) -> bytes:
    try:
        return from_hex(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _up_to(most: int) -> Callable[[str], int]:
    def number(text: str) -> int:
        value = options.whole(text)
        if value > most:
            raise argparse.ArgumentTypeError(f"{text!r} is above {most}")
        return value

    return number


def _frames(arguments: argparse.Namespace, mac: str) -> tuple[list[bytes], str]:
    """Return what is sent in turn, and how to call it."""
    if arguments.pcap:
        frames = from_pcap(arguments.pcap)
        return frames, f"the {len(frames)} frames of {arguments.pcap}"
    if arguments.frame:
        count = len(arguments.frame)
        return arguments.frame, "the frame given" if count == 1 else f"the {count} frames given"
    fields = {"source": mac} | {
        name: getattr(arguments, option)
        for option, name in _FIELDS.items()
        if getattr(arguments, option) is not None
    }
    tag = 0 if arguments.vlan is None else _TAG
    if arguments.size == "imix":
        return [make_frame(size + tag, **fields) for size in IMIX], "frames of the simple IMIX"
    size = arguments.size or _LEAST + tag
    return [make_frame(size - _CHECKSUM, **fields)], f"frames of {size} bytes"


def run(arguments: argparse.Namespace, output: Output) -> int:
    """Send until it ends."""
    netdev: str = arguments.netdev
    rate = arguments.rate
    _frames(arguments, "02:00:00:00:00:01")  # what is wrong with them is said before a QEMU starts
    with options.opened(arguments) as session:
        frames, what = _frames(arguments, session.port.mac)
        fast = "as fast as they are taken" if rate is None else f"rate {rate}"
        loop = Loop(arguments, output, [netdev], [session.port])
        outcome = loop.run(
            f"GENERATE on {netdev}, {what}, {fast}",
            functools.partial(virtnic.generate, session.port, frames=frames, rate=rate),
        )
    given = arguments.pcap or arguments.frame
    return loop.finish(outcome, rate=rate, size=None if given else arguments.size or _LEAST)
