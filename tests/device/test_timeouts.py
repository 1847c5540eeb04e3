"""One rule for every timeout: 0 or more seconds; None or a huge value waits without limit.

Negative numbers and ``nan`` are a ValueError, from all that takes a timeout, before anything else
is done.
"""

from __future__ import annotations

import asyncio
import inspect
import socket
import threading
from typing import TYPE_CHECKING, Any

import pytest

import virtnic
from support.inside import host_of
from virtnic import aio, net, testing
from virtnic._native import QTest
from virtnic.deadline import LONGEST, Deadline, seconds
from virtnic.teardown import Latch

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

WRONG = [float("nan"), -1.0, -1e-9, float("-inf")]
ENDLESS = [1e20, float("inf"), LONGEST * 2, 1e308]
FRAME = b"\xff" * 12 + b"\x88\xb5" + bytes(46)


class World:
    """The objects that have methods with a timeout."""

    def __init__(self) -> None:
        self.memory = virtnic.Memory("8M", hugepages=None)
        self.qemu = virtnic.Qemu(self.memory)
        self.port = self.qemu.attach("user")
        self.other = self.qemu.attach("user")
        self.net = net.Stack(self.other, address="10.0.2.15/24", gateway="10.0.2.2")

    def aio(self, call: Callable[[aio.Port], Any]) -> Any:
        async def run() -> Any:
            return await call(aio.Port(self.port))

        return asyncio.run(run())

    def scripted(self, call: Callable[[Any], Any]) -> Any:
        with testing.ScriptedPort([testing.Deliver(FRAME)]) as port:
            return call(port)

    def faulty(self, call: Callable[[Any], Any]) -> Any:
        def with_it(port: Any) -> Any:
            return call(testing.FaultyPort(port))

        return self.scripted(with_it)

    def events(self, timeout: float) -> Any:
        with self.qemu.events() as events:
            host_of(self.qemu).feed.put("attached", self.port)
            return events.wait(timeout)

    def latch(self, timeout: float) -> bool:
        latch = Latch()
        latch.set()
        return latch.wait(timeout)

    def event(self, timeout: float) -> bool:
        event = virtnic.EventFd()
        event.signal()
        return event.wait(timeout)

    def another(self, timeout: float) -> None:
        with virtnic.open("user", size="1M", timeout=timeout) as port:
            port.set_promiscuous()

    def bare(self, timeout: float) -> None:
        with virtnic.Qemu(self.memory, timeout=timeout) as qemu:
            qemu.execute("query-status")

    def connected(self, timeout: float) -> net.Socket:
        """Connect to a server of the host."""
        with socket.create_server(("127.0.0.1", 0)) as server:
            return self.net.create_connection(("10.0.2.2", server.getsockname()[1]), timeout)

    def echoed(self, timeout: float) -> None:
        """Send to the host, and receive its answer."""
        with socket.create_server(("127.0.0.1", 0)) as server:
            ours = self.net.create_connection(("10.0.2.2", server.getsockname()[1]))
            with ours, server.accept()[0] as theirs:
                theirs.sendall(b"there")
                ours.settimeout(timeout)
                ours.sendall(b"here")
                assert ours.recv(5)

    def aio_net(self, call: Callable[[Any], Any]) -> Any:
        async def run() -> Any:
            return await call(await aio.net.Stack(self.net))

        return asyncio.run(run())

    def receive(self, timeout: float, queue: Any = None) -> Any:
        """Have slirp answer, so that there is a frame."""
        mac = bytes.fromhex(self.port.mac.replace(":", ""))
        question = bytes.fromhex("0001080006040001") + mac + bytes([10, 0, 2, 15]) + bytes(6)
        question += bytes([10, 0, 2, 2])
        self.port.send([(b"\xff" * 6 + mac + b"\x08\x06" + question).ljust(60, b"\0")])
        return (queue or self.port).recv(timeout=timeout)


