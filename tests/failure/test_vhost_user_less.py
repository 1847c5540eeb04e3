"""vhost-user backends that return with fewer features."""

from __future__ import annotations

import os
import signal
import time
from typing import TYPE_CHECKING, Any

import pytest

import virtnic
from peers.masked import Masked
from peers.process import freeze
from peers.testpmd import Testpmd
from peers.vhost_backend import ScriptedBackend
from peers.vhost_user import EVENT_IDX, INDIRECT_DESC, MRG_RXBUF, OFFLOADS, RING_PACKED
from support.frames import number_of, numbered
from support.waiting import pause

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from virtnic.qemu.command import Accel

pytestmark = pytest.mark.needs("qemu")

#: Three attempts, in a tenth of a second.
FEW = virtnic.Recovery(attempts=3, backoff=0.02, backoff_max=0.05)


@pytest.fixture
def backend(scratch: Path) -> Iterator[ScriptedBackend]:
    with ScriptedBackend(scratch / "vhu0") as backend:
        backend.features |= OFFLOADS | EVENT_IDX | INDIRECT_DESC
        yield backend


def netdev(backend: ScriptedBackend) -> str:
    return f"vhost-user,path={backend.path}"


def accepted(port: virtnic.Port) -> set[str]:
    return {feature.name for feature in port.features if feature.accepted}


def next_of(events: virtnic.Events, *kinds: str, seconds: float = 20.0) -> virtnic.Event:
    """Wait for an event of these kinds; others are passed over."""
    deadline = time.monotonic() + seconds
    while (event := events.wait(max(0.0, deadline - time.monotonic()))) is not None:
        if event.kind in kinds:
            return event
    raise AssertionError(f"no {kinds}")


def answer_of(events: virtnic.Events) -> virtnic.Event:
    return next_of(events, "backend-back", "backend-refused")


LACKS = {
    "packed": (RING_PACKED, {"RING_PACKED"}),
    "offloads": (OFFLOADS, {"CSUM", "HOST_TSO4", "HOST_TSO6", "GUEST_CSUM", "GUEST_TSO4"}),
    "checksums": (1 << 0, {"CSUM", "HOST_TSO4", "HOST_TSO6"}),
    "ring-features": (EVENT_IDX | INDIRECT_DESC, {"EVENT_IDX", "INDIRECT_DESC"}),
    "merging": (MRG_RXBUF, {"MRG_RXBUF", "GUEST_TSO4"}),
    "all": (RING_PACKED | OFFLOADS | EVENT_IDX | INDIRECT_DESC | MRG_RXBUF, set[str]()),
}


@pytest.mark.parametrize("lacks", LACKS)
def test_a_port_goes_on_with_less(
    scratch: Path, qemu_command: str, accel: Accel, backend: ScriptedBackend, lacks: str
) -> None:
    """The event says without what; so does ``port.features``, and what the backend was told.

    Frames that were with the device are counted, those that had been received are kept, and no
    buffer is missing.
    """
    bits, names = LACKS[lacks]
    with virtnic.Qemu(virtnic.Memory(jumbo_buffers=8), accel=accel) as qemu:
        events = qemu.events()
        port = qemu.attach(
            netdev(backend), queues=2, recover=FEW, offload=True, features={"EVENT_IDX": None}
        )
        assert backend.wait(lambda: backend.serving)
        before, addresses = accepted(port), port.queue_addresses
        assert names <= before
        assert port.send([bytes(60)] * 10) == 10
        backend.features &= ~bits
        backend.drop()
        assert next_of(events, "backend-lost").port is port
        back = answer_of(events)
        assert (back.kind, back.port) == ("backend-back", port)
        now = accepted(port)
        lost = before - now
        assert names <= lost
        assert all(name in back.detail for name in lost)
        assert back.detail.startswith(f"{backend.path} without ")
        whys = {feature.name: feature.why for feature in port.features}
        assert all("came back without it" in whys[name] for name in lost)
        assert port.ring == ("packed" if "RING_PACKED" in now else "split")
        assert (port.queue_addresses == addresses) == (
            "RING_PACKED" in now
        ) or lacks == "ring-features"
        told = backend.serving
        assert told is not None
        assert not told.features & bits
        assert (port.restarts, port.away, port.queues) == (1, False, 2)
        stats = port.stats()
        assert stats["tx_lost"] + stats["tx_no_backend"] == 10
        assert port.send([bytes(60)] * 5) == 5
        # By a control queue whose ring is another, too.
        port.set_queues(1)


def test_what_was_lost_stays_lost(qemu: virtnic.Qemu, backend: ScriptedBackend) -> None:
    """A backend that has all again is served with what is in force."""
    events = qemu.events()
    port = qemu.attach(netdev(backend))
    assert backend.wait(lambda: backend.serving)
    everything = backend.features
    for _ in range(2):
        backend.features &= ~RING_PACKED
        backend.drop()
        assert answer_of(events).kind == "backend-back"
        assert port.ring == "split"
        backend.features = everything
        backend.drop()
        assert answer_of(events).detail == str(backend.path)
        assert (port.ring, port.restarts) == ("split", 1)


