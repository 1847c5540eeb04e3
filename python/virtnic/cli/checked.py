"""The output of ``virtnic check``: lines, JSON rows, and a JUnit XML report."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from virtnic.check import Clause, Result

__all__ = ["as_json", "explain", "junit", "line"]


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
