"""``virtnic generate``: send frames at a rate."""

from __future__ import annotations

import argparse
import functools
from typing import TYPE_CHECKING, Any, Literal

import virtnic
from virtnic.cli import options
from virtnic.units import CHECKSUM, COUNTS, RATES, SIZES, TIMES

if TYPE_CHECKING:
    from virtnic.cli.output import Output

__all__ = ["add", "check_lengths", "run"]

EXAMPLES = f"""\
examples:
  virtnic generate --netdev tap,ifname=tap0 --rate 10kpps --seconds 2m
  virtnic generate --netdev vhost-user,path=/run/vhu0 --size imix --rate 1Gbps --packets 10M
  virtnic generate --netdev tap,ifname=tap0 --destination 10.0.0.1 --destination-port 5001 --vlan 7
  virtnic generate --netdev tap,ifname=tap0 --destination 2001:db8::2 --payload 68656c6c6f
  virtnic generate --netdev tap,ifname=tap0 --pcap requests.pcap --rate 1000
  virtnic generate --netdev user --packets 1000 --json | jq .pps

rates:
{options.table(RATES)}

sizes:
{options.table(SIZES)}

times and counts:
{options.table(TIMES + COUNTS)}

{options.ENDING}"""

#: Bytes of the shortest frame on the wire, and of a VLAN tag.
_LEAST, _TAG = 64, 4
_ETHERNET = 14


def add(parser: argparse.ArgumentParser) -> None:
    """Describe the command."""
    parser.description = (
        "Send UDP frames, by default from 198.18.0.1 to 198.18.0.2 (the addresses of RFC 2544),\n"
        "as fast as possible or at a rate."
    )
    parser.epilog = EXAMPLES
    parser.set_defaults(run=run, check=check, imports=options.LOOP_IMPORTS)
    group = parser.add_argument_group("frames")
    group.add_argument(
        "--rate",
        type=_rate,
        metavar="RATE",
        help="10Mpps, 1.5kpps, 1Gbps, 100Mbit/s, 10G: see below (default: as fast as possible)",
    )
    group.add_argument(
        "--size",
        type=_size,
        metavar="BYTES|imix",
        help="bytes on the wire of each frame, including the 4-byte checksum; or imix: 64, 594 "
        f"and 1518 in the ratio 7:4:1 (default: {_LEAST}, or as the payload needs)",
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
            type=options.up_to(65_535),
            metavar="N",
            help=f"{side} UDP port (default: 9, discard)",
        )
    group.add_argument(
        "--vlan", type=options.up_to(4094), metavar="ID", help="VLAN tag (default: none)"
    )
    group.add_argument(
        "--payload",
        type=_hex,
        metavar="HEX",
        help="UDP payload in hexadecimal, padded with zeros to the size (default: zeros)",
    )
    group.add_argument(
        "--frame",
        type=_hex,
        action="append",
        metavar="HEX",
        help="send this frame instead, in hexadecimal without checksum; repeatable, sent in turn",
    )
    group.add_argument(
        "--pcap",
        type=options.path,
        metavar="FILE",
        help="send the frames of this capture file instead, in turn",
    )
    options.add_loop(parser)
    options.add_port(parser)
    options.add_session(parser, recover=True)


#: Arguments of :func:`virtnic.loops.make_frame`, and the options that set them.
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
    """Check the combination of options; return an error message or None."""
    given = [name for name in ("pcap", "frame") if getattr(arguments, name)]
    made = [name for name in ("size", *_FIELDS) if getattr(arguments, name) is not None]
    if len(given) == 2:
        return "--pcap and --frame exclude each other"
    if given and made:
        option = made[0].removesuffix("_ip").replace("_", "-")
        return f"--{option} cannot be used with --{given[0]}, which gives whole frames"
    least, why = _shortest(arguments)
    size = arguments.size
    if isinstance(size, int) and size < least:
        return f"a frame {why} has at least {least} bytes; --size {size} is too small"
    try:
        needed = len(_made(arguments, "02:00:00:00:00:01", size=None)[0]) + CHECKSUM
    except ValueError as error:  # mixed IPv4 and IPv6, or a payload that is too long
        return str(error)
    if size is not None and arguments.payload is not None:
        shortest = least if size == "imix" else size
        if needed > shortest:
            return f"a frame with this payload needs {needed} bytes; --size {size} is too small"
    return None


def _shortest(arguments: argparse.Namespace) -> tuple[int, str]:
    """Return the minimum bytes on the wire, and why it is more than 64."""
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
            f"{text!r} is neither imix nor a number of bytes from {_LEAST} to {most}"
        )
    return size


def _hex(text: str) -> bytes:
    from virtnic.cli.captured import from_hex

    try:
        return from_hex(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _frames(arguments: argparse.Namespace, mac: str) -> tuple[list[bytes], str]:
    """Return the frames to send in turn, and their description."""
    if arguments.pcap:
        from virtnic.cli.captured import from_pcap

        frames = from_pcap(arguments.pcap)
        return frames, f"the {len(frames)} frames of {arguments.pcap}"
    if arguments.frame:
        count = len(arguments.frame)
        return arguments.frame, "the given frame" if count == 1 else f"the {count} given frames"
    frames = _made(arguments, mac, size=arguments.size)
    if arguments.size == "imix":
        return frames, "frames of the simple IMIX"
    return frames, f"frames of {len(frames[0]) + CHECKSUM} bytes"


def _made(
    arguments: argparse.Namespace, mac: str, *, size: int | Literal["imix"] | None
) -> list[bytes]:
    """Return the UDP frames described by the options. Raises ValueError."""
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
        which = f"frame {number}" if len(frames) > 1 else "the frame"
        if len(frame) > most:
            raise ValueError(
                f"{which} to send has {len(frame)} bytes without its checksum, and {limit}"
            )
        if len(frame) < _ETHERNET:
            raise ValueError(
                f"{which} to send has {len(frame)} bytes; an Ethernet header has {_ETHERNET}"
            )


def run(arguments: argparse.Namespace, output: Output) -> int:
    """Run the loop."""
    from virtnic.cli.loops import looping
    from virtnic.units import parse_rate

    rate = arguments.rate
    _frames(arguments, "02:00:00:00:00:01")  # report errors before a QEMU starts
    with looping(arguments, output) as loop:
        (port,) = loop.ports
        frames, what = _frames(arguments, port.mac)
        check_lengths(frames, port)
        mean = sum(map(len, frames)) / len(frames) + CHECKSUM
        pps = None if rate is None else parse_rate(rate, mean)
        fast = "as fast as possible" if pps is None else f"{pps:.15g} frames/s"
        outcome = loop.run(
            f"GENERATE on {arguments.netdev}, {what}, {fast}",
            functools.partial(virtnic.generate, port, frames=frames, rate=pps),
        )
    given = arguments.pcap or arguments.frame
    size = arguments.size if arguments.size == "imix" else len(frames[0]) + CHECKSUM
    return loop.finish(outcome, rate=rate, size=None if given else size)
