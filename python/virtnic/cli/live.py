"""The live table of a loop: redrawn in place on a terminal, otherwise one line at a time."""

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

#: Counters of lost frames, and their names in the output.
_DROPS = {
    "tx_ring_full": "ring full",
    "tx_no_buffer": "no buffer",
    "tx_bad_length": "too long to send",
    "rx_bad_length": "bad length",
    "rx_bad_chain": "broken chain",
}
#: Seconds between refreshes.
_ON_TERMINAL, _OTHERWISE = 0.5, 1.0
#: Width of a port's name.
_NAME = 28


def drops_of(stats: Mapping[str, int]) -> dict[str, int]:
    """Return a port's lost frames by counter."""
    return {name: stats.get(name, 0) for name in _DROPS}


def drops_text(drops: Mapping[str, int]) -> str:
    """Format lost frames: ``0``, or ``15: 12 ring full, 3 no buffer``."""
    total = sum(drops.values())
    reasons = ", ".join(f"{count} {_DROPS[name]}" for name, count in drops.items() if count)
    return f"{total}: {reasons}" if total else "0"


def burst_text(bursts: int, frames: int) -> str:
    """Format the mean burst size."""
    return f"{frames / bursts:.1f}" if bursts else "-"


def rate_text(per_second: float, unit: float) -> str:
    """Format a rate in a large unit, with more digits for small values."""
    value = per_second / unit
    return f"{value:.3f}" if value >= 0.1 or value == 0 else f"{value:.6f}"


def l2_bits(size: int, frames: int) -> int:
    """Return the bits of frames including checksums, from bytes counted without."""
    return 8 * (size + CHECKSUM * frames)


def shortened(text: str, width: int) -> str:
    """Truncate a text."""
    return text if len(text) <= width else f"{text[: width - 1]}…"


def _middle_cut(name: str) -> str:
    """Truncate a netdev in the middle: its ends distinguish it."""
    half = _NAME // 2
    return name if len(name) <= _NAME else f"{name[: half - 1]}…{name[-half:]}"


@dataclass(frozen=True, slots=True)
class Traffic:
    """The counters of a loop and its ports at one moment."""

    loop: Result | None = None
    ports: tuple[Mapping[str, int], ...] = ()

    @property
    def seconds(self) -> float:
        """Seconds since the loop started."""
        return self.loop.seconds if self.loop is not None else 0.0

    @property
    def drops(self) -> dict[str, int]:
        """Lost frames of all ports, by reason."""
        each = [drops_of(stats) for stats in self.ports]
        return {name: sum(drops[name] for drops in each) for name in _DROPS}


@dataclass(slots=True)
class Live:
    """Shows a running loop. ``names`` are the ports' names."""

    names: Sequence[str]
    #: Returns the counters of the ports, in the same order.
    stats: Callable[[], Sequence[Mapping[str, int]]]
    #: Seconds between refreshes; 0 for never, None for the output's default.
    interval: float | None = None
    stream: TextIO = field(default_factory=lambda: sys.stdout)
    last: Traffic = field(default_factory=Traffic)
    _terminal: bool = False
    _drawn: int = 0
    _next: float = 0.0

    def __post_init__(self) -> None:
        self._terminal = is_terminal(self.stream)
        if self.interval is None:
            self.interval = _ON_TERMINAL if self._terminal else _OTHERWISE
        self._next = self.interval

    def show(self, loop: Result) -> None:
        """Show the state of the loop; called more often than it draws."""
        if not self.interval or loop.seconds < self._next:
            return
        self._next += self.interval
        if self._next <= loop.seconds:  # delayed: skip missed refreshes
            self._next = loop.seconds + self.interval
        now = Traffic(loop, tuple(self.stats()))
        lines = self._table(now) if self._terminal else self._line(now)
        self.last = now
        if self._terminal:
            width = shutil.get_terminal_size().columns - 1
            # From wherever the terminal's echo (^C) has left the cursor.
            back = f"\r\x1b[{self._drawn}A" if self._drawn else ""
            body = "".join(f"{shortened(line, width)}\x1b[K\n" for line in lines)
            text = back + body
        else:
            text = "".join(f"{line}\n" for line in lines)
        self._drawn += 0 if self._drawn and self._terminal else len(lines)
        self.stream.write(text)
        self.stream.flush()

    def _since_last(self, now: Traffic) -> tuple[float, dict[str, int]]:
        """Return the seconds since the last refresh, and what the loop counted meanwhile."""
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
    """Format the share of a loop's iterations that moved frames."""
    turns = bursts + idle
    share = 100 * bursts / turns if turns else 0.0
    if share == 0 or share >= 1:
        return f"{share:.0f} %"
    return f"{share:.2f} %" if share >= 0.01 else "<0.01 %"
