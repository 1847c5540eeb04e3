"""The program's environment and what QEMU inherits: users, signals, limits, names."""

import asyncio
import ctypes
import logging
import os
import select
import shutil
import signal
import subprocess
import sys
import textwrap
import threading
import time
import types
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import virtnic
from peers.testpmd import Testpmd
from support.inside import machine_of
from support.waiting import eventually
from virtnic.aio.threads import in_thread
from virtnic.async_library import running
from virtnic.errors import QemuNotFound
from virtnic.qemu import environment, find, find_qemu, patched, process, quirks, rundir, stderr
from virtnic.qemu.command import Shmem
from virtnic.teardown import uninterrupted

#: Characters that some shell, format or option syntax gives a meaning to, and one past ASCII.
ODD = "lr=0.1,b c %s é'\"$x"

DROP = """
os.setgroups([]); os.setgid(65534); os.setuid(65534)
"""


@pytest.fixture
def small() -> virtnic.Memory:
    return virtnic.Memory("4M", hugepages=None)


def run(body: str, qemu: str, beginning: str = "") -> subprocess.CompletedProcess[str]:
    """Run a Python program with its own memory."""
    beginning += "import os, signal, virtnic\nmemory = virtnic.Memory('4M', hugepages=None)\n"
    return subprocess.run(
        [sys.executable, "-c", beginning + textwrap.dedent(body)],
        capture_output=True,
        text=True,
        env={**os.environ, "VIRTNIC_QEMU": qemu},
        timeout=60,
        check=False,
    )


def gone(pid: int, seconds: float = 10.0) -> bool:
    """Wait for the end of a process that is no child of ours."""
    try:
        fd = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    try:
        return bool(select.select([fd], [], [], seconds)[0])
    finally:
        os.close(fd)


class TestDroppedPrivileges:
    """A program that opens a port as root and continues as another user."""

    pytestmark = pytest.mark.needs("root")

    @pytest.mark.parametrize(
        "end",
        ["qemu.close()", "os.kill(os.getpid(), signal.SIGKILL)", "pass", "os._exit(0)"],
        ids=["close", "killed", "returns", "exits"],
    )
    def test_qemu_goes_with_the_program(self, qemu_command: str, end: str) -> None:
        done = run(
            f"""
            qemu = virtnic.Qemu(memory)
            print(qemu.pid, flush=True)
            {DROP.strip()}
            {end}
            """,
            qemu_command,
        )
        assert gone(int(done.stdout))
        assert done.stderr == ""

    def test_one_that_cannot_be_ended_is_told_of(self, qemu_command: str) -> None:
        """It is stopped, so it does not react, and may not be killed; our end ends it."""
        done = run(
            f"""
            import warnings
            from virtnic.nic.port import host_of
            qemu = virtnic.Qemu(memory)
            process = host_of(qemu).machine.process
            print(process.pid, flush=True)
            os.kill(process.pid, signal.SIGSTOP)
            {DROP.strip()}
            with warnings.catch_warnings(record=True) as seen:
                warnings.simplefilter("always")
                qemu.close()
            print(process.alive, *(warning.message for warning in seen), flush=True)
            """,
            qemu_command,
        )
        pid, said = done.stdout.splitlines()
        assert said.startswith(
            f"True QEMU (pid {pid}) still runs: it does not answer, and the current user 65534"
        )
        assert gone(int(pid))

    def test_a_qemu_that_is_started_afterwards(self, qemu_command: str) -> None:
        """It runs as another user than the first; both end."""
        done = run(
            f"""
            one = virtnic.Qemu(memory)
            {DROP.strip()}
            two = virtnic.Qemu(memory)
            print(one.pid, two.pid, flush=True)
            os.kill(os.getpid(), signal.SIGKILL)
            """,
            qemu_command,
        )
        first, second = done.stdout.split()
        assert gone(int(first)), done.stderr
        assert gone(int(second)), done.stderr

    def test_a_directory_that_cannot_be_removed_by_then(
        self, qemu_command: str, scratch: Path
    ) -> None:
        """It was kept for the next QEMU; a process with the right to do so removes it later."""
        done = run(
            f"""
            qemu = virtnic.Qemu(memory, recover=True)
            print(qemu.pid, flush=True)
            {DROP.strip()}
            qemu.close()
            """,
            qemu_command,
        )
        assert gone(int(done.stdout))
        [line] = done.stderr.splitlines()
        assert line.endswith("was not removed: Permission denied")
        shutil.rmtree(next(scratch.glob("virtnic-*")))

    def test_the_end_of_a_forked_child_ends_nothing(self, qemu_command: str) -> None:
        done = run(
            """
            qemu = virtnic.Qemu(memory)
            if os.fork() == 0:
                os._exit(0)
            os.wait()
            print(qemu.execute("query-status")["running"])
            """,
            qemu_command,
        )
        assert done.stdout == "True\n", done.stderr

    def test_a_forked_child_keeps_nothing_alive(self, qemu_command: str) -> None:
        """Its parent is killed, and it lives on."""
        done = run(
            f"""
            qemu = virtnic.Qemu(memory)
            reader, writer = os.pipe()
            if (child := os.fork()) == 0:
                os.close(writer)
                os.closerange(1, 3)
                os.read(reader, 1)  # until the test ends it
                signal.pause()
            print(qemu.pid, child, flush=True)
            {DROP.strip()}
            os.kill(os.getpid(), signal.SIGKILL)
            """,
            qemu_command,
        )
        pid, child = map(int, done.stdout.split())
        try:
            assert gone(pid), done.stderr
        finally:
            os.kill(child, signal.SIGKILL)
        assert gone(child)


