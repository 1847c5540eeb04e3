"""The standard streams, which a program may have closed."""

from __future__ import annotations

import os

__all__ = ["keep_standard_streams"]


def keep_standard_streams() -> None:
    """Put /dev/null where a standard stream was closed, as some programs do that go on as daemons.

    Else the next descriptor that is made would be taken for it: a traceback that goes to
    descriptor 2 would be sent to QEMU, or written into the packets' memory.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # the lowest number that is free: this one
            os.set_inheritable(number, True)
