"""Starting and ending QEMU, cleaning up, and errors."""

import os
import resource
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import virtnic
from support.inside import machine_of
from support.waiting import PROMPT, eventually, pause
from virtnic import _native
from virtnic.errors import QemuDied, QemuError, QemuNotFound
from virtnic.qemu import Machine, find, find_qemu
from virtnic.qemu.command import PARKING_FIRMWARE, Accel, MachineType, Shmem
from virtnic.qemu.process import Process


@pytest.fixture
def machine(memory: _native.Memory, qemu_command: str, accel: Accel) -> Iterator[Machine]:
    with Machine(memory, accel=accel) as machine:
        yield machine


def processor_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def resident_mib(pid: int) -> float:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) / 1024
    raise AssertionError("no VmRSS")


@pytest.mark.parametrize("kind", ["pc", "q35"])
@pytest.mark.parametrize("shmem", ["doorbell", "plain"])
def test_it_starts(
    memory: _native.Memory, qemu_command: str, accel: Accel, kind: MachineType, shmem: Shmem
) -> None:
    with Machine(memory, accel=accel, machine=kind, shmem=shmem) as machine:
        assert machine.version == find_qemu(qemu_command).version
        assert machine.execute("query-status")["running"] is True
        # Type 0 configuration access to 00:00.0: Intel's host bridge.
        machine.qtest.outl(0xCF8, 0x8000_0000)
        assert machine.qtest.inl(0xCFC) & 0xFFFF == 0x8086
        [pci] = [bus for bus in machine.execute("query-pci") if bus["bus"] == 0]
        found = [device for device in pci["devices"] if device["qdev_id"] == "shmem0"]
        assert [device["id"]["device"] for device in found] == [0x1110]
        assert (machine.server is not None) is (shmem == "doorbell")


