"""The live table of a loop: on a terminal redrawn in place, elsewhere a line at a time."""

from __future__ import annotations

import shutil
import sys
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TextIO

from virtnic.cli.colour import is_terminal
from virtnic.units import CHECKSUM

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from virtnic.loops.engine import Result

__all__ = [
    "Live",
    "Traffic",
    "burst_text",
    "drops_of",
    "drops_text",
    "l2_bits",
    "occupancy_text",
    "rate_text",
]

#: Counters of a port that count frames which it lost, and what each is called.
_DROPS = {
    "tx_ring_full": "ring full",
    "tx_no_buffer": "no buffer",
    "tx_bad_length": "too long to send",
    "rx_bad_length": "bad length",
    "rx_bad_chain": "broken chain",
}
#: Seconds from one refresh to the next.
_ON_TERMINAL, _ELSEWHERE = 0.5, 1.0
#: Columns of a port's name.
_NAME = 28


def drops_of(stats: Mapping[str, int]) -> dict[str, int]:
    """Return a port's lost frames by the counter that counts them."""
    return {name: stats.get(name, 0) for name in _DROPS}


def drops_text(drops: Mapping[str, int]) -> str:
    """Return lost frames in words: ``0``, or ``15: 12 ring full, 3 no buffer``."""
    total = sum(drops.values())
    reasons = ", ".join(f"{count} {_DROPS[name]}" for name, count in drops.items() if count)
    return f"{total}: {reasons}" if total else "0"


def burst_text(bursts: int, frames: int) -> str:
    """Return the mean size of bursts."""
    return f"{frames / bursts:.1f}" if bursts else "-"


def rate_text(per_second: float, unit: float) -> str:
    """Return a rate in a large unit, with more digits where it is small."""
    value = per_second / unit
    return f"{value:.3f}" if value >= 0.1 or value == 0 else f"{value:.6f}"


def l2_bits(size: int, frames: int) -> int:
    """Return the bits of frames with their checksums, of bytes that were counted without."""
    return 8 * (size + CHECKSUM * frames)


def shortened(text: str, width: int) -> str:
    """Cut a text that is too long."""
    return text if len(text) <= width else f"{text[: width - 1]}…"


def _middle_cut(name: str) -> str:
    """Shorten a netdev: what tells it from others is at its ends."""
    half = _NAME // 2
    return name if len(name) <= _NAME else f"{name[: half - 1]}…{name[-half:]}"


@dataclass(frozen=True, slots=True)
class Traffic:
    """What a loop and its ports have counted at one moment."""

    loop: Result | None = None
    ports: tuple[Mapping[str, int], ...] = ()

    @property
    def seconds(self) -> float:
        """Since the loop started."""
        return self.loop.seconds if self.loop is not None else 0.0

    @property
    def drops(self) -> dict[str, int]:
        """The lost frames of all ports, by reason."""
        each = [drops_of(stats) for stats in self.ports]
        return {name: sum(drops[name] for drops in each) for name in _DROPS}


