"""A port on slirp, QEMU's user-mode network."""

import gc
import select
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

import virtnic
from support.frames import arp_request, is_arp_reply
from support.inside import machine_of
from support.waiting import PROMPT, eventually
from virtnic import net
from virtnic.nic.options import Interrupts
from virtnic.qemu.command import Accel, MachineType


def exchange(port: virtnic.Port, timeout: float = 5.0) -> list[bytes]:
    """Ask for the gateway, and return what came back."""
    assert port.send([arp_request(port.mac)]) == 1
    return port.recv(64, timeout=timeout).tobytes()


def exchange_asleep(port: virtnic.Port) -> list[bytes]:
    """The same when the receiver sleeps, until an interrupt wakes it."""
    slept = port.stats()["rx_sleeps"]
    with ThreadPoolExecutor(1) as executor:
        receiving = executor.submit(port.recv, 64, 30.0)
        assert eventually(lambda: port.stats()["rx_sleeps"] > slept)
        assert port.send([arp_request(port.mac)]) == 1
        return receiving.result().tobytes()


def test_open_says_what_the_device_is(port: virtnic.Port) -> None:
    assert port.mac.startswith("52:54:00:")
    assert port.mtu == 1500
    assert port.link is True
    assert port.ring == "split"
    assert not port.closed


@pytest.mark.parametrize("interrupts", ["msix", "intx", "none"])
@pytest.mark.parametrize("machine", ["pc", "q35"])
def test_arp_round_trip(
    qemu_command: str, accel: Accel, machine: MachineType, interrupts: Interrupts
) -> None:
    with virtnic.open("user", machine=machine, interrupts=interrupts, accel=accel) as port:
        for turn in range(20):
            # On a busy machine each other reply may be there before anybody waits for it.
            asleep = turn == 10 and interrupts != "none"
            replies = exchange_asleep(port) if asleep else exchange(port)
            assert [is_arp_reply(frame) for frame in replies] == [True]
        stats = port.stats()
    assert stats["tx_packets"] == stats["rx_packets"] == 20
    assert (stats["rx_interrupts"] > 0) == (interrupts != "none")


def test_dhcp_arp_and_ping(port: virtnic.Port) -> None:
    with net.Stack(port) as stack:
        lease = stack.dhcp(timeout=10)
        assert (lease.address, lease.prefix) == ("10.0.2.15", 24)
        assert stack.address == "10.0.2.15/24"
        assert lease.gateway == "10.0.2.2"
        reply = stack.arp("10.0.2.2", timeout=20.0)
        assert reply.mac.startswith("52:55:")
        assert 0 < reply.seconds < PROMPT
        for sequence in range(20):
            assert stack.ping("10.0.2.2", sequence, timeout=20.0).sequence == sequence


def test_two_frames_in_one_call(port: virtnic.Port) -> None:
    frame = arp_request(port.mac)
    assert port.send([frame, bytearray(frame)]) == 2
    got: list[bytes] = []
    while len(got) < 2:
        burst = port.recv(64, timeout=20.0)
        assert burst
        got += burst.tobytes()
    assert all(map(is_arp_reply, got))


def test_recv_returns_an_empty_burst_after_its_timeout(port: virtnic.Port) -> None:
    before = time.monotonic()
    assert len(port.recv(64, timeout=0.2)) == 0
    assert time.monotonic() - before >= 0.2
    assert len(port.recv(64)) == 0


def test_fileno_wakes_select_and_is_quiet_when_empty(port: virtnic.Port) -> None:
    fd = port.fileno()
    assert select.select([fd], [], [], 0.05)[0] == []
    for _ in range(50):
        port.send([arp_request(port.mac)])
        assert select.select([fd], [], [], 20.0)[0] == [fd]
        assert len(port.recv(64)) == 1
        assert len(port.recv(64)) == 0
        assert select.select([fd], [], [], 0)[0] == []


def test_fileno_stays_readable_while_frames_are_left(port: virtnic.Port) -> None:
    fd = port.fileno()
    port.send([arp_request(port.mac)] * 8)
    seen = 0
    while seen < 8:
        assert select.select([fd], [], [], 20.0)[0] == [fd]
        seen += len(port.recv(1))


def test_views_keep_their_buffer_out_of_the_ring(port: virtnic.Port) -> None:
    """More frames than the ring has buffers arrive while one view is held."""
    memory = port.memory
    exchange(port)
    port.send([arp_request(port.mac)])
    burst = port.recv(64, timeout=20.0)
    view, number = burst[0], burst.ids[0]
    expected = bytes(view)
    view[:4] = b"MINE"
    del burst
    gc.collect()
    for _ in range(3 * port.queue_size):
        port.send([arp_request(port.mac)])
        replies = port.recv(64, timeout=20.0)
        assert number not in list(replies.ids)
    assert bytes(view) == b"MINE" + expected[4:]
    replies.release()
    free = memory.buffers_free
    view.release()
    del view
    assert memory.buffers_free == free + 1


