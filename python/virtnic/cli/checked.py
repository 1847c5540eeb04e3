"""The output of ``virtnic check``: lines, JSON rows, and a JUnit XML report."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from collections import Counter
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from virtnic.check import Clause, Result

__all__ = ["as_json", "explain", "html", "junit", "line"]


def as_json(clause: Clause) -> dict[str, str]:
    """Return a clause as a row for ``--json``."""
    return {
        "id": clause.id,
        "group": clause.group,
        "title": clause.title,
        "source": clause.source,
        "does": clause.does,
        "right": clause.right,
    }


def line(result: Result) -> Iterator[str]:
    """Yield the outcome of a clause; for a wrong one also its source and what was expected."""
    clause = result.clause
    yield f"{clause.id:<8} {result.verdict:<14} {clause.title}: {result.seen}"
    if result.verdict == "wrong":
        yield f"{'':<23} {clause.source}: {clause.right}"


def explain(clauses: Sequence[Clause]) -> Iterator[str]:
    """Yield the text of ``--explain``."""
    for clause in clauses:
        yield f"{clause.id}: {clause.title}"
        yield f"  source    {clause.source}"
        yield f"  does      {clause.does}"
        yield f"  expects   {clause.right}"


_STYLE = """
body { font: 14px/1.45 system-ui, sans-serif; margin: 2em auto; max-width: 72em; padding: 0 1em; }
table { border-collapse: collapse; width: 100%; }
th, td { text-align: left; vertical-align: top; padding: .35em .6em; }
tr { border-bottom: 1px solid #8884; }
td:first-child, td:nth-child(2) { white-space: nowrap; }
small { color: #777; display: block; }
.ok { color: #197a3b; } .not { color: #777; }
.wrong, .not.tried { color: #c02020; font-weight: 600; }
@media (prefers-color-scheme: dark) { body { background: #161618; color: #ddd; } }
"""


def html(file: str, name: str, results: Sequence[Result]) -> None:
    """Write an HTML report: one file without references to others. Raises OSError."""
    counts = Counter(result.verdict for result in results)
    summary = ", ".join(f"{count} {verdict}" for verdict, count in counts.items())
    title = escape(f"virtnic check {name}")
    rows = []
    for group in dict.fromkeys(result.clause.group for result in results):
        rows.append(f'<tr><th colspan="3">{group}</th></tr>')
        for result in results:
            clause = result.clause
            if clause.group != group:
                continue
            about = f"{clause.does} {clause.right}"
            rows.append(
                f'<tr id="{clause.id}"><td>{clause.id}</td>'
                f'<td class="{result.verdict}">{result.verdict}</td>'
                f"<td>{escape(clause.title)}: {escape(result.seen)}"
                f"<small>{escape(clause.source)}. {escape(about)}</small></td></tr>"
            )
    page = (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{title}</title>'
        f"<style>{_STYLE}</style></head>\n<body><h1>{title}</h1>\n"
        f"<p>{len(results)} clauses: {summary}</p>\n<table>\n"
        + "\n".join(rows)
        + "\n</table></body></html>\n"
    )
    Path(file).write_text(page, encoding="utf-8")


def junit(file: str, name: str, results: Sequence[Result]) -> None:
    """Write a JUnit XML report. Raises OSError."""
    suite = ET.Element("testsuite", name=f"virtnic check {name}", tests=str(len(results)))
    suite.set("failures", str(sum(result.verdict == "wrong" for result in results)))
    skipped = ("not offered", "not applicable", "not tried")
    suite.set("skipped", str(sum(result.verdict in skipped for result in results)))
    for result in results:
        clause = result.clause
        case = ET.SubElement(suite, "testcase", classname=clause.group, name=clause.id)
        case.set("time", f"{result.seconds:.4f}")
        if result.verdict == "wrong":
            failure = ET.SubElement(case, "failure", message=f"{clause.title}: {result.seen}")
            failure.text = f"{clause.source}\n{clause.does}\n{clause.right}"
        elif result.verdict in skipped:
            ET.SubElement(case, "skipped", message=result.seen)
    text = ET.tostring(suite, encoding="unicode", xml_declaration=True)
    Path(file).write_text(text + "\n", encoding="utf-8")
