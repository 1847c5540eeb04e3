"""QEMU dies during commands, hotplug and recovery."""

import functools
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

import virtnic
from failure.test_recovery import EAGER, balanced, kill, wait_until
from peers.process import freeze
from peers.testpmd import Testpmd
from support.frames import arp_request
from support.traffic import arp_works, echo
from support.waiting import PROMPT, pause

pytestmark = pytest.mark.needs("qemu")

MAC = "52:54:00:77:77:01"


class Wrapper:
    """A QEMU whose start can be delayed or prevented."""

    def __init__(self, command: str, directory: Path) -> None:
        self.path = directory / "qemu"
        self._how = directory / "how"
        self._how.write_text(":")
        # What is in the file is run first, each time.
        self.path.write_text(f'#!/bin/sh\n. {self._how}\nexec {command} "$@"\n')
        self.path.chmod(0o755)

    def come(self) -> None:
        """Start, from now on; one that waits, too."""
        self._how.write_text(":")

    def wait(self) -> None:
        """Wait until :meth:`come`."""
        self._how.write_text(f"while grep -q while {self._how}; do sleep 0.01; done")

    def fail(self) -> None:
        """End at once."""
        self._how.write_text("echo no more of this >&2; exit 3")

    def hang(self) -> None:
        """Take the process, and do nothing."""
        self._how.write_text("exec sleep 60")

    def vanish(self) -> None:
        """Cease to be executable."""
        self.path.unlink()


@pytest.fixture
def wrapper(qemu_command: str, tmp_path: Path) -> Wrapper:
    """The QEMU under test, with a switch."""
    return Wrapper(qemu_command, tmp_path)


@pytest.fixture
def executor() -> Iterator[ThreadPoolExecutor]:
    """Threads."""
    with ThreadPoolExecutor(8) as executor:
        yield executor


def in_midst(
    port: virtnic.Port, executor: ThreadPoolExecutor, call: Callable[[], Any]
) -> Future[Any]:
    """Kill QEMU while it is asked something."""
    pid = port.qemu.pid
    freeze(pid)
    asking = executor.submit(call)
    pause(0.1)
    assert not asking.done()
    os.kill(pid, signal.SIGKILL)
    return asking


def back(port: virtnic.Port, times: int) -> bool:
    return port.restarts == times and not port.away


def linked(port: virtnic.Port, times: int) -> bool:
    return port.restarts == times and port.link


def another(port: virtnic.Port, pid: int) -> bool:
    return port.qemu.pid != pid


def another_and_back(port: virtnic.Port, pid: int) -> bool:
    return another(port, pid) and not port.away


# Commands.


def test_a_command_that_waits_in_the_outage(wrapper: Wrapper, executor: ThreadPoolExecutor) -> None:
    with virtnic.open("user", qemu=str(wrapper.path), recover=EAGER) as port:
        wrapper.wait()
        kill(port)
        wait_until(lambda: port.away)
        asking = executor.submit(port.set_mac, MAC)
        pause(0.2)
        assert not asking.done()
        wrapper.come()
        asking.result(10.0)
        assert port.restarts == 1
        assert port.mac == MAC == port.qemu.execute("query-rx-filter")[0]["main-mac"]
        assert arp_works(port)


def test_a_command_in_the_midst_of_which_it_dies(
    qemu_command: str, executor: ThreadPoolExecutor
) -> None:
    """The next QEMU is told."""
    with virtnic.open("user", recover=EAGER) as port:
        for times in range(1, 4):
            mac = f"52:54:00:77:77:{times:02x}"
            in_midst(port, executor, functools.partial(port.set_mac, mac)).result(10.0)
            wait_until(functools.partial(back, port, times))
            assert port.mac == mac == port.qemu.execute("query-rx-filter")[0]["main-mac"]
            assert arp_works(port)
        memory = port.memory
    assert memory.buffers_free == memory.buffers


def test_who_asks_waits_for_nobody(qemu_command: str, executor: ThreadPoolExecutor) -> None:
    """While a command waits for QEMU, other threads run, and may ask what the port is."""
    with virtnic.open("user", recover=EAGER) as port:
        before = port.mac
        pid = port.qemu.pid
        freeze(pid)
        asking = executor.submit(port.set_mac, MAC)
        deadline = time.monotonic() + 0.5
        while time.monotonic() < deadline:  # the command looks for signals every 0.1 s
            assert (port.mac, port.rss, port.speed, port.link) == (before, None, None, True)
        assert not asking.done()
        os.kill(pid, signal.SIGCONT)
        asking.result(20.0)
        assert port.mac == MAC


