"""Programs started as QEMU that break a protocol: a timely error, and no leaks.

The faults of single messages are in ``test_qmp_hostile.py``, ``rust/core/tests/qtest_hostile.rs``
and the fuzz targets; here the whole start meets them.
"""

from __future__ import annotations

import resource
import shlex
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

import virtnic
from peers import fake_qemu
from virtnic.qemu.external import ExternalProcess
from virtnic.qemu.find import Binary
from virtnic.qemu.netdev import parse
from virtnic.qemu.nic import Nics

if TYPE_CHECKING:
    from virtnic.qemu.command import Shmem

TIMEOUT = 1.5
#: Seconds for a start that cannot succeed: each of its parts has the timeout.
BOUND = 12.0


@pytest.mark.parametrize("shmem", ["doorbell", "plain"])
@pytest.mark.parametrize("fault", fake_qemu.FAULTS)
def test_a_start_that_cannot_succeed(fault: str, shmem: Shmem) -> None:
    script = Path(fake_qemu.__file__)
    command = shlex.join([sys.executable, "-S", str(script), fault])
    memory = virtnic.Memory("4M", hugepages=None)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    began = time.monotonic()
    with pytest.raises(
        (virtnic.QemuError, virtnic.DeviceError, TimeoutError), match=fake_qemu.FAULTS[fault]
    ) as caught:
        virtnic.Qemu(memory=memory, qemu=command, timeout=TIMEOUT, shmem=shmem, accel="tcg")
    assert time.monotonic() - began < BOUND
    assert len(str(caught.value)) < 20_000
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) << 10
    assert grown < 96 << 20, f"{grown >> 20} MiB more than before"
    assert memory.buffers_free == memory.buffers


def test_an_answer_without_end() -> None:
    """Asked over its standard input and output, it answers with a line that does not end."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    began = time.monotonic()
    binary = Binary((sys.executable, "-S", fake_qemu.__file__, "stdio for ever"))
    with pytest.raises(virtnic.QemuError):
        binary.ask("query-version")
    assert time.monotonic() - began < BOUND
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 256 << 10


class Odd:
    """A monitor whose QEMU answers one command with something of another form."""

    version = (7, 2, 0)

    def __init__(self, command: str, reply: object) -> None:
        self._replies = {command: reply}

    def execute(self, command: str, **_: Any) -> Any:
        return self._replies.get(command, {})


@pytest.mark.parametrize("reply", [None, 5, "x", [1], [{}], [[]], {"label": 1}, [{"name": 3}]])
@pytest.mark.parametrize(
    ("command", "netdev", "properties"),
    [
        ("device-list-properties", "user", {"mac": "52:54:00:00:00:01"}),
        ("query-chardev", "vhost-user,path=/nowhere", {}),
    ],
)
def test_a_reply_of_another_form(
    command: str, netdev: str, properties: dict[str, Any], reply: object
) -> None:
    monitor: Any = Odd(command, reply)
    binary = Binary((f"odd {reply!r}",))
    nics = Nics(monitor, "pc", binary, ExternalProcess(Path("/nowhere")))
    with pytest.raises(virtnic.QemuError, match=f"reply to {command} is malformed"):
        nics.add(parse(netdev), properties)
    assert nics.all() == []
