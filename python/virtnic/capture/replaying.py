"""``replay``: a capture is sent again, with its gaps."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from virtnic import _native
from virtnic.arguments import loop_limits, suggest_options
from virtnic.capture.reading import is_pipe, read
from virtnic.loops import Result
from virtnic.units import CHECKSUM, parse_rate

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    import virtnic

__all__ = ["Replayed", "parse_speed", "replay"]

_TIMES = re.compile(r"\s*(\d+(?:\.\d*)?|\.\d+)\s*[x×]\s*", re.ASCII)  # noqa: RUF001
#: More passes than this are for ever.
_FOR_EVER = (1 << 64) - 1


@dataclass(frozen=True, slots=True)
class Replayed(Result):
    """What a replay did.

    Attributes
    ----------
    late, latest
        Frames that were sent more than 10 µs after they were due, and the longest such delay in
        seconds.

    """

    late: int = 0
    latest: float = 0.0


def parse_speed(
    speed: float | str, path: str | os.PathLike[str]
) -> tuple[Literal["times", "rate", "max"], float]:
    """Return how a speed is meant, and the number in it. Raises ValueError.

    ``2.0`` and ``"2x"`` are twice as fast as captured, ``"max"`` is as fast as frames are taken,
    ``"10kpps"`` and ``"1Gbps"`` are even rates; for one in bits the file is read first.
    """
    if is_pipe(path):
        raise ValueError(
            f"{os.fspath(path)} is a pipe, and a replay reads its file more than once: write it to "
            "a file first"
        )
    if not isinstance(speed, str):
        if not 0 < speed < float("inf"):
            raise ValueError(f"the speed must be a number above 0, not {speed}")
        return "times", float(speed)
    if speed.strip().lower() == "max":
        return "max", 0.0
    times = _TIMES.fullmatch(speed)
    if times:
        return parse_speed(float(times[1]), path)
    try:
        rate = parse_rate(speed, 1.0)
        if rate != parse_rate(speed, 2.0):
            lengths = [len(captured.frame) + CHECKSUM for captured in read(path)]
            rate = parse_rate(speed, sum(lengths) / max(len(lengths), 1))
    except ValueError as error:
        raise ValueError(
            f"the speed must be a factor such as 2.0 or '2x', 'max', or a rate: {error}"
        ) from None
    return "rate", rate


@suggest_options
def replay(
    port: virtnic.Port,
    path: str | os.PathLike[str],
    *,
    speed: float | str = 1.0,
    loop: int | None = 1,
    truncated: bool = False,
    seconds: float | None = None,
    packets: int | None = None,
    progress: Callable[[Result], object] | None = None,
    cpus: Iterable[int] = (),
) -> Replayed:
    """Send the frames of a capture with their original gaps.

    ``speed``: a factor; ``"max"`` for as fast as possible; or a constant rate such as
    ``"10kpps"``. ``late`` and ``latest`` of the result are the number of frames sent more than
    10 µs after they were due, and the longest delay. ``loop``: how many times to send the file;
    None for ever. ``truncated``: also send the captured part of truncated frames. A thread reads
    the file ahead, a few MiB at most. ``cpus``: as for the loops.

    The loop claims no queue: other threads may send meanwhile. It ends as the loops of
    :mod:`virtnic.loops` do.

    Raises OSError; ValueError if the file is not a capture, is cut, has another link type than
    Ethernet, truncated frames, or a frame longer than a buffer of the port's memory (the frames
    before it have been sent); PortClosed, QemuDied, DeviceError, PortBusy.
    """
    if loop is not None and loop < 1:
        raise ValueError(f"loop must be 1 or more, or None for ever, not {loop}")
    pace = parse_speed(speed, path)
    seconds, packets, chosen = loop_limits(seconds, packets, progress, cpus)

    def tell(counters: dict[str, Any]) -> object:
        return None if progress is None else progress(Result(**counters))

    times = _FOR_EVER if loop is None else loop
    until = (seconds, packets, None if progress is None else tell, chosen)
    return Replayed(**_native.play(port, os.fspath(path), pace, times, truncated, until))
