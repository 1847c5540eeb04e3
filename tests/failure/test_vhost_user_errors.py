"""vhost-user backends that are absent, disappear, or break the protocol."""

import contextlib
import logging
import os
import signal
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

import virtnic
from peers.testpmd import Testpmd
from support.frames import number_of, numbered
from support.inside import driver_of
from support.traffic import drain
from support.waiting import PROMPT
from virtnic.nic.options import Notify, Ring

pytestmark = pytest.mark.needs("qemu", "testpmd")

StartTestpmd = Callable[..., Testpmd]

RINGS = pytest.mark.parametrize("ring", ["packed", "split"])
#: Through the interposer, and with QEMU talking to the backend itself.
NOTIFY = pytest.mark.parametrize("notify", ["eventfd", "qtest"])


@NOTIFY
def test_no_socket_fails_at_once(qemu: virtnic.Qemu, scratch: Path, notify: Notify) -> None:
    path = scratch / "nothing"
    began = time.monotonic()
    with pytest.raises(virtnic.QemuError, match=r"no vhost-user backend.*start it first.*wait="):
        qemu.attach(f"vhost-user,path={path}", notify=notify)
    assert time.monotonic() - began < PROMPT
    with pytest.raises(virtnic.QemuError, match=str(path)) as caught:
        qemu.attach(f"vhost-user,path={path}", notify=notify)
    # Said once, not once by each layer.
    assert str(caught.value).count("start it first") == 1
    assert qemu.ports == ()


@NOTIFY
@pytest.mark.parametrize("server", ["on", "off"])
def test_waiting_ends(qemu: virtnic.Qemu, scratch: Path, notify: Notify, server: str) -> None:
    netdev = f"vhost-user,path={scratch}/nothing,server={server},wait=1"
    began = time.monotonic()
    with pytest.raises(
        (virtnic.QemuError, TimeoutError), match=r"no vhost-user backend.*/nothing.*within 1 ?s"
    ):
        qemu.attach(netdev, notify=notify)
    assert 0.9 <= time.monotonic() - began < PROMPT
    (scratch / "nothing").unlink(missing_ok=True)  # QEMU's own, with notify="qtest"


@NOTIFY
@pytest.mark.parametrize("server", ["on", "off"])
def test_a_path_that_is_too_long(
    qemu: virtnic.Qemu, scratch: Path, notify: Notify, server: str
) -> None:
    path = scratch / ("x" * 108)
    with pytest.raises((ValueError, virtnic.QemuError), match=r"too long|10[78]"):
        qemu.attach(f"vhost-user,path={path},server={server}", notify=notify)


class Impostor:
    """Listens like a backend, but is none."""

    def __init__(self, path: Path, behaviour: str) -> None:
        self.path = path
        self._behaviour = behaviour
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(path))
        self._listener.listen()
        self._guests: list[socket.socket] = []
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def _serve(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                guest, _ = self._listener.accept()
                self._guests.append(guest)
                if self._behaviour == "garbage":
                    guest.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n" * 20)
                elif self._behaviour == "closes":
                    guest.close()

    def __enter__(self) -> Path:
        return self.path

    def __exit__(self, *_: object) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._thread.join()
        for each in (self._listener, *self._guests):
            each.close()
        self.path.unlink()


@pytest.mark.parametrize(
    ("behaviour", "words"),
    [("silent", "answer"), ("garbage", "vhost-user"), ("closes", "vhost-user")],
)
def test_a_socket_that_is_no_backend(
    qemu: virtnic.Qemu, scratch: Path, behaviour: str, words: str
) -> None:
    began = time.monotonic()
    with (
        Impostor(scratch / "impostor", behaviour) as path,
        pytest.raises((virtnic.QemuError, TimeoutError), match=words) as caught,
    ):
        qemu.attach(f"vhost-user,path={path}")
    assert str(path) in str(caught.value)
    assert time.monotonic() - began < 12.0
    # QEMU is unaffected.
    with qemu.attach("user") as port:
        assert port.link


def test_packed_rings_that_are_refused(
    qemu: virtnic.Qemu, testpmd: StartTestpmd, caplog: pytest.LogCaptureFixture
) -> None:
    """An error when they were asked for, a warning when they were only preferred."""
    netdev = f"vhost-user,path={testpmd().sockets[0]}"
    refused = {"packed": False}
    with pytest.raises(virtnic.DeviceError, match="RING_PACKED"):
        qemu.attach(netdev, ring="packed", properties=refused)
    assert qemu.memory.buffers_free == qemu.memory.buffers
    with (
        caplog.at_level(logging.WARNING, "virtnic"),
        qemu.attach(netdev, properties=refused) as port,
    ):
        assert port.ring == "split"
        assert len(echo(port, range(100))) == 100
    assert "packed" in caplog.text
    with qemu.attach(netdev, ring="split") as port:
        assert port.ring == "split"


def test_wrong_arguments(qemu: virtnic.Qemu) -> None:
    for netdev, options in (
        ("vhost-user", {}),
        ("vhost-user,path=", {}),
        ("vhost-user,path=/x,wait=soon", {}),
        ("vhost-user,path=/x,wait=-1", {}),
        ("vhost-user,path=/x,server=maybe", {}),
        ("vhost-user,path=/x", {"ring": "round"}),
        ("vhost-user,path=/x", {"notify": "pigeon"}),
        ("user", {"notify": "eventfd"}),
    ):
        with pytest.raises(ValueError, match=r"\w"):
            qemu.attach(netdev, **options)  # type: ignore[arg-type]


def echo(port: virtnic.Port, numbers: range, seconds: float = 30.0) -> set[int]:
    """Send numbered frames until each has come back once, or until the timeout."""
    back: set[int] = set()
    deadline = time.monotonic() + seconds
    while (missing := set(numbers) - back) and time.monotonic() < deadline:
        port.send([numbered(port.mac, number) for number in sorted(missing)[:512]])
        until = time.monotonic() + 1.0
        while set(numbers) - back and time.monotonic() < until:
            burst = port.recv(256, timeout=0.2)
            if not burst:
                break
            back |= {number for frame in burst if (number := number_of(frame)) is not None}
    return back & set(numbers)


def wait_for(condition: Callable[[], bool], seconds: float = 20.0) -> bool:
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.01)
    return True


