"""Run the examples of README.md and docs/.

A block marked ``python`` is run as a program of its own; in a block marked ``console``
each line that starts with ``$ virtnic`` is run. Both must succeed. An HTML comment
right above a block says what it takes:

    <!-- test: needs netns -->       skipped (in CI: failed) without the component
    <!-- test: not run, why -->      shown only: it would be the machine's own affair
"""

import os
import re
import shlex
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from peers.components import needs

TOP = Path(__file__).resolve().parents[2]
PAGES = [TOP / "README.md", *sorted((TOP / "docs").glob("**/*.md"))]
BLOCK = re.compile(
    r"^(?:<!-- test: (?P<rule>[^\n]*?) -->\n+)?```(?P<kind>python|console)\n(?P<text>.*?)^```$",
    re.MULTILINE | re.DOTALL,
)


@dataclass(frozen=True)
class Example:
    """One block of a page."""

    page: str
    line: int
    kind: str
    text: str
    rule: str


def examples() -> list[Example]:
    """Find the blocks of all pages."""
    found = []
    for page in PAGES:
        content = page.read_text() if page.exists() else ""
        for match in BLOCK.finditer(content):
            if (match["rule"] or "").startswith("not run, "):
                continue
            line = content.count("\n", 0, match.start("text"))
            found.append(
                Example(
                    page.relative_to(TOP).as_posix(),
                    line,
                    match["kind"],
                    match["text"],
                    match["rule"] or "",
                )
            )
    return found


def run(argv: list[str], where: str, environment: dict[str, str]) -> None:
    """Run a command and quote its output when it fails."""
    done = subprocess.run(
        argv,
        check=False,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=100,
        env=environment,
    )
    if done.returncode:
        pytest.fail(f"{where} ended with {done.returncode}:\n{done.stdout}{done.stderr}", False)


def test_the_readme_has_examples() -> None:
    assert {example.kind for example in examples() if example.page == "README.md"} == {
        "python",
        "console",
    }


@pytest.mark.parametrize(
    "example", examples(), ids=lambda example: f"{example.page}:{example.line}"
)
def test_example(example: Example, qemu_command: str) -> None:
    rule, _, rest = example.rule.partition(" ")
    if rule == "needs":
        needs(*re.split(r"[ ,]+", rest.strip()))
    elif rule:
        pytest.fail(f"{example.page}:{example.line}: no rule {example.rule!r}")
    where = f"{example.page}:{example.line}"
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path, "VIRTNIC_QEMU": qemu_command}
    if example.kind == "python":
        run(
            [sys.executable, "-W", "error::ResourceWarning", "-c", example.text], where, environment
        )
        return
    commands = re.findall(r"^\$ (virtnic\b[^\n#]*)", example.text, re.MULTILINE)
    for command in commands:
        run(shlex.split(command), f"{where}: {command}", environment)
