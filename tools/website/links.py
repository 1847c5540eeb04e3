"""Finds dead links in the built site: checks each internal link and its anchor."""

from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit


class _Page(HTMLParser):
    """The links of a page, and its anchors."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.links: list[str] = []
        self.anchors: set[str] = set()
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Collect links, sources and anchors."""
        for name, value in attrs:
            if value is None:
                continue
            if name in ("href", "src"):
                self.links.append(value)
            elif name == "id" or (name == "name" and tag == "a"):
                self.anchors.add(value)


def dead(site: Path) -> Iterator[str]:
    """Yield a line for each dead link."""
    pages = {file: _Page(file.read_text()) for file in site.rglob("*.html")}
    for file, page in pages.items():
        if file.name == "404.html":
            continue  # shown for any missing page, so its links have no fixed base
        for link in page.links:
            parts = urlsplit(link)
            if parts.scheme or parts.netloc:
                continue
            wanted = (file.parent / unquote(parts.path)).resolve() if parts.path else file
            if wanted.is_dir():
                wanted /= "index.html"
            name = file.relative_to(site)
            if not wanted.exists():
                yield f"{name} links to {link}, which is not there"
            elif parts.fragment and wanted in pages:
                anchor = unquote(parts.fragment)
                if anchor not in pages[wanted].anchors and not anchor.startswith("__"):
                    yield f"{name} links to {link}, which has no such place"