@RINGS
@pytest.mark.parametrize("activity", ["reflect", "recv"])
def test_a_backend_that_vanishes_and_returns(
    qemu_command: str, scratch: Path, ring: Ring, activity: str
) -> None:
    """During a burst: the link goes down, nothing is lost, and it is up again with the backend."""
    path = scratch / "vhu0"
    links: list[bool] = []
    with Testpmd([path]) as pmd:
        port = virtnic.open(
            f"vhost-user,path={path}", ring=ring, on_link=lambda port: links.append(port.link)
        )
        with contextlib.ExitStack() as stack:
            stack.callback(port.close)
            assert len(echo(port, range(256))) == 256
            stop = threading.Event()
            failures: list[BaseException] = []

            def work() -> None:
                try:
                    if activity == "reflect":
                        virtnic.reflect(port, progress=lambda _: not stop.is_set())
                    else:
                        while not stop.is_set():
                            burst = port.recv(64, timeout=0.1)
                            port.send(burst)
                except BaseException as error:
                    failures.append(error)

            if activity == "reflect":
                port.send([numbered(port.mac, number) for number in range(256)])
            else:
                port.send([numbered(port.mac, number) for number in range(64)])
            worker = threading.Thread(target=work)
            worker.start()
            stack.callback(worker.join)
            stack.callback(stop.set)
            before = port.stats()["rx_packets"]
            assert wait_for(lambda: port.stats()["rx_packets"] > before + 1000)
            pmd.kill()
            assert wait_for(lambda: links == [False]), "no callback told that the link is down"
            assert not port.link
            stop.set()
            worker.join()
            assert failures == []
            # Nobody is there: frames are queued, then refused, and nothing is raised.
            for _ in range(40):
                port.send([numbered(port.mac, number) for number in range(64)])
            assert len(port.recv(256, timeout=0.1)) <= 256

            with Testpmd([path]):
                assert wait_for(lambda: links == [False, True]), "the link stayed down"
                assert driver_of(port).refresh_link()
                numbers = range(10_000, 10_256)
                assert echo(port, numbers) == set(numbers)
                assert qemu_is_well(port)
        assert port.memory.buffers_free == port.memory.buffers


def qemu_is_well(port: virtnic.Port) -> bool:
    return bool(port.qemu.execute("query-status")["running"])


@RINGS
def test_closing_without_a_backend(qemu: virtnic.Qemu, testpmd: StartTestpmd, ring: Ring) -> None:
    """A port with a dead backend is detached like any other, and its slot is free again."""
    for _ in range(2):
        pmd = testpmd()
        port = qemu.attach(f"vhost-user,path={pmd.sockets[0]}", ring=ring)
        port.send([numbered(port.mac, number) for number in range(64)])
        burst = port.recv(16, timeout=20.0)
        kept = burst.tobytes()
        pmd.kill()
        port.close()
        assert burst.tobytes() == kept
        burst.release()
        assert qemu.memory.buffers_free == qemu.memory.buffers
    assert qemu.ports == ()


@RINGS
@pytest.mark.parametrize("notify", ["eventfd", "qtest"])
def test_qemu_killed_while_the_backend_polls(
    qemu_command: str, testpmd: StartTestpmd, ring: Ring, notify: Notify
) -> None:
    pmd = testpmd(mode="txonly")
    netdev = f"vhost-user,path={pmd.sockets[0]}"
    with virtnic.open(netdev, ring=ring, notify=notify) as port:
        killer = threading.Timer(0.2, os.kill, args=(port.qemu.pid, signal.SIGKILL))
        killer.start()
        with pytest.raises(virtnic.QemuDied):
            virtnic.drop(port, seconds=20)
        with pytest.raises(virtnic.QemuDied):
            port.send([b"\0" * 60])
        killer.join()
    assert port.memory.buffers_free == port.memory.buffers
    # The backend lives and takes the next port.
    with virtnic.open(netdev, ring=ring, notify=notify) as port:
        assert virtnic.drop(port, packets=1000, seconds=20).packets >= 1000


