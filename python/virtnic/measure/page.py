"""A report as a single self-contained HTML file."""

from __future__ import annotations

import html
from typing import TYPE_CHECKING

from virtnic.measure.plots import (
    count_text,
    latency_plot,
    rate_plot,
    seconds_text,
    throughput_plot,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from virtnic.measure.plots import Plot
    from virtnic.measure.result import Result
    from virtnic.measure.search import Throughput

__all__ = ["page"]

_STYLE = """
body { font: 15px/1.5 sans-serif; max-width: 66em; color: #222; }
body { margin: 2em auto; padding: 0 1em; }
table { border-collapse: collapse; margin: 1em 0; }
td, th { padding: .2em .6em; border-bottom: 1px solid #ddd; text-align: right; }
td, th { white-space: nowrap; }
td:first-child, th:first-child { text-align: left; }
svg { width: 100%; height: auto; border: 1px solid #ddd; }
"""


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    def row(cells: Sequence[str], tag: str) -> str:
        return "<tr>" + "".join(f"<{tag}>{html.escape(each)}</{tag}>" for each in cells) + "</tr>"

    return "\n".join(["<table>", row(head, "th"), *(row(each, "td") for each in rows), "</table>"])


def _results(named: Sequence[tuple[str, Result]]) -> str:
    head = [
        *("", "sent", "received", "lost", "loss", "duplicates", "reordered", "corrupt", "foreign"),
        *("not sent", "sent late"),
    ]
    rows = [
        [
            name,
            *(str(each) for each in (result.sent, result.received, result.lost)),
            f"{100 * result.loss:.6g} %",
            *(str(each) for each in (result.duplicates, result.reordered)),
            *(str(each) for each in (result.corrupt, result.foreign)),
            *(str(each) for each in (result.unsent, result.late)),
        ]
        for name, result in named
    ]
    return _table(head, rows)


def _latencies(named: Sequence[tuple[str, Result]]) -> str:
    names = ("minimum", "mean", "p50", "p90", "p99", "p99_9", "p99_99", "p99_999", "maximum")
    rows = [
        [name, *(seconds_text(getattr(result.latency, each)) for each in names)]
        for name, result in named
        if result.histogram.count
    ]
    return _table(["latency", *(each.replace("_", ".") for each in names)], rows)


def _throughputs(found: Sequence[Throughput]) -> str:
    head = ["size", "frames/s", "Gbit/s (L1)", "loses at", "trials", "by", "limit"]
    rows = [
        [
            str(each.size),
            count_text(each.pps),
            f"{each.l1_bps / 1e9:.3g}",
            "-" if each.limit == float("inf") else count_text(each.limit),
            str(len(each.trials)),
            each.method,
            "the generator" if each.by_generator else "what is measured",
        ]
        for each in found
    ]
    return _table(head, rows)


def page(
    title: str,
    results: Sequence[tuple[str, Result]],
    throughputs: Sequence[Throughput] = (),
) -> str:
    """Return a report as HTML, with named results and optionally throughputs."""
    body: list[str] = []
    plots: list[Plot] = []
    if throughputs:
        body.append(_throughputs(throughputs))
        plots.append(throughput_plot([(str(each.size), each.pps) for each in throughputs]))
    if results:
        body.append(_results(results))
        body.append(_latencies(results))
        plots.append(latency_plot([(name, result.histogram) for name, result in results]))
        plots += [rate_plot(name, result.samples) for name, result in results]
    figures = [f"<figure>{plot.svg}</figure>" for plot in plots]
    shown = html.escape(title)
    return "\n".join(
        [
            "<!DOCTYPE html>",
            '<html lang="en"><head><meta charset="utf-8"/>',
            f"<title>{shown}</title>",
            f"<style>{_STYLE}</style></head><body>",
            f"<h1>{shown}</h1>",
            *body,
            *figures,
            "</body></html>\n",
        ]
    )