#: Calls whose condition is already met.
CALLS: dict[str, Callable[[World, float], object]] = {
    "Port.recv": World.receive,
    "Port.wait_writable": lambda w, t: w.port.wait_writable(t),
    "Port.send_all": lambda w, t: w.port.send_all([FRAME], t),
    "Port.wait_ready": lambda w, t: w.port.wait_ready(t),
    "NetQueue.send_all": lambda w, t: w.port.queue(0).send_all([FRAME], t),
    "NetQueue.recv": lambda w, t: w.receive(t, w.port.queue(0)),
    "NetQueue.wait_writable": lambda w, t: w.port.queue(0).wait_writable(t),
    "Qemu.execute": lambda w, t: w.qemu.execute("query-status", timeout=t),
    "Qemu.__init__": World.bare,
    "Qemu.connect": lambda w, t: _refused(lambda: virtnic.Qemu.connect("/nowhere", timeout=t)),
    "open": World.another,
    "Events.wait": World.events,
    "EventFd.wait": World.event,
    "Latch.wait": World.latch,
    "net.Stack.dhcp": lambda w, t: w.net.dhcp(t),
    "net.Stack.wait_ipv6": lambda w, t: w.net.wait_ipv6(t),
    "net.Stack.arp": lambda w, t: w.net.arp("10.0.2.2", t),
    "net.Stack.ping": lambda w, t: w.net.ping("10.0.2.2", timeout=t),
    "net.Stack.__init__": lambda w, t: net.Stack(w.port, dhcp=True, timeout=t).close(),
    "net.Stack.create_connection": lambda w, t: w.connected(t).close(),
    "net.Socket.settimeout": World.echoed,
    "aio.net.Stack.dhcp": lambda w, t: w.aio_net(lambda stack: stack.dhcp(t)),
    "aio.net.Stack.wait_ipv6": lambda w, t: w.aio_net(lambda stack: stack.wait_ipv6(t)),
    "aio.net.Stack.arp": lambda w, t: w.aio_net(lambda stack: stack.arp("10.0.2.2", t)),
    "aio.net.Stack.ping": lambda w, t: w.aio_net(lambda stack: stack.ping("10.0.2.2", timeout=t)),
    "QTest": lambda _w, t: _refused(lambda: QTest("/nowhere", min(t, 0.0))),
    "aio.Port.wait_ready": lambda w, t: w.aio(lambda port: port.wait_ready(t)),
    "ScriptedPort.recv": lambda w, t: w.scripted(lambda port: port.recv(timeout=t)),
    "ScriptedPort.wait_writable": lambda w, t: w.scripted(lambda port: port.wait_writable(t)),
    "ScriptedPort.send_all": lambda w, t: w.scripted(lambda port: port.send_all([FRAME], t)),
    "ScriptedPort.finish": lambda w, t: w.scripted(
        lambda port: (port.recv(timeout=None), port.finish(t))
    ),
    "FaultyPort.recv": lambda w, t: w.faulty(lambda port: port.recv(timeout=t)),
    "FaultyPort.send_all": lambda w, t: w.faulty(lambda port: port.send_all([FRAME], t)),
    "FaultyPort.wait_writable": lambda w, t: w.faulty(lambda port: port.wait_writable(t)),
    "kill_qemu": lambda _w, t: _killed(t),
    "Deadline": lambda _w, t: Deadline(t),
    "seconds": lambda _w, t: seconds(t),
}


def _refused(call: Callable[[], object]) -> None:
    """No peer is there: the error says so."""
    with pytest.raises((OSError, virtnic.QemuError, TimeoutError)):
        call()


def _killed(timeout: float) -> None:
    with virtnic.open("user", size="1M") as port:
        testing.kill_qemu(port.qemu, timeout)


@pytest.fixture(autouse=True)
def chosen(qemu_command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VIRTNIC_QEMU", qemu_command)


@pytest.fixture
def made(chosen: None) -> Iterator[World]:
    world = World()
    yield world
    world.net.close()
    world.qemu.close()


def test_a_wrong_timeout_is_a_value_error(made: World) -> None:
    for name, call in CALLS.items():
        for timeout in WRONG:
            with pytest.raises(
                ValueError, match="the timeout must be a number of seconds, 0 or more"
            ):
                print(name, timeout, call(made, timeout))


@pytest.mark.parametrize("timeout", ENDLESS)
def test_more_than_a_clock_can_tell_is_for_ever(made: World, timeout: float) -> None:
    for name, call in CALLS.items():
        try:
            call(made, timeout)
        except (OverflowError, ValueError, TimeoutError) as error:
            pytest.fail(f"{name}: {error!r}")


def test_one_that_waits_for_ever_is_woken(made: World) -> None:
    """The timeout is in effect, not only accepted."""
    results: list[object] = []

    def wait() -> None:
        try:
            results.append(made.port.recv(timeout=1e20))
        except virtnic.PortClosed as error:
            results.append(error)

    thread = threading.Thread(target=wait)
    thread.start()
    made.port.close()
    thread.join(30)
    assert [type(result) for result in results] == [virtnic.PortClosed]


def test_nothing_that_takes_a_timeout_is_missing() -> None:
    places = [
        ("", virtnic),
        *(
            (f"{kind.__name__}.", kind)
            for kind in (
                virtnic.Port,
                virtnic.NetQueue,
                virtnic.Qemu,
                virtnic.Events,
                virtnic.EventFd,
                testing.ScriptedPort,
                testing.FaultyPort,
            )
        ),
        ("aio.Port.", aio.Port),
        ("net.Stack.", net.Stack),
        ("net.Socket.", net.Socket),
        ("aio.net.Stack.", aio.net.Stack),
        ("", testing),
    ]
    found = set()
    for prefix, owner in places:
        for name in dir(owner):
            member = getattr(owner, name)
            if not callable(member) or isinstance(member, type):
                continue
            if name.startswith("_") and name != "__init__":
                continue
            try:
                parameters = inspect.signature(member).parameters
            except (TypeError, ValueError):
                continue
            if "timeout" in parameters:
                found.add(prefix + name)
    assert "Port.send_all" in found
    assert found <= CALLS.keys()
