"""What virtnic raises, beside Python's own exceptions.

::

    Exception
     └─ VirtnicError          anything below
         ├─ MemoryUnavailable no shared memory of the wanted kind, size or place
         ├─ QemuError         QEMU refused something; quotes its own words
         │   ├─ QemuNotFound  there is no usable QEMU
         │   └─ QemuDied      QEMU is gone: its exit status and last words
         ├─ DeviceError       the device broke a rule of the specification
         ├─ PortClosed        the port was closed or its device was removed
         └─ PortBusy          the queue is in use by another call or an engine loop

``ValueError`` and ``TypeError`` say that an argument is wrong, ``TimeoutError`` that
somebody alive did not answer in time, ``PermissionError`` that a privilege is missing.
"""

from virtnic._native import (
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
    "DeviceError",
    "MemoryUnavailable",
    "PortBusy",
    "PortClosed",
    "QemuDied",
    "QemuError",
    "QemuNotFound",
    "VirtnicError",
]
