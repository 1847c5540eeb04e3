"""Random PCI configuration space: the scan ends, and its results are in bounds.

The corpus (``rust/fuzz/corpus/pci_capabilities``) is replayed, then Hypothesis makes up more:
``VIRTNIC_FUZZ_EXAMPLES`` says how many, which is what ``make fuzz`` sets. An input is the
capability pointer, flags, and what is behind the header of configuration space.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from support.fake_pci import FakeBus, virtio_net
from virtnic.errors import DeviceError, QemuError
from virtnic.pci import (
    Bdf,
    ConfigSpace,
    MsixTable,
    PciBus,
    VirtioCapability,
    virtio_registers,
)
from virtnic.pci.capabilities import read_capabilities

CORPUS = Path(__file__).resolve().parents[2] / "rust/fuzz/corpus/pci_capabilities"
EXAMPLES = int(os.environ.get("VIRTNIC_FUZZ_EXAMPLES", "300"))
#: Positions that a list can go through: every fourth byte behind the header.
POSITIONS = (0x100 - 0x40) // 4

executions = 0


class Silent:
    """MMIO that goes nowhere."""

    def writel(self, address: int, value: int) -> None:
        assert address % 4 == 0
        assert 0 <= value < 1 << 32


def target(data: bytes) -> None:
    """Look at a device whose configuration space says this, as attaching one does."""
    global executions
    executions += 1
    pointer, flags, body = data[0], data[1], data[2:0xC2]
    fake = FakeBus()
    function = virtio_net(transitional=bool(flags & 1))
    function.data[0x34] = pointer
    function.data[0x40 : 0x40 + len(body)] = body
    if flags & 2:
        function.data[0x06] &= ~(1 << 4)  # it says that it has no list
    if flags & 4:
        function.dies_after = flags * 3
    fake.put(3, 0, function)

    reads = fake.reads
    found, problems = read_capabilities(
        ConfigSpace(fake), Bdf(0, 3, 0), pointer, virtio=bool(flags & 8)
    )
    assert fake.reads - reads <= POSITIONS * 6
    assert len(found) + len(problems) <= POSITIONS + 1
    positions = [capability.position for capability in found]
    assert len(set(positions)) == len(positions)
    assert all(0x40 <= position <= 0xFC and position % 4 == 0 for position in positions)
    assert all(len(problem) < 200 for problem in problems)
    for capability in found:
        assert capability.name
        if isinstance(capability, VirtioCapability):
            assert 0 <= capability.bar < 256
            assert 0 <= capability.offset < 1 << 64

    bus = PciBus(fake, "pc")
    bus.scan()
    for device in bus.functions:
        if device.bdf.slot != 3:
            continue
        try:
            placed = bus.enable(bus.place(device))
        except QemuError:
            continue  # it is dead: it does not switch on
        bars = [
            (bar.address, bar.address + bar.size) for bar in placed.bars if bar.address is not None
        ]
        try:
            registers = virtio_registers(placed)
        except DeviceError:
            pass
        else:
            for address in registers[:4]:
                assert any(start <= address < end for start, end in bars)
        try:
            table = MsixTable(Silent(), bus.config, placed)
            table.set(0, 0x1000, 1)
        except (DeviceError, ValueError):
            pass


inputs = sorted(CORPUS.iterdir())


@pytest.mark.parametrize("file", inputs, ids=lambda file: file.name)
def test_the_corpus(file: Path) -> None:
    target(file.read_bytes())


def _list(entries: list[tuple[int, int, bytes]], flags: int) -> bytes:
    """Lay capabilities out so that they lead to each other: position, identity, what follows."""
    body = bytearray(0xC0)
    positions = [0x40 + 4 * place for place, _, _ in entries]
    for (place, identity, rest), following in zip(entries, [*positions[1:], 0], strict=True):
        raw = bytes((identity, following)) + rest
        at = 4 * place
        body[at : at + len(raw)] = raw[: 0xC0 - at]
    return bytes((positions[0], flags)) + bytes(body)


LISTS = st.builds(
    _list,
    st.lists(
        st.tuples(
            st.integers(0, POSITIONS - 1),
            st.sampled_from([0x01, 0x05, 0x09, 0x09, 0x09, 0x10, 0x11, 0xFF]),
            st.one_of(
                st.binary(max_size=26),
                # A virtio structure: length, type, BAR, id, two bytes, offset, length.
                st.builds(
                    lambda size, kind, bar, where: bytes((size, kind, bar, 0, 0, 0)) + where,
                    st.sampled_from([0, 15, 16, 20, 24, 255]),
                    st.integers(0, 10),
                    st.integers(0, 7),
                    st.binary(max_size=16),
                ),
            ),
        ),
        min_size=1,
        max_size=12,
    ),
    st.integers(0, 255),
)


@settings(
    max_examples=EXAMPLES,
    deadline=None,
    database=None,
    suppress_health_check=list(HealthCheck),
)
@given(st.one_of(LISTS, st.binary(min_size=2, max_size=0xC2)))
def test_any_configuration_space(data: bytes) -> None:
    target(data)


def test_how_many(capsys: pytest.CaptureFixture[str]) -> None:
    """Tell `make fuzz` what was done; the corpus is there."""
    assert len(inputs) >= 10
    with capsys.disabled():
        if "VIRTNIC_FUZZ_EXAMPLES" in os.environ:
            print(f"\nexecutions: {executions}")