@pytest.mark.parametrize("end", ["qemu.close()", "os.kill(os.getpid(), signal.SIGKILL)"])
def test_a_script_that_does_not_exec_qemu(qemu_command: str, tmp_path: Path, end: str) -> None:
    """It is the script that is our child, and QEMU is its."""
    script = tmp_path / "qemu"
    script.write_text(f'#!/bin/sh\n{qemu_command} "$@"\necho "that was QEMU" >&2\n')
    script.chmod(0o755)
    done = run(
        f"""
        import subprocess
        qemu = virtnic.Qemu(memory, qemu={str(script)!r})
        group = str(qemu.pid)
        subprocess.run(["pgrep", "--pgroup", group], check=True)
        {end}
        """,
        qemu_command,
    )
    both = [int(pid) for pid in done.stdout.split()]
    assert len(both) == 2, done.stderr
    assert all(gone(pid) for pid in both)


def awaited(work: Callable[[], object]) -> None:
    """Do it in a thread, awaited by asyncio."""

    async def wait() -> None:
        await in_thread(running(), work)

    asyncio.run(wait())


class TestSignals:
    """What the program blocks or ignores does not matter."""

    @pytest.fixture(autouse=True)
    def _as_before(self) -> Iterator[None]:
        before = signal.pthread_sigmask(signal.SIG_BLOCK, ())
        yield
        signal.pthread_sigmask(signal.SIG_SETMASK, before)

    def test_qemu_blocks_and_ignores_none(self, small: virtnic.Memory, qemu_command: str) -> None:
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGCHLD})
        before = signal.signal(signal.SIGUSR2, signal.SIG_IGN)
        try:
            with virtnic.Qemu(small) as qemu:
                status = Path(f"/proc/{qemu.pid}/status").read_text()
        finally:
            signal.signal(signal.SIGUSR2, before)
        sets = dict(line.split(":\t") for line in status.splitlines() if line.startswith("Sig"))
        assert int(sets["SigBlk"], 16) & 1 << signal.SIGTERM - 1 == 0
        assert int(sets["SigIgn"], 16) & 1 << signal.SIGUSR2 - 1 == 0

    def test_it_ends_when_it_is_told_to(
        self, small: virtnic.Memory, qemu_command: str, caplog: pytest.LogCaptureFixture
    ) -> None:
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        with virtnic.Qemu(small):
            pass
        assert "ignored SIGTERM" not in caplog.text

    def test_the_program_waits_for_them(self, qemu_command: str) -> None:
        """Each of our threads would be ended by one that no thread of the program takes now."""
        done = run(
            """
            from pathlib import Path
            with virtnic.Qemu(memory) as qemu:
                port = qemu.attach("user")
                tasks = {path for path in Path("/proc/self/task").iterdir()}
                signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
                os.kill(os.getpid(), signal.SIGTERM)
                print(len(tasks) >= 4, signal.sigwait({signal.SIGTERM}).name)
            """,
            qemu_command,
        )
        # The program's, those for QMP and QTest, and the one that starts children.
        assert done.stdout == "True SIGTERM\n", done.stderr

    @pytest.mark.parametrize("start", [uninterrupted, awaited])
    def test_a_thread_that_has_done_its_work_takes_none(
        self, start: Callable[[Callable[[], object]], object]
    ) -> None:
        """It may be there for a while yet when the program waits for one."""
        local, blocked = threading.local(), []

        class Last:
            """Goes with its thread."""

            def __del__(self) -> None:
                blocked.append(signal.pthread_sigmask(signal.SIG_BLOCK, ()))

        def work() -> None:
            local.last = Last()

        start(work)
        assert eventually(lambda: blocked)
        assert signal.SIGTERM in blocked[0]


