"""Exit statuses and their descriptions."""

from __future__ import annotations

from enum import IntEnum

__all__ = ["EXIT_STATUSES", "Status"]


class Status(IntEnum):
    """Exit statuses."""

    OK = 0
    FAILED = 1
    USAGE = 2
    ENVIRONMENT = 3
    INTERRUPTED = 130


EXIT_STATUSES = """\
exit status:
  0    success
  1    failure: no reply came, QEMU or the device refused something
  2    wrong command line or option value
  3    something is missing: QEMU, memory, a permission, a device, a socket
  130  interrupted by Ctrl-C
`virtnic doctor` shows what is missing.
"""
