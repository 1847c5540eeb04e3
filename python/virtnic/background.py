"""Threads of virtnic's own."""

from __future__ import annotations

import signal

from virtnic._native import brings_devices_back

__all__ = ["begin"]


def begin() -> None:
    """Begin such a thread: signals are for the program's own.

    Callbacks of the program run in it, and what they ask of a device that is away raises PortBusy:
    it is these threads that bring a device back.
    """
    signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    brings_devices_back()
