"""Ports, queues and fakes have the same methods, at run time and for type checkers."""

from __future__ import annotations

import inspect
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

import virtnic
from support.frames import numbered
from virtnic import PacketPort
from virtnic.testing import Deliver, FaultyPort, ScriptedPort

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from virtnic import NetQueue, Port
    from virtnic.testing.script import Step

VERBS = sorted(name for name in vars(PacketPort) if not name.startswith("_"))


def count(port: PacketPort) -> int:
    """Use the common methods, like a program that accepts any of them."""
    return len(port.recv(1)) + port.stats()["rx_packets"]


def all_kinds(port: Port, queue: NetQueue, faulty: FaultyPort, scripted: ScriptedPort) -> int:
    """Hold for mypy: each is a PacketPort. Never called."""
    kinds: list[PacketPort] = [port, queue, faulty, scripted]
    return sum(map(count, kinds))


@pytest.mark.parametrize("kind", [virtnic.Port, virtnic.NetQueue, FaultyPort, ScriptedPort])
def test_every_kind_has_the_verbs(kind: type) -> None:
    assert VERBS == ["fileno", "recv", "send", "send_all", "stats"]
    for verb in VERBS:
        wanted = list(inspect.signature(getattr(PacketPort, verb)).parameters)
        assert list(inspect.signature(getattr(kind, verb)).parameters) == wanted


def test_a_program_takes_any() -> None:
    frame = numbered("52:54:00:00:00:01", 1)

    def script() -> Iterator[Step]:
        yield Deliver(*[frame] * 4)

    with ScriptedPort(script()) as scripted:
        ports: list[PacketPort] = [scripted, FaultyPort(scripted)]
        for port in ports:
            assert isinstance(port, PacketPort)
            assert port.recv(1, timeout=5.0).tobytes() == [frame]
            assert count(port) >= 1


def test_what_has_no_verbs_is_no_port() -> None:
    assert not isinstance(object(), PacketPort)


TYPED = """
import virtnic

port = virtnic.open("user", hugepages="2M", mac="52:54:00:12:34:56", queues=2)
virtnic.open("user", hugepage="2M")
virtnic.open("user", mac=5)
virtnic.Qemu().attach("user", ring="paked")
for event in port.qemu.events():
    reveal_type(event.port)
reveal_type(port.qemu.attach("user"))
"""


def test_a_type_checker_knows_every_option(tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text(TYPED)
    argv = [sys.executable, "-m", "mypy", "--strict", "--cache-dir", str(tmp_path), str(program)]
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    said = [line.partition(": ")[2] for line in done.stdout.splitlines()]
    for wanted in (
        'Unexpected keyword argument "hugepage" for "open"; did you mean "hugepages"?',
        'Argument "mac" to "open" has incompatible type "int"; expected "str | None"',
        'Argument "ring" to "attach" of "Qemu" has incompatible type',
        'Revealed type is "virtnic.nic.port.Port | None"',
        'Revealed type is "virtnic.nic.port.Port"',
    ):
        assert any(wanted in line for line in said), done.stdout
    assert done.stdout.count("error:") == 3