@dataclass(slots=True)
class Live:
    """Shows traffic as it goes on. ``names`` are those of the ports."""

    names: Sequence[str]
    #: Of the ports, in this order, as often as there is something to show.
    stats: Callable[[], Sequence[Mapping[str, int]]]
    #: Seconds from one refresh to the next; 0 for never, None for what suits the output.
    interval: float | None = None
    stream: TextIO = field(default_factory=lambda: sys.stdout)
    last: Traffic = field(default_factory=Traffic)
    _terminal: bool = False
    _drawn: int = 0
    _next: float = 0.0

    def __post_init__(self) -> None:
        self._terminal = is_terminal(self.stream)
        if self.interval is None:
            self.interval = _ON_TERMINAL if self._terminal else _ELSEWHERE
        self._next = self.interval

    def show(self, loop: Result) -> None:
        """Show how the loop goes; called more often than it is drawn."""
        if not self.interval or loop.seconds < self._next:
            return
        self._next += self.interval
        if self._next <= loop.seconds:  # held up: what nobody saw is not caught up with
            self._next = loop.seconds + self.interval
        now = Traffic(loop, tuple(self.stats()))
        lines = self._table(now) if self._terminal else self._line(now)
        self.last = now
        if self._terminal:
            width = shutil.get_terminal_size().columns - 1
            # From wherever the terminal's own words (^C) have left the cursor.
            back = f"\r\x1b[{self._drawn}A" if self._drawn else ""
            body = "".join(f"{shortened(line, width)}\x1b[K\n" for line in lines)
            text = back + body
        else:
            text = "".join(f"{line}\n" for line in lines)
        self._drawn += 0 if self._drawn and self._terminal else len(lines)
        self.stream.write(text)
        self.stream.flush()

    def _since_last(self, now: Traffic) -> tuple[float, dict[str, int]]:
        """Return the seconds since the last refresh, and what the loop counted in them."""
        assert now.loop is not None
        names = ("packets", "bytes", "bursts", "idle")
        before = {name: getattr(self.last.loop, name, 0) for name in names}
        counted = {name: getattr(now.loop, name) - before[name] for name in names}
        return max(now.seconds - self.last.seconds, 1e-9), counted

    def _line(self, now: Traffic) -> list[str]:
        seconds, counted = self._since_last(now)
        share = occupancy_text(counted["bursts"], counted["idle"])
        line = (
            f"{now.seconds:7.1f} s"
            f"{rate_text(counted['packets'] / seconds, 1e6):>11}"
            f"{rate_text(l2_bits(counted['bytes'], counted['packets']) / seconds, 1e9):>11}"
            f"{burst_text(counted['bursts'], counted['packets']):>8}"
            f"{share:>11}  {drops_text(now.drops)}"
        )
        heading = (
            f"{'time':>9}{'Mpps':>11}{'Gb/s L2':>11}{'burst':>8}{'occupied':>11}  dropped so far"
        )
        return [line] if self._drawn else [heading, line]

    def _table(self, now: Traffic) -> list[str]:
        seconds, counted = self._since_last(now)
        width = max(len("all"), *(min(len(name), _NAME) for name in self.names))
        columns = "".join(
            f"{name:>12}" for name in ("rx Mpps", "rx Gb/s L2", "tx Mpps", "tx Gb/s L2")
        )
        lines = [f"{f'{now.seconds:.1f} s':<{width}}{columns}  dropped"]
        for i, (name, stats) in enumerate(zip(self.names, now.ports, strict=True)):
            before = self.last.ports[i] if self.last.ports else {}
            rates = ""
            for way in ("rx", "tx"):
                frames, size = (
                    stats[name] - before.get(name, 0) for name in (f"{way}_packets", f"{way}_bytes")
                )
                rates += f"{rate_text(frames / seconds, 1e6):>12}"
                rates += f"{rate_text(l2_bits(size, frames) / seconds, 1e9):>12}"
            drops = drops_text(drops_of(stats))
            lines.append(f"{_middle_cut(name):<{width}}{rates}  {drops}")
        lines.append(
            f"{'all':<{width}}"
            f"{rate_text(counted['packets'] / seconds, 1e6):>12} Mpps"
            f"{rate_text(l2_bits(counted['bytes'], counted['packets']) / seconds, 1e9):>10} Gb/s L2"
            f"  bursts of {burst_text(counted['bursts'], counted['packets'])}"
            f"  {occupancy_text(counted['bursts'], counted['idle'])} occupied"
        )
        return lines


def occupancy_text(bursts: int, idle: int) -> str:
    """Return which share of a loop's turns moved frames."""
    turns = bursts + idle
    share = 100 * bursts / turns if turns else 0.0
    if share == 0 or share >= 1:
        return f"{share:.0f} %"
    return f"{share:.2f} %" if share >= 0.01 else "<0.01 %"