@pytest.mark.parametrize("options", [{"ring": "packed"}, {"features": {"RING_PACKED": True}}])
def test_what_was_insisted_on_is_not_given_up(
    qemu: virtnic.Qemu, backend: ScriptedBackend, options: dict[str, Any]
) -> None:
    """It is refused, as where the driver itself is built on what is missing."""
    events = qemu.events()
    port = qemu.attach(netdev(backend), recover=FEW, **options)
    assert backend.wait(lambda: backend.serving)
    backend.features &= ~RING_PACKED
    backend.drop()
    assert answer_of(events).kind == "backend-refused"
    with pytest.raises(virtnic.DeviceError, match=r"in 3 attempts: .*without RING_PACKED"):
        port.recv(1, timeout=20.0)


def test_other_ports_go_on(qemu: virtnic.Qemu, backend: ScriptedBackend, scratch: Path) -> None:
    """The device is another on the bus; those beside it, and those that come, are not touched."""
    events = qemu.events()
    with ScriptedBackend(scratch / "vhu1") as second:
        other = qemu.attach(netdev(second))
        port = qemu.attach(netdev(backend))
        assert backend.wait(lambda: backend.serving)
        backend.features &= ~(RING_PACKED | MRG_RXBUF)
        backend.drop()
        assert answer_of(events).port is port
        assert (other.ring, other.link, other.restarts) == ("packed", True, 0)
        third = qemu.attach("user")
        port.close()
        assert (other.link, third.link) == (True, True)
        assert second.serving


def test_a_backend_that_has_less_after_qemu_died(
    memory: virtnic.Memory, qemu_command: str, accel: Accel, backend: ScriptedBackend
) -> None:
    """The QEMU that takes its place finds what is left; the port goes on with that."""
    with virtnic.Qemu(memory, accel=accel, recover=True) as qemu:
        events = qemu.events()
        port = qemu.attach(netdev(backend))
        assert backend.wait(lambda: backend.serving)
        backend.features &= ~RING_PACKED
        os.kill(qemu.pid, signal.SIGKILL)
        next_of(events, "qemu-back")
        assert backend.wait(lambda: backend.serving)
        assert (port.ring, port.away) == ("split", False)


@pytest.mark.parametrize("how", ["detach", "close"])
def test_a_port_that_is_closed_meanwhile(
    qemu: virtnic.Qemu, backend: ScriptedBackend, how: str
) -> None:
    """At whatever moment: nothing hangs, and the QEMU can be used or is gone."""
    for moment in (0.0, 0.01, 0.1):
        if qemu.closed:
            break
        events = qemu.events()
        port = qemu.attach(netdev(backend))
        assert backend.wait(lambda: backend.serving)
        everything = backend.features
        backend.features &= ~RING_PACKED
        backend.drop()
        next_of(events, "backend-lost")
        pause(moment)
        port.close() if how == "detach" else qemu.close()
        assert port.closed
        backend.features = everything


@pytest.mark.needs("testpmd")
@pytest.mark.parametrize(("hide", "ring"), [(RING_PACKED, "split"), (OFFLOADS, "packed")])
def test_every_frame_is_accounted_for(
    qemu: virtnic.Qemu, scratch: Path, hide: int, ring: str
) -> None:
    """Frames through a backend that echoes, before and after: what is missing was counted."""
    path, real = scratch / "vhu0", scratch / "real"
    loop = ("--port-topology=loop", "--no-flush-rx")
    pmd = Testpmd([real], extra=loop)
    with Masked(path, real) as masked:
        try:
            events = qemu.events()
            port = qemu.attach(f"vhost-user,path={path}", offload=True)
            port.wait_ready()
            start = drained(port)
            echoed = echo(port, 3000)
            freeze(pmd.pid)
            assert port.send([numbered(port.mac, i) for i in range(96)]) == 96
            masked.hide = hide
            pmd.kill()
            masked.drop()
            next_of(events, "backend-lost")
            pmd = Testpmd([real], extra=loop)
            # One that starts may have its socket for seconds before it answers.
            assert "without" in next_of(events, "backend-back").detail
            assert port.ring == ring
            port.wait_ready()
            drained(port)
            assert echo(port, 3000) == echoed == 3000
            stats = port.stats()
            assert stats["tx_lost"] + stats["tx_no_backend"] - start == 96
        finally:
            pmd.kill()


def drained(port: virtnic.Port) -> int:
    """Receive what is left of a beginning; return the frames that were lost so far."""
    while len(port.recv(256, timeout=0.2)):
        pass
    stats = port.stats()
    return stats["tx_lost"] + stats["tx_no_backend"]


def echo(port: virtnic.Port, frames: int) -> int:
    """Send so many frames, a few at a time; return how many came back, each with its number."""
    got = 0
    while got < frames:
        sent = port.send([numbered(port.mac, got + i) for i in range(min(64, frames - got))])
        for _ in range(sent):
            (frame,) = port.recv(1, timeout=10.0).tobytes()
            assert number_of(frame) == got
            got += 1
    return got
