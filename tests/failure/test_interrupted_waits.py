"""Every wait ends soon after a signal, even one delivered to another thread.

``_thread.interrupt_main`` is such a signal: it interrupts no system call of the main thread, so
that only a wait that looks at signals by itself ends.
"""

import _thread
import contextlib
import inspect
import os
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

import virtnic
from peers.ring_backend import RingBackend
from support.frames import numbered
from virtnic import _native, net, vhost_user

pytestmark = pytest.mark.needs("qemu")

#: Seconds of each wait: it fails the test, and does not hang it.
LONG = 60.0
#: Seconds within which it has to end, on a machine that is busy with other things.
SOON = 20.0


@dataclass
class Scene:
    """A port whose transmit ring is full, and the means to wait for other things."""

    port: virtnic.Port
    directory: Path

    @property
    def queue(self) -> virtnic.NetQueue:
        return self.port.queue(0)

    def host(self, wait: Callable[[net.Stack], object]) -> object:
        """Wait in a stack of sockets that nobody answers."""
        with net.Stack(self.port, address="10.0.0.1/24") as stack:
            return wait(stack)

    def accept(self, stack: net.Stack) -> object:
        with stack.create_server(("", 80)) as server:
            server.settimeout(LONG)
            return server.accept()

    def datagram(self, stack: net.Stack) -> object:
        with stack.socket(type=socket.SOCK_DGRAM) as udp:
            udp.bind(("", 7))
            udp.settimeout(LONG)
            return udp.recv(1)

    @contextlib.contextmanager
    def mute(self) -> Iterator[str]:
        """Listen at a socket, and never answer."""
        path = self.directory / "mute"
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(str(path))
            listener.listen()
            try:
                yield str(path)
            finally:
                path.unlink()

    def qtest(self) -> object:
        with self.mute() as path, contextlib.closing(_native.QTest(path, timeout=LONG)) as qtest:
            return qtest.readl(0)

    def vhost_user(self) -> object:
        with self.mute() as path, vhost_user.Frontend(path) as frontend:
            return frontend.receive(LONG)

    def interposer(self) -> object:
        listen, backend = (str(self.directory / name) for name in ("front", "nobody"))
        return _native.Interposer(listen, backend, wait=LONG)

    def front_end(self) -> object:
        nobody = f"vhost-user,path={self.directory / 'nobody'},wait={LONG}"
        return virtnic.open(nobody, frontend="direct", memory=self.port.memory)

    def child(self) -> object:
        child = _native.spawn(["sleep", str(LONG)], dict(os.environ), sys.stderr.fileno())
        try:
            return child.wait(LONG)
        finally:
            child.kill()
            child.wait(SOON)

    def plugging(self) -> object:
        """Wait for a lock that another thread has."""
        lock, taken, done = _native.PluggingLock(), threading.Event(), threading.Event()

        def hold() -> None:
            with lock:
                taken.set()
                done.wait()

        holder = threading.Thread(target=hold)
        holder.start()
        taken.wait()
        try:
            return lock.acquire(LONG)
        finally:
            done.set()
            holder.join()

    def events(self) -> object:
        with self.port.qemu.events() as events:
            while events.wait(LONG) is not None:
                pass
        return None


