"""``stream`` netdevs: link and events follow a peer that connects late, leaves and returns."""

import contextlib
import logging
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import virtnic
from peers.streams import receive_frame, send_frame
from support.frames import numbered
from support.inside import driver_of
from virtnic.qemu import quirks
from virtnic.qemu.netdev import with_reconnect
from virtnic.testing import kill_qemu

pytestmark = pytest.mark.needs("qemu")


@pytest.fixture(autouse=True)
def _has_stream(qemu: virtnic.Qemu) -> None:
    if qemu.version < (7, 2):
        pytest.skip("stream came with 7.2")


@pytest.fixture
def path(scratch: Path) -> Iterator[Path]:
    """Where the peer is; nothing is left there."""
    path = scratch / "stream"
    yield path
    path.unlink(missing_ok=True)


@contextlib.contextmanager
def listening(path: Path) -> Iterator[socket.socket]:
    """A peer that QEMU connects to."""
    with socket.socket(socket.AF_UNIX) as sock:
        sock.settimeout(10.0)
        sock.bind(str(path))
        sock.listen()
        yield sock
    path.unlink()


def client(path: Path) -> str:
    return f"stream,server=off,addr.type=unix,addr.path={path}"


def server(path: Path) -> str:
    return f"stream,server=on,addr.type=unix,addr.path={path}"


def connected_to(path: Path) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX)
    sock.settimeout(10.0)
    sock.connect(str(path))
    return sock


def kinds(events: virtnic.Events, count: int) -> set[tuple[str, str]]:
    """Return the next events, which come from two sources in either order."""
    found: list[tuple[str, str]] = []
    for _ in range(count):
        event = events.wait(10.0)
        assert event is not None, found
        found.append((event.kind, event.detail))
    return set(found)


def exchange(port: virtnic.Port, there: socket.socket) -> None:
    """Send a frame each way."""
    port.send([numbered(port.mac, 1)])
    assert receive_frame(there) == numbered(port.mac, 1)
    send_frame(there, numbered(port.mac, 2))
    assert port.recv(1, timeout=20.0).tobytes() == [numbered(port.mac, 2)]


def test_the_link_follows_the_peer(qemu: virtnic.Qemu, path: Path) -> None:
    """A port that listens: no peer, a peer, no peer, another peer."""
    links: list[bool] = []
    events = qemu.events()
    with qemu.attach(server(path), on_link=lambda port: links.append(port.link)) as port:
        assert not driver_of(
            port
        ).refresh_link()  # and no warning: one that listens is alone at first
        assert kinds(events, 1) == {("attached", "")}
        for _ in range(2):
            with connected_to(path) as there:
                came = kinds(events, 2)
                assert {kind for kind, _ in came} == {"peer-connected", "link-up"}
                assert port.link
                exchange(port, there)
            assert {kind for kind, _ in kinds(events, 2)} == {"peer-disconnected", "link-down"}
            assert not driver_of(port).refresh_link()
    assert links == [True, False, True, False]


