"""How many descriptors ports cost, and running out of them."""

from __future__ import annotations

import gc
import os
import resource
import select
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import virtnic
from peers.ring_backend import RingBackend
from support.inside import attachment_of, machine_of
from support.waiting import eventually, pause

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from peers.testpmd import Testpmd

#: Of a port with a QEMU of its own: QMP, QTest, and the interrupts of a queue pair and of the
#: configuration.
OPENED = 5
#: Of one more port of a QEMU: the interrupts of a queue pair.
ATTACHED = 2
#: What the ports of a QEMU have in common: the interrupt of the configuration.
CONFIG = 1
#: Of one with a vhost-user backend: connections of QEMU and the backend, and the eventfds that the
#: backend signals for a queue pair.
VHOST_USER = 4
#: Of the same while descriptors are plenty: those that the backend is kicked by.
KICKS = 2
#: What the vhost-user ports of a QEMU have in common: a directory, and what tells of backends.
BACKENDS = 2
#: Of all vhost-user ports of the process: what wakes the thread between them and their backends.
THREAD = 1
#: Of a QEMU: QMP, QTest, the ivshmem server's connection and the memory.
QEMU = 4


def count() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


@pytest.fixture(autouse=True)
def chosen(qemu_command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    gc.collect()  # what other tests left is not to go in the midst of these
    monkeypatch.setenv("VIRTNIC_QEMU", qemu_command)


@pytest.fixture
def run(scratch: Path) -> Callable[..., str]:
    def run(script: str) -> str:
        """Run a program that has few descriptors; return its output."""
        here = textwrap.dedent(script)
        done = subprocess.run(
            [sys.executable, "-c", PRELUDE + here],
            capture_output=True,
            text=True,
            timeout=600,
            env={**os.environ, "XDG_RUNTIME_DIR": str(scratch)},
        )
        assert done.returncode == 0, done.stdout + done.stderr
        assert not list(scratch.iterdir()), "a directory was left"
        return done.stdout

    return run


PRELUDE = """\
import contextlib, os, resource, virtnic
from pathlib import Path

SMALL = {"size": "1M", "hugepages": None, "jumbo_buffers": 0}

def limit(most):
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))

def children():
    return open("/proc/self/task/%d/children" % os.getpid()).read().split()

"""


def test_a_port_of_open_costs_five(qemu_command: str) -> None:
    with virtnic.open("user", size="1M"):
        before = count()
        with virtnic.open("user", size="1M") as port:
            assert count() - before == OPENED
            assert port.interrupts == "msix"
        assert count() == before


def test_a_port_that_comes_back_costs_two_more(qemu_command: str) -> None:
    """The memory's file and the sockets' directory, for the QEMU that replaces one."""
    with virtnic.open("user", size="1M"):
        before = count()
        with virtnic.open("user", size="1M", recover=True) as port:
            assert count() - before == OPENED + 2
            machine_of(port.qemu).process._child.kill()  # type: ignore[union-attr]
            for event in port.qemu.events():
                if event.kind == "qemu-back":
                    break
            assert count() - before <= OPENED + 2 + 1  # that of the events


def test_an_attached_port_costs_two(qemu_command: str) -> None:
    with virtnic.open("user", size="1M"):
        before = count()
        with virtnic.Qemu(virtnic.Memory("16M", hugepages=None)) as qemu:
            assert count() - before == QEMU
            ports = [qemu.attach("user") for _ in range(5)]
            assert count() - before == QEMU + 5 * ATTACHED + CONFIG
            # Vectors that are given back are the next port's.
            for port in ports[:2]:
                port.close()
            ports += [qemu.attach("user") for _ in range(2)]
            assert count() - before == QEMU + 5 * ATTACHED + CONFIG
        assert count() == before + 1  # the memory is ours, and its file with it
        del ports, port, qemu
        assert count() == before


def test_a_vhost_user_port_costs_six(qemu_command: str, testpmd: Callable[..., Testpmd]) -> None:
    with virtnic.Qemu(virtnic.Memory("64M", hugepages=None)) as qemu:
        backend = testpmd(ports=3)
        before = count()
        ports = [qemu.attach(f"vhost-user,path={path}") for path in backend.sockets]
        shared = CONFIG + BACKENDS + THREAD
        # The backend is kicked from when QEMU has told it how.
        expected = 3 * (VHOST_USER + KICKS) + shared
        assert eventually(lambda: count() - before == expected), count() - before
        for port in ports:
            port.close()
        assert count() - before == CONFIG


def test_vectors_come_while_qemu_runs(qemu_command: str) -> None:
    """Each port gets its own interrupts, the last one too."""
    with virtnic.Qemu(virtnic.Memory("16M", hugepages=None)) as qemu:
        server = machine_of(qemu).server
        assert server is not None
        assert (server.vectors, server.left) == (0, None)
        ports = [qemu.attach("user") for _ in range(8)]
        assert server.vectors == 8 * ATTACHED + CONFIG
        for port in ports:
            ask_for_an_address(port)
        ports[3].close()
        again = qemu.attach("user")
        assert server.vectors == 8 * ATTACHED + CONFIG
        ask_for_an_address(again)


def ask_for_an_address(port: virtnic.Port) -> None:
    """Have slirp answer an ARP request, and be woken by it: nobody looks at the queue meanwhile."""
    while port.recv(timeout=0):
        pass
    fd = port.fileno()
    port.recv(timeout=0)
    assert select.select([fd], [], [], 0)[0] == []
    mac = bytes.fromhex(port.mac.replace(":", ""))
    target = bytes([10, 0, 2, 2])
    request = bytes.fromhex("0001080006040001") + mac + bytes([10, 0, 2, 15]) + bytes(6) + target
    port.send([(b"\xff" * 6 + mac + b"\x08\x06" + request).ljust(60, b"\0")])
    assert select.select([fd], [], [], 10.0)[0] == [fd]
    assert bytes(port.recv(timeout=10.0)[0])[28:32] == target


def test_a_second_port_of_an_opened_qemu(qemu_command: str) -> None:
    """It has an interrupt line: QEMU is told of no more vectors."""
    with virtnic.open("user", size="4M") as port:
        with port.qemu.attach("user") as second:
            assert second.interrupts == "intx"
            ask_for_an_address(second)
        with pytest.raises(ValueError, match=r"virtnic\.Qemu"):
            port.qemu.attach("user", interrupts="msix")
        ask_for_an_address(port)
        with pytest.raises(ValueError, match=r"memory=virtnic\.Memory\(\)"):
            virtnic.open("user", memory=port.memory)


def test_twenty_ports_of_open_at_a_limit_of_128(run: Callable[..., str]) -> None:
    said = run("""
        limit(128)
        with contextlib.ExitStack() as stack:
            ports = [stack.enter_context(virtnic.open("user", **SMALL)) for _ in range(20)]
            print(len(os.listdir("/proc/self/fd")))
    """)
    assert int(said) <= 20 * OPENED + 12


TWO_HUNDRED = """
    limit(1024)
    # Beside them the process has what the event loop has, and its standard streams.
    with contextlib.ExitStack() as stack:
        memory = virtnic.Memory("256M", hugepages=None)
        ports, qemus = [], []
        while len(ports) < 200:
            if KIND == "open":
                ports.append(stack.enter_context(virtnic.open("user", **SMALL)))
                continue
            netdev = f"vhost-user,path={BACKENDS}/{len(ports)}" if KIND == "vhost-user" else "user"
            if len(ports) == 29 * len(qemus):
                qemus.append(stack.enter_context(virtnic.Qemu(memory)))
            ports.append(qemus[-1].attach(netdev, queue_size=64))
        assert all(port.interrupts == "msix" for port in ports)
        print(len(os.listdir("/proc/self/fd")))
"""

MANY_BACKENDS = """
import contextlib, pathlib, sys
from peers.vhost_backend import ScriptedBackend
with contextlib.ExitStack() as stack:
    for name in range(200):
        stack.enter_context(ScriptedBackend(pathlib.Path(sys.argv[1]) / str(name)))
    print("there", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def backends(scratch: Path) -> Iterator[Path]:
    """Vhost-user backends in a process of their own, that listen at 0 to 199."""
    place = scratch.parent / f"{scratch.name}-backends"
    place.mkdir()
    with subprocess.Popen(
        [sys.executable, "-c", MANY_BACKENDS, str(place)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])},
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"there\n"
        yield place
        process.communicate(timeout=60)
    place.rmdir()


@pytest.mark.slow
@pytest.mark.timeout(600)  # two hundred QEMUs, on a machine that may be busy
@pytest.mark.parametrize(
    ("kind", "most"),
    [
        ("open", 200 * OPENED + 12),
        ("attach", 200 * ATTACHED + 7 * (QEMU + CONFIG) + 12),
        # A quarter of the limit has been reached by the ports whose backends are kicked directly.
        (
            "vhost-user",
            200 * VHOST_USER + 256 // VHOST_USER * KICKS + 7 * (QEMU + CONFIG + BACKENDS) + 13,
        ),
    ],
)
def test_two_hundred_ports_at_a_limit_of_1024(
    run: Callable[..., str], backends: Path, kind: str, most: int
) -> None:
    said = run(f"KIND, BACKENDS = {kind!r}, {str(backends)!r}\n" + textwrap.dedent(TWO_HUNDRED))
    assert int(said) <= most < 1024


def test_a_backend_is_kicked_through_qemu_where_descriptors_are_scarce(
    qemu_command: str, scratch: Path
) -> None:
    """One that waits for kicks gets them all the same, also when it comes back."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    frame = bytes(range(60))
    with RingBackend(scratch / "vhu0") as backend:
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (3 * count() + 60, hard))
            with virtnic.Qemu(virtnic.Memory("16M", hugepages=None)) as qemu:
                port = qemu.attach(f"vhost-user,path={scratch}/vhu0", queue_size=64)
                backend.wait_up()
                interposer = attachment_of(port).backend.interposer  # type: ignore[union-attr]
                for times in (1, 2):
                    assert eventually(lambda: interposer.serving)
                    stats = interposer.stats()
                    assert (stats["kicks_learnt"], stats["kicks_not_kept"]) == (0, 2 * times)
                    before = backend.rings[1].kicks
                    assert port.send([frame]) == 1
                    assert backend.kicked(1, before)
                    assert backend.transmitted() == [frame]
                    if times == 1:
                        backend.die()
                        backend.wait_up(2)
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_the_limit_is_named_where_it_is_reached(run: Callable[..., str]) -> None:
    """At any step: everything is released, and it works again with more descriptors."""
    said = run("""
        with virtnic.open("user", **SMALL): pass
        idle = len(list(Path("/proc/self/fd").iterdir()))
        errors, most = set(), idle
        while True:
            limit(most)
            try:
                port = virtnic.open("user", **SMALL)
                break
            except OSError as error:
                assert error.errno == 24, error
                errors.add(str(error))
            limit(128)
            assert len(os.listdir("/proc/self/fd")) <= idle, most
            assert not children(), most
            most += 1
        port.close()
        print(most - idle)
        print(*errors, sep="\\n")
    """)
    steps, *errors = said.splitlines()
    assert int(steps) < 25
    for error in errors:
        assert "(RLIMIT_NOFILE): raise the limit with ulimit -n" in error
        assert "attach several ports to one virtnic.Qemu" in error


