"""The command ``virtnic``: one module for each subcommand, and a few that they share.

``parser`` reads the command line, and has the list of commands; ``options`` has the options of
all commands and turns them into a memory, a QEMU and ports; ``output`` prints for people or as
JSON, and turns errors into exit statuses; ``loops`` runs the loops of the core, with the table
of ``live``. A command is a module with ``add``, which describes it to argparse, and ``run``, which
does it and returns the exit status; it joins by its name in ``parser.COMMANDS``, and is
imported when it is asked for. What it takes to run and not to describe is imported in ``run``,
and named by ``imports``: help is quick, and Ctrl-C during an import just ends the process.
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

    ``about_to_run`` is called when all has been read and imported, and nothing is open yet.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    try:
        return _run(words, about_to_run)
    except (KeyboardInterrupt, Terminated) as error:
        # Before there was a command, after it, or again while it was ending.
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
    from virtnic.cli.output import Output  # what a command needs, and its help does not

    output = Output(json=arguments.json, verbosity=arguments.verbose)
    with _signals(), output.diagnostics():
        try:
            for name in arguments.imports:
                importlib.import_module(name)
            about_to_run()
            status: int = arguments.run(arguments, output)
            sys.stdout.flush()
        except BrokenPipeError:
            status = Status.FAILED  # the reader has seen enough (`virtnic … | head`)
        except BaseException as error:  # whatever it is, the user gets one paragraph
            status = output.failure(error)
        _forget_unwritten()
        return status


def _written(status: int, words: Sequence[str]) -> int:
    """Return a status once what was printed is out."""
    try:
        sys.stdout.flush()
    except OSError as error:
        return _unwritten(error, words)
    return status


def _unwritten(error: OSError, words: Sequence[str]) -> int:
    """Tell that help could not be printed; where its reader has seen enough, say nothing."""
    from virtnic.cli.output import Output

    _forget_unwritten()
    if isinstance(error, BrokenPipeError):
        return Status.FAILED
    error.filename = "standard output"
    return Output(json="--json" in words).failure(error)


def _forget_unwritten() -> None:
    """Let what is still buffered for stdout go, where it can be written nowhere.

    Else the interpreter tries again at its end, complains, and has a status of its own.
    """
    try:
        sys.stdout.flush()
    except OSError:
        with contextlib.suppress(OSError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _open_streams() -> None:
    """Put /dev/null where a standard stream was closed (``virtnic … >&-``), for Python too."""
    keep_standard_streams()
    for number, name, mode in ((0, "stdin", "r"), (1, "stdout", "w"), (2, "stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, os.fdopen(number, mode, closefd=False))


class Terminated(BaseException):
    """A signal asked the process to end; unwinding cleans up."""

    def __init__(self, number: int) -> None:
        super().__init__(f"ended by {signal.Signals(number).name}")
        self.status = 128 + number


@contextlib.contextmanager
def _signals() -> Iterator[None]:
    """Let SIGTERM and SIGHUP clean up as Ctrl-C does."""

    def terminate(number: int, _frame: FrameType | None) -> None:
        raise Terminated(number)

    before: dict[signal.Signals, Any] = {}
    with contextlib.suppress(ValueError):  # handlers belong to the main thread
        for number in (signal.SIGTERM, signal.SIGHUP):
            if signal.getsignal(number) is signal.SIG_DFL:
                before[number] = signal.signal(number, terminate)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
