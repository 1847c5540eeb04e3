"""QMP with a QEMU that breaks the protocol, at each of its messages.

Whatever it says or leaves unsaid, the answer is an exception of ours, in the time that the
caller gave and in bounded memory, and the monitor can be closed.
"""

from __future__ import annotations

import array
import contextlib
import json
import logging
import os
import resource
import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import pytest

from support.waiting import PROMPT
from virtnic.errors import QemuDied, QemuError
from virtnic.qemu.monitor import Monitor

if TYPE_CHECKING:
    from pathlib import Path

TIMEOUT = 0.5
#: Seconds in which everything is over: the timeout, and time for a busy machine.
BOUND = TIMEOUT + 4.0
#: What a peer that never ends may make us hold: some times qemu.qmp's limit of 10 MB a line.
MEMORY = 96 << 20

GREETING = {
    "QMP": {
        "version": {"qemu": {"major": 7, "minor": 2, "micro": 1}, "package": ""},
        "capabilities": ["oob"],
    }
}

#: What is no name of an event.
NAMES: tuple[object, ...] = ({}, [], None, 5)

Break = Callable[["Peer"], None]


class Peer:
    """QEMU's end of one connection."""

    def __init__(self, connection: socket.socket, over: threading.Event) -> None:
        self.connection = connection
        self._over = over
        self._heard = ""
        #: The last message.
        self.request: dict[str, Any] = {}

    def say(self, message: object) -> None:
        self.raw(json.dumps(message).encode() + b"\r\n")

    def raw(self, data: bytes) -> None:
        self.connection.sendall(data)

    def hear(self) -> dict[str, Any]:
        """Take the next message; there is nothing between one and the next."""
        while True:
            with contextlib.suppress(json.JSONDecodeError):
                message, end = json.JSONDecoder().raw_decode(self._heard)
                self._heard = self._heard[end:].lstrip()
                self.request = dict(message)
                return self.request
            chunk = self.connection.recv(65536)
            if not chunk:
                raise ConnectionError
            self._heard += chunk.decode()

    def negotiate(self) -> None:
        """Be QEMU until commands come."""
        self.say(GREETING)
        self.hear()
        self.say({"return": {}})

    def hold(self) -> None:
        """Say nothing more until the test is over."""
        self._over.wait()

    def for_ever(self, data: bytes) -> None:
        while not self._over.is_set():
            self.raw(data)

    def close(self) -> None:
        self.connection.close()


@contextlib.contextmanager
def fake_qemu(path: Path, script: Break) -> Iterator[list[BaseException]]:
    """A QEMU that plays a script to one client."""
    over = threading.Event()
    failures: list[BaseException] = []
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(os.fspath(path))
        listener.listen()

        def serve() -> None:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            peer = Peer(connection, over)
            try:
                script(peer)
            except OSError:
                pass  # our side hung up, as it should
            except BaseException as error:
                failures.append(error)
            finally:
                peer.close()

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield failures
        finally:
            over.set()
            with contextlib.suppress(OSError):
                listener.shutdown(socket.SHUT_RDWR)
            thread.join()
            path.unlink()


@pytest.fixture(autouse=True)
def _bounded() -> Iterator[None]:
    """Check that a test is over in time and that memory did not grow."""
    began, before = time.monotonic(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    yield
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) << 10
    assert time.monotonic() - began < 4 * BOUND
    assert grown < MEMORY, f"{grown >> 20} MiB more than before"


def says(data: bytes, then: Break = Peer.hold) -> Break:
    def script(peer: Peer) -> None:
        peer.raw(data)
        then(peer)

    return script


def for_ever(data: bytes) -> Break:
    return lambda peer: peer.for_ever(data)


