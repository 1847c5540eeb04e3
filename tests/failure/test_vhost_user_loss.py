"""Frames lost when a vhost-user backend dies, counted exactly (DPDK's testpmd)."""

import os
import signal
import threading
import time
from pathlib import Path
from typing import Any, Literal

import pytest

import virtnic
from peers.process import freeze
from peers.testpmd import Testpmd
from support.frames import number_of, numbered
from support.inside import attachment_of, backend_of
from support.traffic import drain
from support.waiting import eventually

pytestmark = pytest.mark.needs("qemu", "testpmd")

#: Each port of testpmd sends back what it receives, and keeps what came while it was stopped.
LOOP = ("--port-topology=loop", "--no-flush-rx")
#: Keeps up to 128 frames in its own memory, for 100 ms when no others come.
KEEPING = (*LOOP, "--noisy-tx-sw-buffer-size=128", "--noisy-tx-sw-buffer-flushtime=100")


class Ledger:
    """Numbered frames through a backend that echoes; the number says its place in the ring."""

    def __init__(self, port: virtnic.Port) -> None:
        self.port = port
        self.sent = 0
        self.got: list[int] = []
        #: Frames that are not waited for: they are lost.
        self.written_off = 0

    @property
    def outstanding(self) -> int:
        return self.sent - max(self.written_off, self.got[-1] + 1 if self.got else 0)

    def send(self, count: int) -> None:
        frames = [numbered(self.port.mac, self.sent + i) for i in range(count)]
        assert self.port.send(frames) == count
        self.sent += count

    def receive(self, timeout: float = 0.0) -> None:
        for frame in self.port.recv(256, timeout=timeout).tobytes():
            number = number_of(frame)
            assert number is not None
            self.got.append(number)

    def traffic(self, frames: int) -> None:
        """Have so many frames echoed, with no more on the way than the receive ring holds."""
        until = self.sent + frames
        deadline = time.monotonic() + 20.0
        while self.sent < until:
            assert time.monotonic() < deadline, self.port.stats()
            if self.outstanding <= 256:
                self.send(32)
            self.receive()

    def settle(self) -> None:
        """Wait until everything that can still come has come."""
        while self.outstanding:
            before = len(self.got)
            self.receive(1.0)
            if len(self.got) == before:
                self.written_off = self.sent


