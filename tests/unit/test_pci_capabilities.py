"""Capability lists, valid and hostile; virtio structures; MSI-X."""

from __future__ import annotations

import random
import struct

import pytest

from support.fake_pci import FakeBus, FakeFunction, memory32, virtio_capability, virtio_net
from virtnic.errors import DeviceError
from virtnic.pci import (
    Bdf,
    ConfigSpace,
    Function,
    MsixCapability,
    MsixTable,
    PciBus,
    VirtioCapability,
    VirtioRegisters,
    doorbell_message,
    is_virtio_net,
    virtio_registers,
)
from virtnic.pci.capabilities import read_capabilities


def bus_with(function: FakeFunction) -> tuple[PciBus, Function]:
    fake = FakeBus()
    fake.put(3, 0, function)
    bus = PciBus(fake, "pc")
    bus.scan()
    return bus, bus.functions[-1]


def placed(function: FakeFunction) -> Function:
    bus, found = bus_with(function)
    return bus.enable(bus.place(found))


def test_virtio_structures_are_found() -> None:
    nic = placed(virtio_net())
    base = nic.bar(4).address
    assert base is not None
    registers = VirtioRegisters(base, base + 0x1000, base + 0x2000, base + 0x3000, 0x1000, 4)
    assert virtio_registers(nic) == registers
    assert nic.problems == ()
    names = [capability.name for capability in nic.capabilities]
    assert names[0] == "MSI-X"
    assert "virtio common" in names
    assert nic.capability(MsixCapability) == MsixCapability(0x11, 0x98, 3, 1, 0, 1, 0x800)


@pytest.mark.parametrize(
    ("pointer", "put", "says"),
    [
        (0x40, {0x40: b"\x01\x50", 0x50: b"\x01\x40"}, "loops back to 0x40"),
        (0x40, {0x40: b"\x01\x40"}, "loops back to 0x40"),
        (0x40, {0x40: b"\x01\x10"}, "into the header, to 0x10"),
        (0x08, {}, "into the header, to 0x8"),
        (0x40, {0x40: b"\xff\xff\xff\xff"}, "0x40 reads as all ones"),
        (0xFC, {0xFC: b"\x11\x00"}, "MSI-X at 0xfc: its 12 bytes pass the end"),
        (0xF4, {0xF4: virtio_capability(1, 4, 0, 64)}, "at 0xf4: its 16 bytes pass the end"),
        (0x40, {0x40: b"\x09\x00\x04\x01"}, "of 4 bytes, not 16"),
        (0x40, {0x40: virtio_capability(2, 4, 0, 64)}, "of 16 bytes, not 20"),
        (0xF0, {0xF0: b"\x10\x00\x42\x01"}, "PCI Express at 0xf0: its 28 bytes pass the end"),
    ],
)
def test_hostile_lists(pointer: int, put: dict[int, bytes], says: str) -> None:
    function = FakeFunction()
    function.capability(pointer, b"", first=True)
    for offset, body in put.items():
        function.capability(offset, body)
    _, found = bus_with(function)
    assert len(found.problems) == 1
    assert says in found.problems[0]


def test_what_is_before_a_broken_link_is_kept() -> None:
    function = FakeFunction()
    function.capability(0x40, b"\x01\x50", first=True)
    function.capability(0x50, b"\x05\x04")
    _, found = bus_with(function)
    assert [capability.identity for capability in found.capabilities] == [1, 5]


def test_any_bytes_are_survived() -> None:
    seeded = random.Random(20)
    for _ in range(500):
        fake = FakeBus()
        function = fake.put(3, 0, FakeFunction())
        function.data[0x40:] = seeded.randbytes(0xC0)
        if seeded.random() < 0.5:  # keep the walk going
            for offset in range(0x40, 0x100, 4):
                function.data[offset] = seeded.choice([0x09, 0x10, 0x11])
        reads = fake.reads
        read_capabilities(
            ConfigSpace(fake), Bdf(0, 3, 0), seeded.randrange(256), virtio=seeded.random() < 0.9
        )
        assert fake.reads - reads <= 48 * 6


def test_a_device_that_dies_at_any_moment_is_survived() -> None:
    fake = FakeBus()
    fake.put(2, 0, virtio_net())
    nic = fake.put(3, 0, virtio_net(transitional=True))
    bus = PciBus(fake, "pc")
    bus.scan()
    total, usable = nic.reads, 0
    for reads in range(total + 1):
        nic.reads, nic.dies_after = 0, reads
        bus.scan()
        found = {function.bdf.slot: function for function in bus.functions}
        assert virtio_registers(bus.enable(bus.place(found[2])))
        if 3 in found and is_virtio_net(found[3]):
            try:
                registers = virtio_registers(bus.place(found[3]))
            except DeviceError:
                continue
            base = bus.functions[-1].bar(4).address
            assert base is not None
            assert all(base <= address < base + 0x4000 for address in registers[:4])
            usable += 1
        else:
            assert reads < total
    assert 1 <= usable < total


