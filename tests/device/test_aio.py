"""Ports on asyncio, trio and anyio, against slirp and a kernel TAP."""

import asyncio
import contextlib
import gc
import itertools
import os
import signal
import time
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

import anyio
import pytest
import trio

import virtnic
from peers.netns import Netns
from support.frames import arp_request, is_arp_reply, number_of, numbered
from support.inside import attachment_of, machine_of
from support.waiting import PROMPT
from virtnic import aio
from virtnic.nic.options import Interrupts

Main = Callable[[], Coroutine[Any, Any, None]]


def on_asyncio(main: Main) -> None:
    asyncio.run(main())


def on_trio(main: Main) -> None:
    trio.run(main)


#: One program, run by each library; library calls go through anyio.
LIBRARIES = pytest.mark.parametrize("run", [on_asyncio, on_trio])
Run = Callable[[Main], None]


async def gathered(*calls: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """Run tasks at the same time; the error of one is raised alone."""
    try:
        async with anyio.create_task_group() as group:
            for call in calls:
                group.start_soon(call)
    except BaseExceptionGroup as several:
        if len(several.exceptions) == 1:
            raise several.exceptions[0] from None
        raise


@LIBRARIES
def test_arp_round_trips(qemu_command: str, run: Run) -> None:
    async def main() -> None:
        async with aio.open("user") as port:
            assert isinstance(port.port, virtnic.Port)
            assert port.mac == port.port.mac
            assert (port.mtu, port.link, port.ring, port.interrupts) == (
                1500,
                True,
                "split",
                "msix",
            )
            for _ in range(20):
                await port.send_all([arp_request(port.mac)])
                burst = await port.recv()
                assert [is_arp_reply(frame) for frame in burst] == [True]
            assert port.stats()["rx_packets"] == 20
            assert not port.closed
        assert port.closed

    run(main)


@LIBRARIES
@pytest.mark.parametrize("interrupts", ["msix", "intx"])
def test_iteration(qemu_command: str, run: Run, interrupts: Interrupts) -> None:
    async def main() -> None:
        port = await aio.open("user", interrupts=interrupts)
        try:
            await port.send_all(arp_request(port.mac) for _ in range(50))
            seen = 0
            async for burst in port:
                assert all(map(is_arp_reply, burst))
                seen += len(burst)
                if seen == 50:
                    break
        finally:
            await port.close()

    run(main)


@LIBRARIES
@pytest.mark.needs("netns")
def test_a_cancelled_recv_loses_no_frame(netns: Netns, run: Run) -> None:
    """Frequent cancellation while numbered frames arrive: each is received once, in order."""
    total = 3000

    async def main() -> None:
        got: list[int] = []
        cancelled, mac = 0, netns.mac
        async with aio.open(netns.netdev) as port:
            with netns.packet_socket() as raw:

                async def feed() -> None:
                    for number in range(total):
                        raw.send(numbered(mac, number))
                        await anyio.sleep(0.0002 if number % 3 else 0)

                async def receive() -> None:
                    nonlocal cancelled
                    turn = 0
                    while len(got) < total:
                        turn += 1
                        with anyio.move_on_after(0.0002 * (turn % 4)) as scope:
                            burst = await port.recv(16)
                            got.extend(n for n in map(number_of, burst) if n is not None)
                        cancelled += scope.cancel_called

                await gathered(feed, receive)
        assert got == list(range(total))
        assert cancelled

    run(main)


@pytest.mark.needs("netns")
def test_cancelled_tasks_and_wait_for_lose_no_frame(netns: Netns) -> None:
    """The two ways of asyncio itself, each with its own races."""
    total = 1500

    async def main() -> None:
        got: list[int] = []
        mac = netns.mac

        def take(burst: virtnic.Burst) -> None:
            got.extend(n for n in map(number_of, burst) if n is not None)

        async with aio.open(netns.netdev) as port:
            with netns.packet_socket() as raw:

                async def feed() -> None:
                    for number in range(total):
                        raw.send(numbered(mac, number))
                        await asyncio.sleep(0.0003 if number % 2 else 0)

                feeding = asyncio.create_task(feed())
                turn = 0
                while len(got) < total:
                    turn += 1
                    if turn % 2:
                        with contextlib.suppress(TimeoutError):
                            take(await asyncio.wait_for(port.recv(8), 0.0002))
                        continue
                    task = asyncio.create_task(port.recv(8))
                    await asyncio.sleep(0.0001 * (turn % 5))
                    task.cancel()
                    with contextlib.suppress(asyncio.CancelledError):
                        take(await task)
                await feeding
        assert got == list(range(total))

    asyncio.run(main())


@LIBRARIES
@pytest.mark.needs("netns")
def test_send_waits_for_room(netns: Netns, run: Run) -> None:
    """Two tasks send many times the ring's size: everything arrives, in order for each task."""
    total = 4000

    async def main() -> None:
        with netns.packet_socket() as raw:
            async with aio.open(netns.netdev, queue_size=64) as port:

                async def send(first: int) -> None:
                    frames = [numbered(port.mac, first + i) for i in range(total)]
                    for at in range(0, total, 500):
                        await port.send_all(frames[at : at + 500])

                await gathered(lambda: send(0), lambda: send(1 << 16))
                # What is still in the ring when a port is closed is not sent.
                while port.stats()["tx_completed"] < 2 * total:
                    port.port.reclaim()
                    await anyio.sleep(0.001)
                stats = port.stats()
            got: list[int] = []
            while len(got) < 2 * total:
                number = number_of(raw.recv(4096))
                if number is not None:
                    got.append(number)
        assert stats["tx_packets"] == 2 * total
        for first in (0, 1 << 16):
            mine = [number - first for number in got if number >> 16 == first >> 16]
            assert mine == list(range(total))

    run(main)


def test_a_full_queue_wakes_a_sender_by_interrupt(
    qemu_command: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """QEMU is stopped: the sender waits without using the processor, and other tasks run."""

    async def main() -> None:
        async with aio.open("user", queue_size=64) as port:
            pid = port.qemu.pid
            os.kill(pid, signal.SIGSTOP)
            try:
                frames = [arp_request(port.mac)] * 200
                task = asyncio.create_task(port.send_all(frames))
                async with asyncio.timeout(20):
                    while not port.stats()["tx_packets"]:
                        await asyncio.sleep(0.01)
                await asyncio.sleep(0.05)
                used = time.thread_time()
                for _ in range(20):
                    await asyncio.sleep(0.01)
                assert not task.done()
                assert time.thread_time() - used < 0.1, "it polled instead of sleeping"
                assert 0 < port.stats()["tx_packets"] < 200
            finally:
                os.kill(pid, signal.SIGCONT)
            seen = 0
            async with asyncio.timeout(10):
                while seen < 64 or not task.done():
                    seen += len(await port.recv())
                await task
            assert port.stats()["tx_packets"] == 200

    asyncio.run(main())


@LIBRARIES
@pytest.mark.needs("netns")
def test_receivers_take_turns(netns: Netns, run: Run) -> None:
    """Three tasks receive one frame at a time: each gets its share, and no frame twice."""
    total = 300

    async def main() -> None:
        got: list[list[int]] = [[], [], []]
        mac = netns.mac
        async with aio.open(netns.netdev) as port:
            with netns.packet_socket() as raw:

                async def receive(mine: list[int], scope: anyio.CancelScope) -> None:
                    with scope:
                        while True:
                            burst = await port.recv(1)
                            number = number_of(burst[0])
                            if number is not None:
                                mine.append(number)
                            if sum(map(len, got)) == total:
                                for other in scopes:
                                    other.cancel()

                async def feed() -> None:
                    for number in range(total):
                        raw.send(numbered(mac, number))
                        if number % 10 == 0:
                            await anyio.sleep(0.001)

                scopes = [anyio.CancelScope() for _ in got]
                await gathered(
                    feed,
                    lambda: receive(got[0], scopes[0]),
                    lambda: receive(got[1], scopes[1]),
                    lambda: receive(got[2], scopes[2]),
                )
        assert sorted(itertools.chain(*got)) == list(range(total))
        assert all(len(mine) > total / 6 for mine in got), [len(mine) for mine in got]

    run(main)


@LIBRARIES
@pytest.mark.parametrize("interrupts", ["msix", "intx"])
def test_a_dead_qemu_raises_in_waiting_tasks(
    qemu_command: str, run: Run, interrupts: Interrupts
) -> None:
    async def main() -> None:
        killed = 0.0
        failures: list[float] = []
        async with aio.open("user", interrupts=interrupts) as port:

            async def fails(call: Callable[[], Awaitable[object]]) -> None:
                with pytest.raises(virtnic.QemuDied):
                    await call()
                failures.append(time.monotonic() - killed)

            async def kill() -> None:
                nonlocal killed
                await anyio.sleep(0.1)
                killed = time.monotonic()
                os.kill(port.qemu.pid, signal.SIGKILL)

            changes = port.link_changes()
            # Two receivers: the second waits for its turn, and then for QEMU.
            await gathered(
                kill,
                lambda: fails(port.recv),
                lambda: fails(port.recv),
                lambda: fails(changes.__anext__),
            )
            with pytest.raises(virtnic.QemuDied):
                await port.send_all([b"\0" * 60])
        assert len(failures) == 3
        assert max(failures) < PROMPT

    run(main)


@LIBRARIES
def test_close_raises_in_waiting_tasks(qemu_command: str, run: Run) -> None:
    async def main() -> None:
        failures = 0
        port = await aio.open("user")

        async def fails(call: Callable[[], Awaitable[object]]) -> None:
            nonlocal failures
            with pytest.raises(virtnic.PortClosed):
                await call()
            failures += 1

        async def close() -> None:
            await anyio.sleep(0.1)
            await port.close()

        changes = port.link_changes()
        await gathered(close, lambda: fails(port.recv), lambda: fails(changes.__anext__))
        assert failures == 2
        assert port.closed
        for call in (port.recv, lambda: port.send([b"\0" * 60]), changes.__anext__):
            with pytest.raises(virtnic.PortClosed):
                await call()
        await port.close()  # a second call does nothing

    run(main)


@LIBRARIES
def test_the_loop_runs_while_a_port_is_opened(qemu_command: str, run: Run) -> None:
    async def main() -> None:
        ticks = 0
        scope = anyio.CancelScope()

        async def tick() -> None:
            nonlocal ticks
            with scope:
                while True:
                    await anyio.sleep(0.001)
                    ticks += 1

        async def work() -> None:
            async with aio.open("user"):
                # One that is held up does not tick before QEMU, which takes 100 ms, has started.
                assert ticks > 2
            scope.cancel()

        await gathered(tick, work)

    run(main)


@LIBRARIES
def test_cancelling_an_open_leaves_nothing(qemu_command: str, run: Run) -> None:
    """The leak check finds the QEMU otherwise."""

    async def main() -> None:
        opened = False
        with anyio.move_on_after(0.03) as scope:
            async with aio.open("user"):
                await anyio.sleep(10)
                opened = True
        assert scope.cancelled_caught
        assert not opened

    run(main)


@LIBRARIES
def test_link_changes(qemu_command: str, run: Run) -> None:
    async def main() -> None:
        async with aio.open("user") as port:
            nic = machine_of(port.qemu).nics[0].id
            told = attachment_of(port.port).callbacks._links
            before = list(told)
            changes = port.link_changes()
            seen = []

            port.qemu.execute("set_link", name=nic, up=False)
            with anyio.fail_after(10):
                async for up in changes:
                    seen.append(up)
                    if len(seen) == 6:
                        break
                    port.qemu.execute("set_link", name=nic, up=not up)
            assert seen == [False, True] * 3
            # An iterator that was forgotten no longer subscribes.
            assert len(told) == len(before) + 1
            del changes
            gc.collect()
            assert told == before

    run(main)


@LIBRARIES
def test_several_ports_of_one_qemu(qemu: virtnic.Qemu, run: Run) -> None:
    async def main() -> None:
        async with aio.attach(qemu, "user") as a, aio.attach(qemu, "user") as b:

            async def ask(port: aio.Port) -> None:
                for _ in range(50):
                    await port.send_all([arp_request(port.mac)])
                    assert is_arp_reply((await port.recv())[0])

            await gathered(lambda: ask(a), lambda: ask(b))
        assert qemu.ports == ()

    run(main)


@LIBRARIES
def test_a_port_that_was_open_already(port: virtnic.Port, run: Run) -> None:
    async def main() -> None:
        wrapped = aio.Port(port)
        await wrapped.send_all([arp_request(port.mac)])
        assert is_arp_reply((await wrapped.recv())[0])

    run(main)
    run(main)  # and on another loop
    assert not port.closed


def test_anyio_on_both_backends(qemu_command: str) -> None:
    async def main() -> None:
        async with aio.open("user") as port:
            await port.send_all([arp_request(port.mac)])
            with anyio.fail_after(5):
                assert is_arp_reply((await port.recv())[0])

    for backend in ("asyncio", "trio"):
        anyio.run(main, backend=backend)


@LIBRARIES
def test_bad_frames(qemu_command: str, run: Run) -> None:
    async def main() -> None:
        async with aio.open("user", queue_size=64) as port:
            good = arp_request(port.mac)
            with pytest.raises(ValueError, match="empty") as caught:
                await port.send_all([good] * 3000 + [b""])
            assert caught.value.queued == 3000  # type: ignore[attr-defined]
            with pytest.raises(TypeError, match=r"\[frame\]"):
                await port.send_all(good)  # type: ignore[arg-type]
            with pytest.raises(ValueError, match="burst"):
                await port.recv(0)
            await port.send_all([])

    run(main)


def test_without_a_loop(port: virtnic.Port) -> None:
    with pytest.raises(RuntimeError, match="asyncio, trio or anyio"):
        aio.Port(port)


@LIBRARIES
def test_without_interrupts(qemu_command: str, run: Run) -> None:
    async def main() -> None:
        with pytest.raises(ValueError, match="without interrupts"):
            await aio.open("user", interrupts="none")
        with pytest.raises((virtnic.QemuError, ValueError), match="nonsense"):
            await aio.open("nonsense")

    run(main)
