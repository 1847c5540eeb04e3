"""A QEMU that was started elsewhere: connecting, leaving, coming back, and all that is wrong.

That nothing but the directory is in common is shown in ``test_containers.py``.
"""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

import virtnic
from peers.process import mortal
from peers.testpmd import Testpmd
from support.frames import arp_request, is_arp_reply
from support.traffic import echo
from virtnic.cli import main
from virtnic.qemu.command import Accel
from virtnic.qemu.external import Elsewhere, SharedDirectory, _end_line
from virtnic.qemu.monitor import Monitor

pytestmark = pytest.mark.needs("qemu")

StartTestpmd = Callable[..., Testpmd]
StartQemu = Callable[..., "subprocess.Popen[bytes]"]


def memory() -> virtnic.Memory:
    """Return memory that does not depend on free hugepages."""
    return virtnic.Memory("32M", hugepages=None)


def connect(directory: Path, **options: Any) -> virtnic.Qemu:
    """Connect with such a memory."""
    return virtnic.Qemu.connect(directory, memory(), **options)


def arp(port: virtnic.Port) -> None:
    """Ask slirp for its address, with timers that may only just have started."""
    deadline = time.monotonic() + 5.0
    while time.monotonic() < deadline:
        port.send([arp_request(port.mac)])
        if any(is_arp_reply(frame) for frame in port.recv(64, timeout=0.5)):
            return
    pytest.fail(f"slirp does not answer: {port.stats()}")


@pytest.fixture
def directory(scratch: Path) -> Iterator[Path]:
    """The directory that we share with QEMU; nothing but QEMU's own may be left in it."""
    path = scratch / "shared"
    path.mkdir(mode=0o700)
    yield path
    left = {file.name for file in path.iterdir()}
    for file in path.iterdir():
        file.unlink()
    path.rmdir()
    assert left <= {"qemu.pid", "qmp.sock", "qtest.sock"}


@pytest.fixture
def machine(request: pytest.FixtureRequest) -> str:
    """The machine type: that of a test on both, else the usual one."""
    return str(getattr(request, "param", "pc"))


both_machines = pytest.mark.parametrize("machine", ["pc", "q35"], indirect=True)


@pytest.fixture
def start(directory: Path, machine: str, qemu_command: str, accel: Accel) -> Iterator[StartQemu]:
    """Start what ``virtnic qemu-args`` says, with more options of QEMU."""
    with contextlib.ExitStack() as stack:

        def start(*extra: str, name: str | None = None) -> subprocess.Popen[bytes]:
            argv = arguments(directory, machine, qemu_command, accel)
            if name is not None:
                argv[argv.index("-name") + 1] = name
            process = subprocess.Popen(mortal([*argv, *extra]), stdin=subprocess.DEVNULL)
            stack.enter_context(process)
            stack.callback(process.kill)
            return process

        yield start


@pytest.fixture
def running(start: StartQemu) -> "subprocess.Popen[bytes]":
    """A QEMU that somebody else started."""
    return start()


def arguments(directory: Path, machine: str, qemu: str, accel: Accel) -> list[str]:
    """Return the command line that the command prints."""
    command = [sys.executable, "-m", "virtnic.cli", "qemu-args", "--json", "--qemu", qemu]
    command += ["--directory", str(directory), "--machine", machine, "--accel", accel]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    argv: list[str] = json.loads(done.stdout)["argv"]
    return argv


def in_the_way(qemu: virtnic.Qemu) -> list[str]:
    """Return what is in QEMU of those that connect to it."""
    found = [item["name"] for item in qemu.execute("qom-list", path="/machine/peripheral")]
    found += [chardev["label"] for chardev in qemu.execute("query-chardev")]
    words: dict[str, Any] = {"command-line": "info network"}
    return [*found, qemu.execute("human-monitor-command", **words)]


# Using it.


@both_machines
@pytest.mark.parametrize("interrupts", ["msix", "intx", "none"])
def test_a_port(
    running: object,
    directory: Path,
    machine: str,
    qemu_command: str,
    accel: Accel,
    interrupts: Any,
) -> None:
    """It is the same as with a QEMU of our own."""
    with connect(directory) as qemu, qemu.attach("user", interrupts=interrupts) as port:
        arp(port)
        stack = virtnic.Stack(port)
        assert stack.ping(str(stack.dhcp().gateway)).seconds > 0
        assert qemu.accel in {"qtest", "tcg"} if accel == "auto" else qemu.accel == accel
        assert qemu.machine == machine
        assert qemu.binary is None
        assert repr(qemu) == f"<Qemu {machine} at {directory}>"


