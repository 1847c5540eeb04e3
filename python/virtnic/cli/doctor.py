"""``virtnic doctor``: what this machine has, what is missing, and what to do about it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import virtnic
from virtnic.cli import options
from virtnic.cli.colour import coloured
from virtnic.cli.status import EXIT_STATUSES, Status

if TYPE_CHECKING:
    import argparse

    from virtnic.cli.output import Output
    from virtnic.doctor import Check

__all__ = ["add", "run"]

EXAMPLES = f"""\
examples:
  virtnic doctor
  virtnic doctor --machine q35 --hugepages 2M --iova pa
      check whether a port with these options can be opened
  virtnic doctor --json | jq '.checks[] | select(.status != "ok")'

In the list, `ok` is fine, `warn` means that something optional is missing, and `missing`
means that nothing works without it.

{EXIT_STATUSES}"""

_WIDTH = 100
_COLOURS = {"ok": "green", "warn": "yellow", "missing": "red"}
#: Timeout for a peer: Linux polls a TAP once a second.
_READY = 3.0


_IMPORTS = (
    "email.parser",  # importlib.metadata imports it when it reads the version of a package
    "virtnic.cli.session",
    "virtnic.cli.text",
    "virtnic.cli.wording",
    "virtnic.doctor",
)


def add(parser: argparse.ArgumentParser) -> None:
    """Describe the command."""
    parser.description = (
        "Check everything that virtnic uses, then open a port with the given options.\n"
        "Each problem is printed with a remedy."
    )
    parser.epilog = EXAMPLES
    parser.set_defaults(run=run, imports=_IMPORTS)
    options.add_port(parser)
    options.add_session(parser, connect=False)


def run(arguments: argparse.Namespace, output: Output) -> int:
    """Print all checks; return OK if a port could be opened."""
    import textwrap
    from dataclasses import asdict, replace

    from virtnic.cli.wording import of_options
    from virtnic.doctor import checks

    port, status = try_port(arguments)
    found = [
        replace(check, found=of_options(check.found), advice=of_options(check.advice))
        for check in (*checks(arguments.qemu), port)
    ]
    fit = port.status == "ok"
    width = max(len(check.name) for check in found)
    for check in found:
        state = coloured(f"{check.status:<8}", _COLOURS[check.status])
        output.line(f"{state} {check.name:<{width}}  {check.found}")
        if check.advice:
            indent = " " * (width + 11)
            output.line(
                textwrap.fill(
                    f"-> {check.advice}",
                    max(_WIDTH, len(indent) + 40),
                    initial_indent=indent,
                    subsequent_indent=indent + "   ",
                    break_long_words=False,
                    break_on_hyphens=False,
                )
            )
    output.line()
    if port.status == "warn":
        output.line("virtnic works here, but no frames would pass this port; see above.")
    else:
        output.line("virtnic works here." if fit else "virtnic does not work here yet; see above.")
    output.result({"ok": fit, "checks": [asdict(check) for check in found]})
    return status


def try_port(arguments: argparse.Namespace) -> tuple[Check, int]:
    """Open and close a port with the given options; return the check and an exit status.

    Raises ValueError if an option is wrong, rather than the machine.
    """
    import time
    import warnings

    from virtnic.cli.output import status_of
    from virtnic.cli.session import opened
    from virtnic.cli.text import seconds_text
    from virtnic.doctor import Check
    from virtnic.errors import message_of

    start = time.perf_counter()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)  # hugepages have their own check
            with opened(arguments) as session:
                port = session.port
                took = time.perf_counter() - start
                found = (
                    f"opened on netdev {arguments.netdev} in {seconds_text(took)}: {port.mac}, "
                    f"{port.ring} rings of {port.queue_size}, interrupts {port.interrupts}"
                )
                try:
                    port.wait_ready(_READY)
                except TimeoutError as error:
                    return Check("a port", "warn", found, str(error)), Status.ENVIRONMENT
                return Check("a port", "ok", found), Status.OK
    except (virtnic.VirtnicError, OSError) as error:
        return Check("a port", "missing", message_of(error)), status_of(error)
