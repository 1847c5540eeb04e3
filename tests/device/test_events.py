"""Events of a QEMU and its ports, for threads, asyncio and callbacks."""

import asyncio
import gc
import os
import select
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

import virtnic
from peers.testpmd import Testpmd
from support.inside import attachment_of, driver_of, machine_of
from support.waiting import PROMPT, eventually, pause
from virtnic.nic.events import Feed
from virtnic.qemu import quirks

Kinds = list[str]


def kinds(events: virtnic.Events, count: int, seconds: float = 20.0) -> Kinds:
    """Wait for so many events."""
    found: Kinds = []
    deadline = time.monotonic() + seconds
    while len(found) < count:
        event = events.wait(deadline - time.monotonic())
        assert event is not None, f"only {found} came"
        found.append(event.kind)
    return found


def let_it_settle(qemu: virtnic.Qemu) -> None:
    """Leave a QEMU alone with its backend that may die when it goes at once."""
    if quirks.has(qemu.version, "vhost-user-loss-crash"):
        pause(0.5)


def set_link(port: virtnic.Port, up: bool) -> None:
    """Take the link down or up."""
    port.qemu.execute("set_link", name=attachment_of(port).handle.id, up=up)


def test_attach_link_detach(qemu: virtnic.Qemu) -> None:
    before = time.time()
    events = qemu.events()
    port = qemu.attach("user")
    set_link(port, up=False)
    set_link(port, up=True)
    port.close()
    found = [events.wait(20.0) for _ in range(4)]
    assert [event.kind for event in found if event] == [
        "attached",
        "link-down",
        "link-up",
        "detached",
    ]
    assert {event.port for event in found if event} == {port}
    times = [event.time for event in found if event]
    assert times == sorted(times)
    assert before <= times[0] <= times[-1] <= time.time()
    assert events.wait(0) is None
    # Detaching twice is told once; what fails to attach is not told.
    qemu.detach(port)
    with pytest.raises(virtnic.QemuError):
        qemu.attach("user,hostfwd=nonsense")
    assert events.wait(0.1) is None


@pytest.mark.parametrize("interrupts", ["msix", "intx"])
def test_every_flip_of_a_link_is_told(qemu: virtnic.Qemu, interrupts: str) -> None:
    with qemu.attach("user", interrupts=interrupts) as port:  # type: ignore[arg-type]
        events = qemu.events()
        for _ in range(20):
            for up, kind in ((False, "link-down"), (True, "link-up")):
                set_link(port, up)
                event = events.wait(20.0)
                assert event is not None
                assert (event.kind, event.port) == (kind, port)
                assert port.link is up


def test_who_asks_for_the_link_takes_no_event_away(qemu: virtnic.Qemu) -> None:
    """Not even for a caller that asks before the interrupt was handled."""
    client = machine_of(qemu).monitor._client

    async def pull_and_look_away(port: virtnic.Port) -> None:
        handle = attachment_of(port).handle
        writer, sent = client._writer, asyncio.Event()
        assert writer is not None
        write = writer.write

        def send(data: bytes) -> None:
            write(data)
            sent.set()

        writer.write = send  # type: ignore[assignment]
        pulling = asyncio.ensure_future(
            client.execute("set_link", {"name": handle.id, "up": False})
        )
        await sent.wait()
        writer.write = write  # type: ignore[method-assign]
        asked.wait(60.0)  # the thread that would see the interrupt is in here
        await pulling

    asked = threading.Event()
    with qemu.attach("user") as port:
        events = qemu.events()
        machine_of(qemu).monitor.loop.start_call(lambda: pull_and_look_away(port))
        try:
            assert eventually(lambda: not driver_of(port).refresh_link())
            assert events.wait(0) is None
        finally:
            asked.set()
        assert kinds(events, 1) == ["link-down"]


def test_a_thread_waits_without_work(qemu: virtnic.Qemu) -> None:
    """It sleeps until something happens, and is woken at once."""
    port = qemu.attach("user")
    heard: list[tuple[str, float]] = []
    used: list[float] = []

    def listen() -> None:
        began = time.thread_time()
        heard.extend((event.kind, time.monotonic()) for event in events)
        used.append(time.thread_time() - began)

    events = qemu.events()
    listener = threading.Thread(target=listen)
    listener.start()
    pause(1.0)
    began = time.monotonic()
    set_link(port, up=False)
    assert eventually(lambda: heard)
    qemu.close()
    listener.join(20.0)
    assert not listener.is_alive(), "the iterator did not end with the QEMU"
    assert [kind for kind, _ in heard] == ["link-down", "detached"]
    assert heard[0][1] - began < PROMPT
    assert used[0] < 0.5
    assert list(qemu.events()) == []