def test_accel_auto_takes_what_there_is(
    memory: _native.Memory, qemu_command: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Whichever --accel says, for once.
    names = ("qtest", "tcg", "kvm")
    monkeypatch.setattr(find, "ACCELERATORS", names)
    binary = find_qemu(qemu_command)
    wanted = next(name for name in names if binary.has_accelerator(name))
    for _ in range(2):  # the second start uses what the first one learnt
        with Machine(memory) as machine:
            assert machine.accel == wanted
            assert machine.qtest.inl(0xCF8) is not None


def wakeups(pid: int) -> int:
    """How often the main thread slept and was woken."""
    for line in Path(f"/proc/{pid}/task/{pid}/status").read_text().splitlines():
        if line.startswith("voluntary_ctxt_switches:"):
            return int(line.split()[1])
    raise AssertionError("no voluntary_ctxt_switches")


def test_it_is_small_and_idle(machine: Machine) -> None:
    pid = machine.process.pid
    machine.add_nic("socket,udp=127.0.0.1:9,localaddr=127.0.0.1:0")
    assert resident_mib(pid) < 60

    def idle() -> bool:
        before, woken = processor_seconds(pid), wakeups(pid)
        pause(1.0)
        return processor_seconds(pid) - before <= 0.01 and wakeups(pid) - woken <= 5

    assert eventually(idle)  # once it has done with the device


def test_it_is_small_and_nearly_idle_with_slirp(machine: Machine) -> None:
    pid = machine.process.pid
    machine.add_nic("user,hostname=x")
    assert resident_mib(pid) < 60

    def idle() -> bool:
        before = processor_seconds(pid)
        pause(1.0)
        # A clock that has to be stepped costs a little.
        return processor_seconds(pid) - before <= 0.03

    assert eventually(idle)


def test_parked_firmware_sits_at_the_reset_vector() -> None:
    assert len(PARKING_FIRMWARE) == 0x10000
    assert PARKING_FIRMWARE[-16:-12] == b"\xfa\xf4\xeb\xfd"


def test_parked_processor_executes_nothing(memory: _native.Memory, qemu_command: str) -> None:
    with Machine(memory, accel="tcg") as machine:
        [processor] = machine.execute("query-cpus-fast")
        registers: dict[str, Any] = {"command-line": "info registers"}
        deadline = time.monotonic() + 20.0
        while "HLT=1" not in machine.execute("human-monitor-command", timeout=5.0, **registers):
            assert time.monotonic() < deadline
        asleep = machine.execute("human-monitor-command", timeout=5.0, **registers)

        def idle() -> bool:
            before = processor_seconds(processor["thread-id"])
            pause(1.0)
            # One tick of the clock by which the kernel accounts is no work.
            return processor_seconds(processor["thread-id"]) - before <= 0.011

        assert eventually(idle)
        assert machine.execute("human-monitor-command", timeout=5.0, **registers) == asleep


def test_nothing_of_the_directory_is_left_while_it_runs(scratch: Path, machine: Machine) -> None:
    assert machine.directory is None
    assert not list(scratch.glob("virtnic-*"))
    assert machine.execute("query-version")


def test_a_directory_that_was_named_is_used(
    memory: _native.Memory, qemu_command: str, tmp_path: Path
) -> None:
    place = tmp_path / "a,b"
    with Machine(memory, directory=place) as machine:
        assert machine.directory == place
        # Nobody connects to that of the memory once QEMU has it.
        assert {file.name for file in place.iterdir()} == {"qmp.sock", "qtest.sock", "park.bin"}
        assert place.stat().st_mode & 0o777 == 0o700
    assert not list(place.iterdir())


def test_a_directory_with_too_long_a_name(
    memory: _native.Memory, qemu_command: str, tmp_path: Path
) -> None:
    place = tmp_path / ("x" * 100)
    with pytest.raises(ValueError, match=r"too long for a UNIX socket.*107 fit.*directory="):
        Machine(memory, directory=place).start()
    assert not place.exists()


def test_closing_twice_and_from_everywhere(memory: _native.Memory, qemu_command: str) -> None:
    machine = Machine(memory).start()
    pid = machine.process.pid
    threads = [threading.Thread(target=machine.close) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    machine.close()
    assert machine.closed
    assert not Path(f"/proc/{pid}").exists()
    with pytest.raises(QemuError):
        machine.execute("query-status")


def test_an_abandoned_one_goes_away(qemu_command: str) -> None:
    qemu: virtnic.Qemu | None = virtnic.Qemu(virtnic.Memory("4M", hugepages=None))
    assert qemu is not None
    machine_of(qemu).add_nic("user")
    pid = qemu.pid
    with pytest.warns(ResourceWarning, match="unclosed <Qemu pc"):
        qemu = None
    deadline = time.monotonic() + 20.0
    while Path(f"/proc/{pid}").exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not Path(f"/proc/{pid}").exists()


def test_several_share_one_thread(memory: _native.Memory, qemu_command: str) -> None:
    with Machine(memory) as one, Machine(memory) as two:
        assert one.process.pid != two.process.pid
        ours = [t for t in threading.enumerate() if t.name == "virtnic-qemu"]
        assert len(ours) == 1
        one.close()
        assert two.execute("query-status")["running"] is True
    assert not [t for t in threading.enumerate() if t.name == "virtnic-qemu"]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"accel": "hvf"}, "accel='hvf' is not one of auto, qtest, tcg, kvm"),
        ({"machine": "microvm"}, "machine='microvm' is not one of pc, q35"),
        ({"shmem": "ether"}, "shmem='ether' is not one of doorbell, plain"),
        ({"sandbox": "sand"}, "sandbox='sand' is not"),
    ],
)
def test_bad_options(memory: _native.Memory, options: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        Machine(memory, **options).start()


def test_no_memory() -> None:
    nothing: Any = None
    with pytest.raises(TypeError, match=r"memory must be a virtnic\.Memory"):
        Machine(nothing).start()


def test_a_start_that_fails_quotes_qemu(memory: _native.Memory, qemu_command: str) -> None:
    began = time.monotonic()
    with pytest.raises(QemuError, match=r"did not start: .*no-such-device"):
        Machine(memory, extra=("-device", "no-such-device")).start()
    assert time.monotonic() - began < PROMPT


def test_an_accelerator_it_has_not(memory: _native.Memory, qemu_command: str) -> None:
    if find_qemu(qemu_command).has_accelerator("qtest"):
        pytest.skip("this QEMU has the qtest accelerator")
    with pytest.raises(QemuError, match=r"invalid accelerator qtest.*accel=auto"):
        Machine(memory, accel="qtest").start()


def test_a_program_that_is_no_qemu(memory: _native.Memory) -> None:
    with pytest.raises(QemuNotFound, match="does not answer like QEMU"):
        Machine(memory, qemu="/bin/true").start()


def test_one_that_never_opens_its_socket(memory: _native.Memory, tmp_path: Path) -> None:
    asleep = tmp_path / "qemu"
    asleep.write_text("#!/bin/sh\nexec sleep 60\n")
    asleep.chmod(0o755)
    with pytest.raises(TimeoutError, match="opened no QMP socket"):
        Machine(memory, qemu=asleep, timeout=0.3).start()


def test_a_stopped_qemu_times_out(machine: Machine) -> None:
    os.kill(machine.process.pid, signal.SIGSTOP)
    with pytest.raises(TimeoutError, match=r"did not answer query-status within 0\.2 s"):
        machine.execute("query-status", timeout=0.2)
    os.kill(machine.process.pid, signal.SIGCONT)
    assert machine.execute("query-status", timeout=5.0)["running"] is True


def test_a_stopped_qemu_is_killed_by_close(memory: _native.Memory, qemu_command: str) -> None:
    machine = Machine(memory).start()
    os.kill(machine.process.pid, signal.SIGSTOP)
    began = time.monotonic()
    machine.close()
    assert time.monotonic() - began < PROMPT


def test_killed_while_a_call_waits(machine: Machine) -> None:
    pid = machine.process.pid
    died: list[QemuDied] = []
    told = threading.Event()

    def callback(error: QemuDied) -> None:
        died.append(error)
        told.set()

    machine.on_death(callback)
    os.kill(pid, signal.SIGSTOP)
    threading.Timer(0.2, os.kill, (pid, signal.SIGKILL)).start()
    began = time.monotonic()
    with pytest.raises(QemuDied, match="killed by SIGKILL"):
        machine.execute("query-status")
    assert time.monotonic() - began < PROMPT
    assert told.wait(20.0)
    assert "killed by SIGKILL" in str(died[0])
    with pytest.raises(QemuDied):
        machine.execute("query-status")
    with pytest.raises(QemuDied):
        machine.add_nic("user")
    late: list[QemuDied] = []
    machine.on_death(late.append)
    assert len(late) == len(died) == 1


def test_death_quotes_what_qemu_said_last(
    memory: _native.Memory, qemu_command: str, tmp_path: Path
) -> None:
    """Not its messages at the start, such as those about missing accelerators."""
    talker, done = tmp_path / "qemu", tmp_path / "done"
    later = f'(while [ ! -e {done} ]; do sleep 0.01; done; echo "on my last legs" >&2) &'
    talker.write_text(f'#!/bin/sh\necho "invalid start" >&2\n{later}\nexec {qemu_command} "$@"\n')
    talker.chmod(0o755)
    with Machine(memory, qemu=talker) as machine:
        died = threading.Event()
        assert "invalid start" in machine.process.stderr
        done.touch()
        deadline = time.monotonic() + 20.0
        while "legs" not in machine.process.stderr and time.monotonic() < deadline:
            time.sleep(0.01)
        machine.on_death(lambda _error: died.set())
        os.kill(machine.process.pid, signal.SIGTERM)
        assert died.wait(20.0)
        with pytest.raises(QemuDied, match="exit status 0; it printed: on my last legs"):
            machine.execute("query-status")


def test_closing_is_no_death(memory: _native.Memory, qemu_command: str) -> None:
    died: list[QemuDied] = []
    with Machine(memory) as machine:
        machine.on_death(died.append)
    pause(0.05)
    assert not died


def test_errors_quote_qemu(machine: Machine) -> None:
    with pytest.raises(QemuError, match="QEMU refused no-such: The command no-such has not been"):
        machine.execute("no-such")


def test_callbacks_must_not_wait(machine: Machine) -> None:
    outcome: list[BaseException] = []
    done = threading.Event()

    def callback(_event: Any) -> None:
        try:
            machine.execute("query-status")
        except BaseException as error:
            outcome.append(error)
        done.set()

    machine.monitor.listen(callback, "STOP")
    machine.execute("stop")
    assert done.wait(20.0)
    assert isinstance(outcome[0], RuntimeError)
    assert machine.execute("query-status")["running"] is False


def test_events_reach_those_who_asked(machine: Machine) -> None:
    seen: list[str] = []
    everything: list[str] = []
    stop = machine.monitor.listen(lambda event: seen.append(event["event"]), "RESUME")
    machine.monitor.listen(lambda event: everything.append(event["event"]))
    machine.execute("stop")
    machine.execute("cont")
    machine.execute("query-status")
    stop()
    machine.execute("stop")
    machine.execute("cont")
    deadline = time.monotonic() + 20.0
    while len(everything) < 4 and time.monotonic() < deadline:
        time.sleep(0.01)
    assert seen == ["RESUME"]
    assert everything == ["STOP", "RESUME", "STOP", "RESUME"]


def test_a_failing_callback_harms_nobody(
    machine: Machine, caplog: pytest.LogCaptureFixture
) -> None:
    seen = threading.Event()

    def broken(_event: Any) -> None:
        raise ZeroDivisionError

    machine.monitor.listen(broken)
    machine.monitor.listen(lambda _event: seen.set())
    machine.execute("stop")
    assert seen.wait(20.0)
    assert "a callback for the event STOP failed" in caplog.text


def child(body: str, qemu_command: str) -> subprocess.Popen[str]:
    """Start a Python process that starts a QEMU and prints its pid."""
    program = "import os, sys, time, virtnic\n"
    program += "qemu = virtnic.Qemu(virtnic.Memory('4M', hugepages=None))\n"
    program += "print(qemu.pid, flush=True)\n" + textwrap.dedent(body)
    return subprocess.Popen(
        [sys.executable, "-c", program],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "VIRTNIC_QEMU": qemu_command},
    )


