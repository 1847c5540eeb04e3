"""A real virtio-net NIC for any Python process, without a virtual machine.

>>> with virtnic.open("user") as port:
...     port.send([frame])
...     burst = port.recv(64, timeout=1.0)
"""

from __future__ import annotations

import _virtnic  # noqa: F401 - first: from here on Ctrl-C ends `python -m virtnic` in silence

# isort: split
import importlib
import os
from typing import TYPE_CHECKING, Any

from virtnic._native import (
    Burst,
    EventFd,
    NetQueue,
    Offload,
    Stack,
    __version__,
    after_fork_in_child,
)
from virtnic.errors import (
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
from virtnic.limits import descriptors

if TYPE_CHECKING:
    from virtnic import aio
    from virtnic.loops import (
        Result,
        drop,
        exchange,
        forward,
        generate,
        packet_function,
        reflect,
        run,
        to_port,
    )
    from virtnic.memory import Memory
    from virtnic.nic.events import Event, Events
    from virtnic.nic.policy import Recovery
    from virtnic.nic.port import Port
    from virtnic.nic.qemu import Qemu
    from virtnic.nic.rss import Rss
    from virtnic.qemu import Netdev

__all__ = [  # noqa: RUF022 - by importance
    "open",
    "Port",
    "NetQueue",
    "Rss",
    "aio",
    "Burst",
    "Offload",
    "Memory",
    "Qemu",
    "Recovery",
    "Stack",
    "Event",
    "Events",
    "EventFd",
    "forward",
    "reflect",
    "drop",
    "generate",
    "exchange",
    "run",
    "packet_function",
    "to_port",
    "Result",
    "VirtnicError",
    "QemuError",
    "QemuNotFound",
    "QemuDied",
    "DeviceError",
    "CommandRefused",
    "PortClosed",
    "PortBusy",
    "MemoryUnavailable",
    "__version__",
]

# A forked child's copies of our objects must not touch what is its parent's.
os.register_at_fork(after_in_child=after_fork_in_child)

#: What :func:`open` passes on to :class:`Memory`; the rest is for QEMU or for the port.
_MEMORY_OPTIONS = (
    "size",
    "hugepages",
    "iova",
    "node",
    "directory",
    "buffer_size",
    "jumbo_buffers",
    "jumbo_size",
)
_QEMU_OPTIONS = (
    "qemu",
    "accel",
    "machine",
    "shmem",
    "sandbox",
    "timeout",
    "connect",
)


#: Where names are that are imported when they are first used: `import virtnic` alone brings neither
#: asyncio nor QMP, and a program that asks for a version or for help does not wait for them.
_LATER = {
    "aio": "virtnic.aio",
    **dict.fromkeys(
        (
            "Result",
            "drop",
            "exchange",
            "forward",
            "generate",
            "packet_function",
            "reflect",
            "run",
            "to_port",
        ),
        "virtnic.loops",
    ),
    "Event": "virtnic.nic.events",
    "Events": "virtnic.nic.events",
    "Memory": "virtnic.memory",
    "Port": "virtnic.nic.port",
    "Qemu": "virtnic.nic.qemu",
    "Recovery": "virtnic.nic.policy",
    "Rss": "virtnic.nic.rss",
    # Modules of their own, which a program may name without importing them.
    **{name: f"virtnic.{name}" for name in ("loops", "memory", "nic", "qemu")},
}


def __getattr__(name: str) -> Any:
    """Import what is not there yet (PEP 562)."""
    where = _LATER.get(name)
    if where is None:
        raise AttributeError(f"module 'virtnic' has no attribute {name!r}")
    module = importlib.import_module(where)
    value = module if where == f"virtnic.{name}" else getattr(module, name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """Return what there is, imported or not."""
    return sorted({*globals(), *_LATER})


@descriptors()
def open(netdev: Netdev = "user", **options: Any) -> Port:  # noqa: A001 - virtnic.open
    """Open a port on any QEMU netdev: start a QEMU, plug the NIC in, and start it.

    ``options`` are those of :class:`Memory` (``hugepages``, ``iova``, …; or ``memory``, one that
    exists), of :class:`Qemu` (``qemu``, ``accel``, ``machine``, …; or ``connect``, the directory of
    one that was started elsewhere: see :meth:`Qemu.connect`) and of
    :meth:`Qemu.attach` (``mac``, ``queues``, ``queue_size``, ``interrupts``, ``features``,
    ``offload``, ``on_link``, …). ``recover`` goes to both.
    Closing the port ends a QEMU that was started here.

    A QEMU of its own costs five descriptors and is for this one port: one that is attached to it
    besides has no messages of its own (``interrupts="intx"``), and the memory that was made for it
    cannot be given to another QEMU. Many ports are better off on a :class:`Qemu`.

    Raises QemuNotFound, QemuError, MemoryUnavailable, PermissionError, ValueError, DeviceError,
    OSError where a limit of the system is reached.
    """
    from virtnic.memory import Memory
    from virtnic.nic.options import jumbo_size
    from virtnic.nic.qemu import Qemu

    for_memory = {name: options.pop(name) for name in _MEMORY_OPTIONS if name in options}
    for_qemu = {name: options.pop(name) for name in _QEMU_OPTIONS if name in options}
    recover = options.get("recover")
    if recover is not None and for_qemu.get("connect") is None:
        for_qemu["recover"] = recover
    given = options.pop("memory", None)
    if given is not None and for_memory:
        raise ValueError(f"memory is given, so {', '.join(for_memory)} cannot be given as well")
    if given is None and "jumbo_size" not in for_memory:
        for_memory["jumbo_size"] = jumbo_size(netdev, options, for_memory.get("buffer_size", 2048))
    machine = Qemu(Memory(**for_memory) if given is None else given, **for_qemu)
    try:
        machine._owns_memory = given is None
        port = machine.attach(netdev, **options)
        machine.keep_little(memory=given is None)
        port._owns_qemu = True
    except BaseException:
        machine.close()
        raise
    return port
