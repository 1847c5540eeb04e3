"""Collects the pages: docs/, the sources that they link to, and generated pages."""

import inspect
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import virtnic
from virtnic.cli.parser import COMMANDS

from .nav import DOCS, TOP, Section, sections

#: Links within the repository: text, path and anchor.
_LINK = re.compile(r"\[([^]]*)\]\((?!https?:|mailto:|#)([^)#\s]*)(#[^)\s]*)?\)")
_EXAMPLE = re.compile(r"(?:^(?:>>>|\.\.\.).*\n?)+", re.MULTILINE)
_LANGUAGES = {".py": "python", ".rs": "rust", ".pyi": "python", ".toml": "toml", ".md": "markdown"}

#: Public modules besides `virtnic` itself. Each has a page in the reference.
MODULES = (
    "virtnic.aio", "virtnic.aio.net", "virtnic.capture", "virtnic.check", "virtnic.net",
    "virtnic.measure", "virtnic.testing", "virtnic.vhost_user", "virtnic.integrations.aiohttp",
    "virtnic.integrations.extcap", "virtnic.integrations.httpcore", "virtnic.integrations.httpx",
    "virtnic.integrations.ray", "virtnic.integrations.scapy",
)  # fmt: skip


class Pages:
    """Writes all pages to one directory, in the layout that the site generator needs."""

    def __init__(self, place: Path) -> None:
        self.place = place
        #: Files of the repository that get their own pages.
        self._sources: set[Path] = set()

    def gather(self) -> list[Section]:
        """Write all pages and return the sections of the menu."""
        shutil.rmtree(self.place, ignore_errors=True)
        self.place.mkdir(parents=True)
        listed = sections()
        for page in DOCS.rglob("*.md"):
            self._copy(page, self.place / page.relative_to(DOCS))
        for name in ("CHANGELOG.md", "SECURITY.md"):
            self._copy(TOP / name, self.place / name)
        (self.place / "README.md").rename(self.place / "index.md")
        for section in listed:
            section.pages = [(title, file.removeprefix("../")) for title, file in section.pages]
        reference = next(section for section in listed if section.title == "Reference")
        reference.pages += self._commands()
        listed.insert(listed.index(reference) + 1, Section("Python API", list(self._api())))
        self._show_sources()
        return listed

    def _copy(self, page: Path, target: Path) -> None:
        """Copy a page, and convert links to files of the repository to links of the site."""
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(self._linked(page.read_text(), page, target))

    def _linked(self, text: str, page: Path, target: Path) -> str:
        def replace(match: re.Match[str]) -> str:
            words, path, anchor = match[1], match[2], match[3] or ""
            if not path:
                return match[0]
            wanted = (page.parent / path).resolve()
            if not wanted.exists():
                raise RuntimeError(f"{page.relative_to(TOP)} links to {path}, which is not there")
            link = os.path.relpath(self._target(wanted), target.parent)
            return f"[{words}]({link}{anchor})"

        return _LINK.sub(replace, text)

    def _target(self, wanted: Path) -> Path:
        """Return the location of a repository file in the site."""
        if wanted == DOCS / "README.md":
            return self.place / "index.md"
        if wanted.is_relative_to(DOCS) and wanted.suffix == ".md":
            return self.place / wanted.relative_to(DOCS)
        if wanted.parent == TOP and wanted.suffix == ".md" and wanted.name != "README.md":
            return self.place / wanted.name
        self._sources.add(wanted)
        return self.place / "source" / f"{wanted.relative_to(TOP)}.md"

    def _show_sources(self) -> None:
        """Write a page for each linked source file; for a folder, a list of its files."""
        for source in sorted(self._sources):
            target = self._target(source)
            target.parent.mkdir(parents=True, exist_ok=True)
            name = source.relative_to(TOP).as_posix()
            if source.is_dir():
                body = "\n".join(f"- `{each.name}`" for each in sorted(source.iterdir()))
            else:
                language = _LANGUAGES.get(source.suffix, "text")
                body = f"`````{language}\n{source.read_text()}\n`````"
            target.write_text(f"---\nsearch:\n  exclude: true\n---\n\n# {name}\n\n{body}\n")

    def _api(self) -> Iterator[tuple[str, str]]:
        """Write the API reference; docstrings of the binding are taken from the stub."""
        folder = self.place / "api"
        folder.mkdir()
        names = "\n".join(f"- [`{name}`][virtnic.{name}]" for name in virtnic.__all__)
        members = "\n\n".join(f"::: virtnic.{name}" for name in virtnic.__all__)
        words = _EXAMPLE.sub(_fenced, inspect.getdoc(virtnic) or "")
        (folder / "virtnic.md").write_text(f"# virtnic\n\n{words}\n\n{names}\n\n{members}\n")
        yield "virtnic", "api/virtnic.md"
        for module in MODULES:
            (folder / f"{module}.md").write_text(f"# {module}\n\n::: {module}\n")
            yield module, f"api/{module}.md"

    def _commands(self) -> Iterator[tuple[str, str]]:
        """Write a page with the output of `--help`."""
        parts = ["# Options of the commands", _help()]
        for name in COMMANDS:
            parts += [f"## virtnic {name}", _help(name)]
        (self.place / "options.md").write_text("\n\n".join(parts) + "\n")
        yield "Options of the commands", "options.md"


def _fenced(example: re.Match[str]) -> str:
    """Put an interpreter session into a code block."""
    return f"```pycon\n{example[0]}\n```\n"


def _help(*words: str) -> str:
    argv = [sys.executable, "-m", "virtnic.cli", *words, "--help"]
    env = {**os.environ, "COLUMNS": "100", "NO_COLOR": "1"}
    done = subprocess.run(argv, check=True, capture_output=True, text=True, env=env)
    return f"```text\n{done.stdout}```"