def test_asyncio(qemu: virtnic.Qemu) -> None:
    port = qemu.attach("user")

    found: list[Kinds] = [[], []]

    async def listen(events: virtnic.Events, kinds: Kinds) -> None:
        async for event in events:
            kinds.append(event.kind)

    async def main() -> None:
        listeners = [asyncio.create_task(listen(qemu.events(), kinds)) for kinds in found]
        async with asyncio.timeout(60.0):
            for told, up in enumerate((False, True), 1):
                await asyncio.to_thread(set_link, port, up)
                while not all(len(kinds) == told for kinds in found):
                    await asyncio.sleep(0.005)
            closing = asyncio.create_task(asyncio.to_thread(qemu.close))
            await asyncio.gather(*listeners)
            await closing

    asyncio.run(main())
    assert found == [["link-down", "link-up", "detached"]] * 2


def test_a_task_that_listens_can_be_cancelled(qemu: virtnic.Qemu) -> None:
    async def main() -> None:
        events = qemu.events()
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(anext(events), 0.1)
        port = await asyncio.to_thread(qemu.attach, "user")
        assert (await anext(events)).port is port

    asyncio.run(main())


def test_select(qemu: virtnic.Qemu) -> None:
    with qemu.events() as events:
        assert select.select([events], [], [], 0)[0] == []
        qemu.attach("user")
        assert select.select([events], [], [], 0)[0] == [events]
        assert kinds(events, 1) == ["attached"]
        assert select.select([events], [], [], 0)[0] == []
    # Closed, it wakes whoever waits: with the end.
    assert select.select([events], [], [], 0)[0] == [events]
    assert events.ended
    assert events.wait() is None


def test_callbacks(qemu: virtnic.Qemu, caplog: pytest.LogCaptureFixture) -> None:
    heard: Kinds = []
    threads: set[str] = set()

    def note(event: virtnic.Event) -> None:
        heard.append(event.kind)
        threads.add(threading.current_thread().name)

    def fail(event: virtnic.Event) -> None:
        raise LookupError(event.kind)

    stop_failing = qemu.watch(fail)
    stop = qemu.watch(note)
    with qemu.attach("user") as port:
        set_link(port, up=False)
    assert eventually(lambda: len(heard) == 3)
    assert heard == ["attached", "link-down", "detached"]
    assert threads == {"virtnic-watch"}
    assert eventually(lambda: caplog.text.count("a callback for the event") == 3)
    stop_failing()
    stop()
    stop()
    qemu.attach("user").close()
    assert len(heard) == 3
    caplog.clear()  # its tracebacks keep everything alive


def test_a_callback_hears_of_the_end(qemu: virtnic.Qemu) -> None:
    heard: Kinds = []
    qemu.watch(lambda event: heard.append(event.kind))
    qemu.attach("user")
    qemu.close()
    assert eventually(lambda: len(heard) == 2)
    assert heard == ["attached", "detached"]


def test_qemu_dies(qemu: virtnic.Qemu) -> None:
    port = qemu.attach("user")
    events = qemu.events()
    began = time.monotonic()
    os.kill(qemu.pid, signal.SIGKILL)
    event = events.wait(20.0)
    assert time.monotonic() - began < PROMPT
    assert event is not None
    assert (event.kind, event.port) == ("qemu-died", None)
    assert "SIGKILL" in event.detail
    # The port is still there to be detached, and the events go on until the end.
    assert not events.ended
    port.close()
    assert kinds(events, 1) == ["detached"]
    qemu.close()
    assert list(events) == []


def test_a_qemu_that_is_closed_did_not_die(qemu: virtnic.Qemu) -> None:
    qemu.attach("user")
    events = qemu.events()
    qemu.close()
    assert [event.kind for event in events] == ["detached"]


@pytest.mark.needs("testpmd")
@pytest.mark.parametrize("ring", ["packed", "split"])
def test_a_backend_goes_and_comes_back(qemu: virtnic.Qemu, scratch: Path, ring: str) -> None:
    path = scratch / "vhu0"
    with Testpmd([path]) as pmd:
        port = qemu.attach(f"vhost-user,path={path}", ring=ring)  # type: ignore[arg-type]
        events = qemu.events()
        let_it_settle(qemu)
        pmd.kill()
        # Both the interposer and the device report it.
        assert sorted(kinds(events, 2)) == ["backend-lost", "link-down"]
        for _ in range(2):
            with Testpmd([path]) as pmd:
                # The device tells of its link before its rings are started.
                found = {
                    event.kind: event for event in (events.wait(20.0), events.wait(20.0)) if event
                }
                assert sorted(found) == ["backend-back", "link-up"]
                back = found["backend-back"]
                assert (back.port, back.detail) == (port, str(path))
                let_it_settle(qemu)
            assert sorted(kinds(events, 2)) == ["backend-lost", "link-down"]
        port.close()
        assert kinds(events, 1) == ["detached"]