def test_a_port_that_connects(
    qemu: virtnic.Qemu, path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    events = qemu.events()
    with listening(path) as sock, qemu.attach(client(path)) as port:
        there, _ = sock.accept()
        with there:
            assert port.link is True
            assert caplog.text == ""
            port.wait_ready(0.0)
            exchange(port, there)
            assert kinds(events, 1) == {("attached", "")}
        gone = kinds(events, 2)
        assert {kind for kind, _ in gone} == {"peer-disconnected", "link-down"}
        assert port.link is False


@pytest.mark.parametrize("interrupts", ["msix", "intx", "none"])
def test_nobody_is_there(
    qemu: virtnic.Qemu, path: Path, interrupts: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """The port opens, its link is down, and a warning says why and what to do."""
    with qemu.attach(client(path), interrupts=interrupts) as port:
        assert port.link is False
        assert "the stream has no peer" in caplog.text
        assert "wait=SECONDS" in caplog.text
        if qemu.version >= (9, 2):
            assert "No such file or directory" in caplog.text
        with pytest.raises(TimeoutError, match="the stream has no peer"):
            port.wait_ready(0.05)


def test_waiting_for_the_peer(qemu: virtnic.Qemu, path: Path) -> None:
    """``wait=`` as for vhost-user: a peer that comes late, and one that does not come."""
    with pytest.raises(virtnic.QemuError, match=r"no peer of the netdev stream within 0.3 s"):
        qemu.attach(f"{client(path)},wait=0.3")
    with pytest.raises(virtnic.QemuError, match=r"within 0.3 s: nobody connected"):
        qemu.attach(f"{server(path)},wait=0.3")
    path.unlink(missing_ok=True)
    assert qemu.ports == ()
    began = threading.Event()
    opened: list[virtnic.Port] = []

    def attach() -> None:
        began.set()
        opened.append(qemu.attach(f"{client(path)},wait=20"))

    thread = threading.Thread(target=attach)
    thread.start()
    began.wait()
    with listening(path) as sock:
        there, _ = sock.accept()
        thread.join()
        with there, opened.pop() as port:
            assert port.link is True
            exchange(port, there)


def test_a_peer_that_comes_back_is_found_again(qemu: virtnic.Qemu, path: Path) -> None:
    if quirks.has(qemu.version, "stream-no-reconnect"):
        with pytest.raises(ValueError, match="cannot reconnect a stream"):
            qemu.attach(f"{client(path)},reconnect-ms=50")
        return
    with qemu.attach(f"{client(path)},reconnect-ms=50") as port:
        assert port.link is False
        for _ in range(2):
            with listening(path) as sock:
                there, _ = sock.accept()
                with there:
                    port.wait_ready(10.0)
                    exchange(port, there)


@pytest.mark.parametrize(
    ("given", "in_seconds", "result"),
    [
        ({"reconnect": "2"}, True, {"reconnect": 2}),
        ({"reconnect": "2"}, False, {"reconnect-ms": 2000}),
        ({"reconnect-ms": "1500"}, True, {"reconnect": 2}),
        ({"reconnect-ms": 100}, False, {"reconnect-ms": 100}),
        ({}, False, {}),
    ],
)
def test_reconnecting_in_this_qemus_unit(
    given: dict[str, Any], in_seconds: bool, result: dict[str, Any]
) -> None:
    assert with_reconnect({"server": "off", **given}, in_seconds) == {"server": "off", **result}


def test_reconnecting_is_said_once() -> None:
    with pytest.raises(ValueError, match="are the same option"):
        with_reconnect({"reconnect": 1, "reconnect-ms": 1}, False)
    with pytest.raises(ValueError, match="is not a number of seconds"):
        with_reconnect({"reconnect": "soon"}, False)


def test_two_qemus(qemu: virtnic.Qemu, path: Path, accel: Any) -> None:
    """One listens, the other connects: both links are up, and both down when one closes."""
    with qemu.attach(server(path)) as a:
        events = qemu.events()
        with virtnic.Qemu(accel=accel) as other, other.attach(client(path)) as b:
            a.wait_ready(10.0)
            b.wait_ready(10.0)
            frames = [numbered(a.mac, number, 60 + number % 1400) for number in range(100)]
            assert a.send(frames) == 100
            got: list[bytes] = []
            while len(got) < 100 and (burst := b.recv(100, timeout=20.0)):
                got += burst.tobytes()
            assert got == frames
        assert {kind for kind, _ in kinds(events, 4)} == {
            *("peer-connected", "link-up", "peer-disconnected", "link-down")
        }
        assert a.link is False


def test_the_peer_of_a_qemu_that_comes_back(qemu_command: str, accel: Any, path: Path) -> None:
    memory = virtnic.Memory("8M", hugepages=None)
    with virtnic.Qemu(memory, accel=accel, recover=True) as qemu:
        port = qemu.attach(server(path))
        there = connected_to(path)
        port.wait_ready(10.0)
        events = qemu.events()
        kill_qemu(qemu)
        seen: list[str] = []
        while "peer-disconnected" not in seen or "qemu-back" not in seen:
            event = events.wait(20.0)
            assert event is not None, seen
            seen.append(event.kind)
        assert port.link is False
        there.close()
        with connected_to(path) as again:
            port.wait_ready(10.0)
            exchange(port, again)


def test_no_warning_where_somebody_is_there(
    qemu: virtnic.Qemu, path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    with listening(path), qemu.attach(f"{client(path)},wait=5") as port:
        assert port.link is True
    assert caplog.text == ""
