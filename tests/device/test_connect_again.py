"""Several programs that connect to one external QEMU in turn.

They connect at the same time, or leave in the middle of an operation; the next one finds it clean.
"""

import contextlib
import errno
import itertools
import math
import os
import signal
import socket
import subprocess
import sys
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, as_completed, wait
from pathlib import Path
from typing import Any

import pytest

from peers.external_qemu import arp, both_machines, connect, in_the_way
from peers.process import freeze
from peers.vhost_backend import ScriptedBackend
from support.inside import machine_of
from support.waiting import eventually
from virtnic.pci import PciBus
from virtnic.qemu.command import Accel
from virtnic.qemu.external import ExternalProcess, _end_line
from virtnic.qemu.monitor import Monitor

pytestmark = pytest.mark.needs("qemu")


@both_machines
def test_connecting_again(
    running: "subprocess.Popen[bytes]",
    directory: Path,
    machine: str,
    qemu_command: str,
    accel: Accel,
) -> None:
    """Nothing of ours remains in QEMU after we left, and the next program can connect."""
    found = []
    for _ in range(3):
        with connect(directory) as qemu:
            ports = [qemu.attach("user"), qemu.attach("user", interrupts="intx")]
            for port in ports:
                arp(port)
        monitor = Monitor(directory / "qmp.sock").connect()
        try:
            devices = monitor.execute("qom-list", path="/machine/peripheral")
            found.append({item["name"] for item in devices})
            labels = {chardev["label"] for chardev in monitor.execute("query-chardev")}
            assert not {label for label in labels if label.startswith(("shmem", "char"))}
            words: dict[str, Any] = {"command-line": "info network"}
            assert monitor.execute("human-monitor-command", **words).strip() == ""
        finally:
            monitor.close()
        assert all(port.closed for port in ports)
    slots = {f"port{number}" for number in range(17)} if machine == "q35" else set()
    assert found == [{"type"} | slots] * 3
    assert running.poll() is None


@both_machines
def test_what_a_killed_program_left_is_removed(
    running: object, directory: Path, qemu_command: str, accel: Accel
) -> None:
    """Its NICs, its netdevs and its memory, in the middle of traffic."""
    program = """
import os, signal, sys, virtnic
from support.frames import arp_request
qemu = virtnic.Qemu.connect(sys.argv[1], virtnic.Memory("32M", hugepages=None))
ports = [qemu.attach("user"), qemu.attach("user", interrupts="intx")]
for _ in range(100):
    for port in ports:
        port.send([arp_request(port.mac)])
        port.recv(8)
os.kill(os.getpid(), signal.SIGKILL)
"""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    for _ in range(3):
        done = subprocess.run(
            [sys.executable, "-c", program, str(directory)], check=False, env=environment
        )
        assert done.returncode == -signal.SIGKILL
    with connect(directory) as qemu:
        assert machine_of(qemu).nics == []
        with qemu.attach("user") as port:
            arp(port)


@both_machines
def test_what_a_program_left_half_done_is_removed(
    running: object, directory: Path, machine: str, qemu_command: str, accel: Accel
) -> None:
    """It was killed between the steps of attaching or detaching."""
    monitor = Monitor(directory / "qmp.sock").connect()
    try:
        address = {"type": "unix", "data": {"path": str(directory / "nobody")}}
        data = {"addr": address, "server": True, "wait": False}
        backend = {"type": "socket", "data": data}
        monitor.execute("chardev-add", id="char3", backend=backend)
        monitor.execute("netdev_add", type="user", id="net7")
        monitor.execute("netdev_add", type="user", id="net9")
        place: dict[str, Any] = {"bus": "port4"} if machine == "q35" else {"addr": "4"}
        monitor.execute(
            "device_add", driver="virtio-net-pci", id="nic9", netdev="net9", romfile="", **place
        )
        monitor.execute("device_del", id="nic9")
    finally:
        monitor.close()
    (directory / "nobody").unlink()
    (directory / "vhost-17.sock").touch()
    with connect(directory) as qemu, qemu.attach("user") as port:
        arp(port)
        assert [nic.id for nic in machine_of(qemu).nics] == ["nic10"]
        left = " ".join(in_the_way(qemu))
        assert "net10" in left
        for name in ("char3", "net7", "net9", "nic9"):
            assert name not in left
        assert not (directory / "vhost-17.sock").exists()


def test_a_half_line_of_qtest_is_ended(
    running: "subprocess.Popen[bytes]", directory: Path, qemu_command: str, accel: Accel
) -> None:
    """A killed program may leave a partial line: QEMU would append our first one, and abort."""
    with connect(directory):
        pass
    whole = ["outl 0xcf8 0x80001004", "writel 0xe0001000 0x1", "readl 0x7000", "read 0x7000 0x40"]
    if accel == "qtest":
        whole.append("clock_step 1000000")
    for line in whole:
        for length in range(1, len(line) + 1):
            with socket.socket(socket.AF_UNIX) as program:
                program.connect(str(directory / "qtest.sock"))
                program.sendall(line[:length].encode())
            _end_line(directory / "qtest.sock", ExternalProcess(directory), 5.0)
    with connect(directory) as qemu, qemu.attach("user") as port:
        arp(port)
    assert running.poll() is None


def test_one_program_at_a_time(running: object, directory: Path) -> None:
    with connect(directory) as qemu:
        with pytest.raises(TimeoutError, match="another client holds"):
            connect(directory, timeout=0.5)
        with qemu.attach("user") as port:
            arp(port)


