"""Objects that are not closed: closed when collected, with a ResourceWarning."""

import _thread
import copy
import dataclasses
import functools
import gc
import os
import pickle
import subprocess
import sys
import threading
import types
import warnings
import weakref
from collections.abc import Callable

import pytest

import virtnic
import virtnic.aio
from support.inside import machine_of
from support.waiting import eventually
from virtnic import aio, net, teardown, testing
from virtnic.nic.events import Feed
from virtnic.teardown import Owner, uninterrupted

needs_qemu = pytest.mark.needs("qemu")

#: Prints the numbers of its QEMUs that still run, at the end.
PROGRAM = """
import gc, os, sys, time, virtnic
memory = virtnic.Memory("8M", hugepages=None)
pids = []

def forget(**options):
    port = virtnic.open("user", memory=memory, **options)
    pids.append(port.qemu.pid)
    return port

{body}
port = None
deadline = time.monotonic() + 10.0
while any(os.path.exists(f"/proc/{{pid}}") for pid in pids) and time.monotonic() < deadline:
    gc.collect()
    time.sleep(0.01)
print(*(pid for pid in pids if os.path.exists(f"/proc/{{pid}}")))
"""


def forgetting(body: str) -> list[str]:
    """Run a program that forgets ports; all their QEMUs go. Return the lines of its stderr."""
    program = PROGRAM.format(body=body)
    done = subprocess.run(
        [sys.executable, "-W", "always::ResourceWarning", "-c", program],
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == "\n", "they still run"
    return done.stderr.splitlines()


def test_a_thread_that_has_done_its_work_holds_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its arguments are collected with its caller, perhaps before it."""
    over = threading.Event()

    def start(run: Callable[..., object], arguments: tuple[()]) -> int:
        def slowly() -> None:
            run(*arguments)
            over.wait(60)

        return _thread.start_new_thread(slowly, ())

    threads = types.SimpleNamespace(start_new_thread=start, allocate_lock=_thread.allocate_lock)
    monkeypatch.setattr(teardown, "_thread", threads)
    try:
        held = threading.Event()
        gone = weakref.ref(held)
        assert not uninterrupted(held.is_set)
        assert uninterrupted(functools.partial(copy.copy, [held])) == [held]
        del held
        assert gone() is None
    finally:
        over.set()


@needs_qemu
@pytest.mark.parametrize(
    "body",
    [
        "port = forget()",
        'port = forget(interrupts="none")',
        "port = forget(); port.kept = port.queue(0)",
        "port = forget(); port.kept = virtnic.net.Stack(port)",
        "port = forget(); port.kept = port.qemu.events()",
        "port = forget(); port.on_link(lambda port: None)",
        "port = forget(); port.qemu.watch(lambda event: None)",
        "port = forget(recover=True)",
    ],
)
def test_a_port_that_is_forgotten_is_closed(qemu_command: str, body: str) -> None:
    lines = forgetting(body)
    assert len([line for line in lines if "ResourceWarning: unclosed <Qemu" in line]) == 1
    assert "which was opened at <string>:7" in "".join(lines)
    noise = [line for line in lines if "Task was" in line or "Traceback" in line]
    assert noise == []


@needs_qemu
def test_where_warnings_are_errors(qemu_command: str) -> None:
    """Nothing can catch those; it is closed anyway."""
    lines = forgetting('import warnings; warnings.simplefilter("error"); port = forget()')
    assert "ResourceWarning: unclosed <Qemu" in "".join(lines)


@needs_qemu
def test_one_after_the_other_in_the_same_name(qemu_command: str) -> None:
    """As in a notebook's cell that is run repeatedly."""
    lines = forgetting("for _ in range(4): port = forget(); gc.collect()")
    assert len([line for line in lines if "unclosed <Qemu" in line]) == 4


@needs_qemu
def test_a_callback_may_hold_what_it_hears_of(qemu_command: str) -> None:
    """Only its Qemu refers to it; it is called as long as that lives."""
    heard: list[str] = []
    memory = virtnic.Memory("8M", hugepages=None)

    def forgotten() -> int:
        qemu = virtnic.Qemu(memory)
        port = qemu.attach("user")
        port.on_link(lambda _: heard.append(f"link {qemu} {port}"))
        stop = qemu.watch(lambda event: heard.append(f"never {event.kind} {qemu}"))
        qemu.watch(lambda event: heard.append(f"{event.kind} {qemu.closed}"))
        stop()
        gc.collect()
        port.close()
        assert eventually(lambda: heard == ["detached False"])
        return qemu.pid

    pid = forgotten()
    with pytest.warns(ResourceWarning, match="unclosed <Qemu"):
        gc.collect()
    assert eventually(lambda: not os.path.exists(f"/proc/{pid}"))  # noqa: PTH110
    assert len(heard) == 1


@needs_qemu
def test_one_that_was_being_closed_is_not_unclosed(
    qemu_command: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Closing was interrupted: it is finished, without a warning."""
    qemu = virtnic.Qemu(virtnic.Memory("8M", hugepages=None))
    pid = qemu.pid

    def interrupted(_feed: object) -> None:
        monkeypatch.undo()
        raise KeyboardInterrupt

    monkeypatch.setattr(Feed, "end", interrupted)
    with pytest.raises(KeyboardInterrupt):
        qemu.close()
    assert not qemu.closed
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        del qemu
        gc.collect()
    assert eventually(lambda: not os.path.exists(f"/proc/{pid}"))  # noqa: PTH110


@needs_qemu
@pytest.mark.parametrize("netdev", ["user", "user,restrict=on"])
def test_a_closed_port_needs_no_collector(qemu_command: str, netdev: str) -> None:
    """Its descriptors and buffers go with it, also where QEMU refused something at first."""
    memory = virtnic.Memory("8M", hugepages=None)
    with virtnic.open(netdev, memory=memory):
        pass
    gc.collect()
    gc.disable()
    try:
        before = os.listdir("/proc/self/fd")  # noqa: PTH208
        free = memory.buffers_free
        for _ in range(3):
            with virtnic.open(netdev, memory=memory) as port:
                pass
            del port
            assert memory.buffers_free == free
        assert len(os.listdir("/proc/self/fd")) == len(before)  # noqa: PTH208
    finally:
        gc.enable()


@needs_qemu
def test_owners_are_not_copied(port: virtnic.Port) -> None:
    """Two objects would hold one resource, and close it for each other."""
    burst = port.recv(1)
    stack = net.Stack(port)
    owners: list[object] = [
        port,
        port.qemu,
        port.memory,
        port.queue(0),
        port.qemu.events(),
        stack,
        stack.socket(),
        virtnic.EventFd(),
        burst,
        machine_of(port.qemu).server,
        machine_of(port.qemu).qtest,
        machine_of(port.qemu).process,
        machine_of(port.qemu).monitor,
        testing.FaultyPort(port),
        testing.ScriptedPort([]),
    ]
    for owner in owners:
        for way in (copy.copy, copy.deepcopy, pickle.dumps):
            with pytest.raises(TypeError, match=r"cannot (be copied or )?pickle"):
                way(owner)
    assert machine_of(port.qemu).process.alive
    stack.close()


@pytest.mark.parametrize("name", virtnic.__all__ + testing.__all__ + aio.__all__ + net.__all__)
def test_every_public_class_is_a_value_or_refuses_to_be_copied(name: str) -> None:
    found = [getattr(module, name, None) for module in (virtnic, testing, aio, net)]
    for kind in found:
        if not isinstance(kind, type) or issubclass(kind, BaseException):
            continue
        value = dataclasses.is_dataclass(kind) or issubclass(kind, (testing.Step, testing.Frames))
        value |= getattr(kind, "_is_protocol", False)
        native = kind.__module__ == "virtnic._native"  # copyreg refuses what has such a layout
        assert value or native or issubclass(kind, Owner), kind
