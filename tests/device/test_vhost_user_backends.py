"""The table of known backends: its page, and its effect."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from peers.testpmd import Testpmd
from peers.vhost_backend import ScriptedBackend
from support.packets import ones_sum, pseudo_header, tcp
from virtnic import Offload
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


@pytest.mark.needs("testpmd")
@pytest.mark.parametrize("keeps", [False, True], ids=["usual", "legacy-ol-flags"])
def test_what_testpmd_does_to_offloads(qemu: virtnic.Qemu, scratch: Path, keeps: bool) -> None:
    """A frame that is to be segmented comes back as one, with or without saying so."""
    path = scratch / "vhu0"
    options = f"tso=1,legacy-ol-flags={int(keeps)}"
    wanted = Offload(
        checksum="needed",
        checksum_start=34,
        checksum_offset=16,
        segmentation="tcp4",
        segment_size=1448,
    )
    with (
        Testpmd([path], mode="io", device_options=options) as pmd,
        qemu.attach(f"vhost-user,path={path}", offload=True) as port,
    ):
        macs = port.mac, "02:00:00:00:00:09"
        addresses = "10.0.0.1", "10.0.0.2"
        frame = tcp(macs, addresses, (1000, 2000), payload=bytes(range(250)) * 36)
        assert port.send([frame], offload=wanted) == 1
        back = port.recv(timeout=20.0)
        assert [len(each) for each in back] == [len(frame)]
        (got,), (left,) = back.tobytes(), list(back.offload or [])
        assert got[54:] == frame[54:]
        complete = ones_sum(pseudo_header(*addresses, 6, len(got) - 34) + got[34:]) == 0xFFFF
        assert complete is not keeps
        said = left.checksum, left.segmentation, left.segment_size
        assert said == (("needed", "tcp4", 1448) if keeps else (None, None, 0))
        back.release()
        pmd.drain()


def test_the_page_has_every_row() -> None:
    page = (ROOT / "docs" / "backends.md").read_text()
    for row in BACKENDS:
        line = f"| {row.program} | {row.symptom} | {row.action} |"
        assert line in page, f"docs/backends.md should have: {line}"
        assert (ROOT / row.test.partition("::")[0]).exists()
