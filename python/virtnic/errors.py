"""The exceptions of virtnic, in addition to Python's own.

::

    Exception
     └─ VirtnicError          base of the following
         ├─ MemoryUnavailable shared memory of the requested kind, size or address is not available
         ├─ QemuError         QEMU refused something; the message quotes QEMU
         │   ├─ QemuNotFound  no usable QEMU was found
         │   ├─ NetdevUnavailable  what a netdev connects to is missing, busy, or not permitted
         │   └─ QemuDied      QEMU has ended: its exit status and last output
         ├─ DeviceError       the device violated the specification
         ├─ CommandRefused    the device refused a control queue command, or has no such queue
         ├─ PortClosed        the port was closed, its device removed, or the queue stopped
         └─ PortBusy          the queue is in use by another call or an engine loop

``ValueError`` and ``TypeError`` mean a wrong argument, ``TimeoutError`` that a live peer did not
answer in time, ``PermissionError`` a missing privilege.
"""

from virtnic._native import (
    CommandRefused,
    DeviceError,
    MemoryUnavailable,
    PortBusy,
    PortClosed,
    QemuDied,
    QemuError,
    QemuNotFound,
    VirtnicError,
)

__all__ = [
    "CommandRefused",
    "DeviceError",
    "MemoryUnavailable",
    "NetdevUnavailable",
    "PortBusy",
    "PortClosed",
    "QemuDied",
    "QemuError",
    "QemuNotFound",
    "VirtnicError",
    "message_of",
]


def message_of(error: BaseException) -> str:
    """Return an exception's message without error numbers, or its type if it has no message."""
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    return str(error) or type(error).__name__


class NetdevUnavailable(QemuError):
    """What a netdev connects to is missing, in use, or not permitted.

    A TAP device, a bridge, the socket of a backend or peer, a kernel device.
    """

    __module__ = "virtnic"
