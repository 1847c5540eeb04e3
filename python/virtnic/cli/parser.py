"""How the command line is read: which command, its options, and what is wrong with them."""

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

#: The commands by name, with what the list says of each. Its module has the name too.
COMMANDS = {
    "demo": "take a DHCP lease, resolve and ping the gateway, and say how at each step",
    "ping": "ping an address through a port",
    "probe": "list PCI devices, BARs, capabilities and virtio features",
    "doctor": "check QEMU, accelerators, hugepages, permissions and kernel modules",
    "forward": "forward between two ports, or reflect by one",
    "generate": "send frames at a rate",
    "drop": "receive frames, count and forget them",
    "check": "try the rules of vhost-user and VIRTIO with a backend",
    "watch": "print what happens to ports: links, backends, QEMU",
    "qemu-args": "the command line of a QEMU that somebody else starts, in another container",
    "completions": "a script that completes command lines in bash, zsh or fish",
    "help": "this list, or with the name of a command what that does",
}

#: Words of other programs for what is called otherwise here.
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
    "completion": "completions",
}

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
`virtnic COMMAND --help` explains a command and its options. --json and -v stand before the
command or after it. Output has colour on a terminal; NO_COLOR=1 and FORCE_COLOR=1 decide it.
"""


class Parser(argparse.ArgumentParser):
    """A parser whose usage errors are one line, or JSON where JSON was asked for."""

    wants_json = False

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.color = False  # Python 3.14 has colours of its own; ours are the same everywhere

    def print_help(self, file: Any = None) -> None:
        """Print the help, in colour where that is wanted."""
        text = self.format_help()
        (file or sys.stdout).write(help_in_colour(text) if has_colour(file) else text)

    def _print_message(self, message: str, file: Any = None) -> None:
        """Print the version; what argparse has here keeps errors to itself."""
        (file or sys.stdout).write(message)

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Read words; those of a command that it does not know are its own mistake to tell."""
        if self._subparsers is None:
            self.check_options(args)  # first: the value of a wrong one is taken for another's
        found, unknown = super().parse_known_args(args, namespace)
        if unknown:
            self.error(f"unrecognized arguments: {' '.join(unknown)}{self._as_option(unknown[0])}")
        if not hasattr(found, "parser"):
            found.parser = self  # the command's: it reads before the whole has been read
        return found, unknown

    def _as_option(self, word: str) -> str:
        """Return how a netdev is given, where a word is one; or nothing."""
        option = next((o for o in ("--netdev", "--port") if o in self._option_string_actions), None)
        if option is None:
            return ""
        from virtnic.qemu.netdevs import NETDEVS  # for those who make mistakes

        is_one = word.partition(",")[0] in {kind.name for kind in NETDEVS}
        return f"; did you mean {option} {word}?" if is_one else ""

    def check_options(self, words: Sequence[str]) -> None:
        """Refuse options that there are not, with one that may have been meant."""
        known = self._option_string_actions
        for word in words:
            if word == "--":
                break
            name = word.partition("=")[0]
            if name.startswith("--") and not any(each.startswith(name) for each in known):
                self.error(f"there is no option {name}{did_you_mean([name], known)}")
            if f"-{name}" in known:  # else -version is -v with a value
                self.error(f"there is no option {name}; did you mean -{name}?")

    def _commands(self) -> dict[str, Parser]:
        """Return the parsers of the commands."""
        found: dict[str, Parser] = next(
            action.choices for action in self._actions if isinstance(action.choices, dict)
        )
        return found

    def error(self, message: str) -> NoReturn:
        """Say what is wrong with the command line, and exit."""
        if Parser.wants_json:
            from virtnic.cli.output import Output

            Output(json=True).error("UsageError", message)
        else:
            advice = " Try" if message.endswith("?") else "; try"
            prog = coloured(f"{self.prog}:", "red", sys.stderr)
            with contextlib.suppress(OSError):  # nobody reads it: the status tells
                print(
                    f"{prog} {without_long_words(message)}{advice} `{self.prog} --help`",
                    file=sys.stderr,
                    flush=True,
                )
        raise SystemExit(Status.USAGE)


def did_you_mean(words: Iterable[str], known: Iterable[str]) -> str:
    """Return a question that ends a message about words that nobody knows; or nothing."""
    import difflib  # for those who make mistakes

    names = list(known)
    found = [
        [_MEANT[word]] if word in _MEANT else difflib.get_close_matches(word.lower(), names, 1, 0.6)
        for word in words
    ]
    likely = [names[0] for names in found if names]
    return f"; did you mean {' and '.join(likely)}?" if likely else ""


def build(chosen: str | None = None) -> Parser:
    """Build the parser with every command; where one is chosen, only that has its options."""
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
    """Read a command line; exit where it is wrong, or asks for help."""
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
        parser.error(f"there is no command {first!r}{did_you_mean([first], COMMANDS)}")
    if named is not None:
        name = first.partition("=")[0]
        command = build(named)._commands()[named]
        if any(each.startswith(name) for each in command._option_string_actions if len(name) > 2):
            parser.error(f"{name} comes after the command, as in `virtnic {named} {name} …`")
    parser.check_options(words[:1])


def _in_order(words: Sequence[str]) -> list[str]:
    """Put options that every command has behind the command, where they are read."""
    first = next((at for at, word in enumerate(words) if not _is_common(word)), len(words))
    if words[first : first + 1] == ["--"]:
        words = [*words[:first], *words[first + 1 :]]
    return [*words[first : first + 1], *words[:first], *words[first + 1 :]]


def _is_common(word: str) -> bool:
    return word in ("--json", "--verbose") or (
        word.startswith("-v") and not word.strip("v").strip("-")
    )
