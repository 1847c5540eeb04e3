"""The pytest plugin, run in a separate pytest."""

import importlib.metadata
import shlex
import socket
from pathlib import Path

import pytest

TESTS = """
import virtnic, pytest

def test_a_port(virtnic_port):
    assert virtnic_port.link
    assert virtnic_port.send([b"x" * 60]) == 1

def test_a_qemu(virtnic_qemu, virtnic_memory):
    assert virtnic_qemu.memory is virtnic_memory
    with virtnic_qemu.attach("user") as port:
        assert port.link
"""


@pytest.fixture
def run(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch):  # type: ignore[no-untyped-def]
    """Run pytest on some tests, in a process, as users do."""
    monkeypatch.delenv("CI", raising=False)

    def start(tests: str, *arguments: str) -> pytest.RunResult:
        pytester.makepyfile(tests)
        return pytester.runpytest_subprocess("-rs", "-v", "-W", "error", *arguments)

    return start


def test_it_is_there_wherever_virtnic_is() -> None:
    (entry,) = importlib.metadata.distribution("virtnic").entry_points.select(group="pytest11")
    assert entry.value == "virtnic.testing.plugin"


def test_ports_and_qemus(run, qemu_command: str) -> None:  # type: ignore[no-untyped-def]
    run(TESTS).assert_outcomes(passed=2)


def test_each_qemu_that_is_given(run, qemu_command: str, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    binary = shlex.split(qemu_command)
    other = tmp_path / "other-qemu"
    other.write_text(f'#!/bin/sh\nexec {shlex.join(binary)} "$@"\n')
    other.chmod(0o755)
    found = run(TESTS, f"--virtnic-qemu={qemu_command}", f"--virtnic-qemu={other}")
    found.assert_outcomes(passed=4)
    found.stdout.fnmatch_lines(["*test_a_port?other-qemu? PASSED*"])


def test_the_marker_says_what_kind_of_port(run, qemu_command: str) -> None:  # type: ignore[no-untyped-def]
    run(
        """
        import pytest
        pytestmark = pytest.mark.virtnic(memory="16M", mac="52:54:00:00:00:07")

        @pytest.mark.virtnic("user,net=10.9.0.0/24", queue_size=64, qemu={"machine": "q35"})
        def test_marked(virtnic_port):
            assert virtnic_port.mac == "52:54:00:00:00:07"
            assert virtnic_port.queue_size == 64
            assert virtnic_port.memory.size == 16 << 20
            assert virtnic_port.qemu.machine == "q35"
        """
    ).assert_outcomes(passed=1)


def test_a_port_is_ready(run, qemu_command: str) -> None:  # type: ignore[no-untyped-def]
    """Frames pass before the test begins; where none would, the marker says how long it waits."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        number = server.getsockname()[1]
    found = run(
        f"""
        import pytest, virtnic
        NOBODY = "socket,connect=127.0.0.1:{number}"

        @pytest.mark.virtnic(NOBODY, ready=0.1)
        def test_that_waits(virtnic_port):
            pass

        @pytest.mark.virtnic(NOBODY, ready=None)
        def test_that_does_not(virtnic_port):
            pass

        @pytest.fixture
        def asked(monkeypatch):
            found = []
            monkeypatch.setattr(virtnic.Port, "wait_ready", lambda _, wait: found.append(wait))
            return found

        def test_without_a_word(asked, virtnic_port):
            assert asked == [10.0]
        """
    )
    found.assert_outcomes(passed=2, errors=1)
    found.stdout.fnmatch_lines(["*TimeoutError*the socket has no peer*"])


@pytest.fixture
def _no_qemu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VIRTNIC_QEMU", "/nonexistent/qemu")


@pytest.mark.usefixtures("_no_qemu")
def test_without_a_qemu_tests_are_skipped(run) -> None:  # type: ignore[no-untyped-def]
    found = run(TESTS)
    found.assert_outcomes(skipped=2)
    found.stdout.fnmatch_lines(["SKIPPED*/nonexistent/qemu*"])


@pytest.mark.usefixtures("_no_qemu")
def test_in_ci_they_fail(run, monkeypatch: pytest.MonkeyPatch) -> None:  # type: ignore[no-untyped-def]
    monkeypatch.setenv("CI", "1")
    found = run(TESTS)
    found.assert_outcomes(errors=2)
    found.stdout.fnmatch_lines(["*CI is set*"])


def test_a_qemu_that_was_asked_for_and_is_not_there_is_a_failure(run) -> None:  # type: ignore[no-untyped-def]
    run(TESTS, "--virtnic-qemu=/nonexistent/qemu").assert_outcomes(errors=2)
