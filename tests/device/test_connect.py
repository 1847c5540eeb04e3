"""Connecting to a QEMU that was started elsewhere: use and errors.

Several programs are in ``test_connect_again.py``; that nothing but the directory is in common is
shown in ``test_containers.py``.
"""

import contextlib
import json
import signal
import socket
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

import virtnic
from peers.external_qemu import Starter, arp, both_machines, connect, memory
from peers.testpmd import Testpmd
from support.inside import machine_of
from support.traffic import echo
from support.waiting import PROMPT, pause
from virtnic import net
from virtnic.cli import main
from virtnic.qemu.command import Accel
from virtnic.qemu.external import ExternalProcess, SharedDirectory

if TYPE_CHECKING:
    import subprocess

pytestmark = pytest.mark.needs("qemu")

StartTestpmd = Callable[..., Testpmd]


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
    """It behaves like a QEMU that was started here."""
    with connect(directory) as qemu, qemu.attach("user", interrupts=interrupts) as port:
        arp(port)
        with net.Stack(port) as stack:
            assert stack.ping(str(stack.dhcp().gateway), timeout=20.0).seconds > 0
        assert qemu.accel in {"qtest", "tcg"} if accel == "auto" else qemu.accel == accel
        assert qemu.machine == machine
        assert qemu.command is None
        assert repr(qemu) == f"<Qemu {machine} at {directory}>"


@both_machines
def test_the_processor_is_parked(
    running: object, directory: Path, qemu_command: str, accel: Accel
) -> None:
    """By three instructions in main memory: no firmware runs."""
    with connect(directory) as qemu:
        words: dict[str, Any] = {"command-line": "info registers"}
        registers = qemu.execute("human-monitor-command", **words)
        where = "00017002" if qemu.accel == "tcg" else "00017000"
        assert f"EIP={where}" in registers
        assert ("HLT=1" in registers) == (qemu.accel == "tcg")
        # SeaBIOS would have found and placed the devices by now.
        pause(0.2)
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
        with pytest.raises(ValueError, match="slots of this machine are in use"):
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
        qemu.execute("set_link", name=machine_of(qemu).nics[0].id, up=False)
        assert seen.wait(20.0)
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


def test_a_second_qemu_in_the_directory(
    start: Starter, directory: Path, qemu_command: str, accel: Accel
) -> None:
    """The second fails at once and disturbs nothing; a killed first one leaves no lock."""
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


def test_qemu_comes_later(start: Starter, directory: Path) -> None:
    with ThreadPoolExecutor(1) as executor:
        connecting = executor.submit(connect, directory, timeout=20)
        pause(0.5)
        assert not connecting.done()
        start()
        with connecting.result(20) as qemu, qemu.attach("user") as port:
            arp(port)


def test_qemu_dies(
    running: "subprocess.Popen[bytes]", directory: Path, qemu_command: str, accel: Accel
) -> None:
    """Its death raises the same error as that of a QEMU that was started here."""
    died: list[virtnic.QemuDied] = []
    with connect(directory) as qemu:
        machine_of(qemu).on_death(died.append)
        port = qemu.attach("user")
        events = qemu.events()
        threading.Timer(0.2, running.kill).start()
        with pytest.raises(virtnic.QemuDied, match=f"the QEMU at {directory} closed its sockets"):
            port.recv(1, timeout=10.0)
        event = events.wait(20.0)
        assert event is not None
        assert event.kind == "qemu-died"
        with pytest.raises(virtnic.QemuDied):
            qemu.attach("user")
        with pytest.raises(virtnic.QemuDied):
            qemu.execute("query-status")
        with pytest.raises(virtnic.QemuError, match="no process number"):
            _ = qemu.pid
    running.wait()
    assert [type(error) for error in died] == [virtnic.QemuDied]
    assert not machine_of(qemu).process.alive


def test_a_qemu_that_stands_still_holds_nobody_up(
    running: "subprocess.Popen[bytes]", directory: Path
) -> None:
    """Closing does not wait separately for each port."""
    qemu = connect(directory)
    for _ in range(3):
        qemu.attach("user")
    running.send_signal(signal.SIGSTOP)
    began = time.monotonic()
    qemu.close()
    assert time.monotonic() - began < PROMPT
    with pytest.raises(TimeoutError, match="stopped, blocked, or another client"):
        connect(directory, timeout=0.5)
    running.send_signal(signal.SIGCONT)
    with connect(directory) as qemu, qemu.attach("user") as port:
        arp(port)


# Errors.


def test_the_directory_is_missing(scratch: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"there is no .*/nowhere; .*mount it here"):
        connect(scratch / "nowhere")
    file = scratch / "file"
    file.touch()
    with pytest.raises(NotADirectoryError, match=r"not a directory; .*qemu-args --directory"):
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
def test_a_qemu_that_was_started_otherwise(start: Starter, directory: Path, name: str) -> None:
    start(name=name)
    with pytest.raises(virtnic.QemuError, match="was started otherwise: its name is"):
        connect(directory)


def test_a_machine_without_pci(start: Starter, directory: Path) -> None:
    start("-machine", "microvm")
    with pytest.raises(virtnic.QemuError, match="is a microvm-machine; virtnic drives pc and q35"):
        connect(directory)


def test_a_qemu_with_our_slot_taken(start: Starter, directory: Path) -> None:
    start("-device", "virtio-rng-pci,addr=2")
    with pytest.raises(virtnic.QemuError, match=r"device_add.*slot 2.*ivshmem-doorbell"):
        connect(directory)


def test_a_qemu_with_shared_memory_of_its_own(start: Starter, directory: Path) -> None:
    start(
        *("-object", "memory-backend-ram,id=m,size=1M,share=on"),
        *("-device", "ivshmem-plain,memdev=m,addr=5"),
    )
    with pytest.raises(virtnic.QemuError, match="2 ivshmem devices"):
        connect(directory)


class Impostor:
    """Listens where QEMU would, and gives scripted answers to QMP."""

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
    """Return the QMP greeting of a version."""
    version = {"qemu": {"major": major, "minor": 2, "micro": 0}, "package": ""}
    return {"QMP": {"version": version, "capabilities": []}}


def test_an_older_qemu_than_any_that_works(directory: Path) -> None:
    named = {"return": {"name": "virtnic-external"}}
    impostor = Impostor(directory, [greeting(4), {"return": {}}, named])
    with pytest.raises(
        virtnic.QemuError, match=r"version 4\.2\.0; 5\.2 is the oldest supported version"
    ):
        connect(directory)
    impostor.close()


def test_something_else_listens_there(directory: Path) -> None:
    impostor = Impostor(directory, [b"220 mail.example.org ESMTP"])
    with pytest.raises(virtnic.QemuError, match="does not greet like QEMU"):
        connect(directory)
    impostor.close()


def test_options_of_whoever_starts_it(directory: Path) -> None:
    options: dict[str, Any] = {"accel": "tcg", "machine": "q35", "qemu": "x", "sandbox": False}
    for name, value in options.items():
        with pytest.raises(ValueError, match="chosen where QEMU is started"):
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
    process = ExternalProcess(tmp_path)
    told: list[virtnic.QemuDied] = []
    process.on_death(told.append)
    assert process.alive
    assert "still runs" in process.death(0.0)
    process.ended()
    process.ended()
    process.on_death(told.append)
    assert len(told) == 2
    assert not process.alive
