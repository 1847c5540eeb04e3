"""Hotplug of NICs over QMP, with the guest's part done by the test."""

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from support.waiting import PROMPT, eventually, pause
from virtnic import _native
from virtnic.errors import QemuDied, QemuError
from virtnic.qemu import Machine, NicHandle
from virtnic.qemu.command import FIRST_ROOT_PORT, PC_SLOTS, ROOT_PORTS, Accel, MachineType

KINDS: list[MachineType] = ["pc", "q35"]
NO_DEVICE = 0xFFFF_FFFF


@pytest.fixture(params=KINDS)
def machine(
    request: pytest.FixtureRequest, memory: _native.Memory, qemu_command: str, accel: Accel
) -> Iterator[Machine]:
    with Machine(memory, accel=accel, machine=request.param) as machine:
        yield machine


class Bus:
    """A minimal guest's PCI code: type 0 and 1 configuration access."""

    def __init__(self, machine: Machine) -> None:
        self.qtest = machine.qtest

    def read(self, bus: int, slot: int, offset: int) -> int:
        self.qtest.outl(0xCF8, 0x8000_0000 | bus << 16 | slot << 11 | offset)
        return self.qtest.inl(0xCFC)

    def write(self, bus: int, slot: int, offset: int, value: int) -> None:
        self.qtest.outl(0xCF8, 0x8000_0000 | bus << 16 | slot << 11 | offset)
        self.qtest.outl(0xCFC, value)

    def express(self, slot: int) -> int:
        """Where the PCI Express capability of a root port is."""
        where = self.read(0, slot, 0x34) & 0xFC
        while where:
            header = self.read(0, slot, where)
            if header & 0xFF == 0x10:
                return where
            where = header >> 8 & 0xFC
        raise AssertionError("no PCI Express capability")

    def identity(self, handle: NicHandle) -> int:
        """Return what answers at the NIC's address."""
        if not handle.behind_root_port:
            return self.read(0, handle.slot, 0)
        self.write(0, handle.slot, 0x18, 0x0001_0100)  # secondary and subordinate bus 1
        try:
            return self.read(1, 0, 0)
        finally:
            self.write(0, handle.slot, 0x18, 0)

    def eject(self, handle: NicHandle) -> Callable[[], None]:
        """Return a function that ejects a device."""

        def acpi() -> None:
            self.qtest.outl(0xAE08, 1 << handle.slot)

        def native() -> None:
            control = self.express(handle.slot) + 0x18
            self.write(0, handle.slot, control, 0x07C0)

        return native if handle.behind_root_port else acpi


def test_plug_and_unplug(machine: Machine) -> None:
    bus = Bus(machine)
    for _ in range(3):
        handle = machine.add_nic("user")
        assert machine.nics == [handle]
        assert bus.identity(handle) in (0x1000_1AF4, 0x1041_1AF4)
        machine.remove_nic(handle, bus.eject(handle))
        assert machine.nics == []
        assert bus.identity(handle) == NO_DEVICE
    assert "nic" not in str([d["qdev_id"] for d in machine.execute("query-pci")[0]["devices"]])


def test_native_hotplug_on_q35(memory: _native.Memory, qemu_command: str, accel: Accel) -> None:
    with Machine(memory, accel=accel, machine="q35") as machine:
        bus = Bus(machine)
        handle = machine.add_nic("user")
        # It answers at once, though the slot was not powered up...
        assert bus.identity(handle) == 0x1041_1AF4
        # ... and goes by the slot's registers alone: QEMU's ACPI ones are not there.
        machine.remove_nic(handle, bus.eject(handle))
        assert bus.identity(handle) == NO_DEVICE


def test_removing_twice_does_nothing(machine: Machine) -> None:
    bus = Bus(machine)
    handle = machine.add_nic("user")
    machine.remove_nic(handle, bus.eject(handle))
    other = machine.add_nic("user")
    assert other.slot == handle.slot
    machine.remove_nic(handle, bus.eject(handle))
    assert machine.nics == [other]
    assert bus.identity(other) != NO_DEVICE


def test_all_slots(machine: Machine) -> None:
    bus = Bus(machine)
    slots = len(PC_SLOTS) if machine.machine == "pc" else ROOT_PORTS
    handles = [machine.add_nic("user") for _ in range(slots)]
    assert len({handle.slot for handle in handles}) == slots
    assert all(bus.identity(handle) != NO_DEVICE for handle in handles)
    with pytest.raises(ValueError, match=rf"all {slots} slots .* detach a port"):
        machine.add_nic("user")
    gone = handles.pop(3)
    machine.remove_nic(gone, bus.eject(gone))
    assert machine.add_nic("user").slot == gone.slot


def test_slots_stay_clear_of_the_machine(machine: Machine) -> None:
    slots = {device["slot"] for device in machine.execute("query-pci")[0]["devices"]}
    if machine.machine == "pc":
        assert not slots & set(PC_SLOTS)
    else:
        assert slots >= set(range(FIRST_ROOT_PORT, FIRST_ROOT_PORT + ROOT_PORTS))


def test_unplugging_is_quick(machine: Machine) -> None:
    bus = Bus(machine)
    times = []
    for _ in range(5):
        handle = machine.add_nic("user")
        began = time.monotonic()
        machine.remove_nic(handle, bus.eject(handle))
        times.append(time.monotonic() - began)
    assert max(times) < PROMPT


def test_nobody_ejects(machine: Machine) -> None:
    handle = machine.add_nic("user")
    with pytest.raises(TimeoutError, match=f"did not delete {handle.id} within"):
        machine.remove_nic(handle, lambda: None, timeout=0.2)
    assert machine.nics == [handle]
    # A second try gets there.
    machine.remove_nic(handle, Bus(machine).eject(handle))
    assert machine.nics == []