#: What can come in place of any message.
NOISE: dict[str, Break] = {
    "closes": Peer.close,
    "silence": Peer.hold,
    "half a message, then closes": says(b'{"ret', Peer.close),
    "half a message, then silence": says(b'{"ret'),
    "no JSON": says(b"HTTP/1.1 400 Bad Request\r\n\r\n"),
    "no object": says(b"[1, 2]\n"),
    "null": says(b"null\n"),
    "an empty object": says(b"{}\n"),
    "no text": says(b"\xff\xfe\x00\x80\n"),
    "deep": says(b"[" * 200_000 + b"\n"),
    "a number of many digits": says(b'{"return": ' + b"9" * 100_000 + b"}\n"),
    "a line without end": for_ever(b"x" * 65536),
    "a string without end": says(b'{"QMP": "', for_ever(b"y" * 65536)),
    "errors without end": for_ever(b'{"error": {"class": "GenericError", "desc": "no"}}\n' * 1000),
}

GREETINGS: dict[str, object] = {
    "no version": {"QMP": {"capabilities": []}},
    "no qemu": {"QMP": {"version": {}, "capabilities": []}},
    "version null": {"QMP": {"version": None, "capabilities": []}},
    "version list": {"QMP": {"version": {"qemu": [7, 2, 0]}, "capabilities": []}},
    "words": {
        "QMP": {
            "version": {"qemu": {"major": "7", "minor": "2", "micro": "0"}},
            "capabilities": [],
        }
    },
    "QMP null": {"QMP": None},
    "capabilities": {"QMP": {"version": GREETING["QMP"]["version"], "capabilities": 3}},
}

ANSWERS: dict[str, Callable[[str], object]] = {
    "another id": lambda _: {"return": {}, "id": "another"},
    "an id that is a list": lambda _: {"return": {}, "id": []},
    "no id": lambda _: {"return": {}},
    "an error without id": lambda _: {"error": {"class": "GenericError", "desc": "x"}},
    "an error that is a number": lambda own: {"error": 5, "id": own},
    "an error without words": lambda own: {"error": {}, "id": own},
    "neither result nor error": lambda own: {"id": own},
    "both": lambda own: {"return": 1, "error": {"class": "x", "desc": "y"}, "id": own},
}


def refused(path: Path) -> None:
    """The monitor is not made, and says why."""
    with pytest.raises((QemuError, TimeoutError)) as caught:
        Monitor(path, timeout=TIMEOUT).connect()
    assert os.fspath(path) in str(caught.value) or "QMP" in str(caught.value)


@pytest.mark.parametrize("noise", NOISE)
def test_in_place_of_the_greeting(scratch: Path, noise: str) -> None:
    with fake_qemu(scratch / "qmp", NOISE[noise]) as failures:
        refused(scratch / "qmp")
    assert failures == []


@pytest.mark.parametrize("greeting", GREETINGS)
def test_a_greeting_that_is_none(scratch: Path, greeting: str) -> None:
    def script(peer: Peer) -> None:
        peer.say(GREETINGS[greeting])
        with contextlib.suppress(ConnectionError):
            peer.hear()
            peer.say({"return": {}})
            peer.hold()

    with fake_qemu(scratch / "qmp", script) as failures:
        refused(scratch / "qmp")
    assert failures == []


@pytest.mark.parametrize("noise", NOISE)
def test_in_place_of_the_end_of_negotiation(scratch: Path, noise: str) -> None:
    def script(peer: Peer) -> None:
        peer.say(GREETING)
        peer.hear()
        NOISE[noise](peer)

    with fake_qemu(scratch / "qmp", script) as failures:
        refused(scratch / "qmp")
    assert failures == []


def commanded(path: Path, script: Break) -> None:
    """A command fails in time, the next too or not, and closing is quick."""

    def whole(peer: Peer) -> None:
        peer.negotiate()
        peer.hear()
        script(peer)

    with fake_qemu(path, whole) as failures:
        monitor = Monitor(path, timeout=TIMEOUT).connect()
        try:
            for _ in range(2):
                began = time.monotonic()
                with pytest.raises((QemuError, TimeoutError)):
                    monitor.execute("query-status")
                assert time.monotonic() - began < TIMEOUT + 2.0
        finally:
            began = time.monotonic()
            monitor.close()
            assert time.monotonic() - began < PROMPT
        with pytest.raises(QemuDied):
            monitor.execute("query-status")
    assert failures == []


