"""``virtnic.testing.ScriptedPort`` and sabotage of real ports."""

import select
import threading
import time
from collections.abc import Callable, Generator

import pytest

import virtnic
from peers.testpmd import Testpmd
from support.frames import arp_request, is_arp_reply, numbered
from support.traffic import drain
from support.waiting import PROMPT, pause
from virtnic import PacketPort
from virtnic.testing import (
    Deliver,
    Die,
    Expect,
    Lie,
    Link,
    Pause,
    Refuse,
    ScriptedPort,
    Step,
    Unplug,
    kill_qemu,
    lie,
    set_link,
)

MAC = "52:54:00:00:00:01"
A, B, C = (numbered(MAC, number) for number in range(3))


def test_delivered_frames_are_received() -> None:
    with ScriptedPort([Deliver(A, B), Deliver(C)]) as port:
        port.finish()
        assert port.recv(2).tobytes() == [A, B]
        assert port.recv(2).tobytes() == [C]
        assert len(port.recv(2)) == 0
        assert port.stats()["rx_packets"] == 3
        assert port.stats()["rx_bytes"] == 180


def test_a_script_answers() -> None:
    def script() -> Generator[Step, list[bytes], None]:
        (request,) = yield Expect(1, where=lambda frame: frame[12:14] == b"\x08\x06")
        assert request == arp_request(MAC)
        yield Deliver(request[::-1])

    with ScriptedPort(script(), mac=MAC) as port:
        port.send([A, arp_request(MAC), B])
        assert port.recv(timeout=20.0).tobytes() == [arp_request(MAC)[::-1]]
        port.finish()


def test_recv_waits_and_select_too() -> None:
    with ScriptedPort([Pause(0.2), Deliver(A), Expect(1), Pause(0.1), Deliver(B)]) as port:
        assert select.select([port], [], [], 0)[0] == []
        began, used = time.monotonic(), time.thread_time()
        assert len(port.recv(timeout=0.05)) == 0
        assert port.recv(timeout=None).tobytes() == [A]
        assert 0.15 < time.monotonic() - began < PROMPT
        assert time.thread_time() - used < 0.05
        port.send([C])
        assert select.select([port], [], [], 20.0)[0] == [port]
        assert port.recv().tobytes() == [B]


@pytest.mark.parametrize(
    ("step", "error", "words"),
    [
        (Lie("used id 7 is out of range"), virtnic.DeviceError, "used id 7 .* open a new one"),
        (Die(), virtnic.QemuDied, "SIGKILL"),
        (Unplug(), virtnic.PortClosed, "closed"),
    ],
)
def test_an_end_comes_after_what_was_delivered(
    step: Step, error: type[Exception], words: str
) -> None:
    with ScriptedPort([Deliver(A), step]) as port:
        assert port.send([B]) == 1
        assert port.recv(timeout=20.0).tobytes() == [A]
        for _ in range(2):
            with pytest.raises(error, match=words):
                port.recv(timeout=20.0)
        assert select.select([port], [], [], 0)[0] == [port]
        with pytest.raises(error, match=words):
            port.send([C])
        port.finish()


def test_the_link_goes_down_and_up() -> None:
    links: list[bool] = []
    with ScriptedPort([Expect(1), Link(up=False), Link(up=True)]) as port:
        port.on_link(lambda port: links.append(port.link))
        assert port.link
        port.send([A])
        port.finish()
        assert links == [False, True]


def test_a_full_ring_refuses() -> None:
    with ScriptedPort([Refuse(2), Pause(60.0)], room=3) as port:
        pause(0.05)
        assert [port.send([A]) for _ in range(2)] == [0, 0]
        assert port.send([A, B, C, A, B]) == 3
        assert port.send([A]) == 0
        assert port.stats()["tx_ring_full"] == 5


def test_a_program_that_does_not_do_its_part() -> None:
    with ScriptedPort([Expect(2)]) as port:
        port.send([A])
        with pytest.raises(AssertionError, match=r"still at Expect\(count=2"):
            port.finish(0.2)