def test_without_writable_and_executable_memory(qemu_command: str) -> None:
    if ctypes.CDLL(None).prctl(66, 0, 0, 0, 0) < 0:
        pytest.skip("this kernel cannot deny it (PR_SET_MDWE, Linux 6.3)")
    body = """
        import ctypes
        ctypes.CDLL(None).prctl(65, 1, 0, 0, 0)
        with virtnic.Qemu(memory, accel=ACCEL) as qemu:
            print(qemu.accel)
    """
    done = run(body.replace("ACCEL", "'auto'"), qemu_command)
    assert done.stdout in ("qtest\n", "tcg\n"), done.stderr
    done = run(body.replace("ACCEL", "'tcg'"), qemu_command)
    if quirks.has(find_qemu(qemu_command).version, "no-split-wx"):
        assert "dynamic translator buffer" in done.stderr
    else:
        assert done.stdout == "tcg\n", done.stderr


def test_with_little_address_space(qemu_command: str) -> None:
    """A parked processor needs no translation buffer of 1 GiB."""
    body = f"""
        import resource
        resource.setrlimit(resource.RLIMIT_AS, ({1 << 30}, {1 << 30}))
        with virtnic.Qemu(memory, accel="tcg") as qemu:
            print(qemu.accel)
    """
    done = run(body, qemu_command)
    assert done.stdout == "tcg\n", done.stderr


def test_an_accelerator_among_the_words_of_the_command(
    small: virtnic.Memory, qemu_command: str
) -> None:
    with virtnic.Qemu(small, qemu=f"{qemu_command} -accel tcg") as qemu:
        assert qemu.accel == "tcg"
        started = machine_of(qemu).process
        assert isinstance(started, process.Process)
        assert started.argv.count("-accel") == 1


@pytest.mark.parametrize(
    ("words", "chooses"),
    [
        ("-accel tcg", True),
        ("--accel kvm", True),
        ("-enable-kvm", True),
        ("-M q35,accel=tcg", True),
        ("-machine pc", False),
        ("-cpu max", False),
    ],
)
def test_commands_that_choose_an_accelerator(words: str, chooses: bool) -> None:
    assert find.Binary(("qemu", *words.split())).chooses_accelerator is chooses


