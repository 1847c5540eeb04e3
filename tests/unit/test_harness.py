"""The tests' own tools: a leak check that misses leaks would prove nothing."""

import os
import shlex
import socket
import subprocess
import threading
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import virtnic
from conftest import SESSION
from peers import components, leaks
from peers.process import gone
from virtnic.qemu.command import Accel

if TYPE_CHECKING:
    from collections.abc import Callable

    from peers.netns import Netns
    from peers.testpmd import Testpmd


@pytest.fixture
def session(request: pytest.FixtureRequest) -> leaks.Session:
    """The session whose leaks are checked."""
    return request.config.stash[SESSION]


def test_a_clean_test_leaves_nothing(session: leaks.Session) -> None:
    before = leaks.snapshot(session)
    with socket.socket(), open(os.devnull):  # noqa: PTH123
        pass
    subprocess.run(["true"], check=True)
    assert leaks.wait_for_none(session, before) == []


def test_a_descriptor_is_seen(session: leaks.Session) -> None:
    before = leaks.snapshot(session)
    eventfd, memfd = os.eventfd(0), os.memfd_create("left")
    with socket.socket():
        left = leaks.wait_for_none(session, before, seconds=0.0)
    os.close(eventfd)
    os.close(memfd)
    assert len(left) == 3
    assert any("eventfd" in line for line in left)
    assert any("memfd:left" in line for line in left)
    assert any("socket" in line for line in left)


def test_a_thread_is_seen(session: leaks.Session) -> None:
    before = leaks.snapshot(session)
    stop = threading.Event()
    thread = threading.Thread(target=stop.wait)
    thread.start()
    left = leaks.wait_for_none(session, before, seconds=0.0)
    stop.set()
    thread.join()
    assert len(left) == 1
    assert left[0].startswith("thread ")


def test_a_child_and_an_orphan_are_seen(session: leaks.Session) -> None:
    before = leaks.snapshot(session)
    # The shell ends at once; its sleep becomes an orphan.
    shell = ["sh", "-c", "sleep 60 >/dev/null & echo $!"]
    orphan = int(subprocess.run(shell, check=True, stdout=subprocess.PIPE).stdout)
    with subprocess.Popen(["sleep", "60"]) as child:
        left = leaks.wait_for_none(session, before, seconds=0.0)
        child.kill()
    os.kill(orphan, 9)
    assert any(f"process {child.pid} " in line for line in left)
    assert any(f"process {orphan} " in line for line in left)
    assert gone(orphan)


def test_a_file_is_seen(session: leaks.Session, scratch: Path) -> None:
    before = leaks.snapshot(session)
    file = scratch / "left"
    file.touch()
    left = leaks.wait_for_none(session, before, seconds=0.0)
    file.unlink()
    assert left == [f"file {file}"]


def test_a_missing_component_skips_here_and_fails_in_ci(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(components.COMPONENTS, "moon", (lambda: False, "fetch it"))
    monkeypatch.setenv("CI", "true")
    with pytest.raises(pytest.fail.Exception, match="needs moon: fetch it"):
        components.needs("moon")
    monkeypatch.delenv("CI")
    with pytest.raises(pytest.skip.Exception, match="needs moon: fetch it"):
        components.needs("moon")


def test_the_qemu_and_accelerator_under_test_are_those_asked_for(
    qemu: virtnic.Qemu, qemu_command: str, accel: Accel
) -> None:
    version = [*shlex.split(qemu_command), "--version"]
    said = subprocess.run(version, check=True, capture_output=True, text=True).stdout
    assert f"version {qemu.version}" in said
    assert accel in ("auto", qemu.accel)


@pytest.mark.needs("netns", "ping")
def test_a_namespace_has_a_kernel_and_a_raw_socket(netns: "Netns") -> None:
    result = netns.ping(netns.address, count=3)
    assert (result.sent, result.received) == (3, 3)
    with netns.packet_socket() as raw:
        assert raw.getsockname()[0] == netns.tap
    # The machine's own namespace knows nothing of the TAP.
    assert not any(name == netns.tap for _, name in socket.if_nameindex())


@pytest.mark.needs("testpmd")
def test_testpmd_serves_and_counts(testpmd: "Callable[..., Testpmd]") -> None:
    backend = testpmd(ports=2, mode="io")
    assert all(path.is_socket() for path in backend.sockets)
    with socket.socket(socket.AF_UNIX) as frontend:
        frontend.connect(str(backend.sockets[0]))
    assert backend.stats(1)["RX-packets"] == 0
    assert "testpmd" in backend.output
