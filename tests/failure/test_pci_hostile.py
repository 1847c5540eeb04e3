"""Endless and slow PCI buses: the scan ends.

Capability lists and single devices that lie are in ``test_pci_capabilities.py`` and
``test_pci_fuzz.py``.
"""

from __future__ import annotations

import time
import tracemalloc

import pytest

from support.fake_pci import FakeBus, FakeFunction, virtio_net
from support.waiting import PROMPT, pause
from virtnic.errors import QemuError
from virtnic.pci import Bdf, PciBus
from virtnic.pci import scan as scanner


class Endless(FakeBus):
    """Every function of every bus is there, and a bridge to more."""

    def __init__(self, function: FakeFunction) -> None:
        super().__init__()
        self._template = function

    def find(self, bus: int, slot: int, number: int) -> FakeFunction | None:
        if (bus, slot) in ((0, 0), (0, 1)):
            return super().find(bus, slot, number)
        return self._template


def bridge() -> FakeFunction:
    """A bridge with as many capabilities as there is room for."""
    function = FakeFunction(0x1B36, 0x000C, 0x060400, header=0x81)
    for position in range(0x40, 0x100, 4):
        following = position + 4 if position < 0xFC else 0
        function.capability(position, bytes((1, following, 0, 0)), first=position == 0x40)
    return function


def device() -> FakeFunction:
    function = virtio_net()
    function.data[0x0E] = 0x80  # several functions
    return function


def test_a_bus_without_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scanner, "_TIMEOUT", 600.0)  # for a busy machine
    tracemalloc.start()
    bus = PciBus(Endless(bridge()), "pc")
    with pytest.raises(QemuError, match="more than 512 PCI functions answer"):
        bus.scan()
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 32 << 20
    # It is as it was before: empty.
    assert bus.functions == ()


def test_a_bus_that_answers_slowly(monkeypatch: pytest.MonkeyPatch) -> None:
    class Slow(FakeBus):
        def _in(self, port: int, width: int) -> int:
            pause(0.02)
            return super()._in(port, width)

    fake = Slow()
    for slot in range(2, 32):
        fake.put(slot, 0, virtio_net())
    monkeypatch.setattr(scanner, "_TIMEOUT", 0.3)
    bus = PciBus(fake, "pc")
    began = time.monotonic()
    with pytest.raises(TimeoutError, match="answers too slowly"):
        bus.scan()
    assert time.monotonic() - began < PROMPT
    # The timeout is for one scan only.
    assert bus.config.read32(Bdf(0, 0, 0), 0) == 0x1237_8086


def test_as_many_functions_as_a_bus_has() -> None:
    fake = FakeBus()
    for slot in range(2, 32):
        for number in range(8):
            fake.put(slot, number, device())
    bus = PciBus(fake, "pc")
    bus.scan()
    assert len(bus.functions) == 2 + 30 * 8