class TestPaths:
    """A directory may have any name, as those of Hydra, DVC or Hive do: ``lr=0.1,size=3``."""

    @pytest.fixture
    def odd(self, scratch: Path) -> Iterator[Path]:
        path = scratch / ODD
        path.mkdir()
        yield path
        path.rmdir()

    @pytest.mark.parametrize("shmem", ["doorbell", "plain"])
    def test_of_the_sockets(
        self, small: virtnic.Memory, qemu_command: str, odd: Path, shmem: Shmem
    ) -> None:
        with virtnic.Qemu(small, directory=odd, shmem=shmem) as qemu:
            assert qemu.attach("user", interrupts="none" if shmem == "plain" else None).link
        assert list(odd.iterdir()) == []

    def test_of_a_private_directory(
        self, small: virtnic.Memory, qemu_command: str, odd: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("XDG_RUNTIME_DIR", str(odd))
        with virtnic.Qemu(small) as qemu:
            assert qemu.execute("query-status")["running"]

    @pytest.mark.needs("testpmd")
    def test_between_qemu_and_a_backend(
        self,
        small: virtnic.Memory,
        qemu_command: str,
        odd: Path,
        testpmd: Callable[..., Testpmd],
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        backend = testpmd()
        monkeypatch.setenv("XDG_RUNTIME_DIR", str(odd))
        with virtnic.Qemu(small) as qemu:
            assert qemu.attach(f"vhost-user,path={backend.sockets[0]}").link

    def test_of_a_stream(self, small: virtnic.Memory, qemu_command: str, odd: Path) -> None:
        if find_qemu(qemu_command).version < quirks.Version(7, 2):
            pytest.skip("this QEMU has no netdev stream")
        path = str(odd / "peer").replace(",", ",,")
        with virtnic.Qemu(small) as qemu:
            port = qemu.attach(f"stream,server=on,addr.type=unix,addr.path={path}")
            assert (odd / "peer").is_socket()
            port.close()
        (odd / "peer").unlink(missing_ok=True)


class TestBundles:
    """A program that brings libraries of its own: QEMU starts with the system's."""

    def test_what_was_there_before_is_given_back(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("LD_LIBRARY_PATH", "/bundle/_internal")
        monkeypatch.setenv("LD_LIBRARY_PATH_ORIG", "/opt/lib")
        assert environment.for_qemu()["LD_LIBRARY_PATH"] == "/opt/lib"

    def test_what_is_in_the_bundle_is_left_out(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(sys, "_MEIPASS", "/bundle/_internal", raising=False)
        monkeypatch.delenv("LD_LIBRARY_PATH_ORIG", raising=False)
        monkeypatch.setenv("LD_LIBRARY_PATH", "/bundle/_internal:/opt/lib:/bundle/_internal/x")
        monkeypatch.setenv("LD_PRELOAD", "/bundle/_internal/libx.so")
        found = environment.for_qemu()
        assert found["LD_LIBRARY_PATH"] == "/opt/lib"
        assert "LD_PRELOAD" not in found

    def test_an_image_names_its_directory(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("APPDIR", "/tmp/.mount_x")
        monkeypatch.setenv("LD_LIBRARY_PATH", "/tmp/.mount_x/usr/lib")
        assert "LD_LIBRARY_PATH" not in environment.for_qemu()

    def test_what_the_user_set_stays(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("LD_LIBRARY_PATH", "/opt/my lib:")
        assert environment.for_qemu()["LD_LIBRARY_PATH"] == "/opt/my lib:"

    def test_qemu_starts_from_a_bundle(
        self,
        small: virtnic.Memory,
        qemu_command: str,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        self.spoil(tmp_path, monkeypatch)
        monkeypatch.setattr(sys, "_MEIPASS", str(tmp_path), raising=False)
        find._banner.cache_clear()
        with virtnic.Qemu(small) as qemu:
            assert find_qemu(qemu_command).version == qemu.version

    def test_the_loaders_words_are_quoted(
        self, qemu_command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        self.spoil(tmp_path, monkeypatch)
        find._banner.cache_clear()
        binary = find_qemu(qemu_command)
        if "--library-path" in Path(binary.argv[0]).read_bytes()[:2000].decode(errors="replace"):
            pytest.skip("this QEMU is started with libraries that it names itself")
        with pytest.raises(QemuNotFound) as caught:
            binary.check("pc")
        assert f"LD_LIBRARY_PATH={tmp_path}: unset that" in str(caught.value)
        assert "libglib-2.0.so.0" in str(caught.value)
        assert "install the package" not in str(caught.value)

    def spoil(self, directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """Put an invalid library where the loader looks first."""
        (directory / "libglib-2.0.so.0").write_bytes(b"no library")
        monkeypatch.setenv("LD_LIBRARY_PATH", str(directory))


def test_without_standard_streams(qemu_command: str) -> None:
    """The next descriptors would get their numbers, and output would go to them."""
    body = """
        told = os.dup(1)
        os.closerange(0, 3)
        def streams(process):
            return {os.readlink(f"/proc/{process}/fd/{number}") for number in (0, 1)}
        memory = virtnic.Memory("4M", hugepages=None)
        with virtnic.Qemu(memory) as qemu:
            qemu.attach("user").close()
            found = streams("self") | streams(qemu.pid)
        os.write(told, " ".join(found).encode())
    """
    done = run(body, qemu_command)
    assert done.stdout == "/dev/null"


def test_children_that_are_reaped_unasked(qemu_command: str) -> None:
    """SIGCHLD is ignored, or the program's own loop reaps every child."""
    body = """
        signal.signal(signal.SIGCHLD, signal.SIG_IGN)
        with virtnic.Qemu(memory) as qemu:
            pid = qemu.pid
            qemu.attach("user").close()
        try:
            virtnic.Qemu(memory, extra=("-device", "no-such-device"))
        except virtnic.QemuError as error:
            print(pid, error)
    """
    done = run(body, qemu_command)
    pid, words = done.stdout.split(maxsplit=1)
    assert gone(int(pid))
    assert "no-such-device" in words


def test_sockets_that_a_killed_program_left(qemu_command: str, scratch: Path) -> None:
    """The directory was named, so it stays; the next one takes the names over."""
    place = scratch / "named"
    body = f"""
        qemu = virtnic.Qemu(memory, directory={str(place)!r})
        print(qemu.pid, flush=True)
        os.kill(os.getpid(), signal.SIGKILL)
    """
    for _ in range(2):
        done = run(body, qemu_command)
        assert done.stdout, done.stderr
        assert gone(int(done.stdout))
    with virtnic.Qemu(virtnic.Memory("4M", hugepages=None), directory=place):
        assert (place / "qmp.sock").is_socket()
    place.rmdir()


class TestPatchedThreads:
    """gevent and eventlet replace Python's blocking calls."""

    pytestmark = pytest.mark.needs("gevent")

    def under_gevent(self, what: str, body: str, qemu: str) -> subprocess.CompletedProcess[str]:
        patch = f"from gevent import monkey; monkey.patch_all({what})\n"
        return run(textwrap.dedent(body), qemu, beginning=patch)

    @pytest.mark.parametrize("what", ["", "select=False", "thread=False"])
    def test_no_thread_is_refused(self, qemu_command: str, what: str) -> None:
        done = self.under_gevent(what, "virtnic.Qemu(memory)", qemu_command)
        assert "RuntimeError: gevent has replaced Python's" in done.stderr
        assert "call monkey.patch_all(thread=False, select=False)" in done.stderr

    def test_greenlets_run_while_one_waits_for_frames(self, qemu_command: str) -> None:
        body = """
            import gevent
            from gevent.socket import wait_read
            with virtnic.Qemu(memory) as qemu:
                port = qemu.attach("user")
                # Who has 10.0.2.2? ARP, padded to the shortest frame.
                mac = bytes.fromhex(port.mac.replace(":", ""))
                ask = bytes.fromhex("0001080006040001") + mac + bytes([10, 0, 2, 15])
                frame = b"\\xff" * 6 + mac + b"\\x08\\x06" + ask + bytes(6) + bytes([10, 0, 2, 2])
                gevent.spawn(port.send, [frame.ljust(60, b"\\0")])
                wait_read(port.fileno(), timeout=10)
                print(len(port.recv(timeout=0)))
        """
        done = self.under_gevent("thread=False, select=False", body, qemu_command)
        assert done.stdout == "1\n", done.stderr

    def test_eventlet_is_refused(self, monkeypatch: pytest.MonkeyPatch) -> None:
        patcher = types.ModuleType("eventlet.patcher")
        monkeypatch.setitem(vars(patcher), "is_monkey_patched", lambda name: name == "socket")
        monkeypatch.setitem(sys.modules, "eventlet.patcher", patcher)
        with pytest.raises(RuntimeError, match=r"eventlet .* Python's socket, .*socket=F"):
            patched.check()


class TestReadOnlyRoot:
    """There is no directory for temporary files."""

    @pytest.fixture(autouse=True)
    def _no_directory(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def nowhere() -> str:
            raise FileNotFoundError(2, "No usable temporary directory found in ['/tmp']")

        monkeypatch.delenv("XDG_RUNTIME_DIR")
        monkeypatch.setattr("tempfile.gettempdir", nowhere)

    def test_the_memory_file_system_does(self, small: virtnic.Memory, qemu_command: str) -> None:
        with virtnic.Qemu(small) as qemu:
            started = machine_of(qemu).process
            assert isinstance(started, process.Process)
            assert any("/dev/shm/virtnic-" in word for word in started.argv)
            assert not list(Path("/dev/shm").glob("virtnic-*/qmp.sock"))

    def test_the_way_out_is_named(
        self,
        small: virtnic.Memory,
        qemu_command: str,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        monkeypatch.setattr(rundir, "_LAST_RESORT", str(tmp_path / "nowhere"))
        with pytest.raises(FileNotFoundError, match=r"/tmp.*mount a tmpfs .*TMPDIR"):
            virtnic.Qemu(small)


class TestWarnings:
    """QEMU's warnings on stderr are passed to the user."""

    @pytest.fixture(autouse=True)
    def _untold(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(stderr, "_warned", set())

    def test_they_are_logged_once(
        self, small: virtnic.Memory, qemu_command: str, caplog: pytest.LogCaptureFixture
    ) -> None:
        nobody = ("-netdev", "user,id=alone")  # "warning: netdev alone has no peer"
        caplog.set_level(logging.WARNING, "virtnic.qemu.stderr")
        for _ in range(2):
            with virtnic.Qemu(small, accel="tcg", extra=nobody) as qemu:
                deadline = time.monotonic() + 10.0
                while "warning:" not in qemu.stderr:
                    assert time.monotonic() < deadline
        warned = [line for line in caplog.messages if "warning:" in line]
        assert len(warned) == len(set(warned)) >= 1
        assert all(line.startswith("QEMU: ") for line in warned)

    def test_a_line_may_come_in_parts(self, caplog: pytest.LogCaptureFixture) -> None:
        caplog.set_level(logging.DEBUG, "virtnic.qemu.stderr")
        said = stderr.StderrLog()
        for part in (b"qemu: warn", b"ing: one\nqemu: two\nqemu: warning: one\n"):
            said.append(part)
            said.log()
        assert [(record.levelname, record.message) for record in caplog.records] == [
            ("WARNING", "QEMU: qemu: warning: one"),
            ("DEBUG", "QEMU: qemu: two"),
            ("DEBUG", "QEMU: qemu: warning: one"),
        ]
        said.mark()  # it has started: from now on all that it says is for the user, once in a row
        said.append(b"qemu: three\nqemu: three\n")
        said.log()
        assert [record.levelname for record in caplog.records[3:]] == ["WARNING", "DEBUG"]


@pytest.mark.skipif(sys.version_info[:2] != (3, 11), reason="others do not load the module there")
def test_an_interpreter_without_threads(qemu_command: str) -> None:
    """It works if threads are allowed; else the error says so, and mentions no limit."""
    done = run(
        """
        import _xxsubinterpreters as interpreters
        for isolated in (False, True):
            interpreter = interpreters.create(isolated=isolated)
            try:
                interpreters.run_string(interpreter, "import virtnic; virtnic.Qemu().close()")
            except interpreters.RunFailedError as error:
                print(error)
            interpreters.destroy(interpreter)
        """,
        qemu_command,
    )
    assert "RuntimeError" in done.stdout, done
    assert "virtnic needs a thread to talk to QEMU, and cannot start one" in done.stdout
    assert "limit" not in done.stdout
    assert len(done.stdout.splitlines()) == 1
    assert done.returncode == 0
