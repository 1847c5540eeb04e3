"""What is kept of a test that failed: the frames of its ports, and what its peers say."""

from __future__ import annotations

import contextlib
import re
import shutil
from typing import TYPE_CHECKING

from virtnic.capture import Writer

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    import virtnic

__all__ = ["Kept"]


class Kept:
    """The directory of one test, which stays if the test fails.

    Everything is written to its final place from the start, so that a capture is there even after
    pytest itself was killed.
    """

    def __init__(self, parent: Path | None, test: str) -> None:
        """``parent``: the directory of all tests; None keeps nothing. ``test``: its node id."""
        self.directory = parent and parent / (re.sub(r"[^\w.=-]+", "-", test).strip("-")[-150:])
        self._writers: list[Writer] = []
        self._reports: dict[str, Callable[[], str]] = {}
        if self.directory is not None:
            shutil.rmtree(self.directory, ignore_errors=True)

    def capture(self, port: virtnic.Port, name: str) -> None:
        """Write what a port sends and receives to ``NAME.pcapng``. Raises OSError."""
        if self.directory is not None:
            self.directory.mkdir(parents=True, exist_ok=True)
            file = self.directory / f"{name}.pcapng"
            self._writers.append(Writer(file, port, names=[name], buffer="8M"))

    def add(self, name: str, report: Callable[[], str]) -> None:
        """Write what this returns, at the end of a test that failed, to a file."""
        if self.directory is not None:
            self._reports[name] = report

    def close(self, *, failed: bool) -> None:
        """End the captures, while the peers are still there; remove all unless the test failed."""
        writers, self._writers = self._writers, []
        reports, self._reports = self._reports, {}
        for writer in writers:
            writer.close()
        if self.directory is None:
            return
        if not failed:
            shutil.rmtree(self.directory, ignore_errors=True)
            with contextlib.suppress(OSError):
                self.directory.parent.rmdir()  # if it is empty
            return
        for name, report in reports.items():
            self.directory.mkdir(parents=True, exist_ok=True)
            (self.directory / name).write_text(report())
