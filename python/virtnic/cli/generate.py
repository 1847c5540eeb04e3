"""``virtnic generate``: frames, in turn and again and again, at a rate."""

from __future__ import annotations

import argparse
import functools
from typing import TYPE_CHECKING, Any, Literal

import virtnic
from virtnic.cli import options
from virtnic.units import CHECKSUM, RATES, SIZES

if TYPE_CHECKING:
    from collections.abc import Callable

    from virtnic.cli.output import Output

__all__ = ["add", "check_lengths", "run"]

EXAMPLES = f"""\
examples:
  virtnic generate --netdev tap,ifname=tap0 --rate 10kpps --seconds 10
  virtnic generate --netdev vhost-user,path=/run/vhu0 --size imix --rate 1Gbps
  virtnic generate --netdev tap,ifname=tap0 --destination 10.0.0.1 --destination-port 5001 --vlan 7
  virtnic generate --netdev tap,ifname=tap0 --destination 2001:db8::2 --payload 68656c6c6f
  virtnic generate --netdev tap,ifname=tap0 --pcap requests.pcap --rate 1000
  virtnic generate --netdev user --packets 1000 --json | jq .pps

rates:
{options.table(RATES)}

sizes:
{options.table(SIZES)}

{options.ENDING}"""

#: Bytes of the shortest frame on the wire, of a VLAN tag.
_LEAST, _TAG = 64, 4
_ETHERNET = 14


_IMPORTS = ("virtnic.cli.loops", "virtnic.cli.session", "virtnic.loops")


def add(parser: argparse.ArgumentParser) -> None:
    """Describe the command."""
    parser.description = (
        "Send UDP frames from 198.18.0.1 to 198.18.0.2 (the addresses of RFC 2544), or others, as "
        "fast as\nthey are taken or at a rate, and count them."
    )
    parser.epilog = EXAMPLES
    parser.set_defaults(run=run, check=check, imports=_IMPORTS)
    group = parser.add_argument_group("frames")
    group.add_argument(
        "--rate",
        type=_rate,
        metavar="RATE",
        help="10Mpps, 1.5kpps, 1Gbps, 100Mbit/s, 10G: see below (default: as fast as they are "
        "taken)",
    )
    group.add_argument(
        "--size",
        type=_size,
        metavar="BYTES|imix",
        help="bytes of each on the wire, so with the four of the checksum; or imix for 64, 594 "
        f"and 1518 in the proportion 7 : 4 : 1 (default: {_LEAST}, or as the payload needs)",
    )
    for side, whose in (("source", "port's own"), ("destination", "02:00:00:00:00:02")):
        group.add_argument(
            f"--{side}-mac",
            type=options.mac,
            metavar="MAC",
            help=f"{side} address (default: {whose})",
        )
    for side, address in (("source", "198.18.0.1"), ("destination", "198.18.0.2")):
        group.add_argument(
            f"--{side}",
            dest=f"{side}_ip",
            type=options.ip,
            metavar="ADDRESS",
            help=f"{side} address, of IPv4 or IPv6 (default: {address}, or with IPv6 "
            f"2001:2::{address[-1]})",
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
        "--payload",
        type=_hex,
        metavar="HEX",
        help="what the UDP datagrams carry, as hexadecimal digits; zeros fill up the size "
        "(default: zeros)",
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
        "--pcap",
        type=options.path,
        metavar="FILE",
        help="the frames of this capture file, in turn, in place of these",
    )
    options.add_loop(parser)
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
    "payload": "payload",
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
    least, why = _shortest(arguments)
    size = arguments.size
    if isinstance(size, int) and size < least:
        return f"a frame {why} has {least} bytes at least, --size {size} has not"
    try:
        needed = len(_made(arguments, "02:00:00:00:00:01", size=None)[0]) + CHECKSUM
    except ValueError as error:  # two kinds of IP address, a payload that is too long
        return str(error)
    if size is not None and arguments.payload is not None:
        shortest = least if size == "imix" else size
        if needed > shortest:
            return f"a frame with this payload needs {needed} bytes, --size {size} has not"
    return None


