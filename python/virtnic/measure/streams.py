"""Streams to send: frames, and the fields that vary from frame to frame."""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from virtnic import _native
from virtnic.arguments import suggest_options
from virtnic.loops.traffic import IMIX, MAX_FRAME, make_frame, parse_mac
from virtnic.units import CHECKSUM, parse_rate

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    import virtnic
    from virtnic.protocols import Frame

__all__ = ["Field", "Increment", "List", "Random", "Stream", "compiled"]

_MAC = re.compile(r"[0-9a-f]{2}([:-][0-9a-f]{2}){5}", re.ASCII | re.IGNORECASE)

#: What the fields of a header take, if it is an address.
_ADDRESSES = {"eth": "a MAC address", "ip": "an IPv4 address", "ipv6": "an IPv6 address"}
#: The position of a field: its name, or its offset and its width (1 to 8), in bytes.
Position = str | tuple[int, int]
#: The value of a field: a number, or an address as text.
Value = int | str


@suggest_options
@dataclass(frozen=True, slots=True)
class Increment:
    """A field that takes ``count`` values in turn: ``start``, ``start + step``, and so on.

    ``field``: ``eth.src``, ``eth.dst``, ``vlan.id``, ``ip.src``, ``ip.dst``, ``ipv6.src``,
    ``ipv6.dst``, ``udp.sport``, ``udp.dport``, ``tcp.sport``, ``tcp.dport``, ``payload`` (its first
    eight bytes), or ``(offset, bytes)``. ``start``: a number or an address; by default, the value
    in the frame. Of an IPv6 address, the last 64 bits are incremented.
    """

    field: Position
    count: int
    start: Value | None = None
    step: int = 1


@dataclass(frozen=True, slots=True)
class List:
    """A field that takes these values in turn: numbers, or addresses as text."""

    field: Position
    values: Sequence[Value]


@suggest_options
@dataclass(frozen=True, slots=True)
class Random:
    """A field with random values from ``low`` to ``high``; the same ``seed`` gives the same values.

    Without ``low`` and ``high``, any value that fits. In MAC and IPv4 addresses only the last three
    bytes vary then, in IPv6 addresses the last 64 bits.
    """

    field: Position
    low: Value | None = None
    high: Value | None = None
    seed: int = 0


Field = Increment | List | Random


@suggest_options
@dataclass(frozen=True, slots=True)
class Stream:
    """Frames that are sent cyclically at a rate.

    ``frame``: one frame or several; or a number: a UDP frame of this many bytes on the wire (with
    checksum) is built; or ``"imix"``: 7, 4 and 1 frames of 64, 594 and 1,518 bytes.

    ``rate``: frames per second, or text such as ``"1Mpps"`` or ``"1Gbit/s"``; without it, frames
    are sent as fast as the peer takes them. ``burst``: the number of frames due at the same time;
    the rate stays the same. ``fields``: the fields that vary from frame to frame. The checksums of
    IPv4, TCP and UDP are updated; a UDP checksum of zero (none) stays zero.

    ``flow``: the last 18 bytes of each frame are a signature with its number and time, by which
    :func:`run` recognises it. Frames with the same values in all :class:`Increment` and
    :class:`List` fields are one flow; up to 1,048,576 flows are counted separately. Without
    ``flow``, the frames are background load that is not measured.
    """

    frame: Frame | Iterable[Frame] | int | Literal["imix"]
    rate: float | str | None = None
    fields: Sequence[Field] = ()
    flow: bool = True
    burst: int = 1
    name: str = ""

    def frames(self, tx: virtnic.Port, rx: virtnic.Port | None) -> list[bytes]:
        """Return the frames to send from ``tx`` to ``rx``. Raises ValueError."""
        if self.frame == "imix":
            return [_made(length, tx, rx) for length in IMIX]
        if isinstance(self.frame, int):
            most = min(tx.memory.largest_frame, MAX_FRAME) + CHECKSUM
            if isinstance(self.frame, bool) or not 64 <= self.frame <= most:
                raise ValueError(
                    f"a size is 64 to {most} bytes on the wire, or 'imix', not {self.frame!r}"
                )
            return [_made(self.frame - CHECKSUM, tx, rx)]
        if isinstance(self.frame, str):
            raise ValueError(f"a frame is bytes, a size or 'imix', not {self.frame!r}")
        given: Any = self.frame
        try:
            return [bytes(memoryview(given))]
        except TypeError:
            if hasattr(type(given), "__bytes__"):
                return [bytes(given)]
        try:
            frames = [bytes(memoryview(frame)) for frame in _native.as_frames(given)]
        except TypeError as error:
            raise TypeError(
                f"a frame is bytes, several of these, a size or 'imix': {error}"
            ) from error
        if not frames:
            raise ValueError("a stream has one frame at least")
        return frames

    def per_second(self, frames: Sequence[bytes]) -> float | None:
        """Return the rate in frames per second."""
        if self.rate is None:
            return None
        return parse_rate(self.rate, sum(map(len, frames)) / len(frames) + CHECKSUM)