@both_machines
def test_the_processor_is_parked(
    running: object, directory: Path, qemu_command: str, accel: Accel
) -> None:
    """By three instructions in main memory: no firmware of anybody's runs."""
    with connect(directory) as qemu:
        words: dict[str, Any] = {"command-line": "info registers"}
        registers = qemu.execute("human-monitor-command", **words)
        where = "00017002" if qemu.accel == "tcg" else "00017000"
        assert f"EIP={where}" in registers
        assert ("HLT=1" in registers) == (qemu.accel == "tcg")
        # SeaBIOS would have found and placed the devices by now.
        time.sleep(0.2)
        with qemu.attach("user") as port:
            arp(port)


@both_machines
def test_ports_come_and_go(
    running: object, directory: Path, machine: str, qemu_command: str, accel: Accel
) -> None:
    """As many as there are slots, while one of them carries traffic."""
    large = virtnic.Memory("256M", hugepages=None)
    with virtnic.Qemu.connect(directory, large) as qemu, qemu.attach("user") as first:
        ports = [
            qemu.attach("user", interrupts="none") for _ in range({"pc": 28, "q35": 15}[machine])
        ]
        with pytest.raises(ValueError, match="slots of this machine are taken"):
            qemu.attach("user")
        arp(first)
        for port in ports:
            qemu.detach(port)
        assert qemu.ports == (first,)
        arp(first)


def test_link_changes_are_seen(running: object, directory: Path) -> None:
    changes: list[bool] = []
    seen = threading.Event()

    def changed(port: virtnic.Port) -> None:
        changes.append(port.link)
        seen.set()

    with connect(directory) as qemu, qemu.attach("user", on_link=changed) as port:
        qemu.execute("set_link", name=qemu.nics[0].id, up=False)
        assert seen.wait(5.0)
        assert changes == [False]
        assert port.link is False


@both_machines
@pytest.mark.needs("testpmd")
@pytest.mark.parametrize("notify", ["eventfd", "qtest"])
def test_a_vhost_user_backend(
    running: object, directory: Path, testpmd: StartTestpmd, notify: Any
) -> None:
    backend = testpmd()
    netdev = f"vhost-user,path={backend.sockets[0]}"
    with connect(directory) as qemu, qemu.attach(netdev, notify=notify) as port:
        echo(port, 1000)


def test_open(running: object, directory: Path) -> None:
    """`open` takes the directory; closing the port leaves QEMU as it was."""
    for _ in range(2):
        with virtnic.open("user", connect=directory, memory=memory()) as port:
            arp(port)