def test_the_limit_is_named_by_attach(run: Callable[..., str]) -> None:
    run("""
        with virtnic.Qemu(virtnic.Memory("16M", hugepages=None)) as qemu:
            qemu.attach("user")
            idle = len(os.listdir("/proc/self/fd")) - 1
            limit(idle + 5)
            with contextlib.suppress(OSError):
                while True:
                    qemu.attach("user")
            assert len(qemu.ports) == 3, qemu.ports
            for more in (0, 1):
                limit(idle + 4 + more)
                try:
                    qemu.attach("user")
                except OSError as error:
                    assert "RLIMIT_NOFILE" in str(error), error
                else:
                    raise AssertionError(more)
                assert len(qemu.ports) == 3
            limit(idle + 7)
            assert qemu.attach("user").interrupts == "msix"
    """)


def test_qemu_has_as_many_as_it_may(run: Callable[..., str]) -> None:
    run("""
        limit(128)
        hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
        with virtnic.open("user", **SMALL) as port:
            limits = open("/proc/%d/limits" % port.qemu.pid).read()
            (line,) = [line for line in limits.splitlines() if line.startswith("Max open files")]
            assert line.split()[3:5] == [str(hard)] * 2, line
    """)


def settled(count: Callable[[], int]) -> int:
    """Return a number that has stayed the same for a while."""
    before = count()
    while (now := stays(count, before)) != before:
        before = now
    return before


