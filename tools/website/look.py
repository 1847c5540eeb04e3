"""Opens pages in a browser at two widths: takes screenshots, reports empty pages and errors."""

import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

#: The widths of a phone and of a desktop, in CSS pixels.
WIDTHS = (400, 1400)
HEIGHT = 900
#: A smaller screenshot shows an empty page.
LEAST = 10_000
_BROWSERS = ("chromium", "chromium-browser", "google-chrome")


def browser() -> str | None:
    """Return the path of the browser, if one is installed."""
    return next(filter(None, map(shutil.which, _BROWSERS)), None)


def look(program: str, pages: list[Path], pictures: Path) -> Iterator[str]:
    """Take screenshots; yield a line for each problem."""
    pictures.mkdir(parents=True, exist_ok=True)
    for page in pages:
        for width in WIDTHS:
            picture = pictures / f"{page.parent.name or 'index'}-{width}.png"
            picture.unlink(missing_ok=True)
            argv = [
                program, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars",
                "--enable-logging=stderr", "--allow-file-access-from-files",
                f"--window-size={width},{HEIGHT}", "--virtual-time-budget=5000",
                f"--screenshot={picture}", page.as_uri(),
            ]  # fmt: skip
            done = subprocess.run(argv, check=False, capture_output=True, text=True, timeout=120)
            if not picture.exists():
                yield f"{page}: no picture: {done.stderr[-300:]}"
            elif picture.stat().st_size < LEAST:
                yield f"{page}: an empty picture at {width} pixels"
            for line in re.findall(r"CONSOLE[^\n]*(?:Error|error)[^\n]*", done.stderr):
                yield f"{page}: {line}"