@pytest.mark.needs("testpmd")
@pytest.mark.parametrize("ring", ["packed", "split"])
def test_a_backend_that_goes_at_once(qemu: virtnic.Qemu, scratch: Path, ring: str) -> None:
    """While QEMU still sets the device up: it goes on, or it has the quirk and is known dead."""
    path = scratch / "vhu0"
    try:
        for _ in range(5):
            with Testpmd([path]):
                port = qemu.attach(f"vhost-user,path={path}", ring=ring)  # type: ignore[arg-type]
                events = qemu.events()
            found = kinds(events, 2)
            if "qemu-died" not in found:
                assert sorted(found) == ["backend-lost", "link-down"]
            assert qemu.execute("query-status")["running"] is True
            qemu.detach(port)
    except virtnic.QemuDied as died:
        if not quirks.has(qemu.version, "vhost-user-loss-crash") or "SIGSEGV" not in str(died):
            raise


def test_a_qemu_that_recovers_is_back(qemu_command: str, memory: virtnic.Memory) -> None:
    with virtnic.Qemu(memory, qemu=qemu_command, recover=True) as qemu:
        qemu.attach("user")
        events = qemu.events()
        os.kill(qemu.pid, signal.SIGKILL)
        seen: Kinds = []
        while "qemu-back" not in seen:
            event = events.wait(10.0)
            assert event is not None, seen
            seen.append(event.kind)
        assert seen[0] == "qemu-died"


@pytest.mark.needs("testpmd")
def test_a_backend_is_not_lost_with_its_qemu(
    qemu: virtnic.Qemu, testpmd: Callable[..., Testpmd]
) -> None:
    qemu.attach(f"vhost-user,path={testpmd().sockets[0]}")
    events = qemu.events()
    os.kill(qemu.pid, signal.SIGKILL)
    assert kinds(events, 1) == ["qemu-died"]
    assert events.wait(0.3) is None
    qemu.close()
    assert kinds(events, 1) == ["detached"]


def test_what_nobody_reads_is_bounded_and_counted() -> None:
    feed = Feed()
    events = feed.subscribe()
    for number in range(5000):
        feed.put("qemu-died", None, str(number))
    feed.end()
    left = [int(event.detail) for event in events]
    assert left == list(range(904, 5000))
    assert events.missed == 904


def test_many_threads_lose_nothing() -> None:
    feed = Feed()
    subscribers = [feed.subscribe() for _ in range(4)]
    heard: list[list[str]] = [[] for _ in subscribers]

    def tell(name: int) -> None:
        for number in range(500):
            feed.put("link-up", None, f"{name}:{number}")

    def listen(index: int) -> None:
        heard[index] += [event.detail for event in subscribers[index]]

    tellers = [threading.Thread(target=tell, args=(name,)) for name in range(2)]
    listeners = [threading.Thread(target=listen, args=(index,)) for index in range(4)]
    for thread in (*listeners, *tellers):
        thread.start()
    for thread in tellers:
        thread.join()
    feed.end()
    for thread in listeners:
        thread.join(10.0)
    assert all(each == heard[0] for each in heard), "each hears the same in the same order"
    assert len(heard[0]) == 1000
    for name in range(2):
        own = [word for word in heard[0] if word.startswith(f"{name}:")]
        assert own == [f"{name}:{number}" for number in range(500)]


def test_a_callback_may_take_ports_away_and_bring_others(qemu: virtnic.Qemu) -> None:
    """It has a thread of its own, so it may wait for QEMU, and for long."""
    told: Kinds = []
    replaced = threading.Event()

    def replace(event: virtnic.Event) -> None:
        told.append(event.kind)
        if event.kind == "link-down":
            assert event.port is not None
            qemu.detach(event.port)
            qemu.attach("user")
            replaced.set()

    stop = qemu.watch(replace)
    port = qemu.attach("user")
    set_link(port, up=False)
    assert replaced.wait(10.0)
    assert port.closed
    (other,) = qemu.ports
    assert other.link
    stop()
    qemu.detach(other)
    assert told[:2] == ["attached", "link-down"]
    assert len(machine_of(qemu).nics) == 0


def test_a_callback_may_close_the_qemu(qemu: virtnic.Qemu) -> None:
    closed = threading.Event()

    def close(event: virtnic.Event) -> None:
        if event.kind == "link-down":
            qemu.close()
            closed.set()

    qemu.watch(close)
    set_link(qemu.attach("user"), up=False)
    assert closed.wait(10.0)
    assert qemu.closed


