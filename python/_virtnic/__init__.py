"""The command ``virtnic`` from its first moment: Ctrl-C ends it without a traceback.

Outside of the package ``virtnic``, whose import takes most of a short command's time. Nothing is
open meanwhile, so nothing is left when the process just ends; an exception could get lost in
an import, or be told of with a traceback.

``python -m virtnic`` imports the package before it runs a line of the command: the package's own
first line imports this, which sees that and begins then.
"""

from __future__ import annotations

import os
import signal
import sys

__all__ = ["main"]

#: The exit status after Ctrl-C, as shells have it: 128 and the number of the signal.
_INTERRUPTED = 130


def _quit(_number: int, _frame: object) -> None:
    os._exit(_INTERRUPTED)


def _begin() -> bool:
    """Have Ctrl-C just end the process; False where it is ignored, as under nohup."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        return False
    signal.signal(signal.SIGINT, _quit)
    return True


def _is_about_to_run() -> bool:
    """Whether this is ``python -m virtnic`` that has not found its module yet: see :mod:`runpy`."""
    if sys.argv[:1] != ["-m"]:
        return False
    module = sys.orig_argv[-len(sys.argv)].removeprefix("-m").removesuffix(".__main__")
    return module in ("virtnic", "virtnic.cli")


if _is_about_to_run():
    _begin()


def main() -> int:
    """Run the command line of this process, and return its exit status."""
    ignored = not _begin()
    from virtnic.cli import main as command

    if ignored:
        return command()
    try:
        status = command(about_to_run=_clean_up_at_ctrl_c)
        signal.signal(signal.SIGINT, _quit)  # what ends now is the interpreter
    except KeyboardInterrupt:
        signal.signal(signal.SIGINT, _quit)
        return _INTERRUPTED
    return status


def _clean_up_at_ctrl_c() -> None:
    """From here on Ctrl-C is an exception, which closes what is open."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
