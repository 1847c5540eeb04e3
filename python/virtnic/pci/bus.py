"""The PCI bus of one QEMU: its functions and their addresses."""

from __future__ import annotations

import functools
import logging
import threading
from dataclasses import replace
from typing import TYPE_CHECKING, TypeVar

from virtnic._native import QemuError
from virtnic.pci.bars import Bar, BarKind, Range
from virtnic.pci.chipset import chipset
from virtnic.pci.config import (
    COMMAND_IO,
    COMMAND_MASTER,
    COMMAND_MEMORY,
    Bdf,
    ConfigSpace,
    PortIO,
)
from virtnic.pci.hotplug import acpi_hotplug, eject_acpi, eject_native
from virtnic.pci.intx import route
from virtnic.pci.scan import scan
from virtnic.pci.windows import Addresses
from virtnic.teardown import uninterrupted

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from virtnic.pci.function import Function

__all__ = ["PciBus"]

_log = logging.getLogger(__name__)

T = TypeVar("T")

_COMMAND = 0x04
#: What is read where no function answers.
_NOTHING = 0xFFFFFFFF


class PciBus:
    """The PCI bus of a machine.

    ``machine`` is ``pc`` or ``q35``; ``ram`` its memory in bytes; ``reserved`` lists further
    addresses where no BAR may go. Usable from any thread.

    >>> bus = PciBus(qtest, "pc")
    >>> bus.scan()
    >>> [ivshmem] = find_ivshmems(bus.functions)
    >>> ivshmem = bus.enable(bus.place(ivshmem, fixed={2: memory.iova}))
    """

    def __init__(
        self,
        qtest: PortIO,
        machine: str,
        reserved: Iterable[Range] = (),
        *,
        ram: int = 16 << 20,
    ) -> None:
        self.config = ConfigSpace(qtest)
        self.chipset = chipset(machine)
        self._ports = qtest
        self._ram = ram
        self._reserved = tuple(reserved)
        self._lock = threading.RLock()
        #: Held while addresses are taken or freed, where no signal handler runs: one that runs in
        #: the middle of a method has the other lock, too.
        self._changing = threading.Lock()
        self._native_hotplug = False
        self._forget_everything()

    def _forget_everything(self) -> None:
        self._functions: dict[Bdf, Function] = {}
        self._addresses = Addresses(self.config, self._ram, self._reserved)
        self._ranges: dict[Bdf, dict[int, Range]] = {}
        self._forwarding: set[Bdf] = set()

    @property
    def functions(self) -> tuple[Function, ...]:
        """The functions found by the last scan, in order of bus, slot and function number."""
        with self._lock:
            return tuple(self._functions[bdf] for bdf in sorted(self._functions))

    def scan(self) -> list[Function]:
        """Take over the bus and return its functions.

        Everything configured earlier is disabled and loses its addresses.

        Raises QemuError if this is not the expected machine.
        """
        with self._lock:
            host_bridge = self.config.read32(Bdf(0, 0, 0), 0)
            vendor, device = self.chipset.host_bridge
            if host_bridge != device << 16 | vendor:
                raise QemuError(
                    f"the host bridge of a {self.chipset.machine!r} machine is "
                    f"{vendor:04x}:{device:04x}, but this one is "
                    f"{host_bridge & 0xFFFF:04x}:{host_bridge >> 16:04x}; "
                    "pass the machine that QEMU was started with"
                )
            self._forget_everything()
            self._native_hotplug = not acpi_hotplug(self._ports, self.chipset)
            found = scan(self.config, native_hotplug=self._native_hotplug)
            self._functions = {function.bdf: function for function in found}
            return found

    def rescan(self) -> list[Function]:
        """Scan again after a hotplug; return the new functions.

        Known functions that are still there are not touched; the addresses of removed or replaced
        ones are freed.
        """
        with self._lock:
            while True:
                known = dict(self._functions)
                found = scan(self.config, known, native_hotplug=self._native_hotplug)
                # A signal handler of this thread may have unplugged a device, which is half read.
                if self._functions == known:
                    break
            kept = {function.bdf for function in found if known.get(function.bdf) is function}
            for bdf in sorted(known.keys() - kept, reverse=True):  # first those behind bridges
                self.remove(known[bdf])
            self._functions = {function.bdf: function for function in found}
            return [function for function in found if function.bdf not in kept]

    def place(self, function: Function, fixed: Mapping[int, int] | None = None) -> Function:
        """Assign an address to every BAR of a function; return the function with them.

        ``fixed``: required addresses by BAR number. A function that is already placed is disabled
        and placed again. An I/O BAR for which there is no room is left out: only the legacy
        interface needs it.

        Raises ValueError for a fixed address that is misaligned or overlaps something, which is
        named; QemuError if there is no room.
        """
        fixed = fixed or {}
        with self._lock:
            function = self._current(function)
            for index in fixed:
                function.bar(index)
            self._switch_off(function)
            function = self._forget_addresses(function)
            ranges = self._change(functools.partial(self._take_all, function, fixed))
            placed = tuple(
                replace(bar, address=ranges[bar.index].start if bar.index in ranges else None)
                for bar in function.bars
            )
            for bar in placed:
                if bar.address is not None:
                    bar.write(self.config, function.bdf, bar.address)
            function = replace(function, bars=placed)
            self._functions[function.bdf] = function
            for index, address in fixed.items():
                held = function.bar(index).read(self.config, function.bdf)
                if held != address:
                    self.release(function)
                    raise QemuError(
                        f"BAR {index} of {function} was set to {address:#x} but holds {held:#x}"
                    )
            return function

    def _change(self, function: Callable[[], T]) -> T:
        """Call what takes or frees addresses, as a whole."""

        def run() -> T:
            with self._changing:
                return function()

        return uninterrupted(run)

    def _take_all(self, function: Function, fixed: Mapping[int, int]) -> dict[int, Range]:
        """Allocate addresses for all BARs, or for none."""
        ranges: dict[int, Range] = {}
        self._ranges[function.bdf] = ranges
        try:
            for bar in sorted(function.bars, key=lambda bar: (bar.index not in fixed, -bar.size)):
                taken = self._take(function, bar, fixed.get(bar.index))
                if taken:
                    ranges[bar.index] = taken
        except (ValueError, QemuError):
            self._free_all(function)
            raise
        return ranges

    def _take(self, function: Function, bar: Bar, address: int | None) -> Range | None:
        owner = f"BAR {bar.index} of {function}"
        if address is not None:
            return self._addresses.claim(function.path, bar, address, owner)
        try:
            return self._addresses.allocate(function.path, bar, owner)
        except QemuError as full:
            if bar.kind is not BarKind.IO:
                raise
            _log.warning("%s is not placed: %s", owner, full)
            return None

    def enable(self, function: Function) -> Function:
        """Enable memory decoding and bus mastering of a placed function; return it.

        Raises QemuError if the function does not accept it: it is gone, or was never there.
        """
        with self._lock:
            function = self._current(function)
            for bridge in function.path:
                if bridge not in self._forwarding:
                    everything = COMMAND_IO | COMMAND_MEMORY | COMMAND_MASTER
                    self.config.write16(bridge, _COMMAND, everything)
                    self._forwarding.add(bridge)
            wanted = COMMAND_MASTER
            for bar in function.bars:
                if bar.address is not None:
                    wanted |= COMMAND_IO if bar.kind is BarKind.IO else COMMAND_MEMORY
            self.config.write16(function.bdf, _COMMAND, wanted)
            held = self.config.read16(function.bdf, _COMMAND)
            if held == 0xFFFF or held & wanted != wanted:
                raise QemuError(
                    f"{function} cannot be enabled: its command register was set to "
                    f"{wanted:#06x} and reads {held:#06x}"
                )
            return function

    def release(self, function: Function) -> Function:
        """Disable a function and free its addresses; return it without them."""
        with self._lock:
            function = self._current(function)
            self._switch_off(function)
            return self._forget_addresses(function)

    def eject(self, function: Function) -> bool:
        """Let a function go that QMP's ``device_del`` asked for, and forget it; whether it is gone.

        What answers no more at its place is unrealized: nobody uses our memory for it any more. The
        event DEVICE_DELETED comes up to 60 ms later, from QEMU's thread that frees memory (RCU).

        Raises QemuError if QEMU has not requested it; the function is then disabled but still
        known.
        """
        with self._lock:
            function = self._current(function)
            self._switch_off(function)
            if not self._native_hotplug:
                buses = 1 + sum(known.is_bridge for known in self._functions.values())
                eject_acpi(self._ports, self.chipset, function, buses)
            elif function.path:
                eject_native(self.config, self._functions[function.path[-1]])
            else:
                raise QemuError(
                    f"{function} is on the root bus of a q35 machine, which has no hotplug; "
                    "plug devices into a pcie-root-port"
                )
            self.remove(function)
            return self.config.read32(function.bdf, 0) == _NOTHING

    def remove(self, function: Function) -> None:
        """Forget a function that is gone and free its addresses. Repeated calls are allowed."""
        with self._lock:
            known = self._functions.get(function.bdf)
            if known is not None:
                self._change(functools.partial(self._remove, known))

    def _remove(self, known: Function) -> None:
        self._free_all(known)
        if known.is_bridge:
            self._forwarding.discard(known.bdf)
        self._functions.pop(known.bdf, None)

    def route_intx(self, function: Function) -> int:
        """Return the IO-APIC line of a function's interrupt pin.

        Raises ValueError if it has no pin.
        """
        with self._lock:
            return route(self.config, self.chipset, self._current(function))

    def _current(self, function: Function) -> Function:
        """Return the current state of a function; the caller's snapshot may be older."""
        known = self._functions.get(function.bdf)
        if known is None or (known.vendor, known.device) != (function.vendor, function.device):
            raise QemuError(f"{function} is no longer on the bus; call rescan()")
        return known

    def _switch_off(self, function: Function) -> None:
        self.config.write16(function.bdf, _COMMAND, 0)

    def _forget_addresses(self, function: Function) -> Function:
        self._change(functools.partial(self._free_all, function))
        bare = replace(function, bars=tuple(replace(bar, address=None) for bar in function.bars))
        self._functions[function.bdf] = bare
        return bare

    def _free_all(self, function: Function) -> None:
        # The writes to QEMU are not waited for, so this is quick enough for `uninterrupted`.
        for index, taken in self._ranges.pop(function.bdf, {}).items():
            self._addresses.free(function.path, function.bar(index), taken)
