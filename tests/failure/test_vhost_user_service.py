"""Whether a connected vhost-user backend really serves.

The backend is scripted: it lacks things, refuses, hangs or goes at any message. Whatever it does,
the answer comes in bounded time, other ports of the QEMU go on, and events, ``link`` and errors
are true.
"""

from __future__ import annotations

import contextlib
import struct
import time
from typing import TYPE_CHECKING, Any

import pytest

import virtnic
from peers.vhost_backend import Connection, Hang, ScriptedBackend, leave_it
from peers.vhost_user import PROTOCOL_FEATURES, RING_PACKED, VERSION_1, Message, Request
from support.inside import attachment_of
from support.traffic import arp_works
from support.waiting import PROMPT, eventually
from virtnic.nic.devices import Devices
from virtnic.qemu import quirks
from virtnic.qemu.machine import present

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from virtnic.nic.attachment import Attachment
    from virtnic.qemu.command import Accel

pytestmark = pytest.mark.needs("qemu")

#: A backend may leave QEMU without an answer for half of this.
TIMEOUT = 2.0
#: Three attempts, in a tenth of a second.
FEW = virtnic.Recovery(attempts=3, backoff=0.02, backoff_max=0.05)


@pytest.fixture
def hasty(memory: virtnic.Memory, qemu_command: str, accel: Accel) -> Iterator[virtnic.Qemu]:
    """A QEMU that has to answer soon."""
    with virtnic.Qemu(memory, accel=accel, timeout=TIMEOUT) as qemu:
        yield qemu


@pytest.fixture
def backend(scratch: Path) -> Iterator[ScriptedBackend]:
    with ScriptedBackend(scratch / "vhu0") as backend:
        yield backend


def netdev(backend: ScriptedBackend) -> str:
    return f"vhost-user,path={backend.path}"


def next_of(events: virtnic.Events, *kinds: str, seconds: float = 20.0) -> virtnic.Event:
    """Wait for an event of these kinds; others are passed over."""
    deadline = time.monotonic() + seconds
    seen = []
    while (event := events.wait(max(0.0, deadline - time.monotonic()))) is not None:
        if event.kind in kinds:
            return event
        seen.append(event.kind)
    raise AssertionError(f"no {kinds}, but {seen}")


# What is there to begin with.


def test_more_queue_pairs_than_the_backend_has(
    qemu: virtnic.Qemu, backend: ScriptedBackend
) -> None:
    """Found before QEMU is asked, which would never come back from netdev_add."""
    other = qemu.attach("user")
    assert arp_works(other)
    backend.pairs = 1
    began = time.monotonic()
    with pytest.raises(virtnic.QemuError, match="has 1 queue pair, but 2 are required"):
        qemu.attach(netdev(backend), queues=2)
    assert time.monotonic() - began < PROMPT
    assert arp_works(other)
    # One is enough for one.
    with qemu.attach(netdev(backend)) as port:
        assert port.link
        assert backend.wait(lambda: backend.serving)
    assert arp_works(other)


#: QEMU's messages, from the first to the last before a backend serves, but those that only some
#: versions send.
MESSAGES = [
    Request.GET_FEATURES,
    Request.GET_PROTOCOL_FEATURES,
    Request.SET_PROTOCOL_FEATURES,
    Request.GET_QUEUE_NUM,
    Request.SET_OWNER,
    Request.SET_FEATURES,
    Request.SET_MEM_TABLE,
    Request.SET_VRING_NUM,
    Request.SET_VRING_BASE,
    Request.SET_VRING_ADDR,
    Request.SET_VRING_KICK,
    Request.SET_VRING_CALL,
    Request.SET_VRING_ENABLE,
]


def closes(connection: Connection, _message: Message) -> bool:
    connection.close()
    return True


def hangs(_connection: Connection, _message: Message) -> bool:
    raise Hang


def lies(connection: Connection, message: Message) -> bool:
    """Answer with another message, and what wants an acknowledgement with a failure."""
    if message.request in _QUESTIONS:
        connection.send(Message(0x7F, 0, b"").reply(bytes(8)))
        return True
    if message.wants_ack:
        connection.send(message.reply((1).to_bytes(8, "little")))
        return True
    connection.close()
    return True


_QUESTIONS = (Request.GET_FEATURES, Request.GET_PROTOCOL_FEATURES, Request.GET_QUEUE_NUM)
MANNERS: dict[str, Callable[[Connection, Message], bool]] = {
    "closes": closes,
    "hangs": hangs,
    "lies": lies,
}


def misbehaves(at: Request, manner: str) -> Callable[[Connection, Message], bool]:
    """Return a hook that does that at every message of the kind, but not to our own greeting."""

    def hook(connection: Connection, message: Message) -> bool:
        first = not connection.messages and message.request == Request.GET_FEATURES
        if message.request != at or first:
            return False
        return MANNERS[manner](connection, message)

    return hook


