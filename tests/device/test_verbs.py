"""Methods of the same name do the same on ports, queues, fakes and asyncio ports."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

import virtnic
from peers.ring_backend import RingBackend
from support.frames import numbered
from virtnic import PacketPort, aio
from virtnic.testing import FaultyPort, Pause, ScriptedPort

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

pytestmark = pytest.mark.needs("qemu")

FRAME = numbered("52:54:00:00:00:01", 1)
#: More than any of them takes at once.
MANY = [FRAME] * 6000

Kind = tuple[PacketPort, "Callable[[], object]"]
KINDS = ("port", "queue", "faulty", "scripted")


@pytest.fixture(name="idle")
def _idle(qemu_command: str, scratch: Path) -> Iterator[virtnic.Port]:
    """A port whose backend takes no frame, and sends none."""
    memory = virtnic.Memory("16M", hugepages=None)
    path = scratch / "vhu0"
    with (
        RingBackend(path) as backend,
        virtnic.open(f"vhost-user,path={path}", memory=memory) as port,
    ):
        backend.wait_up()
        yield port


@pytest.fixture(name="kind", params=KINDS)
def _kind(request: pytest.FixtureRequest) -> Iterator[Kind]:
    """One of each kind, and what closes it."""
    if request.param == "scripted":
        with ScriptedPort([Pause(60)]) as scripted:
            yield scripted, scripted.close
        return
    port: virtnic.Port = request.getfixturevalue("idle")
    kinds: dict[str, PacketPort] = {
        "port": port,
        "queue": port.queue(0),
        "faulty": FaultyPort(port),
    }
    yield kinds[request.param], port.close


def test_sending(kind: Kind) -> None:
    """``send`` takes what fits and never waits; ``send_all`` waits for up to its timeout."""
    port, _close = kind
    assert isinstance(port, PacketPort)
    assert port.send([FRAME] * 3) == 3
    assert port.send([]) == port.send_all([]) == 0
    assert port.send_all([FRAME] * 3, timeout=0.0) == 3
    queued = port.send_all(MANY, timeout=0.05)
    assert 0 < queued < len(MANY)
    assert port.send([FRAME]) == port.send_all([FRAME], timeout=0.0) == 0


def test_receiving(kind: Kind) -> None:
    """``recv`` takes what is there, or waits for up to its timeout, and may return nothing."""
    port, _close = kind
    for timeout in (0.0, 0.01):
        burst = port.recv(8, timeout=timeout)
        assert (len(burst), burst.tobytes()) == (0, [])
    for timeout in (-1.0, float("nan")):
        with pytest.raises(ValueError, match="timeout"):
            port.recv(8, timeout=timeout)
        with pytest.raises(ValueError, match="timeout"):
            port.send_all([FRAME], timeout=timeout)


def test_after_the_end(kind: Kind) -> None:
    port, close = kind
    close()
    for call in (
        lambda: port.send([FRAME]),
        lambda: port.send_all([FRAME], timeout=None),
        lambda: port.recv(8, timeout=None),
    ):
        with pytest.raises(virtnic.PortClosed):
            call()


def test_awaited(idle: virtnic.Port) -> None:
    """The same verbs; timeouts are those of the async library."""

    async def main() -> None:
        port = aio.Port(idle)
        assert await port.send([FRAME] * 3) == 3
        assert await port.send_all([FRAME] * 3) == 3
        fitted = await port.send(MANY)
        assert 0 < fitted < len(MANY)
        assert await port.send([FRAME]) == 0
        for wait in (port.send_all([FRAME]), port.recv()):
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.05):
                    await wait
        await port.close()
        with pytest.raises(virtnic.PortClosed):
            await port.send([FRAME])

    asyncio.run(main())
