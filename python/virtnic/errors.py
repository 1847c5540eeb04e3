"""What virtnic raises, beside Python's own exceptions.

::

    Exception
     └─ VirtnicError          anything below
         ├─ MemoryUnavailable no shared memory of the wanted kind, size or place
         ├─ QemuError         QEMU refused something; quotes its own words
         │   ├─ QemuNotFound  there is no usable QEMU
         │   ├─ NetdevUnavailable  what a netdev connects to is not there, busy, or not permitted
         │   └─ QemuDied      QEMU is gone: its exit status and last words
         ├─ DeviceError       the device broke a rule of the specification
         ├─ CommandRefused    the device refused a command of the control queue, or has none
         ├─ PortClosed        the port was closed, or its device removed, or the queue stopped
         └─ PortBusy          the queue is in use by another call or an engine loop

``ValueError`` and ``TypeError`` say that an argument is wrong, ``TimeoutError`` that
somebody alive did not answer in time, ``PermissionError`` that a privilege is missing.
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
]


class NetdevUnavailable(QemuError):
    """What a netdev connects to is not there, is in use, or may not be used.

    A TAP device, a bridge, a backend's or a peer's socket, a device of the kernel's.
    """

    __module__ = "virtnic"
