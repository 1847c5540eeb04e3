"""The command ``virtnic`` from its first moment: Ctrl-C ends it without a traceback.

Outside of the package ``virtnic``, whose import takes most of a short command's time. Nothing is
open meanwhile, so nothing is left when the process just ends; an exception could get lost in
an import, or be told of with a traceback.
"""

from __future__ import annotations

import os
import signal

__all__ = ["main"]

#: The exit status after Ctrl-C, as shells have it: 128 and the number of the signal.
_INTERRUPTED = 130


def _quit(_number: int, _frame: object) -> None:
    os._exit(_INTERRUPTED)


def main() -> int:
    """Run the command line of this process, and return its exit status."""
    ignored = signal.getsignal(signal.SIGINT) is signal.SIG_IGN  # as under nohup
    if not ignored:
        signal.signal(signal.SIGINT, _quit)
    from virtnic.cli import main as command

    if ignored:
        return command()
    try:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        status = command()
        signal.signal(signal.SIGINT, _quit)  # what ends now is the interpreter
    except KeyboardInterrupt:
        signal.signal(signal.SIGINT, _quit)
        return _INTERRUPTED
    return status
