"""Ctrl-C at every moment, and calls that fail: everything can still be closed.

The moments are counted and chosen, see ``interrupting``; ``VIRTNIC_INTERRUPTIONS=300`` tries more
of them, 0 all. ``leak_check`` sees to it that nothing is left after each test.
"""

import asyncio
import contextlib
import functools
import gc
import json
import os
import random
import re
import shutil
import subprocess
import sys
import time
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import pytest

import virtnic
import virtnic.aio
from peers.process import mortal
from support.inside import attachment_of, machine_of
from support.interrupting import TRIES, alarm, interrupted_at, moments_of, sampled
from virtnic.cli import main
from virtnic.pci import find_virtio_nets

#: Seconds that preparing, interrupting and finishing once may take, on a busy machine too.
ONCE = 10
pytestmark = [pytest.mark.needs("qemu"), pytest.mark.timeout(120 + ONCE * (TRIES or 5000))]


@dataclass
class Tried:
    """What a program holds when it is interrupted."""

    memory: virtnic.Memory = field(default_factory=lambda: virtnic.Memory("8M", hugepages=None))
    qemu: virtnic.Qemu | None = None
    port: virtnic.Port | None = None


class Operation:
    """An operation to interrupt; ``finish`` is what a program does afterwards."""

    def prepare(self, tried: Tried) -> None:
        """Prepare it."""

    def run(self, tried: Tried) -> None:
        """Do it."""
        raise NotImplementedError

    def finish(self, tried: Tried) -> None:
        """Close what there is."""
        if tried.port is not None:
            tried.port.close()
            assert tried.port.closed
        if tried.qemu is not None:
            tried.qemu.close()
            assert tried.qemu.closed
            assert tried.qemu.ports == ()


class Open(Operation):
    def run(self, tried: Tried) -> None:
        tried.port = virtnic.open("user", memory=tried.memory)


class Start(Operation):
    def run(self, tried: Tried) -> None:
        tried.qemu = virtnic.Qemu(tried.memory, recover=True)


class Close(Operation):
    def prepare(self, tried: Tried) -> None:
        tried.port = virtnic.open("user", memory=tried.memory)

    def run(self, tried: Tried) -> None:
        assert tried.port is not None
        tried.port.close()

    def finish(self, tried: Tried) -> None:
        assert tried.port is not None
        pid = tried.port.qemu.pid
        super().finish(tried)
        assert not Path(f"/proc/{pid}").exists()


class OnOneQemu(Operation):
    """An operation on a QEMU that continues to run."""

    def __init__(self, qemu: virtnic.Qemu) -> None:
        self.qemu = qemu

    def finish(self, tried: Tried) -> None:
        for port in self.qemu.ports:
            port.close()
        # The next call finishes what the interrupted one left.
        with self.qemu.attach("user") as port:
            assert len(machine_of(self.qemu).nics) == 1
            assert port.link
        assert machine_of(self.qemu).nics == []
        assert find_virtio_nets(self.qemu.bus.functions) == []


class Attach(OnOneQemu):
    def run(self, tried: Tried) -> None:
        self.qemu.attach("user")


class Detach(OnOneQemu):
    def prepare(self, tried: Tried) -> None:
        tried.port = self.qemu.attach("user")

    def run(self, tried: Tried) -> None:
        assert tried.port is not None
        self.qemu.detach(tried.port)

    def finish(self, tried: Tried) -> None:
        assert tried.port is not None
        self.qemu.detach(tried.port)
        assert machine_of(self.qemu).nics == []
        assert tried.port.closed
        super().finish(tried)


class Watch(Operation):
    """A result that was lost ends with its Qemu."""

    def prepare(self, tried: Tried) -> None:
        tried.qemu = virtnic.Qemu(tried.memory)

    def run(self, tried: Tried) -> None:
        assert tried.qemu is not None
        tried.qemu.watch(print)()
        tried.qemu.events().close()


class Stop(OnOneQemu):
    def prepare(self, tried: Tried) -> None:
        tried.port = self.qemu.attach("user")

    def run(self, tried: Tried) -> None:
        assert tried.port is not None
        attachment_of(tried.port).stop()


class Await(Operation):
    """In asyncio's loop, which the interruption ends."""

    def run(self, tried: Tried) -> None:
        async def use() -> None:
            async with virtnic.aio.open("user", memory=tried.memory) as port:
                tried.port = port.port

        asyncio.run(use())


class MakeMemory(Operation):
    def run(self, tried: Tried) -> None:
        tried.memory = virtnic.Memory("8M", hugepages=None)


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))  # noqa: PTH208


def settled(before: int) -> None:
    """Nothing is left; a result that was lost may be closed in another thread."""
    deadline = time.monotonic() + 20.0
    while descriptors() > before:
        gc.collect()
        assert time.monotonic() < deadline, f"{descriptors()} descriptors, {before} before"
        time.sleep(0.005)


