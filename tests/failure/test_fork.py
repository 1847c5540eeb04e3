"""fork without exec: the child owns nothing."""

from __future__ import annotations

import concurrent.futures
import gc
import multiprocessing
import os
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
import traceback
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import virtnic
from support.frames import arp_request, is_arp_reply, number_of, numbered
from support.inside import attachment_of, backend_of, driver_of, machine_of
from support.waiting import eventually, pause
from virtnic import _native, net
from virtnic.qemu.process import Process

if TYPE_CHECKING:
    from collections.abc import Callable

    from peers.testpmd import Testpmd
    from virtnic.nic.options import Interrupts

pytestmark = [
    # Python 3.12 and later: "This process is multi-threaded, use of fork() may lead to deadlocks".
    pytest.mark.filterwarnings("ignore:.*use of fork.*:DeprecationWarning"),
    pytest.mark.timeout(60),
]


def forked(body: Callable[[], None], seconds: float = 15.0) -> None:
    """Run a function in a forked child; a failure or a hang there is a failure here."""
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            body()
            status = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(status)
    assert ended(pid, seconds) == 0


def ended(pid: int, seconds: float = 15.0) -> int:
    """Return a child's exit code. One that hangs is killed, and shows where it hung."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        found, status = os.waitpid(pid, os.WNOHANG)
        if found:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.005)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    pytest.fail(f"the child did not end within {seconds} s")


def exchange(port: virtnic.Port) -> virtnic.Burst:
    """Ask for the gateway, and return what came back."""
    assert port.send([arp_request(port.mac)]) == 1
    burst = port.recv(64, timeout=20.0)
    assert [is_arp_reply(frame) for frame in burst] == [True]
    return burst


def still_works(port: virtnic.Port) -> None:
    """Check that the parent's port, its QEMU and its threads are as they were."""
    for _ in range(20):
        exchange(port)
    assert machine_of(port.qemu).process.alive
    assert machine_of(port.qemu).qtest.death is None
    # QMP and its events still come through the loop thread.
    changed: list[bool] = []
    if port.interrupts != "none":
        port.on_link(lambda port: changed.append(port.link))
    nic = machine_of(port.qemu).nics[0].id
    for up in (False, True):
        port.qemu.execute("set_link", name=nic, up=up)
        assert eventually(lambda up=up: port.link is up)  # type: ignore[misc]
    wanted = [False, True] if port.interrupts != "none" else []
    assert eventually(lambda: changed == wanted)


def refuses(port: virtnic.Port) -> None:
    """Check that every access to the device says that it belongs to the parent."""
    why = "belongs to the process that opened it; this is a forked child"
    for call in (
        lambda: port.recv(64),
        lambda: port.recv(64, timeout=20.0),
        lambda: port.recv(64, timeout=None),
        lambda: port.send([bytes(60)]),
        port.fileno,
        port.reclaim,
        driver_of(port).refresh_link,
        lambda: machine_of(port.qemu).qtest.inb(0x80),
        lambda: machine_of(port.qemu).qtest.outb(0x80, 0),
        machine_of(port.qemu).qtest.flush,
        lambda: virtnic.reflect(port, packets=1),
        lambda: net.Stack(port),
        lambda: port.qemu.execute("query-status"),
        lambda: port.qemu.attach("user"),
    ):
        with pytest.raises(virtnic.PortClosed, match=why):
            call()
    assert port.closed
    assert "closed" in repr(port)


@pytest.mark.parametrize("interrupts", ["msix", "intx", "none"])
def test_a_child_reads_what_it_holds_and_touches_nothing_else(
    qemu_command: str, interrupts: Interrupts
) -> None:
    with virtnic.open("user", interrupts=interrupts) as port:
        burst = exchange(port)
        view = burst[0]
        expected = bytes(view)

        def child() -> None:
            nonlocal port, burst, view
            refuses(port)
            assert bytes(view) == expected
            assert burst.tobytes() == [expected]
            burst.release()
            port.close()
            port.qemu.detach(port)
            port.qemu.close()
            attachment_of(port).stop()
            assert bytes(view) == expected
            del burst, view, port
            gc.collect()

        forked(child)
        still_works(port)
        assert bytes(view) == expected
        view.release()
        burst.release()
        pid = port.qemu.pid
        memory = port.memory
    assert not Path(f"/proc/{pid}").exists()
    assert memory.buffers_free == memory.buffers


def test_a_child_that_drops_each_native_object(port: virtnic.Port) -> None:
    """Not by close, but by the collection of the objects."""

    def child() -> None:
        machine = machine_of(port.qemu)
        assert isinstance(machine.process, Process)
        process = machine.process._child
        assert process is not None
        assert machine.server is not None
        process.kill()
        process.terminate()
        machine.qtest.close()
        machine.server.close()
        del process
        attachment_of(port).started = None
        for part, attributes in (
            (machine.process, ("_child",)),
            (machine, ("_qtest", "_server", "_monitor", "_process")),
        ):
            for name in attributes:
                setattr(part, name, None)
        del port._attachment
        gc.collect()

    forked(child)
    still_works(port)


