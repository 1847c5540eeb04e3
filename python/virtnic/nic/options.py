"""Options of a port: QEMU's properties and the device's features."""

from __future__ import annotations

import dataclasses
import os
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, TypedDict

from virtnic.arguments import must_be, whole_number
from virtnic.nic.policy import policy
from virtnic.qemu import parse
from virtnic.qemu.netdevs import NETDEVS

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from virtnic.memory import Memory
    from virtnic.nic.backend import Backend
    from virtnic.nic.policy import Recovery
    from virtnic.qemu import Netdev, Spec
    from virtnic.qemu.command import Accel, MachineType, Sandbox, Shmem

__all__ = [
    "Interrupts",
    "Notify",
    "PortRequest",
    "QemuInterrupts",
    "QemuOptions",
    "Ring",
    "StartOptions",
    "device_request",
    "jumbo_size",
    "merge_features",
    "offload_features",
    "one_of",
    "unicast",
    "usual_size",
    "with_queues",
]

#: How a QEMU device signals: message to an eventfd, interrupt line, or not at all.
QemuInterrupts = Literal["msix", "intx", "none"]
#: The same; without QEMU (``frontend="direct"``) the backend signals an eventfd itself.
Interrupts = QemuInterrupts | Literal["eventfd"]
#: Ring formats (VIRTIO 1.3, sections 2.7 and 2.8).
Ring = Literal["split", "packed"]
#: How a vhost-user backend is kicked.
Notify = Literal["eventfd", "qtest"]


class StartOptions(TypedDict, total=False):
    """Options for starting QEMU: see :class:`virtnic.Qemu`."""

    qemu: str | os.PathLike[str] | None
    accel: Accel
    machine: MachineType
    shmem: Shmem
    sandbox: Sandbox
    timeout: float
    connect: str | os.PathLike[str] | None
    extra: Sequence[str]


class QemuOptions(StartOptions, total=False):
    """Options of :class:`virtnic.Qemu` besides the memory and ``recover``."""

    directory: str | os.PathLike[str] | None


@dataclass(frozen=True, slots=True)
class PortRequest:
    """The checked arguments of :meth:`virtnic.Qemu.attach`."""

    netdev: Netdev
    mac: str | None = None
    queues: int | None = None
    queue_size: int = 0
    ring: Ring | None = None
    interrupts: Interrupts | None = None
    spin: float = 0.0
    notify: Notify | None = None
    features: Mapping[str, bool | None] | None = None
    properties: Mapping[str, Any] | None = None
    on_link: Callable[[Any], None] | None = None
    legacy: bool = False
    statistics: Literal["basic", "sizes", "extended"] = "basic"
    timestamps: bool = False
    offload: bool | None = None
    recover: bool | Recovery | None = None

    def __post_init__(self) -> None:
        one_of("notify", self.notify, ("eventfd", "qtest", None))
        one_of("ring", self.ring, ("split", "packed", None))
        one_of("statistics", self.statistics, ("basic", "sizes", "extended"))
        mac, on_link, features, properties = (
            self.mac,
            self.on_link,
            self.features,
            self.properties,
        )
        must_be("mac", mac, mac is None or isinstance(mac, str), "text such as '52:54:00:12:34:56'")
        whole_number("queues", self.queues, optional=True, negative=True)
        whole_number("queue_size", self.queue_size)
        number = hasattr(type(self.spin), "__float__")
        must_be("spin", self.spin, number, "a number of microseconds")
        _must_map("features", features)
        for value in (features or {}).values():
            must_be(
                "features", features, value in (True, False, None), "a dict of True, False, None"
            )
        _must_map("properties", properties)
        called = on_link is None or callable(on_link)
        must_be("on_link", on_link, called, "a function that accepts a port")
        for name in ("legacy", "timestamps"):
            switch = getattr(self, name)
            must_be(name, switch, switch in (True, False), "True or False")
        must_be("offload", self.offload, self.offload in (True, False, None), "True, False or None")
        size = self.queue_size
        if size and (size not in range(1, 32769) or size & (size - 1)):
            raise ValueError(f"queue_size must be a power of two up to 32768, not {size}")
        policy(self.recover, also=None)


