"""Command-line parsing: the command, its options, and errors."""

from __future__ import annotations

import argparse
import contextlib
import importlib
import sys
from typing import TYPE_CHECKING, Any, NoReturn

from virtnic._native import __version__
from virtnic.cli import options
from virtnic.cli.colour import coloured, has_colour, help_in_colour
from virtnic.cli.status import EXIT_STATUSES, Status
from virtnic.cli.text import without_long_words

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

__all__ = ["COMMANDS", "build", "parse"]

#: Commands and their descriptions in the list; each is a module of that name.
COMMANDS = {
    "demo": "get a DHCP lease, resolve and ping the gateway, step by step",
    "ping": "ping an address through a port",
    "proxy": "let programs connect through a port: SOCKS5 and HTTP on loopback",
    "probe": "list PCI devices, BARs, capabilities and virtio features",
    "doctor": "check QEMU, accelerators, hugepages, permissions and kernel modules",
    "forward": "forward between two ports, or reflect on one",
    "generate": "send frames at a rate",
    "capture": "write what ports send and receive to a pcapng file",
    "replay": "send a capture again, with its gaps",
    "extcap": "a port in Wireshark's list of interfaces",
    "measure": "throughput, latency and loss from port to port",
    "drop": "receive, count and discard frames",
    "check": "check a vhost-user backend against vhost-user and VIRTIO",
    "watch": "print events of ports: links, backends, QEMU",
    "qemu-args": "print the command line of a QEMU to be started elsewhere, as in a container",
    "completions": "print a completion script for bash, zsh or fish",
    "help": "show this list, or the help of a command",
}

#: Names from other programs for commands that have another name here.
_MEANT = {
    "version": "--version",
    "list": "help",
    "commands": "help",
    "send": "generate",
    "receive": "drop",
    "recv": "drop",
    "reflect": "forward",
    "info": "probe",
    "monitor": "watch",
    "tcpdump": "capture",
    "dump": "capture",
    "wireshark": "extcap",
    "record": "capture",
    "tcpreplay": "replay",
    "play": "replay",
    "bench": "measure",
    "latency": "measure",
    "throughput": "measure",
    "completion": "completions",
    "socks": "proxy",
    "socks5": "proxy",
    "connect": "proxy",
}

DESCRIPTION = """\
A virtio-net NIC for this process, without a virtual machine: it drives the virtio-net
device of a QEMU whose processor never runs, and shares its packet memory.
"""

EXAMPLES = f"""\
examples:
  virtnic doctor                         check this machine
  virtnic demo                           a DHCP lease, ARP and ping, step by step
  virtnic ping 10.0.2.2                  ping through QEMU's user-mode network
  virtnic ping 10.0.0.1 --netdev tap,ifname=tap0,script=no --address 10.0.0.2/24
  virtnic proxy --netdev vhost-user,path=/run/vhu0 --address 10.1.0.5/24
  virtnic probe --json                   the PCI bus and the virtio features
  virtnic forward --port tap,ifname=tap0 --port tap,ifname=tap1
  virtnic qemu-args --directory /run/virtnic
                                         start a QEMU in another container

{EXIT_STATUSES}
`virtnic COMMAND --help` explains a command and its options. --json and -v may come before or
after the command. Output is coloured on a terminal, unless NO_COLOR or FORCE_COLOR is set.
"""


