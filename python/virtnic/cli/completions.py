"""``virtnic completions``: shell completion scripts."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from virtnic.cli import options
from virtnic.cli.status import EXIT_STATUSES, Status

if TYPE_CHECKING:
    import argparse

    from virtnic.cli.output import Output

__all__ = ["SHELLS", "add", "run"]

SHELLS = ("bash", "zsh", "fish")

EXAMPLES = f"""\
examples:
  source <(virtnic completions bash)
      in this shell only
  virtnic completions bash > ~/.local/share/bash-completion/completions/virtnic
  virtnic completions zsh > ~/.zfunc/_virtnic
      in a directory of $fpath, before compinit
  virtnic completions fish > ~/.config/fish/completions/virtnic.fish

Needs the Python package shtab: pip install 'virtnic[cli]'

{EXIT_STATUSES}"""

#: Arguments whose values are files, and those whose values are directories, by their metavars.
_FILES, _DIRECTORIES = ("FILE", "PATH"), ("DIR",)


def add(parser: argparse.ArgumentParser) -> None:
    """Describe the command."""
    parser.description = "Print a script for a shell to complete commands, options and values."
    parser.epilog = EXAMPLES
    parser.set_defaults(run=run, imports=(), opens_nothing=True)
    parser.add_argument("shell", choices=SHELLS, metavar="SHELL", help=f"{', '.join(SHELLS)}")
    options.add_common(parser)


def run(arguments: argparse.Namespace, output: Output) -> int:
    """Print it."""
    try:
        import shtab
    except ImportError:
        output.error(
            "ModuleNotFoundError",
            "completions need the Python package shtab, which is not installed; "
            "pip install 'virtnic[cli]'",
        )
        return Status.ENVIRONMENT
    from virtnic.cli.parser import build

    parser = build()
    _complete_paths(parser, shtab)
    script = shtab.complete(parser, arguments.shell).rstrip("\n")
    output.line(script)
    output.result({"shell": arguments.shell, "script": script})
    return Status.OK


def _complete_paths(parser: argparse.ArgumentParser, shtab: Any) -> None:
    """Tell shtab which values are paths, which argparse cannot express."""
    for action in parser._actions:
        if isinstance(action.choices, dict):  # the commands
            for command in action.choices.values():
                _complete_paths(command, shtab)
        for names, paths in ((_FILES, shtab.FILE), (_DIRECTORIES, shtab.DIRECTORY)):
            if action.metavar in names:
                action.complete = paths  # type: ignore[attr-defined]
