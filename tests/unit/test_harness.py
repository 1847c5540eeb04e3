"""Tests of the test helpers, such as the leak check."""

import os
import shlex
import socket
import subprocess
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import virtnic
from conftest import SESSION
from peers import components, leaks
from peers.process import gone
from peers.testpmd import answer_to
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


HANGS = """
import threading
import pytest

@pytest.fixture
def executor():
    from concurrent.futures import ThreadPoolExecutor
    with ThreadPoolExecutor() as executor:
        yield executor

@pytest.fixture
def for_ever():
    yield
    threading.Event().wait()

def test_that_waits_for_a_thread_without_end(executor):
    executor.submit(threading.Event().wait).result()

def test_that_fails_before_a_clean_up_without_end(for_ever):
    assert False

def test_that_leaves_a_thread():
    threading.Thread(target=threading.Event().wait).start()
"""


def test_a_test_without_end_fails_alone(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The executor waits for its thread when it is left, and the interpreter for it at the end."""
    tests = Path(__file__).parents[1]
    monkeypatch.setenv("PYTHONPATH", str(tests))
    pytester.makeconftest(
        "from peers import limits\n"
        "limits.CLEAN_UP = limits.AGAIN = 0.5\n"
        "def pytest_configure(config): config.pluginmanager.register(limits.Limits())\n"
    )
    pytester.makepyfile(HANGS)
    result = pytester.runpytest_subprocess("--timeout", "1", timeout=60)
    result.assert_outcomes(passed=1, failed=2, errors=2)
    assert result.ret != 0
    assert "threads that a test left behind do not end" in result.stderr.str()


@pytest.mark.parametrize(
    ("printed", "answered"),
    [
        (b"stop\r\nTelling cores to stop...\ntestpmd> ", True),
        (b"stVHOST_CONFIG: (vhu0) vring call idx:1\nop\r\nTelling\ntestpmd> ", True),
        (b"sto\nPort 0: queue state event\np\r\nte\n\nstpmVHOST_CONFIG: x\nd> ", True),
        (b"testpmd> stop\r\nTelling cores to stop...\n", False),
        (b"stVHOST_CONFIG: (vhu0) vring", False),
        (b"VHOST_CONFIG: stop\ntestpmd> ", False),
    ],
)
def test_what_testpmd_answers_is_found_among_its_logs(printed: bytes, answered: bool) -> None:
    assert (answer_to(b"stop", printed) is not None) is answered


@pytest.mark.parametrize("ci", ["true", ""])
def test_a_missing_package_is_a_failure_in_ci(ci: str) -> None:
    program = "import conftest, pytest\npytest.importorskip('not_a_package_at_all')"
    done = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, "CI": ci, "PYTHONPATH": str(Path(__file__).parents[1])},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ("ModuleNotFoundError" if ci else "Skipped") in done.stderr.splitlines()[-1]
