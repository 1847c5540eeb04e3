"""``virtnic probe``: list the PCI bus and the features of the device."""

from __future__ import annotations

from typing import TYPE_CHECKING

from virtnic.cli import options
from virtnic.cli.status import EXIT_STATUSES, Status

if TYPE_CHECKING:
    import argparse

    from virtnic.cli.output import Output

__all__ = ["add", "run"]

EXAMPLES = f"""\
examples:
  virtnic probe
  virtnic probe --machine q35 --interrupts intx
  virtnic probe --json | jq '.features[] | select(.accepted) | .name'

{EXIT_STATUSES}"""


def add(parser: argparse.ArgumentParser) -> None:
    """Describe the command."""
    parser.description = (
        "Start a QEMU with a NIC and list its PCI bus (devices, BARs, capabilities) and\n"
        "the features that the NIC offers: accepted or not, and why."
    )
    parser.epilog = EXAMPLES
    parser.set_defaults(run=run, imports=("virtnic.cli.description", "virtnic.cli.session"))
    options.add_port(parser)
    options.add_session(parser)


def run(arguments: argparse.Namespace, output: Output) -> int:
    """Open a port, describe everything, print it."""
    from virtnic.cli.description import describe, text
    from virtnic.cli.session import opened

    with opened(arguments) as session:
        found = describe(session, arguments.netdev)
    if output.json:
        output.result(found)
    else:
        for line in text(found, everything=output.verbosity > 0):
            output.line(line)
    return Status.OK