def test_a_child_takes_nothing_out_of_the_loop(port: virtnic.Port) -> None:
    """As asyncio's transports and writers do at their end; epoll instances survive a fork."""
    loop = machine_of(port.qemu).monitor.loop

    def child() -> None:
        assert loop._selector is not None
        for key in list(loop._selector.get_map().values()):
            loop._selector.unregister(key.fd)

    forked(child)
    still_works(port)


def in_process(port: virtnic.Port, view: memoryview, expected: bytes) -> None:
    with pytest.raises(virtnic.PortClosed):
        port.recv(64)
    assert bytes(view) == expected


def test_multiprocessing_by_fork(port: virtnic.Port) -> None:
    burst = exchange(port)
    view = burst[0]
    context = multiprocessing.get_context("fork")
    # Several at once, as a pool of workers has them.
    workers = [context.Process(target=in_process, args=(port, view, bytes(view))) for _ in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(15.0)
        assert worker.exitcode == 0
        worker.close()
    still_works(port)


WHOLE_INTERPRETER = """
import gc, os, sys
import virtnic
from support.frames import arp_request, is_arp_reply
from support.inside import machine_of

port = virtnic.open("user", interrupts=sys.argv[1])

def exchange():
    assert port.send([arp_request(port.mac)]) == 1
    burst = port.recv(64, timeout=20.0)
    assert is_arp_reply(burst[0])
    return burst

burst = exchange()
view = burst[0]
for how in ("end", "exit", "raise"):
    pid = os.fork()
    if pid == 0:
        try:
            port.recv(64, timeout=None)
        except virtnic.PortClosed:
            print("child", how, len(view), flush=True)
        if how == "exit":
            del port, burst, view
            gc.collect()
            sys.exit(0)
        if how == "raise":
            raise SystemExit(0)
        break
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0, how
    for _ in range(20):
        exchange()
    assert machine_of(port.qemu).process.alive
    assert port.qemu.execute("query-status")
else:
    burst.release()
    del view
    port.close()
    print("parent", flush=True)
"""


@pytest.mark.parametrize("interrupts", ["msix", "intx"])
def test_the_end_of_a_childs_whole_interpreter(
    qemu_command: str, scratch: Path, interrupts: Interrupts
) -> None:
    """With atexit and the end of all modules, which ``os._exit`` leaves out."""
    script = scratch / "forks.py"
    script.write_text(WHOLE_INTERPRETER)
    try:
        stdout, stderr, status = run_python(script, interrupts)
    finally:
        script.unlink()
    assert stderr == ""
    assert status == 0
    lines = stdout.splitlines()
    assert [line.split()[:2] for line in lines[:3]] == [
        ["child", how] for how in ("end", "exit", "raise")
    ]
    assert lines[3:] == ["parent"]


def run_python(script: Path, *arguments: str) -> tuple[str, str, int]:
    """Run a script in another Python; return its output and its exit code."""
    environment = dict(os.environ, PYTHONPATH=os.fspath(Path(__file__).parents[1]))
    # On the command line a message is no pattern: that of forking with threads cannot be named.
    options = ["-W", "ignore::DeprecationWarning"]
    done = subprocess.run(
        [sys.executable, *options, os.fspath(script), *arguments],
        env=environment,
        capture_output=True,
        text=True,
        timeout=50,
        check=False,
    )
    return done.stdout, done.stderr, done.returncode


def test_a_child_opens_a_port_of_its_own(port: virtnic.Port) -> None:
    burst = exchange(port)

    def child() -> None:
        with virtnic.open("user") as own:
            for _ in range(20):
                exchange(own)
            # The parent's frames can be read, and copied to our own port.
            assert own.send([burst[0]]) == 1
            assert own.qemu.pid != port.qemu.pid
            pid = own.qemu.pid
        assert not Path(f"/proc/{pid}").exists()
        with pytest.raises(virtnic.PortClosed, match="the memory belongs"):
            virtnic.open("user", memory=port.memory)

    forked(child)
    still_works(port)


def test_a_grandchild_is_no_owner_either(port: virtnic.Port) -> None:
    def child() -> None:
        with virtnic.open("user") as own:

            def grandchild() -> None:
                refuses(own)
                refuses(port)
                own.close()

            forked(grandchild)
            still_works(own)

    forked(child, 25.0)
    still_works(port)


def test_files_and_sockets_stay(qemu_command: str, scratch: Path) -> None:
    memory = _native.Memory(
        1 << 20, pages=4096, directory="/dev/shm", buffer_size=2048, jumbo_buffers=0
    )
    server = _native.IvshmemServer(os.fspath(scratch / "shmem.sock"), memory)
    server.listen()
    event = server.take_vector()[2]
    event.signal()
    path = memory.path
    assert path is not None

    def child() -> None:
        nonlocal server, memory
        with pytest.raises(virtnic.PortClosed, match="the ivshmem server belongs"):
            server.take_vector()
        server.give_vector(0)
        server.close()
        del server, memory
        gc.collect()

    forked(child)
    assert Path(path).exists()
    assert (scratch / "shmem.sock").exists()
    assert event.wait(0)
    server.close()
    assert not (scratch / "shmem.sock").exists()
    del server, memory
    gc.collect()
    assert not Path(path).exists()


def test_a_fork_amid_traffic_of_other_threads(port: virtnic.Port) -> None:
    """Locks may be held at the moment of the fork; no child must wait for them."""
    stop = threading.Event()
    failures: list[BaseException] = []

    def traffic() -> None:
        try:
            while not stop.is_set():
                port.send([arp_request(port.mac)] * 8)
                for view in port.recv(64, timeout=0.05):
                    assert is_arp_reply(view)
                machine_of(port.qemu).qtest.inb(0x80)
        except BaseException as failure:
            failures.append(failure)

    threads = [threading.Thread(target=traffic) for _ in range(3)]
    for thread in threads:
        thread.start()
    burst = None
    while not burst:
        burst = port.recv(1, timeout=0.1)

    def child() -> None:
        nonlocal burst
        refuses(port)
        assert burst is not None
        assert is_arp_reply(burst[0])
        del burst
        port.close()
        gc.collect()

    try:
        for _ in range(40):
            forked(child)
    finally:
        stop.set()
        for thread in threads:
            thread.join(10.0)
    assert failures == []
    while port.recv(64, timeout=0.2):
        pass
    still_works(port)


def test_qemu_sees_the_loss_of_a_backend_while_a_child_lives(scratch: Path) -> None:
    """A child has copies of the interposer's connections, which must end anyway."""
    features = struct.Struct("=IIIQ")
    with socket.socket(socket.AF_UNIX) as listener, socket.socket(socket.AF_UNIX) as qemu:
        listener.bind(os.fspath(scratch / "backend"))
        listener.listen()
        listener.settimeout(10.0)

        def serve() -> socket.socket:
            backend, _ = listener.accept()
            backend.settimeout(10.0)
            assert len(backend.recv(12)) == 12  # GET_FEATURES
            backend.sendall(features.pack(1, 0b101, 8, 1 << 32 | 1 << 30))
            return backend

        with concurrent.futures.ThreadPoolExecutor() as pool:
            serving = pool.submit(serve)
            interposer = _native.Interposer(
                os.fspath(scratch / "qemu"), os.fspath(scratch / "backend"), wait=5.0
            )
            backend = serving.result()
        qemu.settimeout(5.0)
        qemu.connect(os.fspath(scratch / "qemu"))
        assert interposer.changed.wait(20.0)
        stays, go = os.pipe()
        pid = os.fork()
        if pid == 0:
            backend.close()
            os.close(go)
            os.read(stays, 1)
            os._exit(0)
        try:
            backend.close()
            pause(0.1)  # for the child's copy
            assert qemu.recv(1) == b""
        finally:
            os.close(go)
            os.close(stays)
            assert ended(pid) == 0
            interposer.close()
    (scratch / "backend").unlink()


@pytest.mark.needs("testpmd")
def test_a_vhost_user_port(qemu_command: str, testpmd: Callable[..., Testpmd]) -> None:
    """The child ends neither the interposer nor the connections that it has copies of."""
    netdev = f"vhost-user,path={testpmd().sockets[0]}"
    stays, go = os.pipe()

    def echo(port: virtnic.Port) -> None:
        frame = numbered(port.mac, 7)
        for _ in range(20):
            assert port.send([frame]) == 1
            assert [number_of(view) for view in port.recv(64, timeout=20.0)] == [7]

    with virtnic.open(netdev) as port:
        echo(port)

        def child() -> None:
            nonlocal port
            refuses(port)
            backend_of(port).interposer.close()
            port.close()
            del port
            gc.collect()

        forked(child)
        echo(port)
        # One that lives on, with copies of all descriptors, when the port is closed.
        pid = os.fork()
        if pid == 0:
            os.close(go)
            os.read(stays, 1)
            os._exit(0)
        assert backend_of(port).interposer.stats()["links"] == 1
    try:
        with virtnic.open(netdev) as port:
            echo(port)
    finally:
        os.close(go)
        os.close(stays)
        assert ended(pid) == 0