#: Waiting takes its time: it is tried where QEMU does something else than at the others.
WAITS = (Request.GET_FEATURES, Request.GET_QUEUE_NUM, Request.SET_MEM_TABLE, Request.SET_VRING_KICK)


@pytest.mark.parametrize(
    ("at", "manner"),
    [
        pytest.param(at, manner, id=f"{manner}-at-{at.name}")
        for manner in MANNERS
        for at in MESSAGES
        if manner != "hangs" or at in WAITS
    ],
)
def test_a_backend_that_misbehaves_when_it_is_attached(
    hasty: virtnic.Qemu, backend: ScriptedBackend, at: Request, manner: str
) -> None:
    """An error that says so, or a port whose link and events do; QEMU is free again either way."""
    with unless_it_crashes(hasty):
        other = hasty.attach("user")
        events = hasty.events()
        backend.hook = misbehaves(at, manner)
        began = time.monotonic()
        port, error = None, ""
        try:
            port = hasty.attach(netdev(backend), recover=FEW)
        except virtnic.QemuDied:
            raise
        except (virtnic.QemuError, virtnic.DeviceError, TimeoutError) as refused:
            error = str(refused)
        if port is None:
            assert str(backend.path) in error
        else:
            # QEMU starts the rings after it has its device: the port is there, and then it ends.
            next_of(events, "backend-lost")
            with pytest.raises(virtnic.DeviceError, match="in 3 attempts"):
                port.recv(1, timeout=20.0)
            assert not any(event.kind == "backend-back" for event in drained(events))
            assert not port.link
            port.close()
        assert time.monotonic() - began < 20.0
        assert arp_works(other)
        backend.hook = leave_it
        with hasty.attach(netdev(backend)) as port:
            assert backend.wait(lambda: backend.serving)