def test_a_burst_can_be_kept_edited_and_sent(port: virtnic.Port) -> None:
    port.send([arp_request(port.mac)])
    burst = port.recv(64, timeout=20.0)
    assert len(burst) == 1
    assert list(burst.lengths) == [len(burst[0])]
    assert [bytes(frame) for frame in burst] == burst.tobytes() == [bytes(burst[-1])]
    assert [bytes(frame) for frame in burst[:]] == burst.tobytes()
    with pytest.raises(IndexError):
        burst[1]
    frame = burst[0]
    request = arp_request(port.mac)
    frame[: len(request)] = request
    # A view is alive: the frame is copied, and the view stays as it is.
    assert port.send(burst) == 1
    assert len(burst) == 0
    assert port.send(burst) == 0
    assert port.stats()["tx_copied"] == 1
    assert bytes(frame[: len(request)]) == request
    assert is_arp_reply(port.recv(64, timeout=20.0)[0])


def test_a_moved_burst_is_not_copied(port: virtnic.Port) -> None:
    port.send([arp_request(port.mac)])
    burst = port.recv(64, timeout=20.0)
    request = arp_request(port.mac)
    burst[0][: len(request)] = request
    gc.collect()
    assert port.send(burst) == 1
    assert port.stats()["tx_copied"] == 0
    assert is_arp_reply(port.recv(64, timeout=20.0)[0])


def test_bursts_outlive_their_port(qemu_command: str) -> None:
    with virtnic.open("user") as port:
        port.send([arp_request(port.mac)])
        burst = port.recv(64, timeout=20.0)
    assert is_arp_reply(burst[0])
    memory = port.memory
    held = memory.buffers - memory.buffers_free
    assert held == 1
    burst.release()
    assert memory.buffers_free == memory.buffers
    with pytest.raises(virtnic.PortClosed):
        port.send([b"\0" * 60])
    with pytest.raises(virtnic.PortClosed):
        port.recv(1, timeout=1.0)


def test_close_wakes_a_waiting_receiver(qemu_command: str) -> None:
    failures: list[BaseException] = []

    def receive() -> None:
        try:
            port.recv(64, timeout=None)
        except virtnic.PortClosed as closed:
            failures.append(closed)

    with virtnic.open("user") as port:
        thread = threading.Thread(target=receive)
        thread.start()
        assert eventually(lambda: port.stats()["rx_sleeps"])
        before = time.monotonic()
    thread.join(20.0)
    assert not thread.is_alive()
    assert len(failures) == 1
    assert time.monotonic() - before < PROMPT


def test_link_changes_are_reported(port: virtnic.Port) -> None:
    seen: list[bool] = []
    changed = threading.Event()

    def on_link(port: virtnic.Port) -> None:
        seen.append(port.link)
        changed.set()

    port.on_link(on_link)
    nic = machine_of(port.qemu).nics[0].id
    for up in (False, True):
        changed.clear()
        port.qemu.execute("set_link", name=nic, up=up)
        assert changed.wait(20.0)
        assert seen[-1] is up
    assert seen == [False, True]


def test_link_without_interrupts_is_asked_for(qemu_command: str) -> None:
    with virtnic.open("user", interrupts="none") as port:
        nic = machine_of(port.qemu).nics[0].id
        port.qemu.execute("set_link", name=nic, up=False)
        assert [port.link, port.link] == [False, False]
        port.qemu.execute("set_link", name=nic, up=True)
        assert [port.link, port.link] == [True, True]
        with pytest.raises(ValueError, match="without interrupts"):
            port.on_link(print)
        with pytest.raises(ValueError, match="without interrupts"):
            port.fileno()


def test_several_threads_use_one_port(port: virtnic.Port) -> None:
    """Senders and receivers at once: every reply is received once."""
    sent, got = [], []
    stop = threading.Event()

    def send() -> None:
        for _ in range(200):
            while port.send([arp_request(port.mac)]) == 0:
                time.sleep(0.001)
            sent.append(1)

    def receive() -> None:
        while not stop.is_set():
            got.extend(port.recv(16, timeout=0.05).tobytes())

    threads = [threading.Thread(target=send) for _ in range(2)]
    threads += [threading.Thread(target=receive) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads[:2]:
        thread.join()
    deadline = time.monotonic() + 10.0
    while len(got) < len(sent) and time.monotonic() < deadline:
        time.sleep(0.01)
    stop.set()
    for thread in threads[2:]:
        thread.join()
    assert len(sent) == 400
    assert len(got) == 400
    assert all(map(is_arp_reply, got))


@pytest.mark.parametrize("options", [{"iova": 1 << 37}, {"hugepages": None}, {"shmem": "plain"}])
def test_memory_options(qemu_command: str, options: dict[str, Any]) -> None:
    with virtnic.open("user", **options) as port:
        assert exchange(port)
        if "iova" in options:
            assert port.memory.iova == options["iova"]


def test_chosen_mac_and_queue_size(qemu_command: str) -> None:
    with virtnic.open("user", mac="52:54:00:aa:bb:cc", queue_size=64) as port:
        assert port.mac == "52:54:00:aa:bb:cc"
        assert port.queue_size == 64
        for _ in range(200):
            assert exchange(port)


def test_features_are_negotiated_by_name(qemu_command: str) -> None:
    with virtnic.open("user", features={"EVENT_IDX": False, "INDIRECT_DESC": False}) as port:
        by_name = {f.name: (f.offered, f.accepted, f.why) for f in port.features}
        assert by_name["EVENT_IDX"] == (True, False, "refused by argument")
        assert by_name["VERSION_1"][:2] == (True, True)
        assert by_name["MRG_RXBUF"][0] is True
        assert exchange(port)
