"""Plots as self-contained SVG."""

from __future__ import annotations

import html
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Sequence

    from virtnic.measure.counts import Histogram, Sample

__all__ = ["Plot", "latency_plot", "rate_plot", "throughput_plot"]

_WIDTH, _HEIGHT = 760, 340
_LEFT, _RIGHT, _TOP, _BOTTOM = 76, 30, 58, 52
_COLOURS = ("#1f6fb4", "#d1495b", "#2e8b57", "#8a5fb5", "#c77d0a", "#456")
#: Tick marks of the percentile axis.
_PERCENTILES = (0, 50, 90, 99, 99.9, 99.99, 99.999)

Points = list[tuple[float, float]]


@dataclass(frozen=True, slots=True)
class Plot:
    """A plot that notebooks display."""

    svg: str

    def _repr_svg_(self) -> str:
        return self.svg

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the plot to a file. Raises OSError."""
        with open(path, "w", encoding="utf-8") as file:  # noqa: PTH123 - any path-like
            file.write(self.svg)


def seconds_text(seconds: float) -> str:
    """Return a time with a suitable unit."""
    for unit, size in (("s", 1.0), ("ms", 1e-3), ("µs", 1e-6)):
        if seconds >= size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds / 1e-9:.3g} ns"


def count_text(count: float) -> str:
    """Return a number with a suitable prefix."""
    for prefix, size in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if count >= size:
            return f"{count / size:.3g}{prefix}"
    return f"{count:.3g}"


def _ticks(most: float) -> list[float]:
    """Return round tick values from 0 to the maximum."""
    if most <= 0:
        return [0.0, 1.0]
    step = 10 ** math.floor(math.log10(most / 4))
    step *= next(factor for factor in (1, 2, 2.5, 5, 10) if most / (step * factor) <= 5)
    return [step * number for number in range(math.ceil(most / step - 1e-9) + 1)]


def _plot(
    title: str,
    labels: tuple[str, str],
    series: Sequence[tuple[str, Points]],
    x_ticks: Sequence[tuple[float, str]],
    y_text: Callable[[float], str],
) -> Plot:
    inner_width, inner_height = _WIDTH - _LEFT - _RIGHT, _HEIGHT - _TOP - _BOTTOM
    first, last = x_ticks[0][0], max(x_ticks[-1][0], x_ticks[0][0] + 1e-12)
    y_ticks = _ticks(max((y for _, points in series for _, y in points), default=0.0))

    def at(x: float, y: float) -> tuple[float, float]:
        across = (x - first) / (last - first)
        return _LEFT + inner_width * across, _TOP + inner_height * (1 - y / y_ticks[-1])

    def text(x: float, y: float, words: str, more: str = "") -> str:
        return f'<text x="{x:.1f}" y="{y:.1f}" {more}>{html.escape(words)}</text>'

    parts = [
        (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" '
            f'aria-label="{html.escape(title)}" font-family="sans-serif" font-size="12">'
        ),
        f'<rect width="{_WIDTH}" height="{_HEIGHT}" fill="#ffffff"/>',
        text(14, 22, title, 'font-size="15" font-weight="bold"'),
    ]
    for tick in y_ticks:
        _, y = at(first, tick)
        parts.append(
            f'<line x1="{_LEFT}" y1="{y:.1f}" x2="{_WIDTH - _RIGHT}" y2="{y:.1f}" stroke="#ddd"/>'
        )
        parts.append(text(_LEFT - 6, y + 4, y_text(tick), 'text-anchor="end"'))
    for tick, words in x_ticks:
        x, _ = at(tick, 0)
        parts.append(text(x, _HEIGHT - _BOTTOM + 18, words, 'text-anchor="middle"'))
    middle = 'text-anchor="middle" fill="#555"'
    parts.append(text(_LEFT + inner_width / 2, _HEIGHT - 14, labels[0], middle))
    parts.append(text(14, _TOP - 14, labels[1], 'fill="#555"'))
    for number, (name, points) in enumerate(series):
        colour = _COLOURS[number % len(_COLOURS)]
        line = " ".join("{:.1f},{:.1f}".format(*at(x, y)) for x, y in points)
        parts.append(f'<polyline points="{line}" fill="none" stroke="{colour}" stroke-width="2"/>')
        if len(points) <= 32:
            for x, y in (at(*point) for point in points):
                parts.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{colour}"/>')
        legend = f'text-anchor="end" fill="{colour}"'
        parts.append(text(_WIDTH - _RIGHT, 16 + 14 * number, name, legend))
    return Plot("\n".join([*parts, "</svg>"]))


def latency_plot(named: Sequence[tuple[str, Histogram]]) -> Plot:
    """Plot latency by percentile; 90, 99, 99.9 and so on are equally spaced."""
    most = max((histogram.count for _, histogram in named), default=0)
    marks = [mark for mark in _PERCENTILES if mark == 0 or 1 / (1 - mark / 100) <= most * 1.0001]
    marks = marks if len(marks) > 1 else [0, 50]
    end = math.log10(1 / (1 - marks[-1] / 100))
    steps = [end * step / 120 for step in range(121)]
    series = []
    for name, histogram in named:
        points = [(x, histogram.percentile(100 * (1 - 10**-x))) for x in steps]
        series.append((name, points if histogram.count else []))
    ticks = [(math.log10(1 / (1 - mark / 100)), f"{mark:g} %") for mark in marks]
    return _plot("Latency by percentile", ("percentile", "latency"), series, ticks, seconds_text)


def rate_plot(name: str, samples: Sequence[Sample]) -> Plot:
    """Plot frames per second over time: sent, received, and not (yet) received."""
    sent: Points = []
    received: Points = []
    missing: Points = []
    # Group the samples so that a line has about 200 points.
    stride = max(1, len(samples) // 200)
    began, was_sent, was_received, was_missing = 0.0, 0, 0, 0
    for sample in samples[stride - 1 :: stride]:
        span = sample.seconds - began
        if span <= 0:
            continue
        gone = sample.signed - sample.received
        sent.append((sample.seconds, (sample.sent - was_sent) / span))
        received.append((sample.seconds, (sample.received - was_received) / span))
        missing.append((sample.seconds, max(0.0, (gone - was_missing) / span)))
        began, was_sent = sample.seconds, sample.sent
        was_received, was_missing = sample.received, gone
    series = [("sent", sent), ("received", received), ("not (yet) received", missing)]
    ticks = [(tick, f"{tick:g}") for tick in _ticks(samples[-1].seconds if samples else 1.0)]
    labels = ("seconds", "frames a second")
    return _plot(f"Rate and loss over time: {name}", labels, series, ticks, count_text)


def throughput_plot(named: Sequence[tuple[str, float]]) -> Plot:
    """Plot throughput by frame size, in frames per second."""
    points = [(float(number), rate) for number, (_, rate) in enumerate(named)]
    ticks = [(float(number), size) for number, (size, _) in enumerate(named)]
    labels = ("bytes on the wire", "frames a second")
    return _plot("Throughput by frame size", labels, [("throughput", points)], ticks, count_text)
