"""Entry point of the command ``virtnic``: Ctrl-C ends it at any time without a traceback.

It is outside the package ``virtnic`` because importing that takes most of a short command's time.
Nothing is open during the imports, so the process can simply end; an exception could get lost in an
import or be printed with a traceback.

``python -m virtnic`` imports the package before it runs a line of the command. The package's first
line imports this module, which detects that case.
"""

from __future__ import annotations

import _signal as signal  # type: ignore[import-not-found]  # `signal` imports `enum`, which is slow
import os
import sys

__all__ = ["main"]

#: Exit status after Ctrl-C, as in shells: 128 plus the signal number.
_INTERRUPTED = 130


def _quit(_number: int, _frame: object) -> None:
    os._exit(_INTERRUPTED)


def _begin() -> bool:
    """Make Ctrl-C end the process; False if it is ignored, as under nohup."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        return False
    signal.signal(signal.SIGINT, _quit)
    return True


def _is_about_to_run() -> bool:
    """Whether this is ``python -m virtnic`` before it has found its module: see :mod:`runpy`."""
    if sys.argv[:1] != ["-m"]:
        return False
    module = sys.orig_argv[-len(sys.argv)].removeprefix("-m").removesuffix(".__main__")
    return module in ("virtnic", "virtnic.cli")


if _is_about_to_run():
    _begin()


def main() -> int:
    """Run the command line of this process and return its exit status."""
    ignored = not _begin()
    from virtnic.cli import main as command

    if ignored:
        return command()
    try:
        status = command(about_to_run=_clean_up_at_ctrl_c)
        signal.signal(signal.SIGINT, _quit)  # only the interpreter's shutdown is left
    except KeyboardInterrupt:
        signal.signal(signal.SIGINT, _quit)
        return _INTERRUPTED
    return status


def _clean_up_at_ctrl_c() -> None:
    """Make Ctrl-C an exception from here on, so that it closes what is open."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