def interrupt(operation: Operation) -> None:
    """Interrupt it at moments from its first to its last."""
    tried = Tried()
    operation.prepare(tried)
    moments = moments_of(lambda: operation.run(tried))
    operation.finish(tried)
    tried.qemu = tried.port = None
    gc.collect()
    before = descriptors()
    for moment in sampled(moments, type(operation).__name__):
        operation.prepare(tried)
        where = interrupted_at(moment, lambda: operation.run(tried))
        try:
            operation.finish(tried)
            tried.qemu = tried.port = None
            settled(before)
        except BaseException as error:
            error.add_note(f"after an interruption at moment {moment} of {moments}: {where}")
            raise


# What is interrupted between making a coroutine and awaiting it, in whoever's code, is told so.
@pytest.mark.filterwarnings("ignore:coroutine .* was never awaited:RuntimeWarning")
@pytest.mark.parametrize("operation", [Open, Start, Close, Watch, Await, MakeMemory])
def test_a_qemu_of_its_own(qemu_command: str, operation: type[Operation]) -> None:
    interrupt(operation())


@pytest.mark.parametrize("operation", [Attach, Detach, Stop])
def test_a_qemu_that_goes_on(qemu: virtnic.Qemu, operation: type[OnOneQemu]) -> None:
    with qemu.attach("user"):
        pass  # what is asked once for each QEMU is asked
    interrupt(operation(qemu))


@pytest.mark.parametrize("operation", [Attach, Detach, Close])
def test_a_signal_handler_closes(qemu_command: str, operation: type[Operation]) -> None:
    """As that of SIGTERM does in many a program. What was under way ends, with an error perhaps."""
    tried = Tried()

    def prepared() -> Operation:
        if operation is Close:
            made: Operation = Close()
        else:
            tried.qemu = virtnic.Qemu(tried.memory)
            made = operation(tried.qemu)  # type: ignore[call-arg]
        made.prepare(tried)
        return made

    def close() -> None:
        if tried.qemu is not None:
            tried.qemu.close()
        elif tried.port is not None:
            tried.port.close()

    def run(made: Operation) -> None:
        with contextlib.suppress(virtnic.VirtnicError):
            made.run(tried)

    made = prepared()
    moments = moments_of(functools.partial(run, made))
    close()
    made = Operation()
    tried.qemu = tried.port = None
    before = descriptors()
    for moment in sampled(moments, operation.__name__)[::2]:
        made = prepared()
        where = interrupted_at(moment, functools.partial(run, made), close)
        try:
            close()
            made, tried.qemu, tried.port = Operation(), None, None
            settled(before)
        except BaseException as error:
            error.add_note(f"after closing at moment {moment} of {moments}: {where}")
            raise


def test_two_threads_close_and_one_is_interrupted(qemu_command: str) -> None:
    """The other one finishes, and does not return before all is closed."""
    tried = Tried()
    port = virtnic.open("user", memory=tried.memory)
    moments = moments_of(port.close)
    for moment in sampled(moments, "two")[::2]:
        port = virtnic.open("user", memory=tried.memory)
        pid = port.qemu.pid
        with ThreadPoolExecutor(1) as other:
            closing: list[Future[None]] = []

            def handler(port: virtnic.Port = port) -> None:
                closing.append(other.submit(port.close))  # noqa: B023
                raise KeyboardInterrupt

            where = interrupted_at(moment, port.close, handler)
            for close in closing:  # none where the moment did not come
                close.result(30.0)
            assert not Path(f"/proc/{pid}").exists(), where


class Connect(Operation):
    """To a QEMU that outlives us: what is left in it would disturb the next program."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def run(self, tried: Tried) -> None:
        with virtnic.Qemu.connect(self.directory, tried.memory) as tried.qemu:
            tried.qemu.attach("user")

    def finish(self, tried: Tried) -> None:
        super().finish(tried)
        with virtnic.Qemu.connect(self.directory, tried.memory) as qemu:
            assert machine_of(qemu).nics == []
            assert len(qemu.bus.functions) == 5


def test_a_qemu_that_was_started_elsewhere(scratch: Path, qemu_command: str) -> None:
    directory = scratch / "shared"
    directory.mkdir(mode=0o700)
    command = [sys.executable, "-m", "virtnic.cli", "qemu-args", "--json", "--qemu", qemu_command]
    printed = subprocess.run([*command, "--directory", directory], check=True, capture_output=True)
    with subprocess.Popen(mortal(json.loads(printed.stdout)["argv"])) as process:
        try:
            interrupt(Connect(directory))
            assert {file.name for file in directory.iterdir()} <= {
                *("qemu.pid", "qmp.sock", "qtest.sock"),
            }
        finally:
            process.kill()
    shutil.rmtree(directory)


# What is lost on the way to its caller is closed when it is collected, with this warning.
@pytest.mark.filterwarnings("ignore:unclosed <Qemu:ResourceWarning")
@pytest.mark.parametrize(
    "words",
    [
        ["probe", "--hugepages", "none"],
        ["ping", "10.0.2.2", "--count", "1", "--hugepages", "none"],
        ["drop", "--seconds", "0.05", "--hugepages", "none"],
    ],
    ids=lambda words: words[0],
)
def test_a_command(qemu_command: str, words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """It ends with 130 or its normal status, without a traceback."""

    def run() -> None:
        assert main(words) in (0, 130)

    moments = moments_of(run)
    before = descriptors()
    for moment in sampled(moments, words[0]):
        capsys.readouterr()
        where = interrupted_at(moment, run)
        try:
            settled(before)
            assert "Traceback" not in capsys.readouterr().err
        except BaseException as error:
            error.add_note(f"after an interruption at moment {moment} of {moments}: {where}")
            raise


IMPORTING = """
import os, signal, sys
from importlib.abc import MetaPathFinder

