"""A virtio-net NIC for any Python process, without a virtual machine.

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
    Feature,
    Offload,
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

    from virtnic import aio, capture, measure, net
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
    "net",
    "capture",
    "measure",
    "Burst",
    "Offload",
    "Memory",
    "Qemu",
    "Recovery",
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

# A forked child's copies of objects must not touch what belongs to the parent.
os.register_at_fork(after_in_child=after_fork_in_child)

#: Names that are imported on first use: a plain `import virtnic` loads neither asyncio nor QMP, so
#: that `--version` and `--help` are quick.
_LATER = {
    "aio": "virtnic.aio",
    "capture": "virtnic.capture",
    "measure": "virtnic.measure",
    "net": "virtnic.net",
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
    # Submodules that can be used without importing them.
    **{name: f"virtnic.{name}" for name in ("loops", "memory", "nic", "qemu")},
}


def __getattr__(name: str) -> Any:
    """Import a name on first use (PEP 562)."""
    where = _LATER.get(name)
    if where is None:
        raise AttributeError(f"module 'virtnic' has no attribute {name!r}")
    module = importlib.import_module(where)
    value = module if where == f"virtnic.{name}" else getattr(module, name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """Return all names, imported or not."""
    return sorted({*globals(), *_LATER})


def open(netdev: Netdev = "user", **options: Unpack[OpenOptions]) -> Port:  # noqa: A001 - virtnic.open
    """Open a port on a QEMU netdev: start a QEMU, plug in the NIC, and start it.

    ``options`` are those of :class:`Memory` (``hugepages``, ``iova``, …; or ``memory``, an existing
    one), of :class:`Qemu` (``qemu``, ``accel``, ``machine``, …; or ``connect``, the directory of a
    QEMU started elsewhere: see :meth:`Qemu.connect`) and of :meth:`Qemu.attach` (``mac``,
    ``queues``, ``queue_size``, ``interrupts``, ``features``, ``offload``, ``on_link``, …).
    ``recover`` applies to QEMU and port. Closing the port ends a QEMU that was started here.

    ``frontend="direct"`` works without QEMU, for the netdevs ``vhost-user,path=SOCKET`` and
    ``tap,ifname=NAME,vhost=on``: this process talks to the backend, or to the kernel's vhost-net,
    directly. There is then no control queue (no filters), no legacy
    interface, no ``port.qemu``, and only ``host_mtu`` of the ``properties``: see docs/backends.md.

    The QEMU is made for one port and costs five descriptors. A second port attached to it gets no
    MSI-X (``interrupts="intx"``), and its memory cannot be used with another QEMU. For several
    ports use a :class:`Qemu`.

    Raises TypeError for an unknown option, QemuNotFound, QemuError, MemoryUnavailable,
    PermissionError, ValueError, DeviceError, OSError if a system limit is reached.
    """
    from virtnic.nic.opening import open_port

    return open_port(netdev, options)
