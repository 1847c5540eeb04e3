"""Devices that need a reset (VIRTIO 1.3, section 2.1.1): the port recovers.

QEMU gives a device up whose ring is nonsense. The peers are slirp, the Linux kernel behind a TAP
device, and DPDK's testpmd.
"""

import functools
import threading
import time
from collections.abc import Callable
from typing import Any, Literal

import pytest

import virtnic
from failure.test_recovery import balanced, wait_until
from peers.netns import Netns
from peers.testpmd import Testpmd
from support.frames import arp_request, number_of, numbered
from support.inside import attachment_of, machine_of
from support.traffic import arp_works, drain
from support.waiting import pause
from virtnic.nic.options import Ring
from virtnic.pci import virtio_registers
from virtnic.qemu.command import Accel

pytestmark = pytest.mark.needs("qemu")

RINGS = pytest.mark.parametrize("ring", ["split", "packed"])


def spoil_receive_ring(port: virtnic.Port) -> None:
    """Make every receive descriptor one of no bytes, which QEMU takes for a driver's mistake."""
    name, descriptors, _driver, _device = port.queue_addresses[0]
    assert name == "rx"
    memory = port.memory
    # The length is at offset 8 in both formats (VIRTIO 1.3, 2.7.5 and 2.8.13).
    for entry in range(port.queue_size):
        memory.write(memory.offset_of(descriptors + 16 * entry + 8, 4), bytes(4))


def break_control_queue(port: virtnic.Port) -> None:
    """Make the control queue nonsense, and kick it: QEMU looks at it whoever has the others."""
    function = attachment_of(port).function
    assert function is not None
    registers, qtest, memory = virtio_registers(function), machine_of(port.qemu).qtest, port.memory
    index = 2 * port.max_queues
    # struct virtio_pci_common_cfg (VIRTIO 1.3, 4.1.4.3)
    qtest.writew(registers.common + 22, index)
    size = qtest.readw(registers.common + 24)
    kick = registers.notify + qtest.readw(registers.common + 30) * registers.notify_multiplier
    descriptors = qtest.readq(registers.common + 32)
    if port.ring == "packed":
        # Available in the first lap, and of no bytes.
        empty = bytes(14) + b"\x80\0"
        memory.write(memory.offset_of(descriptors, 16 * size), empty * size)
    else:
        # More are available than there are.
        available = memory.offset_of(qtest.readq(registers.common + 40) + 2, 2)
        count = int.from_bytes(memory.read(available, 2), "little") + size + 1
        memory.write(available, count.to_bytes(2, "little"))
    qtest.writew(kick, index)


def restarted(port: virtnic.Port, times: int) -> bool:
    return port.restarts == times


def status(port: virtnic.Port) -> int:
    """Read the device status."""
    function = attachment_of(port).function
    assert function is not None
    return machine_of(port.qemu).qtest.readb(virtio_registers(function).common + 20)


@pytest.mark.parametrize("interrupts", ["msix", "intx", "none"])
@pytest.mark.parametrize("ring", ["split", "packed"])
def test_needs_reset(qemu_command: str, accel: Accel, ring: Ring, interrupts: Any) -> None:
    """QEMU gives a device up whose ring is nonsense; the port resets it and goes on."""
    options: dict[str, Any] = {"properties": {"packed": True}} if ring == "packed" else {}
    if ring == "packed":
        options["ring"] = "packed"
    # Where frames are merged QEMU asks first how much room there is, and waits for more.
    options["features"] = {"MRG_RXBUF": False}
    with virtnic.open("user", accel=accel, interrupts=interrupts, **options) as port:
        if port.ring != ring:
            pytest.skip(f"this QEMU has no {ring} ring here")
        assert arp_works(port)
        mac = "52:54:00:77:77:01"
        port.set_mac(mac)
        port.set_promiscuous(False)
        before = port.stats()
        fd = port.fileno() if interrupts != "none" else -1
        for round_ in range(3):
            spoil_receive_ring(port)
            # The answer finds no buffer.
            port.send([arp_request(port.mac)])
            if interrupts == "none":
                port.recv(64, timeout=1.5)
            wait_until(functools.partial(restarted, port, round_ + 1))
            assert status(port) == 0xF
            assert port.mac == mac
            assert arp_works(port)
        wait_until(lambda: balanced(port))
        after = port.stats()
        assert after["tx_packets"] > before["tx_packets"]
        assert fd == (port.fileno() if interrupts != "none" else -1)
        assert port.link
        memory = port.memory
    assert memory.buffers_free == memory.buffers


