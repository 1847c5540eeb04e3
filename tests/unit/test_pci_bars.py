"""BAR sizes and address assignment."""

from __future__ import annotations

import itertools

import pytest

from support.fake_pci import ONES, FakeBus, FakeFunction, ivshmem, memory32, memory64, virtio_net
from virtnic.errors import QemuError
from virtnic.pci import AddressSpace, Bar, BarKind, Bdf, ConfigSpace, PciBus, Range
from virtnic.pci.bars import memory_space, size_bars

IOVA = 0x1F00_0000_0000


def sizes(bars: dict[int, tuple[int, int]]) -> tuple[list[tuple[int, BarKind, int]], str]:
    """Return the result of size_bars for a function with these registers."""
    fake = FakeBus()
    fake.put(5, 0, FakeFunction(bars=bars))
    found, problems = size_bars(ConfigSpace(fake), Bdf(0, 5, 0), 6)
    return [(bar.index, bar.kind, bar.size) for bar in found], "; ".join(problems)


def test_every_kind_is_sized() -> None:
    low, high = memory64(1 << 36)
    found, problems = sizes({0: (0xFFE0, 1), 1: memory32(0x1000), 4: low, 5: high})
    assert problems == ""
    assert found == [
        (0, BarKind.IO, 32),
        (1, BarKind.MEMORY32, 0x1000),
        (4, BarKind.MEMORY64, 1 << 36),
    ]


@pytest.mark.parametrize(
    ("bars", "says"),
    [
        ({0: (0xFFF0_F000, 0)}, "BAR 0 has the size"),
        ({0: (0, 0xC)}, "BAR 0 has the size 0x0"),
        ({0: (0xFFFF_F000, 0x2)}, "reserved memory type 1"),
        ({0: (0xFFFF_F000, 0x6)}, "reserved memory type 3"),
        ({5: (0xFFFF_F000, 0xC)}, "BAR 5 is 64 bits wide, but is the last one"),
        (dict.fromkeys(range(6), (ONES, ONES)), "does not respond"),
    ],
)
def test_absurd_registers_are_left_out(bars: dict[int, tuple[int, int]], says: str) -> None:
    found, problems = sizes(bars)
    assert found == []
    assert says in problems


def test_sizing_leaves_nothing_behind() -> None:
    fake = FakeBus()
    function = fake.put(5, 0, virtio_net())
    size_bars(ConfigSpace(fake), Bdf(0, 5, 0), 6)
    assert [function.get(0x10 + 4 * index) & ~0xF for index in range(6)] == [0] * 6


def test_ranges_never_overlap() -> None:
    space = AddressSpace(Range(0, 0x10000, "space"), reserved=[Range(0x1000, 0x800, "ROM")])
    taken = [space.allocate(size, f"b{size:#x}") for size in (0x1000, 0x100, 0x2000, 0x800, 0x10)]
    assert all(one.start % one.size == 0 for one in taken)
    every = sorted([*taken, Range(0x1000, 0x800, "ROM")])
    assert all(a.end <= b.start for a, b in itertools.pairwise(every))


def test_freed_ranges_are_used_again() -> None:
    space = AddressSpace(Range(0, 0x2000, "space"))
    first = space.allocate(0x1000, "a")
    space.allocate(0x1000, "b")
    with pytest.raises(QemuError, match="no room for the 0x1000 bytes of c in space"):
        space.allocate(0x1000, "c")
    space.free(first)
    assert space.allocate(0x1000, "c").start == first.start


def test_a_claim_says_what_it_overlaps() -> None:
    space = memory_space(16 << 20, [Range(IOVA, 0x1000, "other memory")])
    with pytest.raises(ValueError, match=r"shm \(0x800000 to .*overlaps RAM"):
        space.claim(0x80_0000, 0x1000, "shm")
    with pytest.raises(ValueError, match="overlaps the IO-APIC"):
        space.claim(0xFE00_0000, 1 << 24, "shm")
    with pytest.raises(ValueError, match="overlaps other memory"):
        space.claim(IOVA, 1 << 24, "shm")
    with pytest.raises(ValueError, match="does not lie inside the memory address space"):
        space.claim(1 << 64, 0x1000, "shm")
    with pytest.raises(ValueError, match="has the size 0"):
        space.claim(IOVA << 1, 0, "shm")


def test_ram_above_4_gib_is_avoided() -> None:
    with pytest.raises(ValueError, match="overlaps RAM above 4 GiB"):
        memory_space(8 << 30).claim(5 << 30, 0x1000, "shm")
    assert memory_space(16 << 20).claim(5 << 30, 0x1000, "shm").start == 5 << 30


