"""``virtnic extcap``: a port in Wireshark's list of interfaces."""

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
  virtnic extcap --install
      then choose "a port of its own (virtnic)" in Wireshark
  virtnic extcap --install --directory ~/.local/lib/wireshark/extcap
  virtnic extcap --capture --fifo /tmp/pipe --netdev tap,ifname=tap0
      what Wireshark runs

The other options are those that Wireshark and tshark pass: see extcap(4).

{EXIT_STATUSES}"""

_QUESTIONS = {
    "interfaces": "print the interface",
    "dlts": "print its link types",
    "config": "print its options",
}


def add(parser: argparse.ArgumentParser) -> None:
    """Describe the command."""
    parser.description = (
        "Let Wireshark and tshark capture on a port of their own. They start this command."
    )
    parser.epilog = EXAMPLES
    imports = ("virtnic.integrations.extcap", "virtnic.cli.session", "virtnic.cli.loops")
    parser.set_defaults(run=run, check=check, imports=imports)
    group = parser.add_argument_group("extcap")
    group.add_argument(
        "--install", action="store_true", help="write the program that Wireshark starts"
    )
    group.add_argument(
        "--directory",
        type=options.path,
        metavar="DIR",
        help="with --install: where Wireshark looks for it (default: where `tshark -G folders` "
        "says)",
    )
    for name, what in _QUESTIONS.items():
        group.add_argument(f"--extcap-{name}", action="store_true", help=what)
    group.add_argument("--capture", action="store_true", help="capture, with --fifo")
    group.add_argument("--fifo", type=options.path, metavar="PIPE", help="where frames are written")
    group.add_argument("--extcap-interface", metavar="NAME", help="the interface meant")
    group.add_argument("--extcap-version", metavar="VERSION", help="the version of Wireshark")
    group.add_argument(
        "--extcap-capture-filter",
        metavar="EXPRESSION",
        help="keep only frames that match a filter in the language of tcpdump; needs libpcap",
    )
    group.add_argument(
        "--second", metavar="NETDEV", help="forward between both and capture what passes"
    )
    group.add_argument(
        "--snaplen", type=options.positive, metavar="BYTES", help="bytes of each frame to keep"
    )
    group.add_argument(
        "--seconds",
        type=options.seconds,
        metavar="TIME",
        help="duration: 10, 0.5s, 2m (default: until Wireshark ends it)",
    )
    options.add_port(parser)
    options.add_session(parser, recover=True)


def check(arguments: argparse.Namespace) -> str | None:
    """Return what is wrong with the options together."""
    asked = [name for name in _QUESTIONS if getattr(arguments, f"extcap_{name}")]
    wanted = [*asked, *(name for name in ("install", "capture") if getattr(arguments, name))]
    if not wanted and arguments.extcap_capture_filter is not None:
        return None  # Wireshark asks whether the filter is valid
    if len(wanted) != 1:
        return (
            "give one of --install, --capture, --extcap-interfaces, --extcap-dlts, --extcap-config"
        )
    if arguments.capture and not arguments.fifo:
        return "--capture needs --fifo PIPE, where frames are written"
    if arguments.directory and not arguments.install:
        return "--directory is for --install"
    return None


def run(arguments: argparse.Namespace, output: Output) -> int:
    """Answer, install or capture."""
    from virtnic.integrations import extcap

    for question in ("interfaces", "dlts", "config"):
        if getattr(arguments, f"extcap_{question}"):
            text = extcap.answer(question)
            output.line(text.rstrip("\n"))
            output.result({"lines": text.splitlines()})
            return Status.OK
    if arguments.install:
        program = extcap.install(arguments.directory)
        output.line(f"Wireshark and tshark will start {program} and list the interface virtnic")
        output.result({"program": str(program)})
        return Status.OK
    if arguments.extcap_interface not in (None, extcap.INTERFACE):
        raise ValueError(f"there is no interface {arguments.extcap_interface!r}, only virtnic")
    if arguments.extcap_capture_filter:
        from virtnic.capture import Filter

        try:
            Filter(arguments.extcap_capture_filter)  # before a QEMU starts
        except ValueError as error:
            if arguments.capture:
                raise
            output.line(str(error))  # to Wireshark, a filter without output is valid
    if arguments.capture:
        _capture(arguments, output)
    return Status.OK


def _capture(arguments: argparse.Namespace, output: Output) -> None:
    from virtnic.cli.loops import Stop
    from virtnic.cli.ports import PortArguments
    from virtnic.cli.session import opened_ports
    from virtnic.integrations import extcap

    first = PortArguments(arguments.netdev, arguments.mac)
    second = [PortArguments(arguments.second)] if arguments.second else []
    arguments.port = [first, *second]
    stop = Stop()
    with opened_ports(arguments) as ports:
        for port, netdev in ports.items():
            if not port.link:
                output.warning(f"the link of {netdev} is down")
        with stop.noticed():
            extcap.capture(
                arguments.fifo,
                *ports,
                names=list(ports.values()),
                snaplen=arguments.snaplen,
                filter=arguments.extcap_capture_filter or None,
                seconds=arguments.seconds,
                go_on=lambda: stop.signal is None,
            )
