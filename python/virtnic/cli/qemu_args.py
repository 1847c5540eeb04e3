"""``virtnic qemu-args``: the command line of a QEMU for ``Qemu.connect``."""

from __future__ import annotations

from typing import TYPE_CHECKING

from virtnic.cli import options
from virtnic.cli.status import EXIT_STATUSES, Status

if TYPE_CHECKING:
    import argparse

    from virtnic.cli.output import Output
    from virtnic.qemu import Spec
    from virtnic.qemu.command import Sandbox

__all__ = ["add", "run"]

EXAMPLES = f"""\
examples:
  virtnic qemu-args --directory /run/virtnic
  virtnic qemu-args --directory /run/virtnic --netdev tap,ifname=tap0 --json
  virtnic qemu-args --directory /run/virtnic --script > start-qemu

QEMU may be started before or after the program, by any user, in any container that shares the
directory. Then, where the program runs:

  virtnic ping 10.0.2.2 --connect /run/virtnic
  python -c 'import virtnic; virtnic.Qemu.connect("/run/virtnic").attach("user")'

{EXIT_STATUSES}"""

SCRIPT = """\
#!/bin/sh
# Starts a QEMU for virtnic to connect to. It runs no guest and needs no file or privilege
# of its own; all devices are plugged in later, over its sockets.
# They are accessible to every user who can enter {directory}.
# `invalid accelerator qtest` is not an error: QEMU then uses the next one.
umask 0
exec {command} "$@"
"""


def add(parser: argparse.ArgumentParser) -> None:
    """Describe the command."""
    parser.description = (
        "Print the command line of a QEMU for Qemu.connect(), to be started elsewhere, for "
        "instance\nin another container. It shares nothing with the program but a directory "
        "of sockets."
    )
    parser.epilog = EXAMPLES
    parser.set_defaults(run=run, check=_check, imports=("virtnic.qemu",))
    parser.add_argument(
        "--directory",
        required=True,
        type=options.path,
        metavar="DIR",
        help="shared directory, as QEMU sees it",
    )
    parser.add_argument(
        "--netdev",
        action="append",
        default=[],
        metavar="NETDEV",
        help="netdev that will be attached; repeatable. The program plugs it in: here it only "
        "decides what QEMU may do, and what it needs where it runs",
    )
    parser.add_argument(
        "--script", action="store_true", help="print a POSIX shell script that starts QEMU"
    )
    group = parser.add_argument_group("QEMU")
    group.add_argument(
        "--qemu",
        type=options.path,
        default="qemu-system-x86_64",
        metavar="COMMAND",
        help="QEMU there: a path or a quoted command line (default: %(default)s)",
    )
    group.add_argument(
        "--accel",
        choices=[name for name in options.ACCELERATORS if name != "kvm"],
        default="auto",
        help="accelerator; auto takes qtest if that QEMU has it, else tcg with a parked "
        "processor (default: %(default)s)",
    )
    group.add_argument(
        "--machine",
        choices=options.MACHINES,
        default="pc",
        help="machine type: pc takes 29 NICs; q35 takes 16, behind root ports as in new machines "
        "(default: %(default)s)",
    )
    group.add_argument(
        "--sandbox",
        choices=tuple(options.SANDBOXES),
        help="what QEMU may do: nothing beyond its work, also run the helpers and scripts of a "
        "netdev (spawn), or anything (default: what the netdevs need)",
    )
    options.add_common(parser)


def _check(arguments: argparse.Namespace) -> str | None:
    """Check the combination of options; return an error message or None."""
    if arguments.script and arguments.json:
        return "--script and --json exclude each other"
    from virtnic.qemu.sockets import Sockets

    try:
        Sockets(arguments.directory).check_length("mount it at a shorter path")
    except ValueError as error:
        return str(error)
    return None


def run(arguments: argparse.Namespace, output: Output) -> int:
    """Print the command line."""
    import shlex

    from virtnic.qemu import parse
    from virtnic.qemu.command import external
    from virtnic.qemu.sockets import Sockets

    sockets = Sockets(arguments.directory)
    netdevs = [parse(netdev) for netdev in arguments.netdev]
    sandbox = _sandbox(arguments.sandbox, netdevs)
    argv = shlex.split(arguments.qemu)
    argv += external(
        arguments.directory, accel=arguments.accel, machine=arguments.machine, sandbox=sandbox
    )
    command = shlex.join(argv)
    needs = [need for spec in netdevs for need in _needs(spec)]
    if arguments.script:
        place = " ".join(arguments.directory.splitlines())  # in a comment
        script = SCRIPT.format(directory=place, command=command)
        output.line(script.rstrip("\n"))
    else:
        output.line(command)
    if not output.json:
        for need in needs:
            output.note(need)
    output.result(
        {
            "argv": argv,
            "command": command,
            "directory": arguments.directory,
            "sockets": {"qmp": str(sockets.qmp), "qtest": str(sockets.qtest)},
            "needs": needs,
        }
    )
    return Status.OK


def _sandbox(given: str | None, netdevs: list[Spec]) -> Sandbox:
    """Return the sandbox to start with, which must allow what the netdevs need."""
    helpers = [helper for spec in netdevs if (helper := spec.helper)]
    if given is None:
        shut = any(helper.sandbox is False for helper in helpers)
        return False if shut else "spawn" if helpers else True
    sandbox = options.SANDBOXES[given]
    for helper in helpers:
        if sandbox not in (helper.sandbox, False):
            raise ValueError(
                f"QEMU must run {helper.name}, which --sandbox {given} denies; omit that option"
            )
    return sandbox


def _needs(spec: Spec) -> list[str]:
    """Return what a netdev needs where QEMU runs."""
    helper = spec.helper
    found = [f"the netdev {spec.type} needs {helper.name} where QEMU runs"] if helper else []
    if spec.type == "tap" and not spec.options.keys() & {"fd", "fds", "helper", "br"}:
        name = spec.options.get("ifname", "a TAP device")
        found.append(
            f"the netdev tap needs /dev/net/tun where QEMU runs, and {name} in QEMU's network "
            "namespace, made for QEMU's user (`ip tuntap add`) or with CAP_NET_ADMIN"
        )
    if spec.socket is not None:
        found.append(
            f"the vhost-user backend's socket {spec.socket.path} is opened by the program, not by "
            "QEMU: put it into the shared directory, and give the path that the program sees"
        )
    return found
