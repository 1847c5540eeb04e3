"""Enumeration of the functions on the bus.

Bridges get bus numbers on the way, depth first, so that what is behind them, now or after a
hotplug, is reachable. Found functions are disabled and bridge windows closed: addresses come later,
from :class:`virtnic.pci.PciBus`. A function that is already known is only checked, not written to.
"""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import TYPE_CHECKING

from virtnic.errors import QemuError
from virtnic.pci.bars import size_bars
from virtnic.pci.capabilities import PcieCapability, read_capabilities
from virtnic.pci.config import Bdf
from virtnic.pci.function import BusNumbers, Function
from virtnic.pci.hotplug import power_on

if TYPE_CHECKING:
    from collections.abc import Mapping

    from virtnic.pci.bars import Bar
    from virtnic.pci.capabilities import Capability
    from virtnic.pci.config import ConfigSpace

__all__ = ["scan"]

_log = logging.getLogger(__name__)

_ABSENT = 0xFFFF
_BUS_NUMBERS = 0x18
_LAST_BUS = 0xFF
#: More than any machine started here has. All 65,536 possible functions would take minutes and
#: hundreds of megabytes.
_MOST_FUNCTIONS = 512
#: Seconds for the whole bus; it takes milliseconds.
_TIMEOUT = 30.0


def scan(
    config: ConfigSpace,
    known: Mapping[Bdf, Function] | None = None,
    *,
    native_hotplug: bool = False,
) -> list[Function]:
    """Return every function, bridges before what is behind them.

    Of the ``known`` functions, those still there and still configured are returned unchanged. With
    ``native_hotplug`` the slots of PCIe ports are powered.

    Raises QemuError for an endless bus, TimeoutError for one that answers too slowly.
    """
    with config.within(_TIMEOUT):
        return _Scanner(config, known or {}, native_hotplug).run()


class _Scanner:
    def __init__(
        self, config: ConfigSpace, known: Mapping[Bdf, Function], native_hotplug: bool
    ) -> None:
        self._config = config
        self._known = known
        self._native_hotplug = native_hotplug
        self._found: list[Function] = []
        self._last_bus = max((f.buses.subordinate for f in known.values() if f.buses), default=0)

    def run(self) -> list[Function]:
        self._scan_bus(0, (), range(32), numbering=True)
        return self._found

    def _scan_bus(self, bus: int, path: tuple[Bdf, ...], slots: range, *, numbering: bool) -> None:
        first = len(self._found)
        for slot in slots:
            self._scan_slot(bus, slot, path)
        for position in range(first, len(self._found)):
            bridge = self._found[position]
            if bridge.is_bridge:
                self._scan_behind(position, bridge, numbering)

    def _scan_slot(self, bus: int, slot: int, path: tuple[Bdf, ...]) -> None:
        for number in range(8):
            bdf = Bdf(bus, slot, number)
            identity = self._config.read32(bdf, 0x00)
            if identity & 0xFFFF == _ABSENT:
                if number == 0:
                    return
                continue
            if len(self._found) == _MOST_FUNCTIONS:
                raise QemuError(
                    f"more than {_MOST_FUNCTIONS} PCI functions answer, up to {bdf}; no QEMU has "
                    "as many: is it QEMU that answers on the QTest socket?"
                )
            function = self._look_at(bdf, path, identity)
            self._found.append(function)
            if number == 0 and not function.multifunction:
                return

    def _look_at(self, bdf: Bdf, path: tuple[Bdf, ...], identity: int) -> Function:
        known = self._known.get(bdf)
        if known and _is_live(self._config, known, identity):
            return known
        function = _read_function(self._config, bdf, path, identity)
        return known if known == function else function

    def _scan_behind(self, position: int, bridge: Function, numbering: bool) -> None:
        """Scan the bus behind a bridge; number it first if it is new."""
        pcie = bridge.capability(PcieCapability)
        slots = range(1) if pcie and pcie.leads_to_one_device else range(32)
        path = (*bridge.path, bridge.bdf)
        if bridge.buses:
            if pcie and self._native_hotplug:
                power_on(self._config, bridge)
            self._scan_bus(bridge.buses.secondary, path, slots, numbering=False)
            return
        if not numbering or self._last_bus == _LAST_BUS:
            # Numbers below a bridge are contiguous: a bridge plugged in below another would need
            # numbers that its neighbours have.
            _log.warning("%s has no bus number: what is behind it cannot be reached", bridge)
            return
        secondary = self._last_bus = self._last_bus + 1
        self._write_bus_numbers(bridge, BusNumbers(secondary, _LAST_BUS))
        _close_windows(self._config, bridge.bdf)
        if pcie and self._native_hotplug:
            power_on(self._config, bridge)
        self._scan_bus(secondary, path, slots, numbering=True)
        buses = BusNumbers(secondary, self._last_bus)
        self._write_bus_numbers(bridge, buses)
        self._found[position] = replace(bridge, buses=buses)

    def _write_bus_numbers(self, bridge: Function, buses: BusNumbers) -> None:
        self._config.write32(
            bridge.bdf,
            _BUS_NUMBERS,
            bridge.bdf.bus | buses.secondary << 8 | buses.subordinate << 16,
        )