def gone(pid: int, seconds: float = 20.0) -> bool:
    deadline = time.monotonic() + seconds
    while Path(f"/proc/{pid}").exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    return not Path(f"/proc/{pid}").exists()


def test_it_dies_with_us_on_sigkill(qemu_command: str, scratch: Path) -> None:
    with child("time.sleep(60)", qemu_command) as process:
        assert process.stdout is not None
        pid = int(process.stdout.readline())
        process.kill()
    assert gone(pid)
    assert not list(scratch.glob("virtnic-*"))


@pytest.mark.parametrize("end", ["pass", "sys.exit(3)", "raise ValueError('x')"])
def test_it_goes_with_the_interpreter(qemu_command: str, scratch: Path, end: str) -> None:
    with child(end, qemu_command) as process:
        out, err = process.communicate(timeout=30)
    assert gone(int(out.split()[0]))
    assert not list(scratch.glob("virtnic-*"))
    if "ValueError" not in end:
        assert err == ""


def test_a_forked_child_does_not_end_it(qemu_command: str) -> None:
    body = """
        if os.fork() == 0:
            qemu.close()
            os._exit(0)
        os.wait()
        print(qemu.execute("query-status")["running"], flush=True)
    """
    with child(body, qemu_command) as process:
        out, err = process.communicate(timeout=30)
    assert out.split()[1:] == ["True"], err


def test_a_disk_without_room_is_named(memory: _native.Memory, qemu_command: str) -> None:
    """The kernel's error names no file where writing failed."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, hard))
    try:
        with pytest.raises(OSError, match=r"park\.bin"):
            Machine(memory, qemu=qemu_command).start()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("timeout", [1e10, 1e300, float("inf")])
def test_a_timeout_longer_than_any_clock_is_for_ever(
    memory: _native.Memory, qemu_command: str, timeout: float
) -> None:
    with Machine(memory, qemu=qemu_command, timeout=timeout) as qemu:
        assert qemu.execute("query-status", timeout=timeout)["status"] == "running"


@pytest.mark.timeout(40)
def test_qemu_dies_between_its_two_sockets(
    memory: _native.Memory, qemu_command: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It greeted on one socket and no longer listens at the other: nothing waits for that."""
    set_quit = Process.set_quit

    def killed(process: Process, ask: Callable[[], object]) -> None:
        set_quit(process, ask)
        os.kill(process.pid, signal.SIGABRT)
        assert process.wait(20.0) == -signal.SIGABRT

    monkeypatch.setattr(Process, "set_quit", killed)
    with pytest.raises(QemuError, match="was killed by SIGABRT"):
        Machine(memory, timeout=100.0).start()