# Ports that come and go.


def test_while_a_port_is_detached(qemu_command: str, executor: ThreadPoolExecutor) -> None:
    """It is gone when detach returns, and does not come back with the others."""
    with virtnic.Qemu(recover=EAGER) as qemu:
        stays = qemu.attach("user")
        for times in range(1, 4):
            goes = qemu.attach("user")
            in_midst(stays, executor, functools.partial(qemu.detach, goes)).result(15.0)
            assert goes.closed
            wait_until(functools.partial(back, stays, times))
            assert qemu.ports == (stays,)
            assert arp_works(stays)
            assert len(qemu.execute("query-rx-filter")) == 1
        qemu.detach(stays)
        assert qemu.memory.buffers_free == qemu.memory.buffers


def test_while_a_port_is_attached(qemu_command: str, executor: ThreadPoolExecutor) -> None:
    """It fails, with nothing left of it; the others come back, and another port can come."""
    with virtnic.Qemu(recover=EAGER) as qemu:
        stays = qemu.attach("user")
        free = qemu.memory.buffers_free
        for times in range(1, 4):
            asking = in_midst(stays, executor, lambda: qemu.attach("user"))
            with pytest.raises(virtnic.QemuDied):
                asking.result(15.0)
            wait_until(functools.partial(back, stays, times))
            assert qemu.ports == (stays,)
            assert qemu.memory.buffers_free == free
            assert len(qemu.execute("query-rx-filter")) == 1
            with qemu.attach("user") as another:
                assert arp_works(another)
            assert arp_works(stays)


def test_at_any_moment_of_coming_and_going(qemu_command: str) -> None:
    """Ports are attached and detached as fast as possible, while QEMU is killed at random."""
    with virtnic.Qemu(recover=EAGER) as qemu:
        stays = qemu.attach("user")
        done = threading.Event()
        killed = 0

        def killer() -> None:
            nonlocal killed
            while not done.wait(0.03 + 0.017 * (killed % 9)):
                before = stays.restarts
                kill(stays)
                killed += 1
                deadline = time.monotonic() + 20.0
                while (stays.restarts == before or stays.away) and time.monotonic() < deadline:
                    time.sleep(0.005)

        thread = threading.Thread(target=killer)
        thread.start()
        came = failed = 0
        deadline = time.monotonic() + 60.0
        try:
            while (came < 10 or failed < 5) and time.monotonic() < deadline:
                try:
                    port = qemu.attach("user")
                except virtnic.QemuDied:
                    failed += 1
                    continue
                came += 1
                port.send([arp_request(port.mac)])
                qemu.detach(port)
                assert port.closed
        finally:
            done.set()
            thread.join()
        print(f"{killed} kills, {came} came, {failed} failed")
        assert came
        assert failed
        wait_until(lambda: not stays.away, 20.0)
        assert qemu.ports == (stays,)
        assert arp_works(stays)
        assert len(qemu.execute("query-rx-filter")) == 1
        qemu.detach(stays)
        assert qemu.memory.buffers_free == qemu.memory.buffers


# Recovery itself.


@pytest.mark.parametrize("delay", [0.0, 0.02, 0.05, 0.08])
def test_killed_while_it_is_brought_up(qemu_command: str, delay: float) -> None:
    """Repeatedly, after different times; a failed attempt is repeated."""
    with virtnic.open("user", recover=virtnic.Recovery(50, 0.01, 0.02)) as port:
        for _ in range(3):
            before = port.qemu.pid
            kill(port)
            for _ in range(3):
                wait_until(functools.partial(another, port, before), 20.0)
                pause(delay)
                before = port.qemu.pid
                os.kill(before, signal.SIGKILL)
            wait_until(functools.partial(another_and_back, port, before), 20.0)
            assert arp_works(port)
        wait_until(lambda: balanced(port))
        memory = port.memory
    assert memory.buffers_free == memory.buffers