class Interrupt(MetaPathFinder):
    left = int(sys.argv.pop())
    def find_spec(self, name, path, target=None):
        self.left -= 1
        if self.left == 0:
            os.kill(os.getpid(), signal.SIGINT)

sys.meta_path.insert(0, Interrupt())
from _virtnic import main
sys.exit(main())
"""


@pytest.mark.parametrize("module", [4, 20, 60, 90, 120, 150])
def test_the_imports_of_a_command(module: int) -> None:
    """Ctrl-C during the n-th import; an import can take half a second."""
    done = subprocess.run(
        [sys.executable, "-c", IMPORTING, "probe", "--qemu", "/nonexistent", str(module)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "")


AFTERWARDS = """
import sys
from importlib.abc import MetaPathFinder
import _virtnic

class Watch(MetaPathFinder):
    def find_spec(self, name, path, target=None):
        print(name, file=sys.stderr)

def begin(real=_virtnic._clean_up_at_ctrl_c):
    sys.meta_path.insert(0, Watch())
    real()

_virtnic._clean_up_at_ctrl_c = begin
sys.exit(_virtnic.main())
"""


@pytest.mark.parametrize(
    "words",
    [
        ["drop", "--seconds", "0"],
        ["generate", "--packets", "1"],
        ["forward", "--port", "user", "--seconds", "0"],
        ["watch", "--seconds", "0"],
        ["ping", "10.0.2.2", "--count", "1"],
        ["demo", "--count", "1"],
        ["probe"],
        ["qemu-args", "--directory", "/d"],
        ["capture", "--port", "user", "-w", "/dev/null", "--seconds", "0"],
        ["doctor"],
        ["check", "--explain", "MSG-01"],
        ["completions", "bash"],
    ],
    ids=lambda words: words[0],
)
def test_a_command_that_runs_imports_nothing_any_more(qemu_command: str, words: list[str]) -> None:
    """An import may lose the exception that Ctrl-C is from then on."""
    done = subprocess.run(
        [sys.executable, "-c", AFTERWARDS, *words],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    imported = [name for name in done.stderr.splitlines() if re.fullmatch(r"[\w.]+", name)]
    assert {name for name in imported if not name.startswith("encodings")} == set()


SITE = """
import os, signal, sys
from importlib.abc import MetaPathFinder

class Interrupt(MetaPathFinder):
    left = None
    def find_spec(self, name, path, target=None):
        if self.left is None and name in ("_virtnic", "virtnic._native"):
            self.left = int(os.environ["INTERRUPT_AT"])
        elif self.left is not None:
            self.left -= 1
            if self.left == 0:
                os.kill(os.getpid(), signal.SIGINT)

sys.meta_path.insert(0, Interrupt())
"""


@pytest.mark.parametrize("name", ["virtnic", "virtnic.cli"])
@pytest.mark.parametrize("module", [1, 4, 20, 60, 90, 120])
def test_the_imports_of_a_module_that_is_run(name: str, module: int, scratch: Path) -> None:
    """The same for ``python -m virtnic``, from the package's first line on."""
    site = scratch / "site"
    site.mkdir()
    (site / "sitecustomize.py").write_text(SITE)
    here = os.fspath(Path(virtnic.__file__).parent.parent)
    done = subprocess.run(
        [sys.executable, "-m", name, "probe", "--qemu", "/nonexistent"],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env={**os.environ, "PYTHONPATH": f"{site}:{here}", "INTERRUPT_AT": str(module)},
    )
    shutil.rmtree(site)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "")


# What is lost on the way to its caller is closed when it is collected, with this warning.
@pytest.mark.filterwarnings("ignore:unclosed <Qemu:ResourceWarning")
def test_by_a_signal_at_random(qemu_command: str) -> None:
    """At random moments: in waits, in the interpreter, in other modules."""
    chance = random.Random(11)
    tried = Tried()
    with virtnic.open("user", memory=tried.memory):
        pass
    before = descriptors()
    for _ in range(TRIES or 300):
        with alarm(chance.uniform(0.0005, 0.2)):
            tried.port = virtnic.open("user", memory=tried.memory)
            tried.port.close()
        if tried.port is not None:
            tried.port.close()
        tried.port = None
        settled(before)
