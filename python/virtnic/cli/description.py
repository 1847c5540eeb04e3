"""Description of a port, its QEMU and its memory: an object for scripts, lines for people."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Any

from virtnic.cli.text import bytes_text
from virtnic.cli.wording import of_options
from virtnic.pci import (
    Capability,
    Function,
    MsixCapability,
    PcieCapability,
    VirtioCapability,
    class_name,
    device_name,
    vendor_name,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    import virtnic
    from virtnic.cli.session import Session

__all__ = [
    "describe",
    "describe_features",
    "describe_function",
    "describe_memory",
    "describe_qemu",
    "text",
]

_PCIE_PORTS = {
    0: "endpoint",
    4: "root port",
    5: "upstream port",
    6: "downstream port",
    7: "bridge to PCI",
}


def describe(session: Session, netdev: str) -> dict[str, Any]:
    """Return all facts about an open port and its QEMU, if it has one."""
    port, qemu = session.port, session.qemu
    functions = () if qemu is None else qemu.bus.functions
    return {
        "qemu": None if qemu is None else describe_qemu(qemu),
        "memory": describe_memory(session.memory),
        "functions": [describe_function(function) for function in functions],
        "port": {
            "netdev": netdev,
            "mac": port.mac,
            "mtu": port.mtu,
            "link": port.link,
            "ring": port.ring,
            "legacy": port.legacy,
            "frontend": port.frontend,
            "queue_size": port.queue_size,
            "interrupts": port.interrupts,
        },
        "features": describe_features(port),
    }


def describe_qemu(qemu: virtnic.Qemu) -> dict[str, Any]:
    """Return the facts about a QEMU."""
    ours = qemu.command is not None
    return {
        "command": qemu.command,
        "connected": None if ours else str(qemu.directory),
        "version": str(qemu.version),
        "machine": qemu.machine,
        "accelerator": qemu.accel,
        "pid": qemu.pid if ours else None,
    }


def describe_memory(memory: virtnic.Memory) -> dict[str, Any]:
    """Return the facts about the shared memory."""
    return {
        "size": memory.size,
        "page_size": memory.page_size,
        "iova": memory.iova,
        "address": memory.address,
        "buffers": memory.buffers,
        "buffer_size": memory.buffer_size,
        "fallback": memory.fallback and of_options(memory.fallback),
    }


def describe_features(port: virtnic.Port) -> list[dict[str, Any]]:
    """Return the feature bits that are offered or known."""
    names = ("name", "bit", "offered", "accepted", "why")
    found = [{name: getattr(feature, name) for name in names} for feature in port.features]
    return [{**feature, "why": of_options(feature["why"])} for feature in found]


def describe_function(function: Function) -> dict[str, Any]:
    """Return the facts about a PCI function."""
    return {
        "address": str(function.bdf),
        "id": f"{function.vendor:04x}:{function.device:04x}",
        "subsystem_id": f"{function.subsystem_vendor:04x}:{function.subsystem:04x}",
        "vendor": vendor_name(function.vendor),
        "name": device_name(function.vendor, function.device, function.subsystem),
        "class": class_name(function.class_code),
        "revision": function.revision,
        "interrupt_pin": function.pin,
        "bars": [
            {
                "index": bar.index,
                "kind": bar.kind.value,
                "size": bar.size,
                "prefetchable": bar.prefetchable,
                "address": bar.address,
            }
            for bar in function.bars
        ],
        "capabilities": [_describe_capability(found) for found in function.capabilities],
        "problems": list(function.problems),
    }


def _describe_capability(found: Capability) -> dict[str, Any]:
    more: dict[str, Any] = {}
    if isinstance(found, VirtioCapability):
        more = {"bar": found.bar, "offset": found.offset, "length": found.length}
        if found.notify_multiplier:
            more["notify_multiplier"] = found.notify_multiplier
    elif isinstance(found, MsixCapability):
        more = {
            "vectors": found.size,
            "table_bar": found.table_bar,
            "table_offset": found.table_offset,
            "pending_bar": found.pending_bar,
            "pending_offset": found.pending_offset,
        }
    elif isinstance(found, PcieCapability):
        more = {"port_type": _PCIE_PORTS.get(found.port_type, str(found.port_type))}
    return {"name": found.name, "id": found.identity, "position": found.position, **more}


def text(found: dict[str, Any], *, everything: bool = False) -> list[str]:
    """Return the description as lines; with ``everything``, bridges in full."""
    qemu, memory, port = found["qemu"], found["memory"], found["port"]
    lines = [
        (
            f"memory {bytes_text(memory['size'])} in pages of {bytes_text(memory['page_size'])} "
            f"at IOVA {memory['iova']:#x}"
        )
    ]
    if qemu is None:
        lines.insert(0, "no QEMU: this process is the front-end")
    else:
        where = qemu["command"] or f"at {qemu['connected']}"
        lines.insert(
            0,
            f"QEMU {qemu['version']} ({where}), machine {qemu['machine']}, "
            f"accelerator {qemu['accelerator']}",
        )
        lines += ["", "PCI"]
    for _, group in itertools.groupby(found["functions"], _alike(everything)):
        first, *others = group
        where = first["address"] + (f" to {others[-1]['address']}" if others else "")
        lines.append(f"  {where}  {first['id']}  {first['class']}: {first['name']}")
        if everything or not _is_bridge(first):
            lines += [f"      {_bar_text(bar)}" for bar in first["bars"]]
            lines += [f"      {_capability_text(each)}" for each in first["capabilities"]]
        for function in (first, *others):
            lines += [f"      violation: {problem}" for problem in function["problems"]]
    lines += [
        "",
        f"port on netdev {port['netdev']}",
        (
            f"  MAC {port['mac']}, MTU {port['mtu']}, link {'up' if port['link'] else 'down'}, "
            f"{port['ring']} rings of {port['queue_size']}, interrupts {port['interrupts']}"
            f"{', legacy interface' if port['legacy'] else ''}"
        ),
        "",
        f"virtio features{'' if everything else ' (-v adds those that were not offered)'}",
        "  bit  name                    offered  accepted",
    ]
    for feature in found["features"]:
        if not (feature["offered"] or everything):
            continue
        offered = "yes" if feature["offered"] else "-"
        accepted = "yes" if feature["accepted"] else "-"
        row = f"  {feature['bit']:>3}  {feature['name']:<24}{offered:<9}{accepted:<10}"
        lines.append(f"{row}{feature['why']}".rstrip())
    return lines


def _is_bridge(function: dict[str, Any]) -> bool:
    return str(function["class"]).endswith("bridge")


def _alike(everything: bool) -> Callable[[dict[str, Any]], object]:
    """Return a key that is equal for neighbours to be shown on one line: bridges of one kind."""

    def key(function: dict[str, Any]) -> object:
        share = _is_bridge(function) and not everything
        return function["id"] if share else function["address"]

    return key


def _bar_text(bar: dict[str, Any]) -> str:
    kind = {"io": "I/O", "memory32": "32-bit memory", "memory64": "64-bit memory"}[bar["kind"]]
    prefetchable = ", prefetchable" if bar["prefetchable"] else ""
    where = "not placed" if bar["address"] is None else f"at {bar['address']:#x}"
    return f"BAR {bar['index']}: {bytes_text(bar['size'])} of {kind}{prefetchable} {where}"


def _capability_text(found: dict[str, Any]) -> str:
    words = f"capability {found['position']:#04x}: {found['name']}"
    if "offset" in found and found["length"]:
        words += f" in BAR {found['bar']} at {found['offset']:#x}, {found['length']:#x} bytes"
        if "notify_multiplier" in found:
            words += f", multiplier {found['notify_multiplier']}"
    elif "vectors" in found:
        count = found["vectors"]
        words += (
            f", {count} vector{'' if count == 1 else 's'}, table in BAR {found['table_bar']} "
            f"at {found['table_offset']:#x}"
        )
    elif "port_type" in found:
        words += f", {found['port_type']}"
    return words
