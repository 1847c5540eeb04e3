"""Print results as tables or JSON."""

import json
import os
import statistics
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any


class Report:
    """What was measured. Written to its file after each section, so that a break loses little."""

    def __init__(self, path: Path, machine: dict[str, Any]) -> None:
        self._path = path
        self._transient = 0
        #: What the file holds: ``machine``, ``sections`` (raw figures), ``targets``.
        self.data: dict[str, Any] = {"machine": machine, "sections": {}, "targets": []}

    def say(self, text: str) -> None:
        """Show what is going on; on a terminal the next line takes its place."""
        if sys.stderr.isatty():
            self._clear()
            width = os.get_terminal_size(sys.stderr.fileno()).columns
            self._transient = min(len(text), width - 1)
            print(text[: self._transient], end="", file=sys.stderr, flush=True)
        else:
            print(text, file=sys.stderr, flush=True)

    def table(
        self,
        title: str,
        head: Sequence[str],
        rows: Iterable[Sequence[object]],
        notes: Iterable[str] = (),
    ) -> None:
        """Print a table: the first column to the left, figures to the right."""
        self._clear()
        lines = [[str(cell) for cell in head]]
        lines += [[cell if isinstance(cell, str) else show(cell) for cell in row] for row in rows]
        widths = [max(len(line[column]) for line in lines) for column in range(len(head))]
        words = [
            all(not line[column][:1].isdigit() for line in lines[1:]) for column in range(len(head))
        ]
        print(f"\n{title}")
        for line in lines:
            cells = (
                cell.ljust(width) if column == 0 or word else cell.rjust(width)
                for column, (cell, width, word) in enumerate(zip(line, widths, words, strict=True))
            )
            print("  " + "  ".join(cells).rstrip())
        for note in dict.fromkeys(notes):
            print(f"  {note}")
        sys.stdout.flush()

    def target(self, what: str, value: float, limit: float, *, least: bool) -> str:
        """Note whether a target was met; the words for the table."""
        met = value >= limit if least else value <= limit
        self.data["targets"].append(
            {"what": what, "value": value, "at least" if least else "at most": limit, "met": met}
        )
        return f"{'≥' if least else '≤'} {show(limit)} {'met' if met else 'MISSED'}"

    def section(self, name: str, figures: Any) -> None:
        """Keep the raw figures of a section and write the file."""
        self.data["sections"][name] = figures
        self._path.parent.mkdir(parents=True, exist_ok=True)
        text = json.dumps(self.data, indent=1, default=str)
        partial = self._path.with_name(self._path.name + ".partial")
        partial.write_text(text + os.linesep)
        partial.replace(self._path)

    def summary(self) -> None:
        """Print which targets were met."""
        self._clear()
        targets = self.data["targets"]
        missed = [target for target in targets if not target["met"]]
        if targets:
            print(f"\n{len(targets) - len(missed)} of {len(targets)} targets met")
        for target in missed:
            limit = target.get("at least", target.get("at most"))
            print(f"  missed: {target['what']}: {show(target['value'])}, target {show(limit)}")
        print(f"figures: {self._path}")

    def _clear(self) -> None:
        if self._transient:
            print("\r" + " " * self._transient + "\r", end="", file=sys.stderr, flush=True)
            self._transient = 0


def show(value: object) -> str:
    """Three significant digits, no exponent."""
    if value is None:
        return "-"
    if not isinstance(value, float):
        return str(value)
    digits = 0 if abs(value) >= 100 else 1 if abs(value) >= 10 else 2
    return f"{value:.{digits}f}"


def spread(values: Sequence[float], factor: float = 1.0) -> str:
    """The median and, in brackets, the least and the most."""
    scaled = [value * factor for value in values]
    middle = show(statistics.median(scaled))
    return f"{middle} ({show(min(scaled))}-{show(max(scaled))})" if len(scaled) > 1 else middle


def percentile(values: Sequence[float], part: float) -> float:
    """The value below which that part (0 to 1) of all lie."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(part * len(ordered)))]
