"""virtnic's own threads."""

from __future__ import annotations

import contextlib
import signal

from virtnic._native import brings_devices_back

__all__ = ["begin", "take_no_signals"]


def take_no_signals() -> None:
    """Leave signals to the program's threads.

    The kernel may choose any thread that does not block a signal. One of virtnic's that is still
    there when the program has blocked it in its own, to wait for it, would end the program.
    """
    with contextlib.suppress(MemoryError):
        signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())


def begin() -> None:
    """Set up such a thread: it takes no signals, which are the program's.

    The program's callbacks run in it. As these threads also restore devices, a call that would wait
    for a device in restoration raises PortBusy.
    """
    take_no_signals()
    brings_devices_back()
