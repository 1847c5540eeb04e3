"""Describes the rings of a port from their memory alone."""

import struct
from itertools import groupby
from typing import Any

_DESCRIPTOR = struct.Struct("<QIHH")  # address, length, id, flags
_AVAIL, _USED, _WRAP = 1 << 7, 1 << 15, 1 << 15
#: How a packed ring's owner of events says what it wants (VIRTIO 1.3, section 2.8.10).
_EVENTS = ("enabled", "disabled", "at", "?")
#: Runs of like descriptors that are printed: a ring in order has two or three.
_RUNS = 12


def describe(port: Any) -> list[str]:
    """Return a line for each ring."""
    return [_ring(port, *areas) for areas in port.queue_addresses]


def _ring(port: Any, name: str, descriptors: int, driver: int, device: int) -> str:
    memory, size = port.memory, port.queue_size

    def read(address: int, length: int) -> bytes:
        return bytes(memory.read(memory.offset_of(address, length), length))

    if port.ring == "packed":
        ours, theirs = (struct.unpack("<HH", read(area, 4)) for area in (driver, device))
        return (
            f"{name}: interrupts {_event(*ours)}, kicks {_event(*theirs)}; "
            f"{_runs(read(descriptors, 16 * size))}"
        )
    flags, available, *heads = struct.unpack(f"<{3 + size}H", read(driver, 6 + 2 * size))
    suppressed, used = struct.unpack("<HH", read(device, 4))
    (event,) = struct.unpack("<H", read(device + 4 + 8 * size, 2))
    waiting = (available - used) % 65536
    first = [heads[(used + n) % size] for n in range(min(waiting, 8))]
    lengths = [_DESCRIPTOR.unpack(read(descriptors + 16 * head, 16))[1] for head in first]
    return (
        f"{name}: available {available}, used {used}, {waiting} with the device, the first of "
        f"lengths {lengths}; flags {flags} and {suppressed}, events at {heads[-1]} and {event}"
    )


def _event(at: int, flags: int) -> str:
    return (
        f"{_EVENTS[flags & 3]} {at & ~_WRAP} (lap {at >> 15})"
        if flags & 3 == 2
        else (_EVENTS[flags & 3])
    )


def _runs(table: bytes) -> str:
    """Say which descriptors are whose, in runs of the same flags and length."""
    found = []
    entries = enumerate(_DESCRIPTOR.iter_unpack(table))
    for kind, run in groupby(entries, lambda entry: _kind(*entry[1])):
        places = [place for place, _ in run]
        ends = f"{places[0]}" if len(places) == 1 else f"{places[0]}-{places[-1]}"
        found.append(f"{ends} {kind}")
    more = f" and {len(found) - _RUNS} more runs" if len(found) > _RUNS else ""
    return ", ".join(found[:_RUNS]) + more


def _kind(_address: int, length: int, _ident: int, flags: int) -> str:
    """Describe who owns a descriptor, and the length of one that the device owns."""
    lap = flags >> 7 & 1
    if bool(flags & _AVAIL) == bool(flags & _USED):
        return f"used in lap {lap}"
    what = f"{length} bytes" if flags & 2 else ("empty" if length == 0 else "a frame")
    return f"available in lap {lap} ({what})"