#: By the name that `waits` finds them by.
WAITS: dict[str, Callable[[Scene], object]] = {
    "Port.recv": lambda scene: scene.port.recv(timeout=LONG),
    "Port.wait_writable": lambda scene: scene.port.wait_writable(LONG),
    "Port.send_all": lambda scene: scene.port.send_all([numbered(scene.port.mac, 0)], LONG),
    "Port.wait_ready": lambda scene: scene.port.wait_ready(LONG),
    "NetQueue.send_all": lambda scene: scene.queue.send_all([numbered(scene.port.mac, 0)], LONG),
    "NetQueue.recv": lambda scene: scene.queue.recv(timeout=LONG),
    "NetQueue.wait_writable": lambda scene: scene.queue.wait_writable(LONG),
    "EventFd.wait": lambda _: virtnic.EventFd().wait(LONG),
    "Events.wait": Scene.events,
    "drop": lambda scene: virtnic.drop(scene.port, seconds=LONG),
    "reflect": lambda scene: virtnic.reflect(scene.port, seconds=LONG),
    "generate": lambda scene: virtnic.generate(scene.port, seconds=LONG),
    "exchange": lambda scene: virtnic.exchange(scene.port, seconds=LONG),
    "NetStack.arp": lambda scene: scene.host(lambda stack: stack.arp("10.0.0.2", LONG)),
    "NetStack.ping": lambda scene: scene.host(lambda stack: stack.ping("10.0.0.2", timeout=LONG)),
    "NetStack.dhcp": lambda scene: scene.host(lambda stack: stack.dhcp(LONG)),
    "NetStack.wait_ipv6": lambda scene: scene.host(lambda stack: stack.wait_ipv6(LONG)),
    "NetSocket.accept": lambda scene: scene.host(scene.accept),
    "NetSocket.recv": lambda scene: scene.host(scene.datagram),
    "NetSocket.connect": lambda scene: scene.host(
        lambda stack: stack.create_connection(("10.0.0.2", 80), timeout=LONG)
    ),
    "FrontEnd": Scene.front_end,
    "VhostWire.receive": Scene.vhost_user,
    "QTest": Scene.qtest,
    "Interposer": Scene.interposer,
    "Child.wait": Scene.child,
    "PluggingLock.acquire": Scene.plugging,
}
#: Methods that share their loop, wait or base class with one above.
ALIKE = {
    *(
        "forward",
        "run",
        "play",
        "measure",
        "NetPort.recv",
        "NetPort.wait_writable",
        "VhostWire.send",
    ),
    *("NetSocket.recv_into", "NetSocket.recv_from", "NetSocket.recv_from_into"),
    *("NetSocket.send", "NetSocket.send_all", "NetSocket.send_to"),
}
#: Those of QMP wait in its event loop's thread, as Python's own futures do.
#: A stack's frames for a wire of Python's are taken in a thread of its own.
IN_OTHER_THREADS = {"Qemu.connect", "Qemu.execute", "StackWire.take"}
#: Descriptions of what others do.
PROTOCOLS = {"PacketPort.recv", "PacketPort.send_all"}


def waits() -> Iterator[str]:
    """Return the name of everything public that has a timeout."""
    for module in (virtnic, _native):
        for name in dir(module):  # what is imported later is there too
            if name.startswith("_"):
                continue
            value = getattr(module, name)
            members = [(name, value)]
            if inspect.isclass(value):
                members += [
                    (f"{name}.{member}", getattr(value, member))
                    for member in dir(value)
                    if not member.startswith("_")
                ]
            for full, member in members:
                with contextlib.suppress(TypeError, ValueError):
                    names = inspect.signature(member).parameters
                    fields = getattr(member, "__dataclass_fields__", {})
                    if names.keys() & {"timeout", "seconds", "wait", "until"} - fields.keys():
                        yield full


@pytest.fixture(name="scene")
def _scene(qemu_command: str, scratch: Path) -> Iterator[Scene]:
    """A port whose peer completes no frame."""
    path = scratch / "interrupted"
    memory = virtnic.Memory("8M", hugepages=None)
    with RingBackend(path), virtnic.open(f"vhost-user,path={path}", memory=memory) as port:
        while port.send([numbered(port.mac, 0)]):
            pass
        yield Scene(port, scratch)


def test_every_wait_ends(scene: Scene) -> None:
    """One after the other: opening a port is expensive."""
    for name, wait in WAITS.items():
        interrupter = threading.Timer(0.1, _thread.interrupt_main)
        began = time.monotonic()
        with pytest.raises(KeyboardInterrupt):  # noqa: PT012
            interrupter.start()
            wait(scene)
            pytest.fail(f"{name} was not interrupted")
        interrupter.join()
        assert time.monotonic() - began < SOON, name


def test_no_wait_is_forgotten() -> None:
    """A new one belongs into the list above."""
    assert set(waits()) == WAITS.keys() | ALIKE | IN_OTHER_THREADS | PROTOCOLS