class Parser(argparse.ArgumentParser):
    """A parser that reports usage errors in one line, or as JSON if requested."""

    wants_json = False

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.color = False  # not Python 3.14's colours; ours are the same on every version

    def print_help(self, file: Any = None) -> None:
        """Print the help, coloured if appropriate."""
        text = self.format_help()
        (file or sys.stdout).write(help_in_colour(text) if has_colour(file) else text)

    def _print_message(self, message: str, file: Any = None) -> None:
        """Print the version. Argparse would otherwise swallow errors here."""
        (file or sys.stdout).write(message)

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Parse words; a command reports its own unknown options."""
        if self._subparsers is None:
            self.check_options(
                args
            )  # first: the value of an unknown option would be taken for an argument
        found, unknown = super().parse_known_args(args, namespace)
        if unknown:
            self.error(f"unrecognized arguments: {' '.join(unknown)}{self._as_option(unknown[0])}")
        if not hasattr(found, "parser"):
            found.parser = self  # the command's parser, which runs first
        return found, unknown

    def _as_option(self, word: str) -> str:
        """Return a hint if the word is a netdev without its option; else nothing."""
        option = next((o for o in ("--netdev", "--port") if o in self._option_string_actions), None)
        if option is None:
            return ""
        from virtnic.qemu.netdevs import NETDEVS  # slow, needed for errors only

        is_one = word.partition(",")[0] in {kind.name for kind in NETDEVS}
        return f"; did you mean {option} {word}?" if is_one else ""

    def check_options(self, words: Sequence[str]) -> None:
        """Refuse unknown options, and suggest similar ones."""
        known = self._option_string_actions
        for word in words:
            if word == "--":
                break
            name = word.partition("=")[0]
            if name.startswith("--") and not any(each.startswith(name) for each in known):
                self.error(f"unknown option {name}{did_you_mean([name], known)}")
            if name.startswith("-") and f"-{name}" in known:  # else -version is -v with a value
                self.error(f"unknown option {name}; did you mean -{name}?")

    def _commands(self) -> dict[str, Parser]:
        """Return the parsers of the commands."""
        found: dict[str, Parser] = next(
            action.choices for action in self._actions if isinstance(action.choices, dict)
        )
        return found

    def error(self, message: str) -> NoReturn:
        """Report a usage error and exit."""
        if Parser.wants_json:
            from virtnic.cli.output import Output

            Output(json=True).error("UsageError", message)
        else:
            advice = " Try" if message.endswith("?") else "; try"
            prog = coloured(f"{self.prog}:", "red", sys.stderr)
            with contextlib.suppress(OSError):  # nobody reads it; the status is enough
                print(
                    f"{prog} {without_long_words(message)}{advice} `{self.prog} --help`",
                    file=sys.stderr,
                    flush=True,
                )
        raise SystemExit(Status.USAGE)


def did_you_mean(words: Iterable[str], known: Iterable[str]) -> str:
    """Return a question naming similar known words, to end a message; or nothing."""
    import difflib  # slow, needed for errors only

    names = list(known)
    found = [
        [_MEANT[word]] if word in _MEANT else difflib.get_close_matches(word.lower(), names, 1, 0.6)
        for word in words
    ]
    likely = [names[0] for names in found if names]
    return f"; did you mean {' and '.join(likely)}?" if likely else ""


def build(chosen: str | None = None) -> Parser:
    """Build the parser; if a command is chosen, only that one gets its options."""
    raw = argparse.RawDescriptionHelpFormatter
    parser = Parser(prog="virtnic", description=DESCRIPTION, epilog=EXAMPLES, formatter_class=raw)
    parser.add_argument("-V", "--version", action="version", version=f"virtnic {__version__}")
    options.add_common(parser)
    commands = parser.add_subparsers(
        title="commands", metavar="COMMAND", dest="command", required=True, parser_class=Parser
    )
    for name, what in COMMANDS.items():
        command = commands.add_parser(name, help=what, formatter_class=raw)
        if name == "help":
            command.add_argument("name", choices=[*COMMANDS], nargs="?", metavar="COMMAND")
        elif chosen in (None, name):
            _module(name).add(command)
    return parser


def _module(name: str) -> Any:
    return importlib.import_module(f"virtnic.cli.{name.replace('-', '_')}")


def parse(words: Sequence[str]) -> argparse.Namespace:
    """Parse a command line; exit if it is wrong or asks for help."""
    Parser.wants_json = "--json" in words
    words = _in_order(words)
    if words and words[0] == "help":
        ignored = ("help", "--")
        words = [word for word in words[1:] if not _is_common(word) and word not in ignored][:1]
        words = [*words, "--help"]
    chosen = words[0] if words and words[0] in COMMANDS else None
    parser = build(chosen or "")
    if not words or all(map(_is_common, words)):
        parser.print_help()
        raise SystemExit(Status.OK)
    if chosen is None:
        _refuse(parser, words)
    arguments = parser.parse_args(words)
    check = getattr(arguments, "check", None)
    wrong = check(arguments) if check is not None else None
    if wrong is not None:
        arguments.parser.error(wrong)
    return arguments


def _refuse(parser: Parser, words: Sequence[str]) -> None:
    """Refuse a line that does not begin with a command, unless it asks for help or the version."""
    first = words[0]
    named = next((word for word in words[1:] if word in COMMANDS), None)
    if not first.startswith("-"):
        if named is not None and not did_you_mean([first], COMMANDS):
            parser.error(f"the command comes first, as in `virtnic {named} {first}`")
        parser.error(f"unknown command {first!r}{did_you_mean([first], COMMANDS)}")
    if named is not None:
        name = first.partition("=")[0]
        command = build(named)._commands()[named]
        if any(each.startswith(name) for each in command._option_string_actions if len(name) > 2):
            parser.error(f"{name} comes after the command, as in `virtnic {named} {name} …`")
    parser.check_options(words[:1])


def _in_order(words: Sequence[str]) -> list[str]:
    """Move the options of every command behind the command, where they are parsed."""
    first = next((at for at, word in enumerate(words) if not _is_common(word)), len(words))
    if words[first : first + 1] == ["--"]:
        words = [*words[:first], *words[first + 1 :]]
    return [*words[first : first + 1], *words[:first], *words[first + 1 :]]


def _is_common(word: str) -> bool:
    return word in ("--json", "--verbose") or (
        word.startswith("-v") and not word.strip("v").strip("-")
    )
