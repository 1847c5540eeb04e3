"""Exit statuses, in numbers and in words."""

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
  0    it worked
  1    it failed: no reply came, QEMU or the device refused something
  2    the command line is wrong, or an option's value
  3    the machine lacks something: QEMU, memory, a permission, a device, a socket
  130  interrupted by Ctrl-C
`virtnic doctor` looks for what is lacking.
"""