def _must_map(name: str, value: object) -> None:
    """Raise TypeError unless a value is None, or a mapping whose keys are strings."""
    keys = getattr(value, "keys", None)
    ok = value is None or (keys is not None and all(isinstance(key, str) for key in keys()))
    must_be(name, value, ok, "a dict with names as keys, or None")


#: Most queue pairs: vhost-user numbers 256 queues.
_MAX_QUEUES = 128
#: Bytes of a frame beyond the MTU: an Ethernet header and a VLAN tag.
_ETHERNET = 18
#: The longest frame of a virtio-net device (VIRTIO, 5.1.6.3.1), for which QEMU needs room.
_LONGEST, _QEMU_BUFFER = 65_550, 68 << 10
#: Offload features for sent and for received frames.
_SEND_OFFLOADS = ("CSUM", "HOST_TSO4", "HOST_TSO6", "HOST_ECN", "HOST_UFO", "HOST_USO")
_RECEIVE_OFFLOADS = (
    *("GUEST_CSUM", "GUEST_TSO4", "GUEST_TSO6", "GUEST_ECN", "GUEST_UFO"),
    *("GUEST_USO4", "GUEST_USO6"),
)


def offload_features(spec: Spec, offload: bool | None) -> dict[str, bool | None]:
    """Return the offload features to request and to refuse."""
    if offload:
        return dict.fromkeys(_SEND_OFFLOADS + _RECEIVE_OFFLOADS)
    if offload is None and spec.type != "vhost-user":
        return {}
    # With them, a backend reads every header: one more cache line per frame.
    return dict.fromkeys(_SEND_OFFLOADS, False)


def order_features(spec: Spec) -> dict[str, bool | None]:
    """Return which features to refuse that keep the order of buffers.

    In order, a vhost-user backend reports late what it has taken (DPDK does): if it dies, the next
    one gets that once more.
    """
    return {"IN_ORDER": False} if spec.type == "vhost-user" else {}


def one_of(name: str, value: object, allowed: tuple[object, ...]) -> None:
    """Raise ValueError for a value that is not allowed."""
    if value not in allowed:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, allowed))}, not {value!r}")


def jumbo_size(netdev: Netdev, options: Mapping[str, Any], buffer_size: int) -> int | None:
    """Return the size of the jumbo buffers for a port's memory; None for any frame.

    ``options`` are those of its ``attach``. With segmentation, frames are longer than its MTU.
    """
    spec, mtu = parse(netdev), (options.get("properties") or {}).get("host_mtu")
    features = offload_features(spec, options.get("offload")) | (options.get("features") or {})
    segments = re.compile("TSO|USO|UFO|ECN", re.IGNORECASE)
    refused = {name for name, preference in features.items() if preference is False}
    wanted = any(segments.search(name) for name in features.keys() - refused)
    if wanted or not refused.issuperset(_SEND_OFFLOADS) or not str(mtu).isdecimal():
        return None
    longest = int(str(mtu)) + _ETHERNET
    return longest if buffer_size < longest <= _LONGEST else None


def merge_features(spec: Spec, memory: Memory, entries: int) -> dict[str, bool | None]:
    """Return whether to request merged receive buffers.

    Without them, QEMU silently drops frames longer than a buffer; with them, such frames are
    received or counted. The cost is reading each header, which does not matter where QEMU moves the
    frames. A backend that polls the rings is many times faster, so they are not requested there.
    """
    if memory.buffer_size >= _LONGEST or not spec.kind.moves_frames(spec.options):
        return {}
    # In a ring too short for such a frame QEMU would wait for room for ever.
    fits = min(entries or 256, memory.buffers) * memory.buffer_size >= _QEMU_BUFFER
    return {"MRG_RXBUF": None} if fits else {}


