"""What waits in the rings when a vhost-user backend dies. The backend is DPDK's testpmd."""

import os
import signal
import time
from pathlib import Path

import pytest

import virtnic
from frames import number_of, numbered
from peers.testpmd import Testpmd
from traffic import drain

pytestmark = pytest.mark.needs("qemu", "testpmd")

#: Each port of testpmd sends back what it receives, and keeps what came while it was stopped.
LOOP = ("--port-topology=loop", "--no-flush-rx")


@pytest.mark.parametrize("ring", ["packed", "split"])
# In the middle of a lap, and over the ring's end: QEMU takes the ring over at index 0.
@pytest.mark.parametrize("before", [1000, 2032])
def test_frames_that_wait_when_the_backend_dies(
    qemu: virtnic.Qemu, scratch: Path, ring: str, before: int
) -> None:
    """They come back or are lost, and the next backend serves what comes after them."""
    path = scratch / "vhu0"
    with Testpmd([path], extra=LOOP) as pmd:
        port = qemu.attach(f"vhost-user,path={path}", ring=ring)  # type: ignore[arg-type]
        for start in range(0, before, 8):
            assert port.send([numbered(port.mac, start + i) for i in range(8)]) == 8
            got = 0
            while got < 8:
                burst = port.recv(8, timeout=5.0)
                assert burst
                got += len(burst)
                burst.release()
        os.kill(pmd.pid, signal.SIGSTOP)
        assert port.send([numbered(port.mac, 10_000 + i) for i in range(64)]) == 64
        events = qemu.events()
        pmd.kill()
    assert {event.kind for event in (events.wait(5.0), events.wait(5.0)) if event} == {
        "backend-lost",
        "link-down",
    }
    with Testpmd([path], extra=LOOP):
        deadline = time.monotonic() + 10.0
        while not port.link:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        assert port.send([numbered(port.mac, 20_000 + i) for i in range(64)]) == 64
        numbers = [number for frame in drain(port, 1.0) if (number := number_of(frame))]
        assert len(set(numbers)) == len(numbers)
        assert [number for number in numbers if number >= 20_000] == list(range(20_000, 20_064))
        port.reclaim()
        stats = port.stats()
        assert stats["tx_completed"] == stats["tx_packets"] == before + 128
        port.close()
    assert qemu.memory.buffers_free == qemu.memory.buffers
