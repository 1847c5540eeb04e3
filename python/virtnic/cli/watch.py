"""``virtnic watch``: print events of ports."""

from __future__ import annotations

from typing import TYPE_CHECKING

from virtnic.cli import options
from virtnic.cli.status import EXIT_STATUSES, Status

if TYPE_CHECKING:
    import argparse

    import virtnic
    from virtnic.cli.output import Output

__all__ = ["add", "run"]

EXAMPLES = f"""\
examples:
  virtnic watch --port vhost-user,path=/run/vhu0 --port tap,ifname=tap0
  virtnic watch --port vhost-user,path=/run/vhu0 --json | jq -r .event
  virtnic watch --connect /run/virtnic

events: attached, detached, link-up, link-down, backend-lost, backend-back,
        backend-refused, qemu-died, qemu-back

Without --seconds it runs until Ctrl-C or SIGTERM and exits with status 0. With it, a signal
ends it early: 130 (Ctrl-C) or 143 (SIGTERM). If QEMU dies the status is 1; with --recover it is
restarted, and qemu-back follows. The ports are detached at the end, which is printed as well.

{EXIT_STATUSES}"""

#: Seconds between checks for a signal.
_SLICE = 0.1


def add(parser: argparse.ArgumentParser) -> None:
    """Describe the command."""
    parser.description = (
        "Open ports and print their events, one per line: ports come and go, links go up\n"
        "and down, vhost-user backends are lost and come back, QEMU dies. Received frames\n"
        "are left in the ring."
    )
    parser.epilog = EXAMPLES
    parser.set_defaults(run=run, imports=("virtnic.cli.loops", "virtnic.cli.session"))
    group = parser.add_argument_group("ports")
    options.add_ports(group, "repeatable (default: user)")
    options.add_device(group, frontend=False)
    group = parser.add_argument_group("watch")
    group.add_argument(
        "--seconds",
        type=options.seconds,
        metavar="TIME",
        help="duration, such as 2m (default: until Ctrl-C)",
    )
    options.add_session(parser, recover=True)


def run(arguments: argparse.Namespace, output: Output) -> int:
    """Print events until the end."""
    import signal
    import time
    from contextlib import ExitStack

    from virtnic.cli.loops import Stop
    from virtnic.cli.session import make_memory, ports_of, start_qemu

    output.by_line = True
    memory = make_memory(arguments)
    netdevs: dict[virtnic.Port, str] = {}
    stop, died = Stop(), False

    def show(event: virtnic.Event) -> None:
        port = event.port
        netdev = None if port is None else netdevs.get(port)
        about = f" {netdev} ({port.mac})" if port is not None else ""
        words = f": {event.detail}" if event.detail and port is None else ""
        output.line(f"{_clock(event.time)}  {event.kind:<12}{about}{words}".rstrip())
        output.result(
            {
                "time": event.time,
                "event": event.kind,
                "netdev": netdev,
                "mac": None if port is None else port.mac,
                "detail": event.detail,
            }
        )

    with ExitStack() as stack:
        qemu = stack.enter_context(start_qemu(arguments, memory))
        events = qemu.events()
        for each in ports_of(arguments):
            netdevs[each.attach(qemu)] = each.netdev
        # From here on a signal ends the command normally, and ends a wait for a backend.
        stack.enter_context(stop.noticed())
        deadline = None if arguments.seconds is None else time.monotonic() + arguments.seconds
        while stop.signal is None and not died:
            left = _SLICE if deadline is None else min(_SLICE, deadline - time.monotonic())
            if left <= 0:
                break
            event = events.wait(left)
            if event is not None:
                show(event)
                died = event.kind == "qemu-died" and qemu.recovery is None
            elif qemu.recovery is not None:
                died = qemu.recovery.over
    if stop.signal is signal.SIGINT:
        output.after_ctrl_c()
    for event in events:  # the ports' detaching
        show(event)
    if died:
        return Status.FAILED
    if stop.signal is None or arguments.seconds is None:
        return Status.OK
    return 128 + stop.signal


def _clock(seconds: float) -> str:
    """Format a time of day with milliseconds."""
    import time

    whole, fraction = divmod(round(seconds * 1000), 1000)
    return f"{time.strftime('%H:%M:%S', time.localtime(whole))}.{fraction:03}"