def stays(count: Callable[[], int], before: int) -> int:
    """Return the number after a while, or as soon as it is another."""
    for _ in range(20):
        pause(0.01)
        if (now := count()) != before:
            return now
    return before


def test_threads_do_not_grow_with_what_waits(qemu_command: str) -> None:
    """One for each QEMU, that reads its QTest socket; none for a port."""

    def threads() -> int:
        return len(list(Path("/proc/self/task").iterdir()))

    with virtnic.Qemu(virtnic.Memory("16M", hugepages=None)) as qemu:
        qemu.attach("user")  # whose timers want a clock, where this QEMU's is ours to step
        # One that has done its work may not have ended yet.
        before = settled(threads)
        for _ in range(3):
            qemu.attach("user")
        assert eventually(lambda: threads() == before)
        with virtnic.Qemu(virtnic.Memory("1M", hugepages=None, jumbo_buffers=0)):
            assert eventually(lambda: threads() == before + 1)


def test_words_are_told_apart(qemu_command: str) -> None:
    """Two QEMUs, a helper of one, and one that ends at once share one socket."""
    from virtnic.qemu.process import Process

    processes = {
        name: Process(["sh", "-c", script])
        for name, script in {
            "first": "echo first >&2; sleep 100",
            "helper": "(echo helped >&2; sleep 100)& echo helper >&2; wait",
            "gone": "echo gone >&2; exit 3",
        }.items()
    }
    try:
        for process in processes.values():
            process.start()
        assert "ended with exit status 3; it printed: gone" in processes["gone"].death(10.0)
        for name, process in processes.items():
            expected = {"helper": ["helped", "helper"]}.get(name, [name])
            for _ in range(1000):
                if len(process.stderr.split()) == len(expected):
                    break
                process.wait(0.01)
            assert sorted(process.stderr.split()) == expected
    finally:
        for process in processes.values():
            if process._child is not None:
                process._child.kill()  # what it started, too
            process.close()
