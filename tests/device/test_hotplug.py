"""Hotplug of ports on a running QEMU: every slot, under traffic, and failing."""

import logging
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import virtnic
from support.frames import arp_request, is_arp_reply
from support.inside import machine_of
from virtnic.qemu.command import Accel, MachineType
from virtnic.testing import kill_qemu

#: Slots for NICs.
SLOTS: dict[MachineType, int] = {"pc": 29, "q35": 16}


@pytest.fixture(params=list(SLOTS))
def bus(request: pytest.FixtureRequest, qemu_command: str, accel: Accel) -> Iterator[virtnic.Qemu]:
    """A QEMU of either machine type on a memory of the usual size."""
    with virtnic.Qemu(accel=accel, machine=request.param, timeout=5.0) as qemu:
        yield qemu


def answers(port: virtnic.Port) -> bool:
    """Whether the gateway answers an ARP request that the port sends."""
    assert port.send([arp_request(port.mac)]) == 1
    burst = port.recv(1, timeout=20.0)
    frames = burst.tobytes()
    burst.release()
    return any(map(is_arp_reply, frames))


def test_every_slot_has_a_port_that_works(bus: virtnic.Qemu) -> None:
    """All at once, with the memory and the vectors that there are without being asked for."""
    slots = SLOTS[bus.machine]
    ports = [bus.attach("user") for _ in range(slots)]
    assert all(answers(port) for port in ports)
    with pytest.raises(ValueError, match=f"all {slots} slots of this machine are in use; detach"):
        bus.attach("user")
    assert all(answers(port) for port in ports), "the attempt has cost something"
    # Each slot is usable again, though who had the port keeps it.
    for gone in (ports[0], ports[slots // 2], ports[-1]):
        bus.detach(gone)
        assert answers(bus.attach("user"))
    assert len(bus.ports) == slots


def test_many_come_and_go_beside_traffic(bus: virtnic.Qemu) -> None:
    """Nothing grows, and another port loses no answer."""
    beside = bus.attach("user")
    stop = threading.Event()
    answered: list[bool] = []

    def traffic() -> None:
        while not stop.is_set():
            answered.append(answers(beside))

    def held() -> tuple[int, int, int]:
        ours, theirs = (len(list(Path(f"/proc/{pid}/fd").iterdir())) for pid in ("self", bus.pid))
        return ours, theirs, threading.active_count()

    bus.attach("user").close()  # what is made once is made
    thread = threading.Thread(target=traffic)
    thread.start()
    try:
        before = held()
        for _ in range(30):
            bus.detach(bus.attach("user"))
        assert held() == before
    finally:
        stop.set()
        thread.join()
    assert len(answered) > 30
    assert all(answered)
    bus.detach(beside)
    assert bus.memory.buffers_free == bus.memory.buffers


def receive(port: virtnic.Port, _other: virtnic.Port) -> None:
    port.recv(timeout=None)


def send(port: virtnic.Port, _other: virtnic.Port) -> None:
    while True:
        port.send_all([b"\xff" * 60] * 256)


def forward(port: virtnic.Port, other: virtnic.Port) -> None:
    virtnic.forward(other, port)


def reflect(port: virtnic.Port, _other: virtnic.Port) -> None:
    virtnic.reflect(port)


def generate(port: virtnic.Port, _other: virtnic.Port) -> None:
    virtnic.generate(port)


@pytest.mark.parametrize("work", [receive, send, forward, reflect, generate])
def test_detach_while_in_use(
    bus: virtnic.Qemu, work: Callable[[virtnic.Port, virtnic.Port], None]
) -> None:
    """Calls on the port raise PortClosed, and the other port is unaffected."""
    port, other = bus.attach("user"), bus.attach("user")
    ended: list[BaseException] = []
    started = threading.Event()

    def run() -> None:
        started.set()
        try:
            work(port, other)
        except BaseException as error:
            ended.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    started.wait()
    thread.join(0.1)
    assert thread.is_alive()
    detaching = [threading.Thread(target=bus.detach, args=(port,)) for _ in range(3)]
    for each in detaching:
        each.start()
    for each in [*detaching, thread]:
        each.join(10.0)
        assert not each.is_alive()
    assert [type(error) for error in ended] == [virtnic.PortClosed]
    assert bus.ports == (other,)
    other.recv(256).release()  # what the loops have sent it
    assert answers(other)


def test_bursts_outlive_their_port_and_their_qemu(qemu_command: str) -> None:
    memory = virtnic.Memory(hugepages=None)
    held = []
    for end in ("detach", "close"):
        qemu = virtnic.Qemu(memory)
        port = qemu.attach("user")
        port.send([arp_request(port.mac)])
        burst = port.recv(1, timeout=20.0)
        view = burst[0]
        before = bytes(view)
        if end == "detach":
            qemu.detach(port)
            with pytest.raises(virtnic.PortClosed):
                port.send(burst)
        qemu.close()
        held.append((burst, view, before))
    with virtnic.Qemu(memory) as qemu:  # whose device gets other buffers
        assert answers(qemu.attach("user"))
        assert all(bytes(view) == bytes(burst[0]) == before for burst, view, before in held)
        assert qemu.attach("user").send(held[0][0]) == 1, "it can still be sent by another port"
    held.clear()
    del burst, view
    assert memory.buffers_free == memory.buffers


def test_a_port_is_detached_by_its_own_qemu_only(memory: virtnic.Memory, qemu_command: str) -> None:
    with virtnic.Qemu(memory) as one, virtnic.Qemu(memory) as other:
        port = other.attach("user")
        with pytest.raises(ValueError, match=r"a port of another Qemu; use port\.close\(\)"):
            one.detach(port)
        assert other.ports == (port,)
        assert answers(port)
        with pytest.raises(TypeError, match="detach needs a port, not None"):
            one.detach(None)  # type: ignore[arg-type]


def test_nothing_is_attached_to_a_closed_qemu(qemu_command: str) -> None:
    with virtnic.Qemu() as qemu:
        port = qemu.attach("user")
    with pytest.raises(virtnic.QemuError, match="this Qemu is closed: nothing can be attached"):
        qemu.attach("user")
    qemu.detach(port)


def test_a_device_that_does_not_go(
    bus: virtnic.Qemu, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """An error says so, its port is closed anyway, and its slot becomes free later."""
    deaf, eject = True, bus.bus.eject
    monkeypatch.setattr(bus.bus, "eject", lambda function: None if deaf else eject(function))
    port = bus.attach("user")
    monkeypatch.setattr(machine_of(bus), "timeout", 0.2)
    with caplog.at_level(logging.WARNING):
        bus.detach(port)
    assert "could not be unplugged and keeps its slot: QEMU did not delete" in caplog.text
    assert port.closed
    assert bus.ports == ()
    for _ in range(SLOTS[bus.machine] - 1):
        bus.attach("user")
    with pytest.raises(ValueError, match="slots of this machine are in use"):
        bus.attach("user")
    deaf = False
    assert answers(bus.attach("user"))


@pytest.mark.needs("netns")
def test_a_tap_that_somebody_has(qemu: virtnic.Qemu) -> None:
    """The error quotes QEMU, and the port that uses it is unaffected."""
    netdev = "tap,ifname=vnic-twice,script=no,downscript=no"
    with qemu.attach(netdev) as port:
        with pytest.raises(virtnic.QemuError, match=r"refused netdev_add: .*vnic-twice.*busy"):
            qemu.attach(netdev)
        assert port.link
    with qemu.attach(netdev) as port:
        assert port.send([b"\xff" * 60]) == 1


def test_a_second_qemu_comes_and_goes_beside_a_loop(qemu: virtnic.Qemu) -> None:
    """On the same memory: the loop continues, even when it is killed."""
    a, b = qemu.attach("user"), qemu.attach("user")
    results: list[virtnic.Result] = []
    thread = threading.Thread(target=lambda: results.append(virtnic.forward(a, b, seconds=2.0)))
    thread.start()
    for _ in range(3):
        with virtnic.Qemu(qemu.memory) as other:
            assert answers(other.attach("user"))
    with virtnic.Qemu(qemu.memory) as other:
        port = other.attach("user")
        kill_qemu(other)
        with pytest.raises(virtnic.QemuDied):
            port.recv(timeout=20.0)
    thread.join()
    assert results
    assert answers(a)
