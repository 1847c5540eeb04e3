"""The standard streams, which a program may have closed."""

from __future__ import annotations

import os

__all__ = ["keep_standard_streams"]


def keep_standard_streams() -> None:
    """Open /dev/null in place of closed standard streams, as some daemons have.

    Otherwise the next descriptor would take that number, and a traceback written to descriptor 2
    would go to QEMU or into the packet memory.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest free number, this one
            os.set_inheritable(number, True)
