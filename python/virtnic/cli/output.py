"""Output of commands: text or one JSON object; errors; exit statuses."""

from __future__ import annotations

import contextlib
import json as json_module
import logging
import sys
import textwrap
import traceback
import warnings
from typing import TYPE_CHECKING, Any, TextIO

import virtnic
from virtnic import _native
from virtnic.cli.colour import coloured, is_terminal
from virtnic.cli.status import EXIT_STATUSES, Status
from virtnic.cli.text import without_long_words
from virtnic.cli.wording import of_options
from virtnic.errors import message_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

__all__ = [
    "EXIT_STATUSES",
    "Output",
    "Status",
]


#: Prefix of a log message, by level.
_LEVELS = {logging.WARNING: "warning:", logging.ERROR: "error:", logging.CRITICAL: "error:"}


class Output:
    """Where a command prints.

    In text mode ``line`` prints at once and ``result`` nothing; in JSON mode ``line`` prints
    nothing and ``result`` one object. So stdout is either text or exactly one JSON object, even for
    an error; diagnostics go to stderr.
    """

    def __init__(self, *, json: bool, verbosity: int = 0) -> None:
        self.json = json
        self.verbosity = verbosity
        #: For commands that print results as they come: one object per line.
        self.by_line = False

    def line(self, text: str = "") -> None:
        """Print a line of text."""
        if not self.json:
            _print(text)

    def after_ctrl_c(self) -> None:
        """End the line on which the terminal has echoed ``^C``."""
        if is_terminal(sys.stdout):
            self.line()

    def result(self, value: Mapping[str, Any]) -> None:
        """Print the result as JSON."""
        if self.json:
            indent = None if self.by_line else 2
            text = json_module.dumps(value, indent=indent, ensure_ascii=False)
            # JSON can express any character in ASCII: nothing is lost.
            _print(text if _has(text) else json_module.dumps(value, indent=indent))

    def warning(self, text: str) -> None:
        """Print a warning on stderr."""
        _say(f"virtnic: {coloured('warning:', 'yellow', sys.stderr)} {of_options(text)}")

    def note(self, text: str) -> None:
        """Print a message on stderr that is not a warning."""
        _say(f"virtnic: {text}")

    def error(self, kind: str, message: str) -> None:
        """Print an error: a paragraph on stderr, or in JSON mode an object on stdout."""
        if self.json:
            with contextlib.suppress(OSError):
                self.result({"error": {"type": kind, "message": message}})
                return
        filled = textwrap.fill(
            f"virtnic: {without_long_words(message)}",
            100,
            break_long_words=False,
            break_on_hyphens=False,
        )
        _say(filled.replace("virtnic:", coloured("virtnic:", "red", sys.stderr), 1))

    def failure(self, error: BaseException) -> int:
        """Report an exception that ended the command; return the exit status."""
        if isinstance(error, SystemExit):
            return error.code if isinstance(error.code, int) else Status.FAILED
        status = status_of(error)
        if self.verbosity >= 2:
            traceback.print_exception(error)
        if isinstance(error, KeyboardInterrupt):
            if is_terminal(sys.stderr) and not self.json:
                _say("")  # the terminal has echoed ^C
            self.error("KeyboardInterrupt", "interrupted")
            return status
        message = ". ".join([message_of(error).rstrip("."), *getattr(error, "__notes__", ())])
        message = of_options(message)
        if not _is_expected(error):
            message = (
                f"internal error, {type(error).__name__}: {message}. "
                "Please report it, with the output of the same command with -vv"
            )
        self.error(type(error).__name__, message)
        return status

    @contextlib.contextmanager
    def diagnostics(self) -> Iterator[None]:
        """Send warnings to stderr, and log messages according to -v."""
        logger = logging.getLogger("virtnic")
        before = logger.level, logger.propagate
        handler = _Handler()
        logger.addHandler(handler)
        logger.propagate = False
        logger.setLevel((logging.WARNING, logging.INFO, logging.DEBUG)[min(self.verbosity, 2)])
        # The Python side repeats the core's warnings; show the core's only with -v.
        _native.set_log_level(("error", "info", "debug")[min(self.verbosity, 2)])
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("default", RuntimeWarning)
                warnings.showwarning = self._show_warning
                yield
        finally:
            logger.removeHandler(handler)
            logger.level, logger.propagate = before
            _native.set_log_level("off")

    def _show_warning(
        self,
        message: Warning | str,
        category: type[Warning],
        filename: str,
        lineno: int,
        file: TextIO | None = None,
        line: str | None = None,
    ) -> None:
        del category, filename, lineno, file, line
        self.warning(str(message))


class _Handler(logging.Handler):
    """Logs to the current stderr, not that at import time."""

    def emit(self, record: logging.LogRecord) -> None:
        level = _LEVELS.get(record.levelno, "")
        colour = "yellow" if record.levelno == logging.WARNING else "red"
        kind = f"{coloured(level, colour, sys.stderr)} " if level else ""
        _say(f"virtnic: {kind}{of_options(record.getMessage())}")
        if record.exc_info:
            _say("".join(traceback.format_exception(*record.exc_info)).rstrip())


def _has(text: str) -> bool:
    """Whether stdout's encoding has all characters of a text."""
    try:
        text.encode(getattr(sys.stdout, "encoding", None) or "utf-8")
    except UnicodeEncodeError:
        return False
    return True


def _print(text: str) -> None:
    try:
        print(text, flush=True)
    except BrokenPipeError:
        raise
    except OSError as error:
        raise OSError(error.errno, error.strerror, "standard output") from None


def _say(text: str) -> None:
    with contextlib.suppress(OSError):
        print(text, file=sys.stderr, flush=True)


def status_of(error: BaseException) -> int:
    """Return the exit status for an exception."""
    if isinstance(error, KeyboardInterrupt):
        return Status.INTERRUPTED
    own = getattr(error, "status", None)
    if isinstance(own, int):
        return own
    if isinstance(error, TimeoutError):
        return Status.FAILED  # an OSError, but not for lack of something
    missing = (virtnic.QemuNotFound, virtnic.NetdevUnavailable, virtnic.MemoryUnavailable, OSError)
    if isinstance(error, missing):
        return Status.ENVIRONMENT
    if isinstance(error, ValueError):
        return Status.USAGE
    return Status.FAILED


def _is_expected(error: BaseException) -> bool:
    """Whether the library documents an exception, so that it is not a bug."""
    expected = (virtnic.VirtnicError, OSError, ValueError)
    return isinstance(error, expected) or hasattr(error, "status")
