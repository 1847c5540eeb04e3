"""The table of known backends: its page, and its effect."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from peers.vhost_backend import ScriptedBackend
from virtnic.qemu.backends import BACKENDS, process_of, queue_size_for

if TYPE_CHECKING:
    from collections.abc import Iterator

    import virtnic

ROOT = Path(__file__).parents[2]


@pytest.fixture
def called_passt() -> Iterator[None]:
    """This process, in which the scripted backend is, has another name."""
    comm = Path("/proc/self/comm")
    before = comm.read_text()
    comm.write_text("passt.avx2")
    yield
    comm.write_text(before.rstrip("\n"))


@pytest.mark.needs("qemu")
def test_passt_gets_shorter_queues(qemu: virtnic.Qemu, scratch: Path, called_passt: None) -> None:
    """Unless it is asked for others."""
    with ScriptedBackend(scratch / "vhu0") as backend:
        for asked, sizes in ((0, 512), (1024, 1024), (256, 256)):
            with qemu.attach(f"vhost-user,path={backend.path}", queue_size=asked) as port:
                assert port.queue_size == sizes


@pytest.mark.needs("qemu")
def test_others_get_the_longest(qemu: virtnic.Qemu, scratch: Path) -> None:
    with (
        ScriptedBackend(scratch / "vhu0") as backend,
        qemu.attach(f"vhost-user,path={backend.path}") as port,
    ):
        assert port.queue_size == 1024


def test_who_is_at_the_other_end() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        assert process_of(ours.fileno()) == Path("/proc/self/comm").read_text().rstrip("\n")
        ours.send(b"x")  # it is still open
    assert queue_size_for("passt") == queue_size_for("passt.avx2") == 512
    assert queue_size_for("passthrough") == queue_size_for(None) == 0


def test_the_page_has_every_row() -> None:
    page = (ROOT / "docs" / "backends.md").read_text()
    for row in BACKENDS:
        line = f"| {row.program} | {row.symptom} | {row.action} |"
        assert line in page, f"docs/backends.md should have: {line}"
        assert (ROOT / row.test.partition("::")[0]).exists()
