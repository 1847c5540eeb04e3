"""The command ``virtnic``: one module for each subcommand, and a few that they share.

``options`` has the options of all commands and turns them into a memory, a QEMU and
ports; ``output`` prints for people or as JSON, and turns errors into exit statuses;
``loops`` runs the loops of the core, with the table of ``live``. A command is a module
with ``add``, which describes it to argparse, and ``run``, which does it and returns the exit
status; it joins by its name in ``COMMANDS``.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import sys
from typing import TYPE_CHECKING, Any, NoReturn

import virtnic
from virtnic.cli import demo, doctor, drop, forward, generate, ping, probe, qemu_args, watch
from virtnic.cli.output import EXIT_STATUSES, Output, Status

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from types import FrameType

__all__ = ["main"]

COMMANDS = (demo, ping, probe, doctor, forward, generate, drop, watch, qemu_args)

DESCRIPTION = """\
A real virtio-net NIC for this process, without a virtual machine: it drives the
virtio-net device of a QEMU whose processor never runs, and shares its packet memory.
"""

EXAMPLES = f"""\
examples:
  virtnic doctor                         what this machine has, and what is missing
  virtnic demo                           a DHCP lease, ARP and ping, step by step
  virtnic ping 10.0.2.2                  ping through QEMU's user-mode network
  virtnic ping 10.0.0.1 --netdev tap,ifname=tap0,script=no --address 10.0.0.2/24
  virtnic probe --json                   the PCI bus and the virtio features
  virtnic forward --port tap,ifname=tap0 --port tap,ifname=tap1
  virtnic qemu-args --directory /run/virtnic
                                         how to start a QEMU for us in another container

{EXIT_STATUSES}
`virtnic COMMAND --help` explains a command and its options.
"""


class Parser(argparse.ArgumentParser):
    """A parser whose usage errors are JSON where JSON was asked for."""

    wants_json = False

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Read words; those of a command that it does not know are its own mistake to tell."""
        found, unknown = super().parse_known_args(args, namespace)
        if unknown:
            self.error(f"unrecognized arguments: {' '.join(unknown)}")
        if not hasattr(found, "parser"):
            found.parser = self  # the command's: it reads before the whole has been read
        return found, unknown

    def error(self, message: str) -> NoReturn:
        """Say what is wrong with the command line, and exit."""
        if Parser.wants_json:
            Output(json=True).error("UsageError", message)
        else:
            self.print_usage(sys.stderr)
            sys.stderr.write(f"{self.prog}: {message}; try `{self.prog} --help`\n")
        raise SystemExit(Status.USAGE)


def build_parser() -> argparse.ArgumentParser:
    """Build the parser with every command."""
    raw = argparse.RawDescriptionHelpFormatter
    parser = Parser(prog="virtnic", description=DESCRIPTION, epilog=EXAMPLES, formatter_class=raw)
    parser.add_argument("--version", action="version", version=f"virtnic {virtnic.__version__}")
    commands = parser.add_subparsers(
        title="commands", metavar="COMMAND", dest="command", required=True, parser_class=Parser
    )
    for command in COMMANDS:
        command.add(commands)
    return parser


def parse(words: Sequence[str]) -> argparse.Namespace:
    """Read a command line; exit where it is wrong."""
    arguments = build_parser().parse_args(words)
    check = getattr(arguments, "check", None)
    wrong = check(arguments) if check is not None else None
    if wrong is not None:
        arguments.parser.error(wrong)
    return arguments


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command line, ``sys.argv`` by default, and return its exit status."""
    words = list(sys.argv[1:] if argv is None else argv)
    try:
        return _run(words)
    except (KeyboardInterrupt, Terminated) as error:
        # Before there was a command, after it, or again while it was ending.
        return Output(json="--json" in words).failure(error)


def _run(words: Sequence[str]) -> int:
    _open_streams()
    Parser.wants_json = "--json" in words
    try:
        arguments = parse(words)
    except SystemExit as end:
        return int(end.code or 0)
    output = Output(json=arguments.json, verbosity=arguments.verbose)
    with _signals(), output.diagnostics():
        try:
            status: int = arguments.run(arguments, output)
            sys.stdout.flush()
        except BrokenPipeError:
            status = Status.FAILED  # the reader has seen enough (`virtnic … | head`)
        except BaseException as error:  # whatever it is, the user gets one paragraph
            status = output.failure(error)
        _forget_unwritten()
        return status


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
    """Put /dev/null where a standard stream was closed (``virtnic … >&-``).

    Else the next descriptor that is made would be taken for it, and Python has no such stream.
    """
    for number, name, mode in ((0, "stdin", "r"), (1, "stdout", "w"), (2, "stderr", "w")):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # the lowest number that is free: this one
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
