"""Enumeration, bridges, hotplug and interrupt lines."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

from support.fake_pci import FakeBus, FakeFunction, ivshmem, virtio_net
from support.inside import machine_of
from virtnic.errors import QemuError
from virtnic.pci import (
    Bdf,
    ConfigSpace,
    Function,
    MsixTable,
    PciBus,
    device_name,
    find_ivshmems,
    find_virtio_nets,
    virtio_registers,
)
from virtnic.pci.scan import scan

if TYPE_CHECKING:
    import virtnic

IOVA = 0x1F00_0000_0000
ACPI_PC = 0xAE00
ACPI_Q35 = 0xCC0


def addresses(bus: PciBus) -> list[str]:
    return [str(function.bdf) for function in bus.functions]


def test_functions_are_enumerated() -> None:
    fake = FakeBus()
    fake.put(3, 0, FakeFunction(header=0x80))
    fake.put(3, 5, FakeFunction())
    fake.put(4, 0, FakeFunction())
    fake.put(4, 1, FakeFunction())  # invisible: function 0 does not say that there are more
    bus = PciBus(fake, "pc")
    bus.scan()
    assert addresses(bus) == ["00:00.0", "00:01.0", "00:03.0", "00:03.5", "00:04.0"]


def test_devices_are_found_by_identity() -> None:
    fake = FakeBus()
    fake.put(31, 0, virtio_net())
    fake.put(7, 0, virtio_net(transitional=True))
    fake.put(8, 0, FakeFunction(device=0x1000, subsystem=2))
    fake.put(9, 0, ivshmem())
    bus = PciBus(fake, "pc")
    bus.scan()
    assert [f.bdf.slot for f in find_virtio_nets(bus.functions)] == [7, 31]
    assert [f.bdf.slot for f in find_ivshmems(bus.functions)] == [9]
    assert [device_name(f.vendor, f.device, f.subsystem) for f in bus.functions[2:]] == [
        "virtio network (transitional)",
        "virtio block (transitional)",
        "ivshmem shared memory",
        "virtio network (modern)",
    ]


def test_the_wrong_machine_is_noticed() -> None:
    with pytest.raises(QemuError, match="'q35' machine is 8086:29c0, but this one is 8086:1237"):
        PciBus(FakeBus(), "q35").scan()
    with pytest.raises(ValueError, match="'microvm' is not supported"):
        PciBus(FakeBus(), "microvm")
    PciBus(FakeBus(), "pc-i440fx-7.2").scan()


def test_a_leftover_device_is_silenced() -> None:
    fake = FakeBus()
    nic = fake.put(3, 0, virtio_net())
    nic.write(0x04, 2, 6)
    PciBus(fake, "pc").scan()
    assert nic.get(0x04) & 7 == 0


def test_bad_configuration_accesses() -> None:
    config = ConfigSpace(FakeBus())
    place = Bdf(0, 0, 0)
    with pytest.raises(ValueError, match="no PCI address"):
        config.read32(Bdf(0, 32, 0), 0)
    for offset in (-4, 2, 0x100):
        with pytest.raises(ValueError, match="not an aligned part"):
            config.read32(place, offset)
    with pytest.raises(ValueError, match="does not fit 16 bits"):
        config.write16(place, 4, 0x10000)


def q35(*, acpi: bool = True, ports: int = 2) -> tuple[FakeBus, list[FakeBus], PciBus]:
    fake = FakeBus("q35")
    inside = [fake.put_bridge(2 + number) for number in range(ports)]
    if not acpi:
        fake.nothing_at.add(ACPI_Q35 + 0x10)
    bus = PciBus(fake, "q35")
    bus.scan()
    return fake, inside, bus


def test_what_is_behind_root_ports_can_be_reached() -> None:
    fake, inside, bus = q35()
    assert addresses(bus) == ["00:00.0", "00:02.0", "00:03.0"]
    inside[1].put(0, 0, virtio_net())
    inside[1].put(1, 0, virtio_net())  # a link has one device; such an echo is not real
    [nic] = bus.rescan()
    assert str(nic.bdf) == "02:00.0"
    assert nic.path == (Bdf(0, 3, 0),)
    nic = bus.enable(bus.place(nic))
    port = fake.functions[0, 3, 0]
    assert port.get(0x04) & 7 == 7
    memory, prefetchable = nic.bar(1).address, nic.bar(4).address
    assert memory is not None
    assert prefetchable is not None
    for address, register in ((memory, 0x20), (prefetchable, 0x24)):
        base, limit = port.get(register) & 0xFFF0, port.get(register) >> 16 & 0xFFF0
        assert base << 16 <= address <= limit << 16 | 0xFFFFF
    other = fake.functions[0, 2, 0]
    for register in (0x20, 0x24):
        assert other.get(register) & 0xFFF0 > other.get(register) >> 16


def test_bridges_below_bridges() -> None:
    fake = FakeBus("q35")
    upstream = fake.put_bridge(2)
    switch = upstream.put_bridge(0, port_type=5)
    for slot in (0, 1, 4):
        switch.put_bridge(slot, port_type=6).put(0, 0, virtio_net(transitional=True))
    fake.put_bridge(9).put(0, 0, virtio_net())
    bus = PciBus(fake, "q35")
    bus.scan()
    numbers = {str(f.bdf): f.buses for f in bus.functions if f.buses}
    spans = {place: (b.secondary, b.subordinate) for place, b in numbers.items()}
    assert spans == {
        "00:02.0": (1, 5),
        "01:00.0": (2, 5),
        "02:00.0": (3, 3),
        "02:01.0": (4, 4),
        "02:04.0": (5, 5),
        "00:09.0": (6, 6),
    }
    nics = [bus.enable(bus.place(nic)) for nic in find_virtio_nets(bus.functions)]
    assert [str(nic.bdf) for nic in nics] == ["03:00.0", "04:00.0", "05:00.0", "06:00.0"]
    placed = sorted((b.address, b.size) for nic in nics for b in nic.bars if b.address)
    assert len(placed) == 3 * 3 + 2
    for nic in nics:  # each window lies inside the one above
        outer = (0, 1 << 32)
        for place in nic.path:
            bridge = fake.find(*place)
            assert bridge is not None
            word = bridge.get(0x20)
            window = ((word & 0xFFF0) << 16, (word & 0xFFF00000) + 0x100000)
            assert outer[0] <= window[0] < window[1] <= outer[1]
            outer = window
        assert outer[0] <= (nic.bar(1).address or 0) < outer[1]
    for nic in nics:
        bus.release(nic)
    again = [bus.place(nic) for nic in nics]
    assert [f.bars for f in again] == [nic.bars for nic in nics]


def test_exact_addresses_behind_a_bridge() -> None:
    fake, inside, bus = q35()
    inside[0].put(0, 0, ivshmem())
    inside[1].put(0, 0, ivshmem())
    one, two = bus.rescan()
    bus.place(one, fixed={2: IOVA})
    port = fake.functions[0, 2, 0]
    assert (port.get(0x28), port.get(0x2C)) == (IOVA >> 32, IOVA >> 32)
    with pytest.raises(ValueError, match=r"overlaps the prefetchable window of bridge 00:02\.0"):
        bus.place(two, fixed={2: IOVA})
    bus.place(one, fixed={2: IOVA << 1})
    bus.place(two, fixed={2: IOVA})


def test_rescan_does_not_touch_live_devices() -> None:
    fake = FakeBus()
    shared, nic = fake.put(2, 0, ivshmem()), fake.put(3, 0, virtio_net())
    bus = PciBus(fake, "pc")
    bus.scan()
    bus.enable(bus.place(bus.functions[2], fixed={2: IOVA}))
    bus.enable(bus.place(bus.functions[3]))
    before = bus.functions
    for function in (shared, nic):
        function.writes.clear()
    fake.put(4, 0, virtio_net())
    [new] = bus.rescan()
    assert new.bdf.slot == 4
    assert bus.functions[:4] == before
    assert shared.writes == nic.writes == []
    assert bus.rescan() == []


def test_a_replaced_device_is_new() -> None:
    fake = FakeBus()
    fake.put(3, 0, virtio_net())
    bus = PciBus(fake, "pc")
    bus.scan()
    old = bus.place(bus.functions[2])
    fake.put(3, 0, virtio_net())
    [new] = bus.rescan()
    assert new.bar(4).address is None
    assert bus.place(new).bars == old.bars  # the old addresses were free again


def test_what_is_gone_frees_its_addresses() -> None:
    fake = FakeBus()
    fake.put(3, 0, ivshmem())
    bus = PciBus(fake, "pc")
    bus.scan()
    gone = bus.place(bus.functions[2], fixed={2: IOVA})
    fake.pull(3)
    assert bus.rescan() == []
    with pytest.raises(QemuError, match=r"00:03\.0.* is no longer on the bus"):
        bus.enable(gone)
    bus.remove(gone)
    fake.put(5, 0, ivshmem())
    [other] = bus.rescan()
    bus.place(other, fixed={2: IOVA})


def test_what_is_unplugged_during_a_scan(monkeypatch: pytest.MonkeyPatch) -> None:
    """By a signal handler that closes a port: the scan has half read it."""
    fake = FakeBus()
    fake.put(3, 0, ivshmem())
    bus = PciBus(fake, "pc")
    bus.scan()
    gone = bus.place(bus.functions[2])
    fake.put(5, 0, virtio_net())
    scans = []

    def scan_in_part(*arguments: Any, **options: Any) -> list[Function]:
        found = scan(*arguments, **options)
        scans.append(len(found))
        if len(scans) == 1:
            fake.pull(3)
            bus.remove(gone)
            found = [replace(each) for each in found]
        return found

    monkeypatch.setattr("virtnic.pci.bus.scan", scan_in_part)
    [new] = bus.rescan()
    assert new.bdf == Bdf(0, 5, 0)
    assert scans == [4, 3]


def test_eject_on_pc() -> None:
    fake = FakeBus()
    nic = fake.put(3, 0, virtio_net())
    bus = PciBus(fake, "pc")
    bus.scan()
    function = bus.enable(bus.place(bus.functions[2]))
    fake.ports[ACPI_PC + 4] = 0
    with pytest.raises(QemuError, match="send device_del by QMP first"):
        bus.eject(function)
    fake.ports[ACPI_PC + 4] = 1 << 3
    bus.eject(function)
    assert fake.ports[ACPI_PC + 8] == 1 << 3
    assert nic.get(0x04) & 7 == 0
    assert addresses(bus) == ["00:00.0", "00:01.0"]


def test_eject_by_slot_power() -> None:
    fake, inside, bus = q35(acpi=False)
    port = fake.functions[0, 3, 0]
    assert port.get(0x54 + 0x18) & 0x7C0 == 0x1C0  # power on, indicator on
    inside[1].put(0, 0, virtio_net())
    [nic] = bus.rescan()
    bus.place(nic)
    port.writes.clear()
    bus.eject(nic)
    control = [int.from_bytes(raw, "little") for at, raw in port.writes if at == 0x54 + 0x18]
    assert control == [0x7C0, 0x1C0]
    assert fake.functions[0, 2, 0].get(0x24) & 0xFFF0 == 0xFFF0


def test_eject_from_a_slot_that_always_has_power() -> None:
    fake = FakeBus("q35")
    fake.nothing_at.add(ACPI_Q35 + 0x10)
    fake.put_bridge(2, power_control=False).put(0, 0, virtio_net())
    bus = PciBus(fake, "q35")
    bus.scan()
    port = fake.functions[0, 2, 0]
    assert (0x54 + 0x18, b"\xc0\x01") not in port.writes
    bus.eject(bus.place(bus.functions[-1]))
    assert (0x54 + 0x18, b"\xc0\x07") in port.writes


def test_no_hotplug_on_the_root_bus_of_q35() -> None:
    fake, _, bus = q35(acpi=False)
    fake.put(8, 0, virtio_net())
    [nic] = bus.rescan()
    with pytest.raises(QemuError, match="plug devices into a pcie-root-port"):
        bus.eject(nic)


def test_interrupt_lines_of_pc() -> None:
    fake = FakeBus()
    for slot in range(2, 7):
        fake.put(slot, 0, virtio_net())
    fake.put(7, 0, FakeFunction(device=0x1110, pin=0))
    bus = PciBus(fake, "pc")
    bus.scan()
    lines = [bus.route_intx(nic) for nic in find_virtio_nets(bus.functions)]
    assert lines == [7, 10, 11, 5, 7]
    assert fake.functions[0, 1, 0].data[0x60:0x64] == bytes([5, 7, 10, 11])
    with pytest.raises(ValueError, match="has no interrupt pin"):
        bus.route_intx(bus.functions[-1])


def test_interrupt_lines_of_q35() -> None:
    fake, inside, bus = q35(ports=4)
    for slot in (8, 25, 30, 31):
        fake.put(slot, 0, FakeFunction(pin=2))
    for behind in inside:
        behind.put(0, 0, virtio_net())
    lines = {str(f.bdf): bus.route_intx(f) for f in bus.rescan()}
    # Slots 2 to 5 hold the ports; pin B of the slots 8, 25, 30 and 31.
    assert lines == {
        "01:00.0": 22,
        "02:00.0": 23,
        "03:00.0": 20,
        "04:00.0": 21,
        "00:08.0": 21,
        "00:19.0": 17,
        "00:1e.0": 21,
        "00:1f.0": 17,
    }


def test_few_round_trips() -> None:
    fake = FakeBus()
    fake.put(2, 0, ivshmem())
    fake.put(3, 0, virtio_net(transitional=True))
    bus = PciBus(fake, "pc")
    bus.scan()
    shared = bus.enable(bus.place(bus.functions[2], fixed={2: IOVA}))
    nic = bus.enable(bus.place(bus.functions[3]))
    virtio_registers(nic)
    assert shared.bar(2).address == IOVA
    assert fake.reads < 120  # at 50 µs each: 6 ms


def test_a_real_bus(qemu: virtnic.Qemu) -> None:
    """A second look at a running QEMU finds the same devices, with working registers."""
    bus = PciBus(machine_of(qemu).qtest, qemu.machine)
    bus.scan()
    [shared] = find_ivshmems(bus.functions)
    shared = bus.enable(bus.place(shared, fixed={2: qemu.memory.iova}))
    qemu.memory.write(4096, b"\x12\x34\x56\x78")
    assert machine_of(qemu).qtest.read(qemu.memory.iova + 4096, 4) == b"\x12\x34\x56\x78"
    for nic in find_virtio_nets(bus.functions):
        ready = bus.enable(bus.place(nic))
        assert machine_of(qemu).qtest.readw(virtio_registers(ready).common + 18) >= 2  # queues
        assert MsixTable(machine_of(qemu).qtest, bus.config, ready).size >= 3
    assert bus.rescan() == []