def used(port: virtnic.Port, frames: int) -> int:
    """Return how many of so many frames the device has used: read in the ring, not asked of us."""
    name, descriptors, _driver, device = port.queue_addresses[1]
    assert name == "tx"
    memory, size = port.memory, port.queue_size

    def word(address: int) -> int:
        return int.from_bytes(memory.read(memory.offset_of(address, 2), 2), "little")

    if port.ring == "split":
        index = word(device + 2)
        return frames - (frames - index) % 65536
    # The driver has taken back no more than was used, and in the ring there is no more than fits.
    last = port.stats()["tx_completed"]
    for number in range(last, frames):
        flags = word(descriptors + 16 * (number % size) + 14)
        if flags & 0x8080 == (0x8080 if number // size % 2 == 0 else 0):
            last = number + 1
    return last


@pytest.mark.parametrize("keeps", [False, True])
@pytest.mark.parametrize("ring", ["packed", "split"])
def test_every_frame_is_accounted_for(
    qemu: virtnic.Qemu, scratch: Path, ring: Literal["packed", "split"], keeps: bool
) -> None:
    """Six kills: under load, and with frames that the backend had not taken, or has not sent on.

    Each leaves one gap in the numbers. It starts behind the last frame that came back; what the
    backend had taken goes as far as the device's own index in the ring shows; behind that is
    what QEMU dropped, as ``tx_no_backend`` says; and there the next backend goes on.
    """
    path = scratch / "vhu0"
    options: dict[str, Any] = {"mode": "noisy", "extra": KEEPING} if keeps else {"extra": LOOP}
    pmd = Testpmd([path], **options)
    try:
        port = qemu.attach(f"vhost-user,path={path}", ring=ring)
        interposer = backend_of(port).interposer
        ledger = Ledger(port)
        ends = []
        for kill in range(1, 7):
            # Not the same place in the ring each time. QEMU takes a packed one over at index 0:
            # what waits across that is what it drops.
            across = (2016 - ledger.sent) % 2048 + 2048
            ledger.traffic(3000 + 416 * kill if kill % 3 else across)
            if kill % 2:
                freeze(pmd.pid)
                ledger.send(96)
            # QEMU must not touch the ring before the test has looked at it; but once it may.
            stopped = kill < 6
            if stopped:
                freeze(qemu.pid)
            dropped = -port.stats()["tx_no_backend"]
            pmd.kill()
            while interposer.stats()["backend_losses"] < kill:
                time.sleep(0.001)
            taken = used(port, ledger.sent)
            if stopped:
                os.kill(qemu.pid, signal.SIGCONT)
            wait_for_link(port, up=False)
            resumed = used(port, ledger.sent)
            ledger.send(64)
            pmd = Testpmd([path], **options)
            wait_for_link(port, up=True)
            dropped += port.stats()["tx_no_backend"]
            if stopped:
                assert resumed - taken == dropped
            ends.append((resumed - dropped, resumed))
            ledger.settle()
        ledger.traffic(1000)
        ledger.settle()
        port.reclaim()
        stats = port.stats()
        kept = balance(ledger, ends, stats)
        assert bool(kept) >= keeps, "the backend kept nothing that could be lost with it"
        port.close()
    finally:
        pmd.kill()
    assert qemu.memory.buffers_free == qemu.memory.buffers


def balance(ledger: Ledger, ends: list[tuple[int, int]], stats: dict[str, Any]) -> int:
    """Compare the sequence numbers, the ring and the counters.

    Return how many frames backends had taken and not sent back.
    """
    got = ledger.got
    assert got == sorted(set(got)), "a frame came twice, or late"
    lost: set[int] = set()
    with_backend = without = 0
    for taken, resumed in ends:
        behind = max((number for number in got if number < taken), default=-1) + 1
        lost |= set(range(behind, resumed))
        with_backend += taken - behind
        without += resumed - taken
    # A backend that dies while it marks frames as used may leave one of them out.
    holes = set(range(ledger.sent)) - set(got) - lost
    print(f"{ledger.sent} sent, {len(got)} back, {with_backend} + {without}, {ends}, {holes}")
    assert len(holes) == stats["rx_bad_length"]
    assert lost.isdisjoint(got)
    assert without == stats["tx_no_backend"]
    assert stats["tx_packets"] == ledger.sent == stats["tx_completed"]
    assert stats["tx_lost"] == 0
    assert stats["rx_packets"] == len(got)
    assert (
        stats["tx_packets"]
        == stats["rx_packets"] + stats["rx_bad_length"] + with_backend + stats["tx_no_backend"]
    )
    return with_backend


def wait_for_link(port: virtnic.Port, *, up: bool) -> None:
    deadline = time.monotonic() + 10.0
    while port.link != up:
        assert time.monotonic() < deadline
        time.sleep(0.001)


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
                burst = port.recv(8, timeout=20.0)
                assert burst
                got += len(burst)
                burst.release()
        freeze(pmd.pid)
        assert port.send([numbered(port.mac, 10_000 + i) for i in range(64)]) == 64
        events = qemu.events()
        pmd.kill()
    assert {event.kind for event in (events.wait(20.0), events.wait(20.0)) if event} == {
        "backend-lost",
        "link-down",
    }
    with Testpmd([path], extra=LOOP):
        deadline = time.monotonic() + 10.0
        while not port.link:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        assert port.send([numbered(port.mac, 20_000 + i) for i in range(64)]) == 64
        numbers: list[int] = []

        def last_came() -> bool:
            numbers.extend(number for frame in drain(port) if (number := number_of(frame)))
            return 20_063 in numbers

        assert eventually(last_came)
        assert len(set(numbers)) == len(numbers)
        assert [number for number in numbers if number >= 20_000] == list(range(20_000, 20_064))
        port.reclaim()
        stats = port.stats()
        assert stats["tx_completed"] == stats["tx_packets"] == before + 128
        port.close()
    assert qemu.memory.buffers_free == qemu.memory.buffers


@pytest.mark.parametrize("ring", ["packed", "split"])
def test_what_is_sent_while_the_link_is_down(qemu: virtnic.Qemu, scratch: Path, ring: str) -> None:
    """The backend stops and starts; it received what was completed and not dropped."""
    path = scratch / "vhu0"
    with Testpmd([path], mode="rxonly", extra=LOOP) as pmd:
        port = qemu.attach(f"vhost-user,path={path}", ring=ring)  # type: ignore[arg-type]
        sent = 0

        def send(count: int) -> None:
            nonlocal sent
            for _ in range(count):
                sent += port.send([numbered(port.mac, sent + i) for i in range(16)])

        for times in range(12):
            send(60 + 7 * times)
            pmd.drain()
            freeze(pmd.pid)
            send(6)
            # QEMU waits for the backend to stop its rings.
            threading.Timer(0.1, os.kill, (pmd.pid, signal.SIGCONT)).start()
            qemu.execute("set_link", name=attachment_of(port).handle.id, up=False)
            send(6)
            qemu.execute("set_link", name=attachment_of(port).handle.id, up=True)
            wait_for_link(port, up=True)
        deadline = time.monotonic() + 10.0
        while (stats := port.stats())["tx_completed"] < sent:
            assert time.monotonic() < deadline, stats
            port.reclaim()
            time.sleep(0.01)
        assert stats["tx_packets"] == sent == stats["tx_completed"]
        assert pmd.stats()["RX-packets"] == sent - stats["tx_no_backend"]
        # A packed ring is hidden from QEMU, which would spoil it: nothing is dropped.
        assert ring == "split" or stats["tx_no_backend"] == 0
        port.close()
    assert qemu.memory.buffers_free == qemu.memory.buffers