def test_only_asking_keeps_the_slot(machine: Machine) -> None:
    handle = machine.add_nic("user")
    machine.remove_nic(handle, None)
    assert machine.nics == [handle]


def test_killed_while_unplugging(machine: Machine) -> None:
    handle = machine.add_nic("user")
    began = time.monotonic()
    with pytest.raises(QemuDied, match="SIGKILL"):
        machine.remove_nic(handle, lambda: os.kill(machine.process.pid, signal.SIGKILL))
    assert time.monotonic() - began < PROMPT


@pytest.mark.parametrize(
    ("netdev", "error", "words"),
    [
        ("user,hostfwd=nonsense", QemuError, r"refused netdev_add.*nonsense"),
        ("user,colour=red", ValueError, r"'colour' is unknown to this QEMU"),
        ("telepathy", ValueError, r"type='telepathy' is unknown to this QEMU"),
        ("bridge,br=br0", ValueError, r"the bridge helper, which its sandbox denies.*'spawn'"),
        ("socket,connect=127.0.0.1:1,listen=:2", QemuError, r"refused netdev_add"),
    ],
)
def test_a_netdev_that_is_refused(
    machine: Machine, netdev: str, error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=words):
        machine.add_nic(netdev)
    assert machine.nics == []
    handle = machine.add_nic("user")
    assert handle.slot == (PC_SLOTS[0] if machine.machine == "pc" else FIRST_ROOT_PORT)


def test_a_property_that_is_refused(machine: Machine) -> None:
    with pytest.raises(QemuError, match=r"refused device_add.*colour"):
        machine.add_nic("user", {"colour": "red"})
    with pytest.raises(QemuError, match=r"refused device_add.*mac"):
        machine.add_nic("user", {"mac": "nonsense"})
    with pytest.raises(ValueError, match="'addr' is chosen by virtnic"):
        machine.add_nic("user", {"addr": "7"})
    # The netdevs of the failed ones are gone: a new one has the first slot.
    assert machine.nics == []
    assert machine.add_nic("user").spec.type == "user"


def test_properties_are_typed_by_qemu(machine: Machine) -> None:
    handle = machine.add_nic(
        "user",
        {
            "mac": "52:54:00:aa:bb:cc",
            "mq": "off",
            "vectors": "4",
            "disable-legacy": True,
            "rx_queue_size": 1024,
            "packed": "on",
        },
    )

    def value(name: str) -> Any:
        path = f"/machine/peripheral/{handle.id}"
        return machine.execute("qom-get", path=path, property=name)

    assert value("mac") == "52:54:00:aa:bb:cc"
    assert value("mq") is False
    assert value("vectors") == 4
    assert value("disable-legacy") == "on"
    assert value("rx_queue_size") == 1024
    assert value("packed") is True
    with pytest.raises(ValueError, match="mq='perhaps' is neither on nor off"):
        machine.add_nic("user", {"mq": "perhaps"})


def test_options_are_typed_by_qemu(machine: Machine) -> None:
    machine.add_nic("user,restrict=on,hostfwd=tcp:127.0.0.1:0-:22,ipv6-prefixlen=64")
    machine.add_nic({"type": "user", "restrict": True, "hostfwd": ["udp:127.0.0.1:0-:53"]})
    command: dict[str, Any] = {"command-line": "info network"}
    network = machine.execute("human-monitor-command", **command)
    assert network.count("restrict=on") == 2


def test_clock_runs_for_slirp(memory: _native.Memory, qemu_command: str, accel: Accel) -> None:
    with Machine(memory, accel=accel) as machine:
        if machine.accel != "qtest":
            # The clock runs by itself; stepping it would end QEMU.
            machine.add_nic("user")
            assert machine.execute("query-status")["running"] is True
            return
        still = machine.qtest.clock_step(1)
        pause(0.2)
        assert machine.qtest.clock_step(1) - still == 1
        machine.add_nic("socket,udp=127.0.0.1:9,localaddr=127.0.0.1:0")
        pause(0.2)
        assert machine.qtest.clock_step(1) - still == 2
        began = time.monotonic()
        machine.add_nic("user")
        assert eventually(lambda: machine.qtest.clock_step(1) - still > 0.3e9)
        passed = machine.qtest.clock_step(1) - still
        assert passed < (time.monotonic() - began) * 1e9 + 1e6, "it runs ahead of the time"


def test_plugging_from_several_threads(machine: Machine) -> None:
    bus = Bus(machine)
    handles: list[NicHandle] = []
    lock = threading.Lock()

    def plug() -> None:
        for _ in range(2):
            handle = machine.add_nic("user")
            with lock:
                handles.append(handle)

    threads = [threading.Thread(target=plug) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({handle.slot for handle in handles}) == 8
    for handle in handles:
        machine.remove_nic(handle, bus.eject(handle))
    assert machine.nics == []


def test_the_sandbox_opened_for_helpers(
    memory: _native.Memory, qemu_command: str, accel: Accel
) -> None:
    with Machine(memory, accel=accel, sandbox="spawn") as machine:
        # The helper runs now, and QEMU says that it failed: there is no such bridge.
        with pytest.raises(QemuError, match="bridge helper failed"):
            machine.add_nic("bridge,br=no-such-bridge")
        assert machine.execute("query-status")["running"] is True


def test_helpers_are_really_denied(machine: Machine) -> None:
    # Behind our own check: QEMU itself may not start anything.
    with pytest.raises(QemuError):
        machine.execute("netdev_add", type="bridge", id="b", br="no-such-bridge", timeout=3.0)
