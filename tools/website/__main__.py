"""Build the documentation site in build/site/html: ``make site``.

Warnings, dead links and pages that docs/README.md does not list are errors. With --look, pages
are opened in headless Chromium at the width of a phone and of a desktop; the screenshots are in
build/site/pictures.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path

from . import links, look
from .nav import TOP, Section
from .pages import Pages

BUILD = TOP / "build" / "site"

CONFIG = """\
[project]
site_name = "virtnic"
site_description = "A real virtio-net NIC for any Python process, without a virtual machine"
docs_dir = "pages"
site_dir = "html"
use_directory_urls = true
nav = {nav}

[project.theme]
language = "en"
font = false
features = [
  "content.code.copy", "navigation.footer", "navigation.indexes", "navigation.path",
  "navigation.sections", "navigation.top", "search.highlight", "toc.follow",
]

[[project.theme.palette]]
media = "(prefers-color-scheme: light)"
scheme = "default"
toggle.icon = "lucide/sun"
toggle.name = "Switch to dark mode"

[[project.theme.palette]]
media = "(prefers-color-scheme: dark)"
scheme = "slate"
toggle.icon = "lucide/moon"
toggle.name = "Switch to light mode"

[project.plugins.mkdocstrings.handlers.python]
paths = [{paths}]

[project.plugins.mkdocstrings.handlers.python.options]
show_source = false
show_root_heading = true
show_root_full_path = true
heading_level = 2
members_order = "source"
filters = ["!^_"]
docstring_style = "google"
inherited_members = true
show_if_no_docstring = false
"""


def nav(sections: list[Section]) -> str:
    """Return the menu in TOML."""
    parts = ['{ "Home" = "index.md" }']
    for section in sections:
        pages = ", ".join(f"{{ {json.dumps(t)} = {json.dumps(f)} }}" for t, f in section.pages)
        parts.append(f"{{ {json.dumps(section.title)} = [{pages}] }}")
    return "[\n  " + ",\n  ".join(parts) + ",\n]"


def build() -> None:
    """Collect the pages and build the site. Raises RuntimeError with what is wrong."""
    sections = Pages(BUILD / "pages").gather()
    paths = json.dumps(str(TOP / "python"))
    config = BUILD / "zensical.toml"
    config.write_text(CONFIG.format(nav=nav(sections), paths=paths))
    argv = [sys.executable, "-m", "zensical", "build", "--strict", "--clean", "-f", str(config)]
    done = subprocess.run(argv, check=False, cwd=BUILD, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"zensical failed:\n{(done.stdout + done.stderr)[-4000:]}")


def main() -> int:
    """Build and check the site; return the exit status."""
    parser = argparse.ArgumentParser(
        prog="make site ARGS='…'",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--look", action="store_true", help="open pages in headless Chromium")
    options = parser.parse_args()
    BUILD.mkdir(parents=True, exist_ok=True)
    try:
        build()
    except RuntimeError as error:
        print(error, file=sys.stderr)
        return 1
    html = BUILD / "html"
    wrong = list(links.dead(html))
    if options.look:
        program = look.browser()
        if program is None:
            wrong.append("no Chromium found: apt-get install chromium")
        else:
            pages = [html / "index.html", *sorted(html.glob("*/index.html"))]
            wrong += look.look(program, pages, BUILD / "pictures")
    for line in wrong:
        print(line, file=sys.stderr)
    count = sum(1 for _ in html.rglob("*.html"))
    print(f"{count} pages in {Path(html).relative_to(TOP)}, {len(wrong)} wrong")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