@pytest.mark.parametrize(
    ("place", "body", "says"),
    [
        (0x40, virtio_capability(1, 4, 0x3FF0, 0x1000), "exceeds BAR 4"),
        (0x40, virtio_capability(1, 4, 0xFFFFF000, 0xFFFFFFFF), "exceeds BAR 4"),
        (0x40, virtio_capability(1, 4, 0, 0x20), "too few for the 56 it needs"),
        (0x40, virtio_capability(1, 4, 2, 0x100), "not aligned to 4"),
        (0x40, virtio_capability(1, 2, 0, 0x100), "is in a missing BAR"),
        (0x40, virtio_capability(1, 0, 0, 0x10), "is in I/O BAR 0"),
        (0x40, virtio_capability(1, 6, 0, 0x100), "no virtio common structure"),
        (0x50, virtio_capability(3, 4, 0, 0, following=0x40), "has 0 bytes, too few"),
        (0x80, struct.pack("<I", 6), "notify multiplier 0x6 is neither"),
        (0x80, struct.pack("<I", 1), "notify multiplier 0x1 is neither"),
    ],
)
def test_structures_outside_the_rules(place: int, body: bytes, says: str) -> None:
    function = virtio_net(transitional=True)
    function.capability(place, body)
    with pytest.raises(DeviceError, match=says):
        virtio_registers(placed(function))


def test_the_first_usable_structure_counts() -> None:
    function = virtio_net()
    function.capability(0x40, virtio_capability(1, 7, 0, 0x1000, following=0xB0))
    function.capability(0xB0, virtio_capability(1, 4, 0x100, 0x100, following=0xC0))
    function.capability(0xC0, virtio_capability(1, 4, 0x200, 0x100))
    nic = placed(function)
    assert len(nic.capabilities_of(VirtioCapability)) == 7
    assert virtio_registers(nic).common == (nic.bar(4).address or 0) + 0x100


def test_unplaced_registers_have_no_address() -> None:
    _, nic = bus_with(virtio_net())
    with pytest.raises(ValueError, match="is not placed"):
        virtio_registers(nic)


class Mmio:
    """Remembers MMIO writes."""

    def __init__(self) -> None:
        self.words: dict[int, int] = {}

    def writel(self, address: int, value: int) -> None:
        self.words[address] = value


def test_msix_entries() -> None:
    bus, nic = bus_with(virtio_net())
    nic = bus.enable(bus.place(nic))
    mmio = Mmio()
    table = MsixTable(mmio, bus.config, nic)
    table.enable()
    assert bus.config.read16(nic.bdf, 0x9A) & 0x8000
    table.set(2, 0x1_2345_6780, 0x10003)
    base = (nic.bar(1).address or 0) + 32
    assert mmio.words == {base: 0x23456780, base + 4: 1, base + 8: 0x10003, base + 12: 0}


def test_msix_bounds() -> None:
    bus, nic = bus_with(virtio_net())
    with pytest.raises(ValueError, match="is not placed"):
        MsixTable(Mmio(), bus.config, nic)
    table = MsixTable(Mmio(), bus.config, bus.place(nic))
    for vector in (-1, 3):
        with pytest.raises(ValueError, match="has 3 entries"):
            table.set(vector, 0x1000, 0)
    with pytest.raises(ValueError, match="multiple of 4"):
        table.set(0, 0x1002, 0)
    with pytest.raises(ValueError, match="32 bits"):
        table.set(0, 0x1000, 1 << 32)


@pytest.mark.parametrize(
    ("table", "says"),
    [(0xFF1, "exceeds"), (0x3, "missing BAR"), (0x0, "I/O BAR 0")],
)
def test_msix_table_outside_its_bar(table: int, says: str) -> None:
    function = virtio_net(transitional=True)
    function.capability(0x98, struct.pack("<BBHII", 0x11, 0, 2, table & ~7 | table & 7, 0))
    bus, nic = bus_with(function)
    with pytest.raises(DeviceError, match=says):
        MsixTable(Mmio(), bus.config, bus.place(nic))


def test_no_msix() -> None:
    bus, nic = bus_with(FakeFunction(bars={0: memory32(64)}))
    with pytest.raises(ValueError, match="has no MSI-X"):
        MsixTable(Mmio(), bus.config, bus.place(nic))


def test_doorbell_message() -> None:
    bus, device = bus_with(FakeFunction(device=0x1110, bars={0: memory32(256)}))
    with pytest.raises(ValueError, match="is not placed"):
        doorbell_message(device, 1)
    device = bus.place(device)
    assert doorbell_message(device, 0x10002) == ((device.bar(0).address or 0) + 12, 0x10002)