def test_a_backend_that_goes_before_it_is_looked_at(
    hasty: virtnic.Qemu, backend: ScriptedBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who attaches is held up, from the start of the rings until the last attempt has failed."""
    check = Devices.check_started

    def held_up(devices: Devices, attachment: Attachment, before: int) -> None:
        check(devices, attachment, before)
        interposer = present(attachment.backend).interposer
        assert eventually(lambda: interposer.given_up)

    with unless_it_crashes(hasty):
        events = hasty.events()
        backend.hook = misbehaves(Request.SET_VRING_KICK, "closes")
        with monkeypatch.context() as patch:
            patch.setattr(Devices, "check_started", held_up)
            port = hasty.attach(netdev(backend), recover=FEW)
        assert next_of(events, "backend-lost", seconds=5.0).port is port
        with pytest.raises(virtnic.DeviceError, match="in 3 attempts"):
            port.recv(1, timeout=20.0)
        assert not port.link


def answers(request: int, reply: Callable[[Message], bytes]) -> Callable[[ScriptedBackend], None]:
    """Let a backend answer that message so."""

    def hook(connection: Connection, message: Message) -> bool:
        # Not to our own greeting, which is a connection's first message.
        if message.request != request or not connection.messages:
            return False
        connection.send(reply(message))
        return True

    def change(backend: ScriptedBackend) -> None:
        backend.hook = hook
        backend.protocol |= 1 << 15  # it may have GET_MAX_MEM_SLOTS

    return change


def changed(**values: int) -> Callable[[ScriptedBackend], None]:
    """Let a backend have other features, or another number of queue pairs."""

    def change(backend: ScriptedBackend) -> None:
        for name, value in values.items():
            setattr(backend, name, value)

    return change


_USUAL = PROTOCOL_FEATURES | VERSION_1 | RING_PACKED
_GET_MAX_MEM_SLOTS = 36
REFUSED_FOR_EVER = {
    "no-protocol-features": (changed(features=_USUAL & ~PROTOCOL_FEATURES), "protocol features"),
    "access-platform-alone": (changed(features=_USUAL | 1 << 33), "ACCESS_PLATFORM"),
    "pairs-beyond-an-int": (changed(pairs=(1 << 64) - 1), "18446744073709551615 queue pairs"),
    "no-place-for-memory": (
        answers(_GET_MAX_MEM_SLOTS, lambda message: message.reply(bytes(8))),
        "GET_MAX_MEM_SLOTS is 0",
    ),
    "unasked": (
        answers(Request.SET_PROTOCOL_FEATURES, lambda message: message.reply(bytes(8))),
        "SET_PROTOCOL_FEATURES",  # QEMU may have asked the next thing by then
    ),
    "short": (
        answers(Request.GET_PROTOCOL_FEATURES, lambda message: message.reply(bytes(4))),
        "GET_PROTOCOL_FEATURES with 4 bytes",
    ),
    "no-reply-flag": (
        answers(
            Request.GET_PROTOCOL_FEATURES,
            lambda message: struct.pack("=IIIQ", message.request, 1, 8, 0),
        ),
        "GET_PROTOCOL_FEATURES with the flags 0x1",
    ),
}


@pytest.mark.parametrize("what", REFUSED_FOR_EVER)
def test_what_qemu_would_refuse_for_ever_is_refused_before_it(
    hasty: virtnic.Qemu, backend: ScriptedBackend, what: str
) -> None:
    """QEMU connects again and again, in ``netdev_add``, until it is killed with all its ports."""
    other = hasty.attach("user")
    change, words = REFUSED_FOR_EVER[what]
    change(backend)
    with pytest.raises(virtnic.QemuError, match=words):
        hasty.attach(netdev(backend), recover=FEW)
    assert arp_works(other)


@contextlib.contextmanager
def unless_it_crashes(qemu: virtnic.Qemu) -> Iterator[None]:
    """QEMU 5.2 may die where a backend fails while its device starts: no more is seen then."""
    known = quirks.has(qemu.version, "vhost-user-loss-crash")
    try:
        yield
    except virtnic.QemuDied as died:
        if known and "SIGSEGV" in str(died):
            pytest.skip(f"the quirk vhost-user-loss-crash: {died}")
        raise


def drained(events: virtnic.Events) -> list[virtnic.Event]:
    found = []
    while (event := events.wait(0.0)) is not None:
        found.append(event)
    return found


# What is there when it comes back.


def without_version_1(backend: ScriptedBackend) -> str:
    backend.features &= ~VERSION_1
    return "without VERSION_1"


def without_protocol_features(backend: ScriptedBackend) -> str:
    backend.features &= ~PROTOCOL_FEATURES
    return "without protocol features"


def with_fewer_queues(backend: ScriptedBackend) -> str:
    backend.pairs = 1
    return "has 1 queue pair, but 2 are required"


@pytest.mark.parametrize(
    "renegotiate",
    [without_version_1, without_protocol_features, with_fewer_queues],
)
def test_a_backend_that_returns_with_less(
    qemu: virtnic.Qemu, backend: ScriptedBackend, renegotiate: Callable[[ScriptedBackend], str]
) -> None:
    """Of what a port needs: it is not back; the attempts end, and calls say what is missing.

    What it can do without: ``test_vhost_user_less.py``.
    """
    events = qemu.events()
    port = qemu.attach(netdev(backend), queues=2, recover=FEW)
    assert backend.wait(lambda: backend.serving)
    words = renegotiate(backend)
    backend.drop()
    assert next_of(events, "backend-lost", "backend-back").kind == "backend-lost"
    refused = next_of(events, "backend-refused", "backend-back")
    assert refused.kind == "backend-refused"
    assert refused.port is port
    assert words in refused.detail
    with pytest.raises(virtnic.DeviceError, match=f"in 3 attempts: .*{words}"):
        port.recv(1, timeout=20.0)
    with pytest.raises(virtnic.DeviceError, match=words):
        port.send([bytes(60)])
    assert not any(event.kind == "backend-back" for event in drained(events))
    assert not port.link


def test_a_backend_that_returns_with_less_and_then_with_all(
    qemu: virtnic.Qemu, backend: ScriptedBackend
) -> None:
    events = qemu.events()
    port = qemu.attach(netdev(backend))
    assert backend.wait(lambda: backend.serving)
    features = backend.features
    without_version_1(backend)
    backend.drop()
    next_of(events, "backend-refused")
    assert not port.link
    backend.features = features
    # The device tells of its link before its rings are started.
    found = {next_of(events, "backend-back", "backend-refused", "link-up").kind for _ in range(2)}
    assert found == {"backend-back", "link-up"}
    assert port.link


@pytest.mark.parametrize("manner", ["closes", "lies"])
@pytest.mark.parametrize(
    "at",
    [Request.GET_PROTOCOL_FEATURES, Request.SET_MEM_TABLE, Request.SET_VRING_ENABLE],
    ids=lambda message: message.name,
)
def test_a_backend_that_misbehaves_when_it_returns(
    hasty: virtnic.Qemu, backend: ScriptedBackend, at: Request, manner: str
) -> None:
    """Told as refused with the reason, once; back when it serves."""
    with unless_it_crashes(hasty):
        other = hasty.attach("user")
        events = hasty.events()
        port = hasty.attach(netdev(backend))
        assert backend.wait(lambda: backend.serving)
        backend.hook = misbehaves(at, manner)
        before = len(backend.connections)
        backend.drop()
        next_of(events, "backend-lost")
        assert next_of(events, "backend-refused", "backend-back").kind == "backend-refused"
        assert backend.wait(lambda: len(backend.connections) > before + 2)
        assert arp_works(other)
        backend.hook = leave_it
        assert next_of(events, "backend-back").port is port
        assert backend.wait(lambda: backend.serving)


# When it is to stop, and when it is not alone.


@pytest.mark.parametrize("how", ["detach", "set_link"])
def test_a_backend_that_does_not_say_that_it_stopped(
    hasty: virtnic.Qemu, backend: ScriptedBackend, how: str
) -> None:
    """GET_VRING_BASE: QEMU does nothing else until it has the answer, and gets none."""
    other = hasty.attach("user")
    port = hasty.attach(netdev(backend))
    assert backend.wait(lambda: backend.serving)
    events = hasty.events()
    backend.hook = misbehaves(Request.GET_VRING_BASE, "hangs")
    began = time.monotonic()
    if how == "detach":
        port.close()
    else:
        hasty.execute("set_link", name=attachment_of(port).handle.id, up=False)
        next_of(events, "backend-lost")
    assert time.monotonic() - began < TIMEOUT + 2.0
    assert arp_works(other)


def test_a_backend_that_is_stopped_while_it_has_a_socket(
    qemu: virtnic.Qemu, backend: ScriptedBackend
) -> None:
    """Its kernel takes the connection; nobody answers on it: no backend is back."""
    events = qemu.events()
    few = virtnic.Recovery(attempts=2, backoff=0.02, backoff_max=0.05)
    port = qemu.attach(netdev(backend), recover=few)
    assert backend.wait(lambda: backend.serving)
    backend.hook = hangs
    backend.drop()
    next_of(events, "backend-lost")
    with pytest.raises(virtnic.DeviceError, match="did not answer GET_FEATURES"):
        port.recv(1, timeout=20.0)
    assert not any(event.kind == "backend-back" for event in drained(events))


def floods(connection: Connection, message: Message) -> bool:
    """Send without end, what nobody asked for."""
    while True:
        connection.send(struct.pack("=IIIQ", 0x7F, 1, 8, 0) * 100)


@pytest.mark.parametrize("at", [Request.SET_VRING_KICK, Request.SET_VRING_CALL])
def test_a_backend_that_comes_back_and_talks_without_end(
    qemu: virtnic.Qemu, backend: ScriptedBackend, at: Request
) -> None:
    """It is not served, and that is said, whoever was the first not to read it all."""
    events = qemu.events()
    few = virtnic.Recovery(attempts=2, backoff=0.02, backoff_max=0.05)
    port = qemu.attach(netdev(backend), recover=few)
    assert backend.wait(lambda: backend.serving)
    backend.hook = lambda connection, message: message.request == at and floods(connection, message)
    backend.drop()
    next_of(events, "backend-lost")
    with pytest.raises(virtnic.DeviceError, match="messages without a request"):
        port.recv(1, timeout=20.0)
    assert not any(event.kind == "backend-back" for event in drained(events))


def test_two_ports_at_a_backend_that_takes_one(
    qemu: virtnic.Qemu, backend: ScriptedBackend
) -> None:
    """The second is told that nobody answers, and the first does not notice."""
    with qemu.attach(netdev(backend)) as port:
        assert backend.wait(lambda: backend.serving)
        with pytest.raises(virtnic.QemuError, match="did not answer GET_FEATURES"):
            qemu.attach(netdev(backend))
        assert port.link
        assert backend.serving
    with qemu.attach(netdev(backend)):
        assert backend.wait(lambda: backend.serving)


# QEMU itself.


@pytest.mark.parametrize("recover", [False, True])
def test_a_qemu_that_never_comes_back_from_a_command(
    memory: virtnic.Memory,
    qemu_command: str,
    backend: ScriptedBackend,
    monkeypatch: pytest.MonkeyPatch,
    recover: bool,
) -> None:
    """It is dead: told, said, and replaced where that is wanted.

    Without an interposer QEMU talks to the backend itself, and connects to it for ever.
    """
    monkeypatch.setattr("virtnic.qemu.monitor.HANG", (1.0, 0.5))
    backend.pairs = 1
    options: dict[str, Any] = {"recover": recover, "timeout": 2.0}
    with virtnic.Qemu(memory, **options) as qemu:
        other = qemu.attach("user")
        events = qemu.events()
        words = (
            r"did not come back from netdev_add within 2\.5 s, and was killed; it printed: .*queues"
        )
        with pytest.raises(virtnic.QemuDied, match=words):
            qemu.attach(netdev(backend), queues=2, notify="qtest")
        assert "netdev_add" in next_of(events, "qemu-died").detail
        if recover:
            next_of(events, "qemu-back")
            assert arp_works(other)
        else:
            with pytest.raises(virtnic.QemuDied, match="netdev_add"):
                other.recv(1, timeout=20.0)