class Liar:
    """Writes into a receive ring what a device must not write. The backend stands still."""

    def __init__(self, port: virtnic.Port) -> None:
        self._memory = port.memory
        self._size = port.queue_size
        name, descriptors, _driver, used = port.queue_addresses[0]
        assert name == "rx"
        self._packed = port.ring == "packed"
        self._at = self._memory.offset_of(descriptors if self._packed else used)
        #: Buffers used so far, each of one descriptor: where the device goes on.
        self._done = port.stats()["rx_packets"]

    def in_flight(self, ahead: int = 0) -> int:
        """Return an id that the device holds."""
        if not self._packed:
            # The ring is full and ids are taken in turn: any has been posted again.
            return (self._done + ahead) % self._size
        at = self._at + 16 * ((self._done + ahead) % self._size)
        return int.from_bytes(self._memory.read(at + 12, 2), "little")

    def use(self, identifier: int, length: int, *, wrong_lap: bool = False) -> None:
        """Report a buffer as used."""
        position, lap = self._done % self._size, self._done // self._size % 2
        if self._packed:
            # VIRTIO 1.3, section 2.8.1: AVAIL and USED both equal the wrap counter, which
            # starts at 1.
            flags = 0x8080 if (lap == 0) is not wrong_lap else 0
            entry = length.to_bytes(4, "little") + identifier.to_bytes(2, "little")
            self._memory.write(self._at + 16 * position + 8, entry)
            self._memory.write(self._at + 16 * position + 14, flags.to_bytes(2, "little"))
        else:
            entry = identifier.to_bytes(4, "little") + length.to_bytes(4, "little")
            self._memory.write(self._at + 4 + 8 * position, entry)
            ahead = 1 if not wrong_lap else 1 + self._size
            index = (self._done + ahead) & 0xFFFF
            self._memory.write(self._at + 2, index.to_bytes(2, "little"))
        self._done += 1


def an_id_out_of_range(liar: Liar) -> None:
    liar.use(0xFFF0, 64)


def an_id_used_twice(liar: Liar) -> None:
    identifier = liar.in_flight()
    liar.use(identifier, 64)
    liar.use(identifier, 64)


def a_length_past_the_buffer(liar: Liar) -> None:
    liar.use(liar.in_flight(), 1 << 20)


LIES = {
    "id out of range": (an_id_out_of_range, "out of range"),
    "id used twice": (an_id_used_twice, "not a buffer that is with the device"),
    "length": (a_length_past_the_buffer, "takes only"),
}


@RINGS
@pytest.mark.parametrize("lie", LIES)
def test_a_used_descriptor_that_lies(
    qemu: virtnic.Qemu, testpmd: StartTestpmd, ring: Ring, lie: str
) -> None:
    tell, words = LIES[lie]
    pmd = testpmd()
    with qemu.attach(f"vhost-user,path={pmd.sockets[0]}", ring=ring) as port:
        # Into the second lap, where the wrap counter of a packed ring is 0.
        assert len(echo(port, range(1500))) == 1500
        drain(port)
        pmd.command("stop")
        tell(Liar(port))
        with pytest.raises(virtnic.DeviceError, match=words):
            drain(port)
        for call in (
            lambda: port.recv(64),
            lambda: port.recv(64, timeout=None),
            lambda: port.send([b"\0" * 60]),
            lambda: virtnic.drop(port, seconds=1),
        ):
            with pytest.raises(virtnic.DeviceError, match="broken"):
                call()
    assert qemu.memory.buffers_free == qemu.memory.buffers
    # QEMU and the backend are as good as before.
    pmd.command("start")
    with qemu.attach(f"vhost-user,path={pmd.sockets[0]}", ring=ring) as port:
        assert len(echo(port, range(100))) == 100


@RINGS
def test_a_lie_about_the_lap(qemu: virtnic.Qemu, testpmd: StartTestpmd, ring: Ring) -> None:
    """Packed: flags of the other lap are a descriptor not used. Split: an index of a lap ahead."""
    pmd = testpmd()
    with qemu.attach(f"vhost-user,path={pmd.sockets[0]}", ring=ring) as port:
        assert len(echo(port, range(100))) == 100
        drain(port)
        pmd.command("stop")
        liar = Liar(port)
        liar.use(liar.in_flight(), 64, wrong_lap=True)
        if ring == "split":
            with pytest.raises(virtnic.DeviceError, match=r"used\.idx went from"):
                port.recv(64)
        else:
            assert len(port.recv(64)) == 0
    assert qemu.memory.buffers_free == qemu.memory.buffers
