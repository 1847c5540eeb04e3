"""Instructions a frame: no more than the repository says, whatever else the machine does."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from benchmarks.instructions import FILE, Counted, count

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.needs("valgrind")
@pytest.mark.timeout(600)
def test_nothing_takes_more_instructions(tmp_path: Path) -> None:
    """`make bench ARGS='--only instructions --update'` changes what is allowed."""
    known, now = Counted.read(), count(tmp_path)
    assert now.instructions.keys() == known.instructions.keys(), f"renew {FILE}"
    assert not known.grown(now), known.others(now)


def test_what_is_too_much() -> None:
    tools = {"rustc": "1.0", "python": "3.11.2"}
    known = Counted(tools, {"drop": 100.0, "recv": 200.0})
    assert not known.grown(Counted(tools, {"drop": 103.0, "recv": 50.0, "new": 1000.0}))
    [words] = known.grown(Counted(tools, {"drop": 103.1, "recv": 206.0}))
    assert words.startswith("drop: 103 instructions")
    # Another toolchain compiles to others: only what is far more counts, and the tool is named.
    other = Counted(tools | {"rustc": "1.1"}, {"drop": 125.0, "recv": 290.0})
    assert known.others(other) == ["rustc: 1.0, here 1.1"]
    [words] = known.grown(other)
    assert words.startswith("recv: 290 instructions")