def opened(netdev: str, accel: Accel, ring: Ring, **options: Any) -> virtnic.Port:
    """Open a port with this ring, whoever offers it."""
    if ring == "packed":
        options["properties"] = {"packed": True}
    # Where frames are merged QEMU asks first how much room there is, and waits for more.
    features = {"MRG_RXBUF": False}
    return virtnic.open(netdev, ring=ring, accel=accel, features=features, **options)


@pytest.mark.needs("netns")
@pytest.mark.parametrize("broken", ["rx", "control"])
@RINGS
def test_a_tap_goes_on(netns: Netns, accel: Accel, ring: Ring, broken: str) -> None:
    """Numbered frames both ways: what is lost is counted, and nothing comes twice."""
    mac = "52:54:00:00:00:99"
    with opened(netns.netdev, accel, ring) as port, netns.packet_socket(0.5) as raw:
        port.set_mac(mac)
        port.set_promiscuous(False)
        sent, seen, got = 0, [], []
        for times in range(1, 4):
            for _ in range(20):
                sent += port.send([numbered(mac, sent + i) for i in range(8)])
            if broken == "control":
                break_control_queue(port)
            else:
                spoil_receive_ring(port)
                raw.send(numbered(netns.mac, 1000 + times, destination=mac))
            limit = time.monotonic() + 30.0
            while port.restarts < times:
                assert time.monotonic() < limit, "QEMU did not see that the ring is broken"
                sent += port.send([numbered(mac, sent + i) for i in range(8)])
                time.sleep(0.001)
            assert status(port) == 0xF
            assert port.mac == mac
            sent += port.send([numbered(mac, sent + i) for i in range(8)])
            for number in range(20):
                address = mac if number % 2 else "52:54:00:00:00:98"
                raw.send(numbered(netns.mac, 100 * times + number, destination=address))
            got += [number_of(frame) for frame in drain(port, 0.3, least=10)]
        wait_until(lambda: balanced(port))
        stats = port.stats()
        seen = listen(raw, mac, stats["tx_completed"])
        assert seen == sorted(set(seen)), "a frame came twice, or late"
        assert stats["tx_packets"] == sent == stats["tx_completed"] + stats["tx_lost"]
        assert len(seen) == stats["tx_completed"]
        wanted = [100 * times + number for times in range(1, 4) for number in range(1, 20, 2)]
        assert [number for number in got if number is not None and number < 1000] == wanted
        assert stats["rx_packets"] == len(got)
        memory = port.memory
    assert memory.buffers_free == memory.buffers


def listen(raw: Any, mac: str, least: int) -> list[int]:
    """Return the numbers of the frames that came from a port: so many, and what comes after."""
    numbers: list[int] = []
    source = bytes.fromhex(mac.replace(":", ""))
    try:
        while True:
            raw.settimeout(0.5 if len(numbers) >= least else 20.0)
            frame = raw.recv(2048)
            number = number_of(frame)
            if number is not None and frame[6:12] == source:
                numbers.append(number)
    except TimeoutError:
        return numbers


@pytest.mark.needs("testpmd")
@RINGS
def test_a_backend_goes_on(
    qemu_command: str,
    accel: Accel,
    testpmd: Callable[..., Testpmd],
    ring: Literal["split", "packed"],
) -> None:
    """Under load; QEMU stops the backend's rings, so what it received is what was completed."""
    pmd = testpmd(mode="rxonly")
    netdev = f"vhost-user,path={pmd.sockets[0]}"
    with virtnic.open(netdev, ring=ring, accel=accel) as port:
        assert port.ring == ring
        stop = threading.Event()
        sent = 0

        def load() -> None:
            nonlocal sent
            while not stop.is_set():
                sent += port.send([numbered(port.mac, sent + i) for i in range(32)])
                time.sleep(0.0005)

        sending = threading.Thread(target=load)
        sending.start()
        for times in range(1, 6):
            pause(0.1)
            break_control_queue(port)
            wait_until(functools.partial(restarted, port, times))
            assert status(port) == 0xF
            port.add_vlan(times)  # the control queue works again
            before = port.stats()["tx_completed"]
            wait_until(functools.partial(completed_more, port, before))
            assert port.link
        stop.set()
        sending.join()
        wait_until(lambda: balanced(port))
        stats = port.stats()
        assert stats["tx_packets"] == sent == stats["tx_completed"] + stats["tx_lost"]
        assert pmd.stats()["RX-packets"] == stats["tx_completed"] - stats["tx_no_backend"]
        memory = port.memory
    assert memory.buffers_free == memory.buffers


def completed_more(port: virtnic.Port, than: int) -> bool:
    port.reclaim()
    return port.stats()["tx_completed"] > than
