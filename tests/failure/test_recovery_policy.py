"""Which ports are recovered, and how often: ``attach(recover=…)``."""

import os
import signal
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest

import virtnic
from peers.testpmd import Testpmd
from support.frames import number_of, numbered
from support.inside import attachment_of
from support.traffic import arp_works, drain

pytestmark = pytest.mark.needs("qemu")

#: No pause before the first attempts: the tests kill and wait.
EAGER = virtnic.Recovery(attempts=20, backoff=0.01, backoff_max=0.02)
FEW = virtnic.Recovery(attempts=3, backoff=0.05, backoff_max=0.1)


def echoes(port: virtnic.Port) -> bool:
    """Return whether frames come back."""
    deadline = time.monotonic() + 10.0
    while time.monotonic() < deadline:
        port.send([numbered(port.mac, 7)])
        if any(number_of(frame) == 7 for frame in drain(port, 0.1)):
            return True
    return False


@pytest.mark.needs("testpmd")
@pytest.mark.parametrize("recover", [False, FEW])
def test_a_backend_that_stays_away_ends_its_port_only(
    qemu: virtnic.Qemu,
    testpmd: Callable[..., Testpmd],
    recover: virtnic.Recovery | bool,
) -> None:
    """With the reason, for waiting and later calls; QEMU and other ports are unaffected."""
    pmd = testpmd()
    other = qemu.attach("user")
    port = qemu.attach(f"vhost-user,path={pmd.sockets[0]}", recover=recover)
    assert echoes(port)
    ended: list[str] = []
    attachment_of(port).callbacks.add(lambda _: None, lambda: ended.append("ended"))
    words = "in 3 attempts: " if recover else "disconnected; .*recover=False"
    with ThreadPoolExecutor(1) as executor:
        waiting = executor.submit(port.recv, 64, None)
        pmd.kill()
        with pytest.raises(virtnic.DeviceError, match=words):
            waiting.result(10.0)
    with pytest.raises(virtnic.DeviceError, match=words):
        port.send([bytes(60)])
    deadline = time.monotonic() + 20.0
    while not ended:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert arp_works(other)
    qemu.detach(port)
    with testpmd() as again, qemu.attach(f"vhost-user,path={again.sockets[0]}") as port:
        assert echoes(port)
    assert arp_works(other)


@pytest.mark.needs("testpmd")
def test_a_backend_that_comes_in_time(qemu: virtnic.Qemu, testpmd: Callable[..., Testpmd]) -> None:
    pmd = testpmd()
    policy = virtnic.Recovery(attempts=60, backoff=0.05, backoff_max=0.5)
    with qemu.attach(f"vhost-user,path={pmd.sockets[0]}", recover=policy) as port:
        assert echoes(port)
        pmd.kill()
        with Testpmd(pmd.sockets):
            assert echoes(port)


def test_one_port_comes_back_and_the_other_does_not(
    qemu_command: str, memory: virtnic.Memory
) -> None:
    """Detaching the other one disturbs nothing, before or after."""
    with virtnic.Qemu(memory, recover=EAGER) as qemu:
        first, second, staying = (
            qemu.attach("user", recover=recover) for recover in (False, False, None)
        )
        with ThreadPoolExecutor(1) as executor:
            waiting = executor.submit(first.recv, 64, None)
            os.kill(qemu.pid, signal.SIGKILL)
            with pytest.raises(virtnic.QemuDied, match="SIGKILL"):
                waiting.result(10.0)
        with pytest.raises(virtnic.QemuDied, match="SIGKILL"):
            second.send([bytes(60)])
        deadline = time.monotonic() + 20.0
        while staying.restarts < 1:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        assert arp_works(staying)
        assert set(qemu.ports) == {first, second, staying}
        qemu.detach(first)
        assert arp_works(staying), "the slot of the one that is gone is another's now"
        with pytest.raises(virtnic.PortClosed):
            first.recv()
        with qemu.attach("user") as late:
            assert arp_works(late)
            qemu.detach(second)
            assert arp_works(late)
            assert arp_works(staying)
    assert memory.buffers_free == memory.buffers


@pytest.mark.parametrize("recover", [True, virtnic.Recovery()])
def test_nothing_that_could_bring_it_back(
    qemu: virtnic.Qemu, recover: virtnic.Recovery | bool
) -> None:
    with pytest.raises(ValueError, match=r"Qemu\(recover="):
        qemu.attach("user", recover=recover)
    with pytest.raises(TypeError, match=r"virtnic\.Recovery"):
        qemu.attach("user", recover=3)  # type: ignore[arg-type]
    assert not qemu.ports
