"""virtnic's own threads."""

from __future__ import annotations

import signal

from virtnic._native import brings_devices_back

__all__ = ["begin"]


def begin() -> None:
    """Set up such a thread: it takes no signals, which are the program's.

    The program's callbacks run in it. As these threads also restore devices, a call that would wait
    for a device in restoration raises PortBusy.
    """
    signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    brings_devices_back()
