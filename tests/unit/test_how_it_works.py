"""The walks of docs/how-it-works.md: each step's file and names exist."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

TOP = Path(__file__).resolve().parents[2]
PAGE = TOP / "docs/how-it-works.md"
_STEP = re.compile(r"\d+\. ((?:`[\w:.]+`(?:, | and )?)+) in \[([^]]+)\]\((\.\./[^)#]+)\)")
WALKS = PAGE.read_text().partition("## Through the source")[2]
STEPS = [line for line in WALKS.splitlines() if re.match(r"\d+\. ", line)]


def has(text: str, name: str) -> bool:
    """Whether a file defines a function or a type; of a method, also its type."""
    *kinds, last = re.split(r"::|\.", name)
    of_rust = rf"\b(?:fn|struct|enum|trait|type|mod) {last}\b"
    of_python = rf"^\s*(?:async )?(?:def|class) {last}\b"
    found = re.search(rf"{of_rust}|{of_python}", text, re.MULTILINE) is not None
    return found and all(
        re.search(rf"^\s*(?:impl\b.*|(?:pub.* )?trait |class )\b{kind}\b", text, re.MULTILINE)
        for kind in kinds
    )


def test_the_steps_are_found() -> None:
    assert len(re.findall("^### ", WALKS, re.MULTILINE)) == 5
    assert len(STEPS) > 30


@pytest.mark.parametrize("step", STEPS)
def test_a_step_names_what_its_file_has(step: str) -> None:
    found = _STEP.match(step)
    assert found, step
    names, shown, path = found.groups()
    file = (PAGE.parent / path).resolve()
    assert str(file).endswith(shown)
    text = file.read_text()
    assert [name for name in re.findall(r"`([^`]+)`", names) if not has(text, name)] == []


def test_what_is_not_there_is_found() -> None:
    text = (TOP / "python/virtnic/nic/devices.py").read_text()
    assert has(text, "Devices.plug")
    assert not has(text, "Devices.plugs")
    assert not has(text, "Bus.plug")
