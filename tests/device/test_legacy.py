"""The legacy interface (virtio 0.9.5): the tests of the modern one, and its own.

The shared tests are those of test_port_user, test_port_tap and test_engine; here ``virtnic.open``
makes a port that is driven by its legacy interface.
"""

from collections.abc import Iterator
from typing import Any

import pytest

import virtnic
from device import test_port_tap, test_port_user
from jobs import test_engine
from peers.netns import Netns
from support.fake_pci import FakeBus, FakeFunction, memory32, virtio_net
from support.frames import arp_request, is_arp_reply, number_of, numbered
from support.inside import machine_of
from virtnic.pci import Function, LegacyRegisters, PciBus, speaks_modern, virtio_legacy
from virtnic.qemu import quirks

modern_open = virtnic.open

#: A device that has no other interface; and one that has both, with the longer header.
KINDS: dict[str, dict[str, Any]] = {
    "only-legacy": {
        "properties": {"disable-modern": True, "disable-legacy": "off"},
        "features": {"MRG_RXBUF": False},
    },
    "transitional": {"legacy": True},
}


@pytest.fixture(autouse=True, params=KINDS)
def legacy_open(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let every port of the test that does not say otherwise be a legacy one."""

    def legacy(netdev: Any = "user", **options: Any) -> virtnic.Port:
        port = modern_open(netdev, **{**KINDS[request.param], **options})
        assert port.legacy
        accepted = {feature.name for feature in port.features if feature.accepted}
        assert "VERSION_1" not in accepted
        assert ("MRG_RXBUF" in accepted) == (request.param == "transitional")
        return port

    monkeypatch.setattr(virtnic, "open", legacy)


once = pytest.mark.parametrize("legacy_open", ["only-legacy"], indirect=True)

test_open_says_what_the_device_is = test_port_user.test_open_says_what_the_device_is
test_arp_round_trip = test_port_user.test_arp_round_trip
test_dhcp_arp_and_ping = test_port_user.test_dhcp_arp_and_ping
test_fileno_wakes_select = test_port_user.test_fileno_wakes_select_and_is_quiet_when_empty
test_views_keep_their_buffer = test_port_user.test_views_keep_their_buffer_out_of_the_ring
test_bursts_outlive_their_port = test_port_user.test_bursts_outlive_their_port
test_close_wakes_a_waiting_receiver = test_port_user.test_close_wakes_a_waiting_receiver
test_link_changes_are_reported = test_port_user.test_link_changes_are_reported
test_link_without_interrupts = test_port_user.test_link_without_interrupts_is_asked_for
test_several_threads_use_one_port = test_port_user.test_several_threads_use_one_port

test_the_kernel_pings_our_stack = test_port_tap.test_the_kernel_pings_our_stack
test_we_ping_the_kernel = test_port_tap.test_we_ping_the_kernel
test_we_receive_what_was_sent = test_port_tap.test_we_receive_exactly_what_a_raw_socket_sent
test_what_we_sent_is_received = test_port_tap.test_a_raw_socket_receives_exactly_what_we_sent


def test_generated_frames_arrive_as_they_are(netns: Netns) -> None:
    """Frames that stay in their buffers, sent again and again."""
    with virtnic.open(netns.netdev) as port, netns.packet_socket() as raw:
        frames = [numbered(port.mac, i, 60 + 100 * i) for i in range(3)]
        before = netns.statistics()
        result = virtnic.generate(port, frames=frames, packets=3000, seconds=60)
        assert result.sent == result.packets == 3000
        got: list[bytes] = []
        while len(got) < 3000:
            frame = raw.recv(4096)
            if number_of(frame) is not None:
                got.append(frame)
        port.reclaim()
        after = netns.statistics()
        assert after["rx_bytes"] - before["rx_bytes"] == 1000 * sum(map(len, frames))
    assert sorted(got) == sorted(frames * 1000)


@pytest.fixture
def two_kernels(qemu_command: str) -> Iterator[tuple[Netns, Netns, virtnic.Port, virtnic.Port]]:
    """As in test_engine, but one port is legacy and the other is modern."""
    memory = virtnic.Memory("32M")
    with (
        Netns(address="10.99.0.1/24") as left,
        Netns(address="10.99.0.2/24") as right,
        virtnic.open(left.netdev, memory=memory, qemu=left.qemu_command) as a,
        modern_open(right.netdev, memory=memory, qemu=right.qemu_command) as b,
    ):
        assert (a.legacy, b.legacy) == (True, False)
        yield left, right, a, b


# Buffers cross from one header length to the other.
test_forward_legacy_to_modern = test_engine.test_forward_connects_two_kernels


@once
def test_legacy_and_modern_ports_of_one_qemu(qemu: virtnic.Qemu) -> None:
    """Legacy and modern ports come and go in one QEMU; each leaves its addresses."""
    for legacy in (True, False, True):
        with qemu.attach("user", legacy=legacy) as port:
            assert port.legacy is legacy
            assert port.send([arp_request(port.mac)]) == 1
            assert is_arp_reply(port.recv(64, timeout=20.0)[0])


@once
def test_the_queue_size_is_the_devices(qemu: virtnic.Qemu) -> None:
    size = 1024 if quirks.has(qemu.version, "queue-size-ignored") else 256
    with pytest.raises(ValueError, match=rf"has {size} entries, not 64.*legacy"):
        qemu.attach("user", legacy=True, queue_size=64)
    with qemu.attach("user", legacy=True, queue_size=size) as port:
        assert port.queue_size == size
    larger = qemu.attach("user", legacy=True, properties={"rx_queue_size": 1024})
    assert larger.queue_size == 1024
    assert larger.send([arp_request(larger.mac)]) == 1
    assert is_arp_reply(larger.recv(64, timeout=20.0)[0])
    assert machine_of(qemu).nics
    larger.close()
    assert not machine_of(qemu).nics


@once
@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"properties": {"any_layout": False}}, "ANY_LAYOUT is accepted, and it is not offered"),
        ({"features": {"ANY_LAYOUT": False}}, "ANY_LAYOUT is accepted, and it is refused"),
        ({"features": {"VERSION_1": True}}, "VERSION_1 is insisted on"),
        ({"ring": "packed"}, "does not offer RING_PACKED"),
        ({"properties": {"disable-legacy": "on"}}, "has no legacy interface"),
    ],
)
def test_what_legacy_devices_cannot_do(
    qemu: virtnic.Qemu, options: dict[str, Any], says: str
) -> None:
    with pytest.raises(virtnic.DeviceError, match=says):
        qemu.attach("user", legacy=True, **options)
    assert not machine_of(qemu).nics
    assert not qemu.ports


@once
def test_the_modern_interface_is_chosen_where_there_is_one(qemu: virtnic.Qemu) -> None:
    with qemu.attach("user") as port:
        assert port.legacy is False


def placed(function: FakeFunction) -> Function:
    fake = FakeBus()
    fake.put(3, 0, function)
    bus = PciBus(fake, "pc")
    bus.scan()
    return bus.enable(bus.place(bus.functions[-1]))


@once
def test_legacy_registers_are_found() -> None:
    nic = placed(virtio_net(transitional=True))
    assert speaks_modern(nic)
    assert virtio_legacy(nic) == LegacyRegisters(nic.bar(0).address or 0, 0x20)
    bare = placed(FakeFunction(device=0x1000, subsystem=1, bars={0: (0xFFE0, 1)}))
    assert not speaks_modern(bare)
    assert virtio_legacy(bare).length == 0x20


@once
@pytest.mark.parametrize(
    ("function", "says"),
    [
        (virtio_net(), "no legacy interface"),
        (FakeFunction(device=0x1000, subsystem=1, bars={}), "no legacy interface"),
        (FakeFunction(device=0x1000, subsystem=1, bars={0: memory32(64)}), "no legacy interface"),
        (FakeFunction(device=0x1041, bars={0: (0xFFE0, 1)}), "no legacy interface"),
        (FakeFunction(device=0x1000, subsystem=1, bars={0: (0xFFF0, 1)}), "16 ports, too few"),
    ],
)
def test_registers_that_are_not_there(function: FakeFunction, says: str) -> None:
    with pytest.raises(virtnic.DeviceError, match=says):
        virtio_legacy(placed(function))


@once
def test_unplaced_legacy_registers_have_no_address() -> None:
    fake = FakeBus()
    fake.put(3, 0, virtio_net(transitional=True))
    bus = PciBus(fake, "pc")
    bus.scan()
    with pytest.raises(ValueError, match="is not placed"):
        virtio_legacy(bus.functions[-1])
