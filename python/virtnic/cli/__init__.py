"""The command ``virtnic``: one module per subcommand, and a few shared ones.

``parser`` reads the command line and lists the commands. ``options`` defines the shared options;
``session`` turns them into a memory, a QEMU and ports. ``output`` prints text or JSON and maps
errors to exit statuses. ``loops`` runs engine loops, with the table of ``live``.

A command is a module with ``add``, which describes it to argparse, and ``run``, which returns the
exit status; it is registered in ``parser.COMMANDS`` and imported when used. What only ``run`` needs
is imported there and named by ``imports``: help is quick, and Ctrl-C during an import ends the
process at once. A command that sets ``opens_nothing`` may import at any time: Ctrl-C always ends it
at once.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import signal
import sys
from typing import TYPE_CHECKING, Any

from virtnic.cli.encoding import any_encoding
from virtnic.cli.parser import parse
from virtnic.cli.status import Status
from virtnic.streams import keep_standard_streams

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from types import FrameType

__all__ = ["main"]


def main(
    argv: Sequence[str] | None = None, *, about_to_run: Callable[[], object] = lambda: None
) -> int:
    """Run a command line, ``sys.argv`` by default, and return its exit status.

    ``about_to_run`` is called when everything is parsed and imported and nothing is open yet, and
    not at all if the command opens nothing.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    try:
        return _run(words, about_to_run)
    except (KeyboardInterrupt, Terminated) as error:
        # Before the command was known, after it ended, or while it was ending.
        from virtnic.cli.output import Output

        return Output(json="--json" in words).failure(error)


def _run(words: Sequence[str], about_to_run: Callable[[], object]) -> int:
    _open_streams()
    with any_encoding():
        return _main(words, about_to_run)


def _main(words: Sequence[str], about_to_run: Callable[[], object]) -> int:
    try:
        arguments = parse(words)
    except SystemExit as end:
        return _written(int(end.code or 0), words)
    except OSError as error:
        return _unwritten(error, words)
    from virtnic.cli.output import Output  # needed by commands, not by their help

    output = Output(json=arguments.json, verbosity=arguments.verbose)
    with _signals(), output.diagnostics():
        try:
            for name in arguments.imports:
                importlib.import_module(name)
            if not getattr(arguments, "opens_nothing", False):
                about_to_run()
            status: int = arguments.run(arguments, output)
            sys.stdout.flush()
        except BrokenPipeError:
            status = Status.FAILED  # the reader closed the pipe (`virtnic … | head`)
        except BaseException as error:  # any error is reported in one paragraph
            status = output.failure(error)
        _forget_unwritten()
        return status


def _written(status: int, words: Sequence[str]) -> int:
    """Return the status once stdout has been flushed."""
    try:
        sys.stdout.flush()
    except OSError as error:
        return _unwritten(error, words)
    return status


def _unwritten(error: OSError, words: Sequence[str]) -> int:
    """Report that help could not be printed, unless the reader closed the pipe."""
    from virtnic.cli.output import Output

    _forget_unwritten()
    if isinstance(error, BrokenPipeError):
        return Status.FAILED
    error.filename = "standard output"
    return Output(json="--json" in words).failure(error)


def _forget_unwritten() -> None:
    """Drop what is still buffered for stdout if it cannot be written.

    Otherwise the interpreter tries again at exit, complains, and changes the exit status.
    """
    try:
        sys.stdout.flush()
    except OSError:
        with contextlib.suppress(OSError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _open_streams() -> None:
    """Open /dev/null in place of a closed standard stream (``virtnic … >&-``), for Python too."""
    keep_standard_streams()
    for number, name, mode in ((0, "stdin", "r"), (1, "stdout", "w"), (2, "stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, os.fdopen(number, mode, closefd=False))


class Terminated(BaseException):
    """A signal asked the process to end; raised to unwind and clean up."""

    def __init__(self, number: int) -> None:
        super().__init__(f"ended by {signal.Signals(number).name}")
        self.status = 128 + number


@contextlib.contextmanager
def _signals() -> Iterator[None]:
    """Make SIGTERM and SIGHUP clean up as Ctrl-C does."""

    def terminate(number: int, _frame: FrameType | None) -> None:
        raise Terminated(number)

    before: dict[signal.Signals, Any] = {}
    with contextlib.suppress(ValueError):  # only the main thread can set handlers
        for number in (signal.SIGTERM, signal.SIGHUP):
            if signal.getsignal(number) is signal.SIG_DFL:
                before[number] = signal.signal(number, terminate)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
