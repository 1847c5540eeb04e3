"""QEMU dies: ports are restored and go on.

The peers are slirp, the Linux kernel behind a TAP device, and DPDK's testpmd.
"""

import asyncio
import functools
import os
import select
import signal
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

import virtnic
from peers.netns import Netns
from peers.testpmd import Testpmd
from support.frames import arp_request, is_arp_reply, number_of, numbered
from support.inside import machine_of
from support.traffic import arp_works, drain
from support.waiting import PROMPT, pause
from virtnic.qemu.command import Accel

pytestmark = pytest.mark.needs("qemu")


def wait_until(condition: Callable[[], object], seconds: float = 20.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not come to that"
        time.sleep(0.005)


def completed_more(port: virtnic.Port, than: int) -> bool:
    return port.stats()["tx_completed"] > than


# QEMU dies.

#: No pause before the first attempts: the tests kill again and again.
EAGER = virtnic.Recovery(attempts=20, backoff=0.01, backoff_max=0.02)


def kill(port: virtnic.Port) -> int:
    """Kill QEMU like a crash; return the process that was killed."""
    pid = port.qemu.pid
    os.kill(pid, signal.SIGKILL)
    return pid


def wait_for_another(port: virtnic.Port, pid: int, times: int) -> None:
    """Wait until another QEMU has replaced it and has the port."""
    wait_until(lambda: port.restarts == times and port.qemu.pid != pid)


@pytest.mark.parametrize("interrupts", ["msix", "intx", "none"])
def test_killed(qemu_command: str, accel: Accel, interrupts: Any) -> None:
    """Twenty times in a row; a thread that waits for frames is not disturbed."""
    got: list[bytes] = []
    stop = threading.Event()

    def receive(port: virtnic.Port) -> None:
        while not stop.is_set():
            got.extend(port.recv(64, timeout=0.5).tobytes())

    options = {"accel": accel, "interrupts": interrupts, "recover": EAGER}
    with virtnic.open("user", **options) as port:
        memory, mac = port.memory, port.mac
        fd = port.fileno() if interrupts != "none" else None
        assert arp_works(port)
        with ThreadPoolExecutor(1) as executor:
            receiving = executor.submit(receive, port)
            for times in range(1, 21):
                before = len(got)
                pid = kill(port)
                deadline = time.monotonic() + 30.0
                while len(got) == before or port.restarts < times:
                    assert time.monotonic() < deadline, f"nothing after {times} kills"
                    port.send([arp_request(port.mac)])
                    time.sleep(0.005)
                assert port.qemu.pid != pid
            stop.set()
            receiving.result(10.0)
        port.reclaim()
        stats = port.stats()
        assert stats["rx_packets"] >= len(got) >= 20
        wait_until(lambda: balanced(port))
        assert (port.mac, port.link) == (mac, True)
        assert fd is None or port.fileno() == fd
        assert port.qemu.recovery is not None
        assert port.qemu.recovery.outage < PROMPT
    assert memory.buffers_free == memory.buffers


def test_a_callback_that_asks_the_device_does_not_hold_up_its_return(
    qemu_command: str, accel: Accel
) -> None:
    """It runs in the thread that brings the device back, and is refused."""
    answers: list[str] = []

    def ask(port: virtnic.Port) -> None:
        try:
            port.set_promiscuous()
        except virtnic.PortBusy as busy:
            answers.append(str(busy))
        else:
            answers.append("done")

    with virtnic.open("user", accel=accel, recover=EAGER, on_link=ask) as port:
        wait_for_another(port, kill(port), 1)
        wait_until(lambda: "done" in answers)  # when the link is up again
    assert "the device is away, and this thread restores it" in answers[0]


def balanced(port: virtnic.Port) -> bool:
    """Whether every frame that was queued was finished or lost."""
    port.reclaim()
    stats = port.stats()
    return stats["tx_packets"] == stats["tx_completed"] + stats["tx_lost"]


@pytest.mark.needs("netns")
def test_killed_under_load(netns: Netns) -> None:
    """Sequence numbers on a TAP: nothing twice, nothing out of order, and the counters agree."""
    sent = 0
    with virtnic.open(netns.netdev, recover=EAGER) as port:
        raw = netns.packet_socket(timeout=0.2)
        seen: list[int] = []
        stop = threading.Event()

        def listen() -> None:
            while True:
                try:
                    number = number_of(raw.recv(2048))
                except TimeoutError:
                    if stop.is_set():
                        return
                else:
                    if number is not None:
                        seen.append(number)

        with raw, ThreadPoolExecutor(1) as executor:
            listening = executor.submit(listen)
            for times in range(1, 21):
                pid = 0
                until = time.monotonic() + 0.15
                while time.monotonic() < until or port.restarts < times:
                    frames = [numbered(port.mac, sent + i) for i in range(16)]
                    sent += port.send(frames)
                    if not pid and time.monotonic() > until - 0.1:
                        pid = kill(port)
                    time.sleep(0.001)
                assert port.qemu.pid != pid
            wait_until(lambda: balanced(port))
            stop.set()
            listening.result(10.0)
        stats = port.stats()
        assert stats["tx_packets"] == sent == stats["tx_completed"] + stats["tx_lost"]
        assert seen == sorted(set(seen)), "a frame came twice, or late"
        # QEMU may have died between writing a frame and saying so; no other is in doubt. What
        # a TAP got that nobody had open for a moment, the kernel dropped.
        missing = sent - len(seen)
        assert missing <= stats["tx_lost"] + int(netns.statistics()["rx_dropped"]), stats
        memory = port.memory
    assert memory.buffers_free == memory.buffers


@pytest.mark.needs("netns")
def test_what_the_device_was_told_is_told_again(netns: Netns) -> None:
    with virtnic.open(netns.netdev, recover=EAGER) as port:
        mac = "52:54:00:00:00:99"
        group, other = "01:00:5e:00:00:11", "01:00:5e:00:00:22"
        port.set_mac(mac)
        port.set_promiscuous(False)
        port.set_mac_filter(multicast=[group])
        port.add_vlan(7)
        port.add_vlan(8)
        port.remove_vlan(8)
        for times in range(1, 4):
            if times < 3:
                wait_for_another(port, kill(port), times)
            else:
                port.restart()
            assert port.mac == mac
            rules = port.qemu.execute("query-rx-filter")[0]
            assert rules["main-mac"] == mac
            assert not rules["promiscuous"]
            assert rules["multicast-table"] == [group]
            assert rules["vlan-table"] == [7]
        with netns.packet_socket() as raw:
            for number, address in enumerate((other, group, "52:54:00:00:00:98", mac)):
                raw.send(numbered(netns.mac, number, destination=address))
            frames = drain(port, 0.5, least=2)
        assert [n for n in map(number_of, frames) if n is not None] == [1, 3]


def test_commands_wait_and_bursts_stay(qemu_command: str) -> None:
    """Requests during the outage are carried out after it; views and bursts remain valid."""
    changes: list[bool] = []
    deaths: list[virtnic.QemuDied] = []
    with virtnic.open(
        "user", recover=EAGER, on_link=lambda port: changes.append(port.link)
    ) as port:
        machine_of(port.qemu).on_death(deaths.append)
        port.send([arp_request(port.mac)])
        burst = port.recv(1, timeout=20.0)
        copy = burst.tobytes()
        view = burst[0]
        for times in (1, 2):
            pid = kill(port)
            wait_until(lambda: port.away)
            assert port.recv(64) is not None
            assert not port.recv(64, timeout=0.01)
            port.set_promiscuous(False)
            assert port.restarts == times
            wait_for_another(port, pid, times)
            assert not port.qemu.execute("query-rx-filter")[0]["promiscuous"]
            port.set_promiscuous()
        assert burst.tobytes() == copy == [bytes(view)]
        assert port.send(burst) == 1
        view.release()
        wait_until(lambda: len(changes) == 4)
        assert changes == [False, True, False, True]
        assert len(deaths) == 2
        memory = port.memory
    assert memory.buffers_free == memory.buffers


def test_a_loop_goes_on(qemu_command: str) -> None:
    """``reflect``, ``generate`` and the others run without the interpreter, and survive."""
    with virtnic.Qemu(recover=EAGER) as qemu:
        port = qemu.attach("user")
        load = [numbered(port.mac, 0)]
        with ThreadPoolExecutor(1) as executor:
            done = threading.Event()
            loop = executor.submit(
                virtnic.exchange,
                port,
                frames=load,
                rate=20_000,
                seconds=100.0,
                progress=lambda _: not done.is_set(),
            )
            try:
                for times in (1, 2, 3):
                    before = port.stats()["tx_completed"]
                    wait_until(functools.partial(completed_more, port, before))
                    wait_for_another(port, kill(port), times)
                before = port.stats()["tx_completed"]
                wait_until(functools.partial(completed_more, port, before))
                assert not loop.done()
            finally:
                done.set()
            result = loop.result(20.0)
        assert result.sent == port.stats()["tx_packets"]
        wait_until(lambda: balanced(port))
        assert arp_works(port)
        assert virtnic.drop(port, seconds=0.1).packets >= 0
        qemu.detach(port)
        assert qemu.memory.buffers_free == qemu.memory.buffers


def test_other_ports_are_not_disturbed(qemu_command: str, memory: virtnic.Memory) -> None:
    with (
        virtnic.Qemu(memory, recover=EAGER) as dying,
        virtnic.Qemu(memory) as other,
        other.attach("user") as bystander,
        dying.attach("user") as a,
        dying.attach("user") as b,
    ):
        wait = kill(a)
        for _ in range(20):
            assert arp_works(bystander)
        wait_for_another(a, wait, 1)
        wait_for_another(b, wait, 1)
        assert arp_works(a)
        assert arp_works(b)
        assert bystander.restarts == 0


def test_asyncio_goes_on(qemu_command: str) -> None:
    async def run() -> None:
        async with virtnic.aio.open("user", recover=EAGER) as port:
            for times in range(1, 6):
                receiving = asyncio.create_task(port.recv())
                await asyncio.sleep(0)
                pid = kill(port.port)
                while port.port.restarts < times or port.port.qemu.pid == pid:
                    await asyncio.sleep(0.005)
                await port.send_all([arp_request(port.mac)])
                burst = await asyncio.wait_for(receiving, 5.0)
                assert any(is_arp_reply(frame) for frame in burst)

    asyncio.run(run())


def test_it_gives_up(qemu_command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After the last attempt calls raise an error that says how QEMU died."""
    switch = tmp_path / "broken"
    wrapper = tmp_path / "qemu"
    wrapper.write_text(f'#!/bin/sh\n[ ! -e {switch} ] || exit 3\nexec {qemu_command} "$@"\n')
    wrapper.chmod(0o755)
    policy = virtnic.Recovery(attempts=3, backoff=0.01, backoff_max=0.02)
    with virtnic.open("user", qemu=str(wrapper), recover=policy) as port:
        assert arp_works(port)
        switch.touch()
        with ThreadPoolExecutor(1) as executor:
            waiting = executor.submit(port.recv, 64, None)
            kill(port)
            with pytest.raises(virtnic.QemuDied, match="exit status 3"):
                waiting.result(10.0)
        with pytest.raises(virtnic.QemuDied):
            port.send([bytes(60)])
        with pytest.raises(virtnic.QemuDied):
            port.set_promiscuous()
        memory = port.memory
    assert memory.buffers_free == memory.buffers


@pytest.mark.parametrize("recover", [False, True])
def test_nothing_wakes_the_reader_of_a_fresh_port(qemu_command: str, recover: bool) -> None:
    """A signal that stands for nothing would be taken for the end of QEMU, or for frames."""
    with virtnic.open("user,ipv6=off", recover=recover) as port:
        assert select.select([port.fileno()], [], [], 0.2)[0] == []


def test_closed_in_the_outage(qemu_command: str) -> None:
    for delay in (0.0, 0.005, 0.02, 0.04, 0.06):
        port = virtnic.open("user", recover=True)
        memory = port.memory
        kill(port)
        pause(delay)
        port.close()
        assert port.closed
        with pytest.raises(virtnic.PortClosed):
            port.recv()
        assert memory.buffers_free == memory.buffers


def test_without_recovery_it_is_an_error(port: virtnic.Port) -> None:
    kill(port)
    with pytest.raises(virtnic.QemuDied, match="SIGKILL"):
        port.recv(64, timeout=20.0)


@pytest.mark.parametrize("arguments", [{"attempts": 0}, {"backoff": 0.0}, {"backoff": 3.0}])
def test_bad_policies(arguments: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"attempt|backoff"):
        virtnic.Recovery(**arguments)


# vhost-user: the backend stays when QEMU dies.


@pytest.mark.needs("testpmd")
@pytest.mark.parametrize("ring", ["packed", "split"])
def test_killed_with_a_backend(
    qemu_command: str, testpmd: Callable[..., Testpmd], ring: Any
) -> None:
    """The backend counts what it received: exactly what was not lost."""
    pmd = testpmd(mode="rxonly")
    with virtnic.open(f"vhost-user,path={pmd.sockets[0]}", ring=ring, recover=EAGER) as port:
        assert port.ring == ring
        sent = 0
        for times in range(1, 21):
            pid = 0
            until = time.monotonic() + 0.05
            while time.monotonic() < until or port.restarts < times:
                sent += port.send([numbered(port.mac, sent + i) for i in range(64)])
                if not pid and time.monotonic() > until - 0.02:
                    pid = kill(port)
            wait_for_another(port, pid, times)
            wait_until(lambda: balanced(port))
            stats = port.stats()
            # Asking it also keeps its output from filling its pipe.
            assert pmd.stats()["RX-packets"] == stats["tx_completed"]
        stats = port.stats()
        assert stats["tx_packets"] == sent
        assert pmd.stats()["RX-packets"] == sent - stats["tx_lost"] == stats["tx_completed"]
        memory = port.memory
    assert memory.buffers_free == memory.buffers
