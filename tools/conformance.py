# ruff: noqa: E501 - lines of the page
"""Make docs/conformance.md from runs of the backends on this machine: ``make conformance``.

Look at each wrong row by hand, with its clause beside it, before the page is published: a mistake of
ours is the likelier one. What a hostile driver could do is not checked here.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from peers.testpmd import Testpmd, drained
from virtnic.check import CLAUSES, Result, run
from virtnic.testing.ovs import OvsDpdk

if TYPE_CHECKING:
    from collections.abc import Iterator

PAGE = Path(__file__).resolve().parents[1] / "docs/conformance.md"
HEAD = """\
<!-- Made by `make conformance` from runs of the backends. -->

# Conformance of vhost-user backends

The results of [`virtnic check`](check.md), without its group `hostile`. `virtnic check --explain ID` says what a clause does and expects.

Each wrong row was looked at by hand. Three are judgements: RING-19P is demanded since QEMU 8.2, which is newer than DPDK 22.11; the
rule of NET-16 is in QEMU's document, and few backends follow it; for LIFE-04 no document says that a request comes at once, and a stream
socket may cut it.

"""
#: How a verdict is shown in the table.
_CELLS = {
    "ok": "ok",
    "wrong": "**wrong**",
    "not offered": "not offered",
    "not applicable": "",
    "not tried": "?",
}


def version(*command: str) -> str:
    """Return the first version number that a program prints."""
    printed = subprocess.run(command, capture_output=True, text=True, check=False)
    found = re.search(r"\d+\.\d+(\.\d+)?", printed.stdout + printed.stderr)
    return found[0] if found else "?"


def check(name: str, path: Path, pair: Path | None) -> list[Result]:
    """Check one backend; tell what is wrong as it is found."""
    results = []
    for result in run(path, echo=pair is None, pair=pair, timeout=15.0):
        results.append(result)
        if result.verdict in ("wrong", "not tried"):
            print(f"{name}: {result.clause.id} {result.verdict}: {result.seen}", file=sys.stderr)
    return results


def backends(directory: Path) -> Iterator[tuple[str, list[Result]]]:
    """Check each backend; yield its name and the results."""
    for mode, options in (("macswap", ""), ("io", "tso=1")):
        paths = [directory / f"{mode}{number}" for number in range(1 if mode == "macswap" else 2)]
        with Testpmd(paths, mode=mode, device_options=options) as pmd, drained(pmd):
            name = f"testpmd of DPDK {version('dpkg-query', '-W', 'dpdk')}, {mode}"
            name += f", `{options}`" if options else ""
            yield name, check(name, paths[0], paths[1] if len(paths) > 1 else None)
    with OvsDpdk() as ovs:
        bridge = ovs.add_bridge()
        paths = [bridge.add_port("left"), bridge.add_port("right")]
        name = f"OVS-DPDK {version('ovs-vswitchd', '--version')}, two ports of a bridge"
        yield name, check(name, paths[0], paths[1])


def page(found: dict[str, list[Result]]) -> str:
    """Return the page."""
    text = HEAD + "| clause | | " + " | ".join(found) + " |\n|---|---|" + "---|" * len(found) + "\n"
    for number, clause in enumerate(CLAUSES):
        if clause.group == "hostile":
            continue
        cells = [_CELLS[results[number].verdict] for results in found.values()]
        text += f"| {clause.id} | {clause.title} | {' | '.join(cells)} |\n"
    text += "\nEmpty: the clause does not apply.\n\n## What is wrong\n"
    for name, results in found.items():
        text += f"\n{name}:\n\n"
        for result in results:
            if result.verdict == "wrong":
                text += f"- {result.clause.id} ({result.clause.source}): {result.seen}\n"
    return text


def main() -> None:
    """Run all, and write the page."""
    with tempfile.TemporaryDirectory(prefix="conformance") as directory:
        found = dict(backends(Path(directory)))
    PAGE.write_text(page(found))


if __name__ == "__main__":
    main()
