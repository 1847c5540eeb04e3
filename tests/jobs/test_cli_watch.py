"""`virtnic watch` reports events as lines and JSON."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from peers.testpmd import Testpmd


def watch(*arguments: str) -> subprocess.Popen[str]:
    """Start ``virtnic watch``."""
    return subprocess.Popen(
        [sys.executable, "-m", "virtnic.cli", "watch", "--hugepages", "none", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_watch_prints_lines(qemu_command: str) -> None:
    with watch("--seconds", "0.3") as process:
        out, err = process.communicate(timeout=30)
    assert (process.returncode, err) == (0, "")
    lines = out.splitlines()
    assert [line.split()[1:3] for line in lines] == [["attached", "user"], ["detached", "user"]]


@pytest.mark.parametrize(
    ("number", "arguments", "status"),
    [
        (signal.SIGINT, (), 0),
        (signal.SIGTERM, (), 0),
        (signal.SIGINT, ("--seconds", "60"), 130),
        (signal.SIGTERM, ("--seconds", "60"), 143),
    ],
)
def test_watch_ends_by_a_signal(
    qemu_command: str, number: signal.Signals, arguments: tuple[str, ...], status: int
) -> None:
    with watch(*arguments) as process:
        assert process.stdout is not None
        assert "attached" in process.stdout.readline()
        process.send_signal(number)
        out, err = process.communicate(timeout=30)
    assert (process.returncode, err) == (status, "")
    assert [line.split()[1] for line in out.splitlines()] == ["detached"]


def qemus_of(process: subprocess.Popen[str]) -> list[int]:
    """Return the children of a command."""
    tasks = Path(f"/proc/{process.pid}/task").iterdir()
    return [int(pid) for task in tasks for pid in (task / "children").read_text().split()]


def test_watch_goes_on_with_another_qemu(qemu_command: str) -> None:
    with watch("--json", "--recover") as process:
        assert process.stdout is not None
        assert json.loads(process.stdout.readline())["event"] == "attached"
        (pid,) = qemus_of(process)
        os.kill(pid, signal.SIGKILL)
        found = [json.loads(process.stdout.readline()) for _ in range(4)]
        process.send_signal(signal.SIGINT)
        out, _err = process.communicate(timeout=30)
    assert [event["event"] for event in found] == ["qemu-died", "link-down", "qemu-back", "link-up"]
    assert found[0]["detail"] == f"QEMU (pid {pid}) was killed by SIGKILL and printed nothing"
    assert process.returncode == 0
    assert [json.loads(line)["event"] for line in out.splitlines()] == ["detached"]


@pytest.mark.needs("testpmd")
def test_watch_in_json_tells_of_a_backend(qemu_command: str, scratch: Path) -> None:
    path = scratch / "vhu0"
    netdev = f"vhost-user,path={path}"
    with Testpmd([path]) as pmd, watch("--json", "--port", netdev, "--port", "user") as process:
        assert process.stdout is not None
        first = [json.loads(process.stdout.readline()) for _ in range(2)]
        assert [(event["event"], event["netdev"]) for event in first] == [
            ("attached", netdev),
            ("attached", "user"),
        ]
        pmd.kill()
        lost = [json.loads(process.stdout.readline()) for _ in range(2)]
        assert {event["event"] for event in lost} == {"backend-lost", "link-down"}
        assert {event["mac"] for event in lost} == {first[0]["mac"]}
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=30)
    assert (process.returncode, err) == (0, "")
    assert [json.loads(line)["event"] for line in out.splitlines()] == ["detached", "detached"]


def test_watch_tells_that_qemu_died(qemu_command: str) -> None:
    with watch("--json") as process:
        assert process.stdout is not None
        assert json.loads(process.stdout.readline())["event"] == "attached"
        for pid in qemus_of(process):
            os.kill(pid, signal.SIGKILL)
        out, err = process.communicate(timeout=30)
    assert process.returncode == 1
    died, detached = (json.loads(line) for line in out.splitlines())
    assert (died["event"], detached["event"]) == ("qemu-died", "detached")
    assert "SIGKILL" in died["detail"]
    assert "Traceback" not in err