def test_what_a_script_raises_is_raised() -> None:
    def script() -> Generator[Step, list[bytes], None]:
        (frame,) = yield Expect(1)
        assert frame == B, "the wrong frame"

    with ScriptedPort(script()) as port:
        port.send([A])
        with pytest.raises(AssertionError, match="the wrong frame"):
            port.finish()
    port = ScriptedPort(["no step"])  # type: ignore[list-item]
    with port, pytest.raises(TypeError, match="'no step' is not a step"):
        port.finish()


def test_close_wakes_who_waits() -> None:
    failures: list[type[BaseException]] = []

    def wait() -> None:
        try:
            port.recv(timeout=None)
        except virtnic.PortClosed as error:
            failures.append(type(error))

    with ScriptedPort([Expect(5)]) as port:
        waiting = threading.Thread(target=wait)
        waiting.start()
        pause(0.1)
    waiting.join(20.0)
    assert failures == [virtnic.PortClosed]
    assert port.closed
    port.close()


def test_sending_all_waits_for_the_script() -> None:
    def script() -> Generator[Step, list[bytes], None]:
        yield Refuse(3)
        assert (yield Expect(100)) == [A] * 100

    with ScriptedPort(script(), room=8) as port:
        assert port.send_all([A] * 100, timeout=5.0) == 100
        port.finish()
    with ScriptedPort([Pause(60)], room=8) as port:
        assert port.send_all([A] * 100, timeout=0.05) == 8
        assert port.wait_writable(0.01) is False
        with pytest.raises(ValueError, match="has no offloads"):
            port.send([A], virtnic.Offload())  # type: ignore[arg-type]


def test_it_refuses_what_a_port_refuses(port: virtnic.Port) -> None:
    with ScriptedPort([]) as scripted:
        both: list[PacketPort] = [scripted, port]
        for each in both:
            for wrong in (b"", b"x" * 70_000):
                with pytest.raises(ValueError, match=r"^frame 1.* the 1 frames before it were"):
                    each.send([A, wrong, B])
            with pytest.raises(TypeError, match=r"^frame 1.* the 1 frames before it were"):
                each.send([A, 3])  # type: ignore[list-item]
            assert each.stats()["tx_packets"] == 3


# The same, done to real devices.


def test_set_link(port: virtnic.Port) -> None:
    changed = threading.Event()
    port.on_link(lambda _: changed.set())
    for up in (False, True):
        set_link(port, up)
        assert changed.wait(20.0)
        changed.clear()
        assert port.link is up


def test_kill_qemu(port: virtnic.Port) -> None:
    kill_qemu(port.qemu)
    with pytest.raises(virtnic.QemuDied, match="SIGKILL"):
        port.recv(timeout=20.0)


@pytest.mark.parametrize(
    ("about", "words"),
    [("id", "out of range"), ("length", "takes only"), ("twice", "not a buffer that is with")],
)
def test_lie(port: virtnic.Port, about: str, words: str) -> None:
    for _ in range(3):
        port.send([arp_request(port.mac)])
        assert is_arp_reply(port.recv(timeout=20.0)[0])
    lie(port, about)  # type: ignore[arg-type]
    with pytest.raises(virtnic.DeviceError, match=words):
        drain(port)


@pytest.mark.needs("testpmd")
def test_lie_in_a_packed_ring(qemu: virtnic.Qemu, testpmd: Callable[..., Testpmd]) -> None:
    with qemu.attach(f"vhost-user,path={testpmd().sockets[0]}", ring="packed") as port:
        lie(port, "id")
        with pytest.raises(virtnic.DeviceError, match="out of range"):
            port.recv(1)


def test_a_lie_about_nothing(port: virtnic.Port) -> None:
    with pytest.raises(ValueError, match="'id', 'length' or 'twice', not 'age'"):
        lie(port, "age")  # type: ignore[arg-type]