def _made(length: int, tx: virtnic.Port, rx: virtnic.Port | None) -> bytes:
    if rx is None or rx is tx:
        return make_frame(length, source=tx.mac)
    return make_frame(length, source=tx.mac, destination=rx.mac)


def _number(value: Value | None, field: Position) -> int | None:
    """Return an address as a number. Raises ValueError for one that is of another kind."""
    if value is None or (isinstance(value, int) and not isinstance(value, bool)):
        if value is not None and not 0 <= value < 1 << 128:
            raise ValueError(f"a value of a field is 0 or more and below 2**128, not {value}")
        return value
    if not isinstance(value, str):
        raise TypeError(f"a value of a field is a number or an address, not {value!r}")
    wanted = _ADDRESSES.get(field.partition(".")[0]) if isinstance(field, str) else None
    if _MAC.fullmatch(value):
        found, number = "a MAC address", int.from_bytes(parse_mac(value), "big")
    else:
        address = ipaddress.ip_address(value)
        found, number = f"an IPv{address.version} address", int(address)
    if wanted and found != wanted:
        raise ValueError(f"{field} takes {wanted}, not {value!r}")
    return number


def _whole(name: str, value: object) -> int:
    if not isinstance(value, int) or isinstance(value, bool):
        raise TypeError(f"{name} is a whole number, not {value!r}")
    if not 0 <= value < 1 << 64:
        raise ValueError(f"{name} is 0 or more and below 2**64, not {value}")
    return value


def _compiled_field(field: Field) -> tuple[str | None, int, int, str, list[int | None]]:
    numbers: list[int | None]
    if not isinstance(field, Increment | List | Random):
        raise TypeError(f"a field is an Increment, a List or a Random, not {field!r}")
    at = field.field
    if not isinstance(at, str) and not (isinstance(at, tuple) and len(at) == 2):
        raise TypeError(f"a field is a name, or its offset and its bytes, not {at!r}")
    if isinstance(field, Increment):
        whole = [_whole("a step", field.step), _whole("a count", field.count)]
        kind, numbers = "increment", [_number(field.start, at), *whole]
    elif isinstance(field, List):
        if None in field.values:
            raise TypeError("a value of a field is a number or an address, not None")
        kind, numbers = "list", [_number(value, at) for value in field.values]
    else:
        ends = [_number(field.low, at), _number(field.high, at)]
        kind, numbers = "random", [*ends, _whole("a seed", field.seed)]
    if isinstance(at, str):
        return at, 0, 0, kind, numbers
    return None, _whole("an offset", at[0]), _whole("a number of bytes", at[1]), kind, numbers


def compiled(stream: Stream, tx: virtnic.Port, rx: virtnic.Port | None) -> tuple[Any, ...]:
    """Return a stream in the form that the core takes. Raises ValueError, TypeError."""
    if not isinstance(stream, Stream):
        raise TypeError(f"streams are measure.Stream, not {stream!r}")
    frames = stream.frames(tx, rx)
    if _whole("a burst", stream.burst) < 1:
        raise ValueError(f"a burst has one frame at least, not {stream.burst}")
    fields = [_compiled_field(field) for field in stream.fields]
    return frames, stream.per_second(frames), stream.burst, stream.flow, fields