def test_programs_take_turns(running: object, directory: Path) -> None:
    """Of several at once one connects; the others wait as long as their timeouts allow."""
    turns: list[str] = []

    def take_turn() -> None:
        with connect(directory, timeout=60.0) as qemu, qemu.attach("user") as port:
            turns.append("in")
            arp(port)
            turns.append("out")

    with ThreadPoolExecutor(3) as executor:
        for turn in [executor.submit(take_turn) for _ in range(3)]:
            turn.result(100.0)
    assert turns == ["in", "out"] * 3


def test_more_programs_than_qemu_lets_wait(
    running: "subprocess.Popen[bytes]", directory: Path
) -> None:
    """The kernel queues two connections for QEMU; further ones are refused, and try again."""
    with connect(directory):
        pass
    freeze(running.pid)
    with contextlib.ExitStack() as stack:
        for path in (directory / "qmp.sock", directory / "qtest.sock"):
            refused = 0
            while refused != errno.EAGAIN:
                client = stack.enter_context(socket.socket(socket.AF_UNIX))
                client.setblocking(False)
                refused = client.connect_ex(str(path))
        with pytest.raises(TimeoutError, match="another client holds the connection, and others"):
            connect(directory, timeout=0.2)
        with pytest.raises(TimeoutError, match=r"did not answer on .*qtest\.sock within 0\.2 s"):
            _end_line(directory / "qtest.sock", ExternalProcess(directory), 0.2)
        with ThreadPoolExecutor(3) as executor:
            programs = [executor.submit(connect, directory, timeout=60.0) for _ in range(3)]
            # None of them fails while QEMU stands still; these can only wait, so this only finds.
            wait(programs, 0.5, FIRST_COMPLETED)
            stack.close()
            running.send_signal(signal.SIGCONT)
            for program in as_completed(programs, 100.0):
                with program.result() as qemu, qemu.attach("user") as port:
                    arp(port)


class Killed(BaseException):
    """Ends a program here, as SIGKILL would."""


@both_machines
def test_a_program_that_is_killed_at_any_step_of_leaving(
    running: object,
    directory: Path,
    machine: str,
    qemu_command: str,
    accel: Accel,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """QEMU may free a device some time after it was ejected; the next program waits for that."""
    left: list[float] = [math.inf]

    def killed_at(cls: type, name: str) -> None:
        original = getattr(cls, name)

        def step(*args: Any, **options: Any) -> Any:
            result = original(*args, **options)
            left[0] -= 1
            if left[0] <= 0:
                raise Killed
            return result

        monkeypatch.setattr(cls, name, step)

    killed_at(Monitor, "execute")
    killed_at(PciBus, "eject")
    with connect(directory) as qemu, qemu.attach("user"):
        new = [what for what in in_the_way(qemu)[:-1] if not what.startswith("nic")]
    for steps in itertools.count(1):
        leaving = connect(directory)
        leaving.attach("user")
        left[0] = steps
        with contextlib.suppress(Killed):
            leaving.close()
            break
        left[0] = math.inf
        machine_of(leaving).qtest.close()
        machine_of(leaving).monitor.close()
        with connect(directory) as qemu, qemu.attach("user"):
            assert [what for what in in_the_way(qemu)[:-1] if not what.startswith("nic")] == new
        leaving.close()
    left[0] = math.inf
    assert steps > 5
    with connect(directory) as qemu, qemu.attach("user") as port:
        arp(port)


def test_nothing_is_left_for_the_next_to_fall_over(
    running: "subprocess.Popen[bytes]",
    directory: Path,
    scratch: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A program removes its sockets before the next can connect: they have the same names."""
    found: list[set[str]] = []
    close = Monitor.close

    def look(monitor: Monitor) -> None:
        found.append({path.name for path in directory.iterdir()})
        close(monitor)

    with ScriptedBackend(scratch / "backend.sock") as backend:
        qemu = connect(directory, timeout=1.0)
        qemu.attach(f"vhost-user,path={backend.path}")
        assert backend.wait(lambda: backend.serving)
        freeze(running.pid)
        backend.drop()
        # The interposer expects QEMU again, which stands still.
        assert eventually((directory / "vhost-1.sock").exists)
        monkeypatch.setattr(Monitor, "close", look)
        qemu.close()
    assert found
    assert found[0] <= {"qemu.pid", "qmp.sock", "qtest.sock"}
    monkeypatch.undo()
    running.send_signal(signal.SIGCONT)
    with connect(directory) as qemu, qemu.attach("user") as port:
        arp(port)


@both_machines
def test_interrupted_while_our_memory_is_looked_for(
    running: object,
    directory: Path,
    machine: str,
    qemu_command: str,
    accel: Accel,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It is plugged into a bus that was not scanned: it is removed, and nothing waits."""
    rescan = PciBus.rescan

    def interrupted(bus: PciBus) -> Any:
        monkeypatch.setattr(PciBus, "rescan", rescan)
        raise KeyboardInterrupt

    monkeypatch.setattr(PciBus, "rescan", interrupted)
    with pytest.raises(KeyboardInterrupt):
        connect(directory, timeout=60.0)
    monitor = Monitor(directory / "qmp.sock").connect()
    try:
        devices = {item["name"] for item in monitor.execute("qom-list", path="/machine/peripheral")}
    finally:
        monitor.close()
    slots = {f"port{number}" for number in range(17)} if machine == "q35" else set()
    assert devices == {"type"} | slots


def test_interrupted_when_our_memory_was_let_go(
    running: object, directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """QEMU no longer lists the device, but its chardev is still in use."""
    remove = PciBus.remove

    def interrupted(bus: PciBus, function: Any) -> None:
        monkeypatch.setattr(PciBus, "remove", remove)
        raise KeyboardInterrupt

    for _ in range(5):
        qemu = connect(directory)
        monkeypatch.setattr(PciBus, "remove", interrupted)
        with pytest.raises(KeyboardInterrupt):
            qemu.close()
        qemu.close()
    connect(directory).close()