@pytest.mark.parametrize("command", [["ping", "10.0.2.2", "--count", "1"], ["probe"]])
def test_commands(
    running: object, directory: Path, command: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*command, "--connect", str(directory), "--hugepages", "none", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    if command == ["probe"]:
        assert found["qemu"]["connected"] == str(directory)
        assert found["qemu"]["pid"] is None
        assert main([*command, "--connect", str(directory), "--hugepages", "none"]) == 0
        assert f"(at {directory})" in capsys.readouterr().out


# Coming back.


@both_machines
def test_connecting_again(
    running: "subprocess.Popen[bytes]",
    directory: Path,
    machine: str,
    qemu_command: str,
    accel: Accel,
) -> None:
    """Nothing of ours is in QEMU when we have gone, and the next may come."""
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
        assert qemu.nics == []
        with qemu.attach("user") as port:
            arp(port)


@both_machines
def test_what_a_program_left_half_done_is_removed(
    running: object, directory: Path, machine: str, qemu_command: str, accel: Accel
) -> None:
    """It was killed between the steps of attaching or detaching."""
    deadline = time.monotonic() + 10.0
    while not (directory / "qmp.sock").exists() and time.monotonic() < deadline:
        time.sleep(0.01)
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
        assert [nic.id for nic in qemu.nics] == ["nic10"]
        left = " ".join(in_the_way(qemu))
        assert "net10" in left
        for name in ("char3", "net7", "net9", "nic9"):
            assert name not in left
        assert not (directory / "vhost-17.sock").exists()


def test_a_half_line_of_qtest_is_ended(
    running: "subprocess.Popen[bytes]", directory: Path, qemu_command: str, accel: Accel
) -> None:
    """A killed program may leave one; QEMU would glue our first line to it, and abort."""
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
            _end_line(directory / "qtest.sock", Elsewhere(directory), 5.0)
    with connect(directory) as qemu, qemu.attach("user") as port:
        arp(port)
    assert running.poll() is None


def test_a_second_qemu_in_the_directory(
    start: StartQemu, directory: Path, qemu_command: str, accel: Accel
) -> None:
    """It ends at once and takes nothing away; killed, the first leaves no lock."""
    first = start()
    with connect(directory) as qemu:
        assert start().wait(10.0) == 1
        with qemu.attach("user") as port:
            arp(port)
    with connect(directory):
        first.kill()
    first.wait()
    start()
    with connect(directory):
        pass


def test_qemu_comes_later(start: StartQemu, directory: Path) -> None:
    with ThreadPoolExecutor(1) as executor:
        connecting = executor.submit(connect, directory, timeout=20)
        time.sleep(0.5)
        assert not connecting.done()
        start()
        with connecting.result(20) as qemu, qemu.attach("user") as port:
            arp(port)


def test_qemu_dies(
    running: "subprocess.Popen[bytes]", directory: Path, qemu_command: str, accel: Accel
) -> None:
    """Its death is the same error as that of a QEMU of ours."""
    died: list[virtnic.QemuDied] = []
    with connect(directory) as qemu:
        qemu.on_death(died.append)
        port = qemu.attach("user")
        events = qemu.events()
        threading.Timer(0.2, running.kill).start()
        with pytest.raises(virtnic.QemuDied, match=f"the QEMU at {directory} closed its sockets"):
            port.recv(1, timeout=10.0)
        event = events.wait(5.0)
        assert event is not None
        assert event.kind == "qemu-died"
        with pytest.raises(virtnic.QemuDied):
            qemu.attach("user")
        with pytest.raises(virtnic.QemuDied):
            qemu.execute("query-status")
        with pytest.raises(virtnic.QemuError, match="no process number"):
            _ = qemu.process.pid
    running.wait()
    assert [type(error) for error in died] == [virtnic.QemuDied]
    assert not qemu.process.alive


def test_a_qemu_that_stands_still_holds_nobody_up(
    running: "subprocess.Popen[bytes]", directory: Path
) -> None:
    """Closing does not wait once for each port."""
    qemu = connect(directory, timeout=1.0)
    for _ in range(3):
        qemu.attach("user")
    running.send_signal(signal.SIGSTOP)
    began = time.monotonic()
    qemu.close()
    assert time.monotonic() - began < 5.0
    with pytest.raises(TimeoutError, match="stopped, blocked, or another client"):
        connect(directory, timeout=0.5)
    running.send_signal(signal.SIGCONT)
    with connect(directory) as qemu, qemu.attach("user") as port:
        arp(port)


# What is wrong.


def test_one_program_at_a_time(running: object, directory: Path) -> None:
    with connect(directory) as qemu:
        with pytest.raises(TimeoutError, match="another client holds"):
            connect(directory, timeout=0.5)
        with qemu.attach("user") as port:
            arp(port)


def test_programs_take_turns(running: object, directory: Path) -> None:
    """Of two that come at once one gets in; the other waits, as long as it was told to."""
    turns: list[str] = []

    def take_turn() -> None:
        with connect(directory, timeout=20.0) as qemu, qemu.attach("user") as port:
            turns.append("in")
            arp(port)
            turns.append("out")

    with ThreadPoolExecutor(3) as executor:
        for turn in [executor.submit(take_turn) for _ in range(3)]:
            turn.result(60.0)
    assert turns == ["in", "out"] * 3


def test_the_directory_is_missing(scratch: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"there is no .*/nowhere; .*mount it here"):
        connect(scratch / "nowhere")
    file = scratch / "file"
    file.touch()
    with pytest.raises(NotADirectoryError, match=r"no directory; .*qemu-args --directory"):
        connect(file)
    file.unlink()
    long = scratch / ("d" * 100)
    long.mkdir()
    with pytest.raises(ValueError, match="too long for a UNIX socket"):
        connect(long)
    long.rmdir()


def test_no_qemu_is_there(directory: Path) -> None:
    advice = rf"start it there as `virtnic qemu-args --directory {directory}` says"
    with pytest.raises(virtnic.QemuNotFound, match=rf"within 0\.2 s: there is no .*; {advice}"):
        connect(directory, timeout=0.2)
    with socket.socket(socket.AF_UNIX) as gone:
        gone.bind(str(directory / "qmp.sock"))
    with pytest.raises(virtnic.QemuNotFound, match=rf"nobody listens at .*; {advice}"):
        connect(directory, timeout=0.2)


def test_the_command_says_so_with_3(directory: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Like a machine that lacks a QEMU."""
    where = ["--connect", str(directory / "x"), "--hugepages", "none"]
    assert main(["ping", "10.0.2.2", *where]) == 3
    assert "there is no" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["virtnic", "somebody's machine"])
def test_a_qemu_that_was_started_otherwise(start: StartQemu, directory: Path, name: str) -> None:
    start(name=name)
    with pytest.raises(virtnic.QemuError, match="was started otherwise: its name is"):
        connect(directory)


def test_a_machine_without_pci(start: StartQemu, directory: Path) -> None:
    start("-machine", "microvm")
    with pytest.raises(virtnic.QemuError, match="is a microvm-machine; virtnic drives pc and q35"):
        connect(directory)


def test_a_qemu_with_our_slot_taken(start: StartQemu, directory: Path) -> None:
    start("-device", "virtio-rng-pci,addr=2")
    with pytest.raises(virtnic.QemuError, match=r"device_add.*slot 2.*ivshmem-doorbell"):
        connect(directory)


def test_a_qemu_with_shared_memory_of_its_own(start: StartQemu, directory: Path) -> None:
    start(
        *("-object", "memory-backend-ram,id=m,size=1M,share=on"),
        *("-device", "ivshmem-plain,memdev=m,addr=5"),
    )
    with pytest.raises(virtnic.QemuError, match="2 ivshmem devices"):
        connect(directory)


class Impostor:
    """Listens where QEMU would, and answers QMP with what it is told."""

    def __init__(self, directory: Path, answers: list[Any]) -> None:
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(directory / "qmp.sock"))
        self._listener.listen()
        self._answers = answers
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def _serve(self) -> None:
        client, _ = self._listener.accept()
        with client, contextlib.suppress(OSError, ValueError):
            first, *rest = self._answers
            greeting = first if isinstance(first, bytes) else json.dumps(first).encode()
            client.sendall(greeting + b"\n")
            for answer in rest:
                request = json.loads(client.recv(65536))
                number = {"id": request["id"]} if "id" in request else {}
                client.sendall(json.dumps({**answer, **number}).encode() + b"\n")
            client.recv(65536)

    def close(self) -> None:
        self._thread.join()
        self._listener.close()


def greeting(major: int) -> dict[str, Any]:
    """Return how a QEMU of some version greets."""
    version = {"qemu": {"major": major, "minor": 2, "micro": 0}, "package": ""}
    return {"QMP": {"version": version, "capabilities": []}}


def test_an_older_qemu_than_any_that_works(directory: Path) -> None:
    named = {"return": {"name": "virtnic-elsewhere"}}
    impostor = Impostor(directory, [greeting(4), {"return": {}}, named])
    with pytest.raises(virtnic.QemuError, match=r"version 4\.2\.0; 5\.2 is the oldest that works"):
        connect(directory)
    impostor.close()


def test_something_else_listens_there(directory: Path) -> None:
    impostor = Impostor(directory, [b"220 mail.example.org ESMTP"])
    with pytest.raises(virtnic.QemuError, match="does not greet as QEMU does"):
        connect(directory)
    impostor.close()


def test_options_of_whoever_starts_it(directory: Path) -> None:
    options: dict[str, Any] = {"accel": "tcg", "machine": "q35", "qemu": "x", "sandbox": False}
    for name, value in options.items():
        with pytest.raises(ValueError, match="chosen by whoever starts QEMU"):
            virtnic.Qemu(memory(), connect=directory, **{name: value})


def test_a_netdev_that_its_sandbox_denies(running: object, directory: Path) -> None:
    """QEMU would be killed by its own seccomp filter."""
    with (
        connect(directory) as qemu,
        pytest.raises(ValueError, match="sandbox='spawn' if that is wanted to `virtnic qemu-args`"),
    ):
        qemu.attach("bridge,br=br0")


# Its parts.


@pytest.mark.parametrize(
    ("filename", "seen"),
    [
        ("unix:/run/virtnic/qmp.sock,server=on", "/run/virtnic"),
        ("unix:/run/virtnic/qmp.sock,server", "/run/virtnic"),  # QEMU 5.2
        ("unix:/a,b/qmp.sock,server=on", "/a,b"),
        ("unix:here/qmp.sock,server=on", "here"),
        ("unix:/elsewhere/other.sock,server=on", None),
        ("disconnected:unix:/elsewhere/qmp.sock", None),
    ],
)
def test_where_qemu_has_the_directory(scratch: Path, filename: str, seen: str | None) -> None:
    place = SharedDirectory(scratch)
    place.learn([{"label": "compat_monitor0", "filename": filename}])
    assert place.as_qemu_sees(place.shmem) == f"{seen or scratch}/shmem.sock"
    assert place.as_qemu_sees("/dev/net/tun") == "/dev/net/tun"


def test_a_death_is_told_once(tmp_path: Path) -> None:
    process = Elsewhere(tmp_path)
    told: list[virtnic.QemuDied] = []
    process.on_death(told.append)
    assert process.alive
    assert "still runs" in process.death(0.0)
    process.ended()
    process.ended()
    process.on_death(told.append)
    assert len(told) == 2
    assert not process.alive