@pytest.mark.parametrize("noise", NOISE)
def test_in_place_of_an_answer(scratch: Path, noise: str) -> None:
    commanded(scratch / "qmp", NOISE[noise])


@pytest.mark.parametrize("answer", ANSWERS)
def test_an_answer_that_is_none(scratch: Path, answer: str) -> None:
    def script(peer: Peer) -> None:
        peer.raw(b'{"event": "RESUME"}\n')
        peer.say(ANSWERS[answer](peer.request["id"]))
        peer.hold()

    commanded(scratch / "qmp", script)


def test_descriptors_that_nobody_wants(scratch: Path) -> None:
    """They are closed by the kernel: none is left in this process (the fixture counts them)."""

    def script(peer: Peer) -> None:
        peer.say(GREETING)
        peer.hear()
        with socket.socket(socket.AF_UNIX) as extra:
            fds = array.array("i", [extra.fileno()] * 200)
            peer.connection.sendmsg(
                [b'{"return": {}}\n'], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, fds.tobytes())]
            )
        request = peer.hear()
        peer.say({"return": {"status": "running"}, "id": request["id"]})
        peer.hold()

    with fake_qemu(scratch / "qmp", script) as failures:
        monitor = Monitor(scratch / "qmp", timeout=5.0).connect()
        try:
            assert monitor.execute("query-status") == {"status": "running"}
        finally:
            monitor.close()
    assert failures == []


def test_events_that_are_none_do_not_stop_the_others(
    scratch: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def script(peer: Peer) -> None:
        peer.negotiate()
        peer.hear()
        for name in NAMES:
            peer.say({"event": name})
        peer.say({"event": "RESUME", "data": [1]})
        peer.say({"event": "RESUME", "data": "x"})
        peer.say({"event": "STOP"})
        peer.say({"event": "RESUME", "data": {"n": 1}})
        peer.hold()

    seen: list[object] = []
    arrived = threading.Event()

    def callback(event: Any) -> None:
        seen.append((event["event"], event["data"]))
        if event["event"] == "RESUME":
            arrived.set()

    with fake_qemu(scratch / "qmp", script) as failures, caplog.at_level(logging.WARNING):
        monitor = Monitor(scratch / "qmp", timeout=TIMEOUT).connect()
        try:
            monitor.listen(callback, "RESUME", "STOP")
            with pytest.raises(TimeoutError):
                monitor.execute("query-status")
            assert arrived.wait(BOUND)
        finally:
            monitor.close()
    assert seen == [("STOP", {}), ("RESUME", {"n": 1})]
    assert caplog.text.count("malformed event") == 6
    assert failures == []


def test_events_without_end_take_no_memory(scratch: Path) -> None:
    """They pass; neither the reader nor anybody else keeps them."""
    count = 30_000

    def script(peer: Peer) -> None:
        peer.negotiate()
        request = peer.hear()
        line = b'{"event": "RTC_CHANGE", "data": {"offset": 0, "text": "%s"}}\n' % (b"z" * 300)
        for _ in range(count // 1000):
            peer.raw(line * 1000)
        peer.say({"return": {}, "id": request["id"]})
        peer.hold()

    with fake_qemu(scratch / "qmp", script) as failures:
        monitor = Monitor(scratch / "qmp", timeout=60.0).connect()
        try:
            seen = 0

            def callback(_event: object) -> None:
                nonlocal seen
                seen += 1

            monitor.listen(callback, "RTC_CHANGE")
            monitor.execute("query-status", timeout=60.0)
            assert seen >= count * 0.99
        finally:
            monitor.close()
    assert failures == []
