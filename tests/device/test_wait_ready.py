"""``port.wait_ready()``: frames sent afterwards arrive, on every kind of netdev."""

import asyncio
import contextlib
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import virtnic
from peers.netns import Netns
from peers.testpmd import Testpmd
from support.frames import number_of, numbered
from virtnic.testing import FaultyPort, OvsBridge, ScriptedPort, set_link

pytestmark = pytest.mark.needs("qemu")

FRAMES = 500


def lost(source: virtnic.Port, sink: virtnic.Port, first: int) -> set[int]:
    """Send numbered frames, the first of them at once; return those that do not arrive."""
    numbers = range(first, first + FRAMES)
    missing = set(numbers)
    for start in range(first, first + FRAMES, 50):
        source.send_all(
            [numbered(source.mac, n, destination=sink.mac) for n in range(start, start + 50)]
        )
        while (burst := sink.recv(64, timeout=0.0 if start < first + FRAMES - 50 else 1.0)) or (
            start + 50 > min(missing, default=start + 50) and (burst := sink.recv(64, timeout=1.0))
        ):
            missing -= {number for frame in burst if (number := number_of(frame)) is not None}
    return missing


@pytest.mark.needs("ovs")
def test_a_switch_loses_nothing(
    memory: virtnic.Memory, qemu: virtnic.Qemu, ovs: Callable[..., OvsBridge]
) -> None:
    """Open vSwitch with DPDK loses, without it, what it gets in the first 50 to 250 ms."""
    switch = ovs(servers=("left", "right"))
    with contextlib.ExitStack() as stack:
        a, b = (
            stack.enter_context(
                qemu.attach(
                    f"vhost-user,path={switch.switch.directory / name}", mac=f"02:00:00:00:00:{n}"
                )
            )
            for n, name in ((10, "left"), (11, "right"))
        )
        a.wait_ready(20.0)
        b.wait_ready(20.0)
        assert lost(a, b, 0) == set()
        assert lost(b, a, FRAMES) == set()


@pytest.mark.needs("testpmd")
def test_a_backend_that_takes_nothing(qemu: virtnic.Qemu, testpmd: Callable[..., Testpmd]) -> None:
    backend = testpmd()
    backend.command("stop")
    with qemu.attach(f"vhost-user,path={backend.sockets[0]}") as port:
        with pytest.raises(TimeoutError, match=r"takes no frames .*`start`"):
            port.wait_ready(0.3)
        backend.command("start")
        port.wait_ready(10.0)
        # The frame goes to the port's own address; this backend returns it.
        (frame,) = port.recv(1, timeout=20.0).tobytes()
        own = bytes.fromhex(port.mac.replace(":", ""))
        assert frame[:14] == own + own + b"\x90\x00"


@pytest.mark.needs("testpmd")
def test_the_example_of_the_readme(qemu: virtnic.Qemu, testpmd: Callable[..., Testpmd]) -> None:
    """It loses no frame and mistakes none for its own, whichever port is first."""
    page = (Path(__file__).parents[2] / "README.md").read_text()
    example = re.search(r"^def test_the_switch_forwards.*?(?=^```)", page, re.MULTILINE | re.DOTALL)
    assert example
    backend = testpmd(ports=2, mode="io")
    text = example[0]
    for number, path in enumerate(backend.sockets):
        assert f"/run/vhu{number}" in text
        text = text.replace(f"/run/vhu{number}", str(path))
    names: dict[str, Any] = {}
    exec(text, names)
    names["test_the_switch_forwards"](qemu)


@pytest.mark.needs("netns")
def test_the_kernel_sends_at_once(netns: Netns) -> None:
    """Linux drops what it has for a TAP until it has noticed that it was opened."""
    with virtnic.open(netns.netdev) as port:
        port.wait_ready(5.0)
        state = netns.run("cat", f"/sys/class/net/{netns.tap}/operstate").strip()
        assert state == "up"
        with netns.packet_socket() as raw:
            raw.send(numbered(netns.mac, 1))
            assert number_of(port.recv(1, timeout=20.0)[0]) == 1


def test_what_needs_no_time(qemu: virtnic.Qemu) -> None:
    with qemu.attach("user") as port:
        port.wait_ready(0.0)
        FaultyPort(port).wait_ready(0.0)
        set_link(port, up=False)
        with pytest.raises(TimeoutError, match=r"not ready after 0.05 s: the link is down"):
            port.wait_ready(0.05)
    with pytest.raises(virtnic.PortClosed):
        port.wait_ready()


def test_waiting_in_asyncio(qemu: virtnic.Qemu, scratch: Path) -> None:
    path = scratch / "peer"

    async def main() -> None:
        async with virtnic.aio.attach(qemu, "user") as port:
            await port.wait_ready(0.0)
            set_link(port.port, up=False)
            with pytest.raises(TimeoutError, match="the link is down"):
                await port.wait_ready(0.05)
            waiting = asyncio.create_task(port.wait_ready(10.0))
            await asyncio.sleep(0)
            set_link(port.port, up=True)
            await waiting
        with ScriptedPort([]) as scripted:
            await virtnic.aio.Port(scripted).wait_ready(0.0)

    asyncio.run(main())
    assert not path.exists()