def _shortest(arguments: argparse.Namespace) -> tuple[int, str]:
    """Return the least bytes on the wire, and what makes it more than 64."""
    from virtnic.loops.traffic import shortest_frame

    is_ipv6 = ":" in f"{arguments.source_ip}{arguments.destination_ip}"
    tagged = arguments.vlan is not None
    least = shortest_frame(is_ipv6=is_ipv6, tagged=tagged) + CHECKSUM
    return least, " and ".join(["with a tag"] * tagged + ["of UDP over IPv6"] * is_ipv6)


def _rate(text: str) -> float | str:
    from virtnic.units import parse_rate

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
    from virtnic.loops.traffic import MAX_FRAME
    from virtnic.units import parse_size

    if text.lower() == "imix":
        return "imix"
    try:
        size = parse_size(text)
    except ValueError:
        size = 0
    most = MAX_FRAME + CHECKSUM
    if not _LEAST <= size <= most:
        raise argparse.ArgumentTypeError(
            f"{text!r} is neither a number of bytes, {_LEAST} to {most}, nor imix"
        )
    return size


def _hex(text: str) -> bytes:
    from virtnic.cli.captured import from_hex

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
        from virtnic.cli.captured import from_pcap

        frames = from_pcap(arguments.pcap)
        return frames, f"the {len(frames)} frames of {arguments.pcap}"
    if arguments.frame:
        count = len(arguments.frame)
        return arguments.frame, "the frame given" if count == 1 else f"the {count} frames given"
    frames = _made(arguments, mac, size=arguments.size)
    if arguments.size == "imix":
        return frames, "frames of the simple IMIX"
    return frames, f"frames of {len(frames[0]) + CHECKSUM} bytes"


def _made(
    arguments: argparse.Namespace, mac: str, *, size: int | Literal["imix"] | None
) -> list[bytes]:
    """Return the UDP frames that the options describe. Raises ValueError."""
    from virtnic.loops.traffic import IMIX, make_frame

    fields: dict[str, Any] = {"source": mac} | {
        name: getattr(arguments, option)
        for option, name in _FIELDS.items()
        if getattr(arguments, option) is not None
    }
    least = _shortest(arguments)[0] - CHECKSUM
    if size == "imix":
        tag = 0 if arguments.vlan is None else _TAG
        lengths = [max(length + tag, least) for length in IMIX]
    elif size is None:
        lengths = [max(least, len(make_frame(None, **fields)))]
    else:
        lengths = [size - CHECKSUM]
    return [make_frame(length, **fields) for length in lengths]


def check_lengths(frames: list[bytes], port: virtnic.Port) -> None:
    """Raise ValueError for a frame that the port cannot send: the device would drop it."""
    most = port.memory.largest_frame
    limit = f"a buffer of this port holds {most}"
    if any(feature.name == "MTU" and feature.accepted for feature in port.features):
        longest = port.mtu + _ETHERNET + _TAG
        if longest < most:
            most, limit = longest, f"the MTU of this port is {port.mtu}"
    for number, frame in enumerate(frames):
        if len(frame) > most:
            which = f"frame {number}" if len(frames) > 1 else "the frame"
            raise ValueError(
                f"{which} to send has {len(frame)} bytes without its checksum, and {limit}"
            )


def run(arguments: argparse.Namespace, output: Output) -> int:
    """Send until it ends."""
    from virtnic.cli.loops import Loop
    from virtnic.cli.session import opened
    from virtnic.units import parse_rate

    netdev: str = arguments.netdev
    rate = arguments.rate
    _frames(arguments, "02:00:00:00:00:01")  # what is wrong with them is said before a QEMU starts
    with opened(arguments) as session:
        frames, what = _frames(arguments, session.port.mac)
        check_lengths(frames, session.port)
        mean = sum(map(len, frames)) / len(frames) + CHECKSUM
        pps = None if rate is None else parse_rate(rate, mean)
        fast = "as fast as they are taken" if pps is None else f"{pps:.15g} frames/s"
        loop = Loop(arguments, output, [netdev], [session.port])
        outcome = loop.run(
            f"GENERATE on {netdev}, {what}, {fast}",
            functools.partial(virtnic.generate, session.port, frames=frames, rate=pps),
        )
    given = arguments.pcap or arguments.frame
    size = arguments.size if arguments.size == "imix" else len(frames[0]) + CHECKSUM
    return loop.finish(outcome, rate=rate, size=None if given else size)
