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
    ArpReply,
    Burst,
    EventFd,
    Feature,
    Lease,
    Offload,
    PingReply,
    Stack,
    __version__,
    after_fork_in_child,
)
from virtnic.errors import (
    CommandRefused,
    DeviceError,
    MemoryUnavailable,
    NetdevUnavailable,
    PortBusy,
    PortClosed,
    QemuDied,
    QemuError,
    QemuNotFound,
    VirtnicError,
)

if TYPE_CHECKING:
    from typing import Unpack

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
    from virtnic.nic.opening import OpenOptions
    from virtnic.nic.policy import Recovery
    from virtnic.nic.port import Port, Qemu
    from virtnic.nic.queue import NetQueue
    from virtnic.nic.rss import Rss, RssLimits
    from virtnic.protocols import PacketPort
    from virtnic.qemu import Netdev

__all__ = [  # noqa: RUF022 - by importance
    "open",
    "Port",
    "NetQueue",
    "PacketPort",
    "Rss",
    "RssLimits",
    "aio",
    "Burst",
    "Offload",
    "Memory",
    "Qemu",
    "Recovery",
    "Stack",
    "Lease",
    "ArpReply",
    "PingReply",
    "Feature",
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
    "NetdevUnavailable",
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
    "NetQueue": "virtnic.nic.queue",
    "PacketPort": "virtnic.protocols",
    "Port": "virtnic.nic.port",
    "Qemu": "virtnic.nic.port",
    "Recovery": "virtnic.nic.policy",
    "Rss": "virtnic.nic.rss",
    "RssLimits": "virtnic.nic.rss",
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


def open(netdev: Netdev = "user", **options: Unpack[OpenOptions]) -> Port:  # noqa: A001 - virtnic.open
    """Open a port on any QEMU netdev: start a QEMU, plug the NIC in, and start it.

    ``options`` are those of :class:`Memory` (``hugepages``, ``iova``, …; or ``memory``, one that
    exists), of :class:`Qemu` (``qemu``, ``accel``, ``machine``, …; or ``connect``, the directory of
    one that was started elsewhere: see :meth:`Qemu.connect`) and of
    :meth:`Qemu.attach` (``mac``, ``queues``, ``queue_size``, ``interrupts``, ``features``,
    ``offload``, ``on_link``, …). ``recover`` goes to both.
    Closing the port ends a QEMU that was started here.

    ``frontend="direct"`` does without QEMU where the netdev is ``vhost-user,path=SOCKET``: this
    process speaks to the backend itself. There is no control queue then (no filters), no legacy
    interface, no ``port.qemu``, and of ``properties`` only ``host_mtu``: see docs/backends.md.

    A QEMU of its own costs five descriptors and is for this one port: one that is attached to it
    besides has no messages of its own (``interrupts="intx"``), and the memory that was made for it
    cannot be given to another QEMU. Many ports are better off on a :class:`Qemu`.

    Raises TypeError for an option that there is not, QemuNotFound, QemuError, MemoryUnavailable,
    PermissionError, ValueError, DeviceError, OSError where a limit of the system is reached.
    """
    from virtnic.nic.opening import open_port

    return open_port(netdev, options)