def device_request(
    spec: Spec,
    backend: Backend | None,
    mac: str | None,
    queues: int,
    queue_size: int,
    ring: Ring | None,
) -> tuple[dict[str, Any], dict[str, bool | None]]:
    """Return QEMU's properties of a device, and the features to request."""
    device: dict[str, Any] = {}
    preferences: dict[str, bool | None] = {}
    # QEMU's default is the same in every QEMU, which would confuse switches.
    device["mac"] = unicast(mac) if mac is not None else f"52:54:00:{os.urandom(3).hex(':')}"
    if queues > 1:
        # Before 6.0 the default was 3. Two per pair, configuration and control queue.
        device["mq"], device["vectors"] = True, 2 * queues + 2
    if spec.type == "vhost-user":
        size = max(queue_size, 256) if queue_size else spec.kind.queue_size
        device["rx_queue_size"] = device["tx_queue_size"] = size
        # A polling backend reads neither; this saves a write to a shared cache line.
        preferences["EVENT_IDX"] = False
    elif queue_size > 256:
        device["rx_queue_size"] = queue_size
    if ring == "packed" or (ring is None and backend is not None):
        device["packed"] = True
    if ring is not None:
        preferences["RING_PACKED"] = ring == "packed"
    return device, preferences


def unicast(mac: str) -> str:
    """Check that a MAC address is unicast and not zero. Raises ValueError.

    QEMU accepts any: bridges and switches drop frames from a group address, and QEMU replaces all
    zeros by its own.
    """
    digits = re.sub(r"[:.-]", "", mac)
    if re.fullmatch(r"[0-9a-fA-F]{12}", digits):
        if int(digits[:2], 16) & 1:
            raise ValueError(
                f"mac={mac!r} is a group address, not a station's: its first byte is odd"
            )
        if not int(digits, 16):
            raise ValueError(
                f"mac={mac!r}: all zeros is not a valid address; omit it for a random one"
            )
    return mac


def usual_size(spec: Spec, device: Mapping[str, Any], legacy: bool) -> int:
    """Return the default queue size; 0 leaves it to the device.

    256 is QEMU's default, also set for one that ignores it (quirk queue-size-ignored).
    """
    named = not device.keys().isdisjoint(("rx_queue_size", "tx_queue_size"))
    # A vhost-user device already has its size as a property.
    return 0 if legacy or named or spec.kind.interposed else spec.kind.queue_size


def with_queues(spec: Spec, queues: int | None) -> tuple[Spec, int]:
    """Return the netdev with the number of queue pairs, and that number. Raises ValueError."""
    named, by = _named_queues(spec)
    if queues is None:
        queues = named or 1
    if not 1 <= queues <= _MAX_QUEUES:
        raise ValueError(f"a port can have 1 to {_MAX_QUEUES} queue pairs, not {queues}")
    if queues > 1 and not spec.kind.queues:
        several = ", ".join(row.name for row in NETDEVS if row.queues)
        raise ValueError(
            f"queues={queues}: a netdev of type {spec.type!r} has 1 queue pair; "
            f"those of type {several} can have more"
        )
    if named is not None and queues > named:
        raise ValueError(f"queues={queues}: the netdev has {named} queue pairs (its own {by})")
    if queues > 1 and by is None:
        spec = dataclasses.replace(spec, options={**spec.options, "queues": queues})
    return spec, queues


def _named_queues(spec: Spec) -> tuple[int | None, str | None]:
    """Return the number of queue pairs that a netdev names, and by which option; None if none."""
    for option in spec.kind.queues:
        value = spec.options.get(option)
        if value is None:
            continue
        if option in spec.kind.descriptors:
            count = len(value.split(":")) if isinstance(value, str) else len(value)
            return count, f"{option}= of {count}"
        text = str(value)
        # QEMU will complain about a non-number.
        return (
            max(int(text), 1) if text.isascii() and text.isdigit() else None
        ), f"{option}={text}"
    single = [option for option in spec.kind.descriptors if option + "s" in spec.kind.queues]
    if any(option in spec.options for option in single):
        return 1, f"{single[0]}="
    return None, None