def machine(*functions: FakeFunction) -> tuple[FakeBus, PciBus]:
    fake = FakeBus()
    for slot, function in enumerate(functions, 2):
        fake.put(slot, 0, function)
    bus = PciBus(fake, "pc")
    bus.scan()
    return fake, bus


def test_shared_memory_goes_exactly_to_its_iova() -> None:
    fake, bus = machine(ivshmem(), virtio_net(transitional=True))
    shared = bus.enable(bus.place(bus.functions[2], fixed={2: IOVA}))
    nic = bus.enable(bus.place(bus.functions[3]))
    assert shared.bar(2).address == IOVA
    device = fake.functions[0, 2, 0]
    assert (device.get(0x18), device.get(0x1C)) == (0xC, IOVA >> 32)
    assert device.get(0x04) & 7 == 6  # memory and bus master
    assert fake.functions[0, 3, 0].get(0x04) & 7 == 7  # I/O too
    ranges = sorted((b.address or 0, b.size) for f in (shared, nic) for b in f.bars)
    assert all(a + size <= b for (a, size), (b, _) in itertools.pairwise(ranges))


def test_fixed_addresses_are_checked() -> None:
    _, bus = machine(ivshmem(), ivshmem(), virtio_net())
    one, two, nic = bus.functions[2:]
    bus.place(one, fixed={2: IOVA})
    with pytest.raises(ValueError, match=r"BAR 2 of .*00:03\.0.* overlaps BAR 2 of .*00:02\.0"):
        bus.place(two, fixed={2: IOVA})
    with pytest.raises(ValueError, match="multiple of its size 0x1000000"):
        bus.place(two, fixed={2: IOVA + 0x1000})
    with pytest.raises(ValueError, match="32-bit addresses only"):
        bus.place(two, fixed={0: IOVA << 1})
    with pytest.raises(ValueError, match=r"has no BAR 5 \(it has: 1, 4\)"):
        bus.place(nic, fixed={5: IOVA})
    # The failed call has reserved nothing, and nothing else has moved.
    assert [bar.address for bar in bus.functions[3].bars] == [None] * 3
    assert bus.functions[2].bar(2).address == IOVA
    bus.place(two, fixed={2: IOVA + (1 << 24)})


def test_placing_again_moves() -> None:
    _, bus = machine(ivshmem(), ivshmem())
    one, two = bus.functions[2:]
    bus.place(one, fixed={2: IOVA})
    moved = bus.place(one, fixed={2: IOVA << 1})
    assert moved.bar(2).address == IOVA << 1
    bus.place(two, fixed={2: IOVA})


def test_a_bar_larger_than_any_hole_is_refused() -> None:
    _, bus = machine(FakeFunction(bars={0: (0x8000_0000, 0)}), virtio_net())
    with pytest.raises(QemuError, match="no room for the 0x80000000 bytes of BAR 0"):
        bus.place(bus.functions[2])
    bus.place(bus.functions[3])


def test_a_large_64_bit_bar_goes_above_4_gib() -> None:
    _, bus = machine(ivshmem(1 << 34))
    address = bus.place(bus.functions[2]).bar(2).address
    assert address is not None
    assert address >= 1 << 44


def test_missing_io_room_is_survived(caplog: pytest.LogCaptureFixture) -> None:
    _, bus = machine(*[FakeFunction(bars={0: (0xF000, 1), 1: memory32(16)}) for _ in range(14)])
    placed = [bus.place(function) for function in bus.functions[2:]]
    assert all(function.bar(1).address for function in placed)
    without = [function for function in placed if function.bar(0).address is None]
    assert without
    assert f"BAR 0 of {without[0]} is not placed" in caplog.text


def test_a_device_that_does_not_switch_on() -> None:
    fake, bus = machine(virtio_net())
    nic = bus.place(bus.functions[2])
    fake.pull(2)
    with pytest.raises(QemuError, match="reads 0xffff"):
        bus.enable(nic)


def test_a_bar_register_that_does_not_hold() -> None:
    fake, bus = machine(ivshmem())
    fake.functions[0, 2, 0].bars[3] = (0, 0)
    with pytest.raises(QemuError, match=r"BAR 2 .* was set to 0x1f0000000000 but holds 0x0"):
        bus.place(bus.functions[2], fixed={2: IOVA})
    assert bus.functions[2].bar(2).address is None


def test_bars_know_their_registers() -> None:
    assert Bar(2, BarKind.MEMORY64, 1 << 24).register == 0x18