@pytest.mark.parametrize("how", ["wait", "fail", "hang"])
def test_closed_while_it_does_not_come_back(
    wrapper: Wrapper, executor: ThreadPoolExecutor, how: str
) -> None:
    """``close`` takes no longer than a start may, and who waits gets PortClosed."""
    policy = virtnic.Recovery(attempts=1000, backoff=0.01, backoff_max=0.02)
    port = virtnic.open("user", qemu=str(wrapper.path), recover=policy, timeout=2.0)
    memory = port.memory
    getattr(wrapper, how)()
    receiving = executor.submit(port.recv, 64, None)
    kill(port)
    wait_until(lambda: port.away)
    asking = executor.submit(port.set_promiscuous)
    pause(0.1)
    began = time.monotonic()
    port.close()
    assert time.monotonic() - began < PROMPT
    for waiting in (receiving, asking):
        with pytest.raises(virtnic.PortClosed):
            waiting.result(20.0)
    assert memory.buffers_free == memory.buffers


@pytest.mark.parametrize(
    ("how", "says"), [("fail", "no more of this"), ("vanish", "SIGKILL"), ("hang", "QEMU")]
)
def test_when_there_is_no_qemu_any_more(
    wrapper: Wrapper, executor: ThreadPoolExecutor, how: str, says: str
) -> None:
    """After the last attempt, every waiting call raises an error."""
    policy = virtnic.Recovery(attempts=3, backoff=0.01, backoff_max=0.02)
    with virtnic.Qemu(qemu=str(wrapper.path), recover=policy, timeout=1.0) as qemu:
        port, other = qemu.attach("user"), qemu.attach("user")
        assert arp_works(port)
        frames = [arp_request(port.mac)] * 4096
        loop = executor.submit(virtnic.exchange, other, frames=frames[:1], rate=1000, seconds=60.0)
        getattr(wrapper, how)()
        receiving = executor.submit(port.recv, 64, None)
        kill(port)
        wait_until(lambda: port.away)
        calls: list[Future[Any]] = [
            loop,
            receiving,
            executor.submit(port.set_promiscuous),
            executor.submit(port.send_all, frames, None),
        ]
        for call in calls:
            with pytest.raises(virtnic.QemuDied, match=says):
                call.result(15.0)
        for port in qemu.ports:
            with pytest.raises(virtnic.QemuDied, match=says):
                port.recv()
        with pytest.raises(virtnic.QemuDied):
            qemu.attach("user")
        memory = qemu.memory
    assert memory.buffers_free == memory.buffers


# With a vhost-user backend.


@pytest.mark.needs("testpmd")
@pytest.mark.parametrize("ring", ["packed", "split"])
def test_both_die(qemu_command: str, testpmd: Callable[..., Testpmd], ring: Any) -> None:
    """The backend, then QEMU while there is none; and the other way round."""
    pmd = testpmd()
    path = pmd.sockets[0]
    policy = virtnic.Recovery(attempts=200, backoff=0.02, backoff_max=0.1)
    with virtnic.open(f"vhost-user,path={path}", ring=ring, recover=policy) as port:
        echo(port, 500)
        sent = 500
        for times, backend_first in enumerate((True, False, True), 1):
            freeze(pmd.pid)
            sent += port.send([arp_request(port.mac)] * 64)
            if not backend_first:
                kill(port)
            pmd.kill()
            if backend_first:
                wait_until(lambda: not port.link)
                sent += port.send([arp_request(port.mac)] * 64)
                kill(port)
            wait_until(lambda: port.away)
            pmd = another_at(path)
            try:
                wait_until(functools.partial(linked, port, times), 20.0)
                echo(port, 500)
                sent += 500
            except BaseException:
                pmd.kill()
                raise
            wait_until(lambda: balanced(port))
        stats = port.stats()
        assert stats["tx_packets"] == sent
        # Whoever echoed it took it; whatever was not echoed was lost with QEMU, or dropped by it.
        assert stats["tx_completed"] - stats["tx_no_backend"] == 4 * 500
        assert stats["rx_packets"] == 4 * 500
        memory = port.memory
        pmd.kill()
    assert memory.buffers_free == memory.buffers


def another_at(path: Path) -> Testpmd:
    return Testpmd([path])
