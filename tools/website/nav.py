"""The pages of the site and their order: those of docs/README.md, then the reference."""

import re
from dataclasses import dataclass, field
from pathlib import Path

TOP = Path(__file__).resolve().parents[2]
DOCS = TOP / "docs"

_SECTION = re.compile(r"^## (.+)$")
_ENTRY = re.compile(r"^- \[([^]]+)\]\(([^)#]+\.md)\)")


@dataclass
class Section:
    """A heading of the index with its pages: title, and file relative to docs/."""

    title: str
    pages: list[tuple[str, str]] = field(default_factory=list)


def sections() -> list[Section]:
    """Read the index. Raises RuntimeError if a page of docs/ is not in it."""
    found: list[Section] = []
    for line in (DOCS / "README.md").read_text().splitlines():
        if heading := _SECTION.match(line):
            found.append(Section(heading[1]))
        elif found and (entry := _ENTRY.match(line)):
            found[-1].pages.append((entry[1], entry[2]))
    listed = {file for section in found for _, file in section.pages}
    lost = {page.name for page in DOCS.glob("*.md")} - listed - {"README.md"}
    if lost:
        raise RuntimeError(f"docs/README.md does not list {', '.join(sorted(lost))}")
    return found
