"""A device that was not reset in time may still write to the port's buffers.

They are not reused before the device is known to be gone.
"""

from __future__ import annotations

import os
import signal
from typing import TYPE_CHECKING

import pytest

import virtnic
from support.inside import attachment_of

if TYPE_CHECKING:
    from collections.abc import Iterator

#: Seconds that QEMU has for its answers.
TIMEOUT = 0.5


@pytest.fixture
def qemu(qemu_command: str) -> Iterator[virtnic.Qemu]:
    memory = virtnic.Memory("8M", hugepages=None)
    with virtnic.Qemu(memory, qemu=qemu_command, timeout=TIMEOUT) as qemu:
        yield qemu


def stop_unanswered(qemu: virtnic.Qemu, port: virtnic.Port) -> int:
    """Stop a port whose QEMU does not answer; the buffers that are free then."""
    pid = qemu.pid
    os.kill(pid, signal.SIGSTOP)
    try:
        attachment_of(port).stop()
        assert port.closed
        with pytest.raises(virtnic.PortClosed):
            port.recv()
        # Nothing changes before there is an answer.
        before = qemu.memory.buffers_free
        attachment_of(port).stop()
        assert qemu.memory.buffers_free == before
        return before
    finally:
        os.kill(pid, signal.SIGCONT)


def test_its_buffers_come_back_when_it_is_unplugged(
    qemu: virtnic.Qemu, caplog: pytest.LogCaptureFixture
) -> None:
    memory = qemu.memory
    with qemu.attach("user"):
        pass
    all_of_them = memory.buffers_free
    port = qemu.attach("user")
    posted = all_of_them - memory.buffers_free
    assert posted > 0
    assert all_of_them - stop_unanswered(qemu, port) == posted
    assert "may still write to its buffers" in caplog.text
    port.close()
    assert memory.buffers_free == all_of_them
    with qemu.attach("user") as port:
        port.set_promiscuous()


def test_its_buffers_come_back_when_qemu_is_gone(qemu: virtnic.Qemu) -> None:
    memory = qemu.memory
    all_of_them = memory.buffers_free
    port = qemu.attach("user")
    assert stop_unanswered(qemu, port) < all_of_them
    qemu.close()
    assert memory.buffers_free == all_of_them


def test_closing_a_qemu_that_does_not_answer(qemu: virtnic.Qemu) -> None:
    """It is killed, which is certain: then they come back."""
    memory = qemu.memory
    all_of_them = memory.buffers_free
    qemu.attach("user")
    os.kill(qemu.pid, signal.SIGSTOP)
    qemu.close()
    assert memory.buffers_free == all_of_them


def test_a_forgotten_port_keeps_them(qemu: virtnic.Qemu) -> None:
    """They stay unused, like its rings; other ports on the memory are unaffected."""
    memory = qemu.memory
    all_of_them = memory.buffers_free
    other = qemu.attach("user")
    port = qemu.attach("user")
    left = stop_unanswered(qemu, port)
    assert left < all_of_them
    port.close()
    other.set_promiscuous()