def _is_live(config: ConfigSpace, known: Function, identity: int) -> bool:
    """Whether a function we configured is still there, rather than another one in its place.

    A new device has neither the addresses nor the bus numbers of the known one.
    """
    if identity != known.device << 16 | known.vendor:
        return False
    if known.buses:
        return config.read32(known.bdf, _BUS_NUMBERS) >> 8 & 0xFF == known.buses.secondary
    for bar in known.bars:
        if bar.address is not None:
            return bar.read(config, known.bdf) == bar.address
    return False


def _close_windows(config: ConfigSpace, bridge: Bdf) -> None:
    """Make a bridge forward no addresses: base above limit (PCI-PCI bridge 1.2, 3.2.5)."""
    config.write16(bridge, 0x1C, 0x00F0)
    config.write32(bridge, 0x30, 0)
    config.write32(bridge, 0x20, 0x0000_FFF0)
    config.write32(bridge, 0x24, 0x0000_FFF0)
    config.write32(bridge, 0x28, 0)
    config.write32(bridge, 0x2C, 0)


def _read_function(config: ConfigSpace, bdf: Bdf, path: tuple[Bdf, ...], identity: int) -> Function:
    command_status = config.read32(bdf, 0x04)
    class_revision = config.read32(bdf, 0x08)
    header = config.read32(bdf, 0x0C) >> 16 & 0xFF
    header_type = header & 0x7F
    vendor, device = identity & 0xFFFF, identity >> 16
    class_code = class_revision >> 8
    is_device, is_bridge = header_type == 0, header_type == 1

    bars: tuple[Bar, ...] = ()
    problems: list[str] = []
    # The chipset's own bridges (class 6 but not a bridge to PCI) always decode.
    if is_bridge or (is_device and class_code >> 16 != 0x06):
        if command_status & 0x7:
            # Left over from firmware or from a program that has ended, as the QTest socket takes
            # one connection. The device must not access memory any more.
            config.write16(bdf, 0x04, 0)
        bars, wrong = size_bars(config, bdf, 2 if is_bridge else 6)
        problems += wrong
    subsystem = config.read32(bdf, 0x2C) if is_device else 0
    capabilities: tuple[Capability, ...] = ()
    if command_status >> 16 & 1 << 4 and (is_device or is_bridge):
        pointer = config.read32(bdf, 0x34) & 0xFF
        virtio = vendor == 0x1AF4 and 0x1000 <= device <= 0x107F
        capabilities, wrong = read_capabilities(config, bdf, pointer, virtio=virtio)
        problems += wrong
    pin = config.read32(bdf, 0x3C) >> 8 & 0xFF
    if pin > 4:
        problems.append(f"interrupt pin {pin}; there are 4")
        pin = 0
    function = Function(
        bdf=bdf,
        path=path,
        vendor=vendor,
        device=device,
        subsystem_vendor=subsystem & 0xFFFF,
        subsystem=subsystem >> 16,
        class_code=class_code,
        revision=class_revision & 0xFF,
        header_type=header_type,
        multifunction=bool(header & 0x80),
        pin=pin,
        bars=bars,
        capabilities=capabilities,
        problems=tuple(problems),
    )
    for problem in problems:
        _log.warning("%s: %s", function, problem)
    return function