def test_a_callback_that_wants_to_end_the_program_ends_nothing(
    qemu: virtnic.Qemu, caplog: pytest.LogCaptureFixture
) -> None:
    """SystemExit in a thread that is not the main one ends that thread at most, not ours."""
    kinds_told: Kinds = []

    def leave(event: object) -> None:
        raise SystemExit(3)

    stop = qemu.watch(leave)
    qemu.watch(lambda event: kinds_told.append(event.kind))
    port = qemu.attach("user", on_link=leave)
    events = qemu.events()
    for up in (False, True):
        set_link(port, up)
        assert kinds(events, 1, 5.0) == ["link-up" if up else "link-down"]
    assert eventually(lambda: caplog.text.count("a link callback failed") == 2)
    assert eventually(lambda: "a callback for the event link-up failed" in caplog.text)
    assert "a callback for the event attached failed" in caplog.text
    assert eventually(lambda: kinds_told == ["attached", "link-down", "link-up"])
    stop()
    qemu.close()
    caplog.clear()


def test_what_is_called_at_the_end_of_a_port_may_fail(
    qemu: virtnic.Qemu, caplog: pytest.LogCaptureFixture
) -> None:
    """The port ends anyway, and the other callbacks are called."""
    port = qemu.attach("user")
    told: list[str] = []
    callbacks = attachment_of(port).callbacks
    callbacks.add(lambda _: None, lambda: 1 // 0)
    callbacks.add(lambda _: None, lambda: told.append("ended"))
    port.close()
    assert (port.closed, machine_of(qemu).nics) == (True, [])
    assert told
    assert "ZeroDivisionError" in caplog.text
    caplog.clear()  # the record has the traceback, and that the port


def test_a_link_callback_cannot_detach(
    qemu: virtnic.Qemu, caplog: pytest.LogCaptureFixture
) -> None:
    """It would wait for itself: it raises an error, and the port is unchanged."""
    tried = threading.Event()

    def close(port: virtnic.Port) -> None:
        try:
            port.close()
        finally:
            tried.set()

    port = qemu.attach("user", on_link=close)
    set_link(port, up=False)
    assert tried.wait(20.0)
    assert not port.closed
    assert qemu.ports == (port,)
    set_link(port, up=True)
    qemu.detach(port)
    assert "a callback of virtnic must not wait for QEMU; do that in another thread" in caplog.text
    caplog.clear()


def test_what_is_no_callback_is_refused(qemu: virtnic.Qemu) -> None:
    with pytest.raises(TypeError, match="callback must accept an event, 3 is not callable"):
        qemu.watch(3)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="on_link must be a function that accepts a port, not 3"):
        qemu.attach("user", on_link=3)  # type: ignore[arg-type]
    assert qemu.ports == ()
    assert machine_of(qemu).nics == []


def test_two_tasks_cannot_share_an_iterator(qemu: virtnic.Qemu) -> None:
    """The second raises an error; the first continues."""
    events = qemu.events()

    async def main() -> None:
        first = asyncio.create_task(anext(events))
        await asyncio.sleep(0.01)
        with pytest.raises(RuntimeError, match=r"call events\(\) for each task"):
            await anext(events)
        await asyncio.to_thread(qemu.attach, "user")
        assert (await asyncio.wait_for(first, 5.0)).kind == "attached"

    asyncio.run(main())


def test_a_cancelled_task_loses_no_event(qemu: virtnic.Qemu) -> None:
    events = qemu.events()

    async def main() -> None:
        task = asyncio.create_task(anext(events))
        await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await asyncio.to_thread(qemu.attach, "user")
        assert (await asyncio.wait_for(anext(events), 5.0)).kind == "attached"

    asyncio.run(main())


def test_trio(qemu: virtnic.Qemu) -> None:
    trio = pytest.importorskip("trio")
    found: Kinds = []

    async def listen(events: virtnic.Events) -> None:
        found.extend([event.kind async for event in events])

    async def main() -> None:
        with trio.fail_after(20.0):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(listen, qemu.events())
                await trio.sleep(0.01)
                qemu.attach("user")
                await trio.sleep(0.01)
                qemu.close()

    trio.run(main)
    assert found == ["attached", "detached"]


def test_a_forgotten_iterator_costs_nothing() -> None:
    feed = Feed()
    feed.subscribe()
    gc.collect()
    assert len(feed._subscribers) == 0


def test_a_forked_child_has_no_events(qemu: virtnic.Qemu) -> None:
    events = qemu.events()
    pid = os.fork()
    if pid == 0:
        try:
            events.wait(0)
        except virtnic.PortClosed as error:
            os._exit(0 if "child" in str(error) else 2)
        os._exit(1)
    assert os.waitpid(pid, 0)[1] == 0
    qemu.attach("user")
    assert kinds(events, 1) == ["attached"]
