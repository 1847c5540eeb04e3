"""`virtnic proxy`, as curl, ssh and hand-written clients use it, with servers in a namespace."""

import contextlib
import json
import os
import resource
import select
import signal
import socket
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from peers.kernel import DATAGRAM, KERNEL, LONG, listen
from peers.names import NameServer
from peers.netns import Netns
from peers.web import DATA, serving
from support.certificate import Certificate

pytestmark = pytest.mark.needs("curl")

ADDRESSES = ["--address", "10.99.0.2/24", "--address", "fd99::2/64"]


class Proxy:
    """A running `virtnic proxy`, and its events."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process
        self.events: list[dict[str, Any]] = []
        self.first = self.next()
        host, _, port = self.first["listen"].rpartition(":")
        self.address = (host.strip("[]"), int(port))
        self.url = self.first["listen"]

    def next(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line, self.process.stderr and self.process.stderr.read()
        event: dict[str, Any] = json.loads(line)
        self.events.append(event)
        return event

    def until(self, kind: str) -> dict[str, Any]:
        while self.next()["event"] != kind:
            pass
        return self.events[-1]

    def stop(self, number: signal.Signals = signal.SIGINT) -> dict[str, Any]:
        self.process.send_signal(number)
        assert self.end() == (0, "")
        return self.events[-1]

    def end(self) -> tuple[int, str]:
        """Take the events until the end; return the exit status, and what is on stderr."""
        assert self.process.stdout is not None
        assert self.process.stderr is not None
        self.events += map(json.loads, self.process.stdout)
        return self.process.wait(LONG), self.process.stderr.read()

    def connect(self) -> socket.socket:
        return socket.create_connection(self.address, timeout=LONG)

    def curl(self, *arguments: str, status: int = 0) -> bytes:
        command = ["curl", "--silent", "--show-error", "--fail", "--max-time", "30", *arguments]
        environment = {k: v for k, v in os.environ.items() if "proxy" not in k.lower()}
        done = subprocess.run(command, check=False, capture_output=True, env=environment)
        assert done.returncode == status, done.stderr.decode()
        return done.stdout if status == 0 else done.stderr


@contextlib.contextmanager
def proxy(netns: Netns, *arguments: str) -> Iterator[Proxy]:
    """Start `virtnic proxy` on any free port."""
    command = [sys.executable, "-m", "virtnic.cli", "proxy", "--json", "--hugepages", "none"]
    options = ["--netdev", netns.netdev, *ADDRESSES, "--listen", "0", *arguments]
    with subprocess.Popen(
        command + options, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        try:
            running = Proxy(process)
            netns.wait_for_carrier()
            yield running
        finally:
            process.kill()


@pytest.fixture
def names(dual: Netns) -> Iterator[None]:
    server = NameServer(dual)
    try:
        yield
    finally:
        server.close(dual)


def test_curl(dual: Netns, names: None, tmp_path: Path) -> None:
    """By SOCKS5, HTTP CONNECT and plain HTTP; by address and by name; both families; TLS."""
    certificate = Certificate(tmp_path)
    (tmp_path / "data").write_bytes(DATA)
    with (
        serving(dual, socket.AF_INET) as four,
        serving(dual, socket.AF_INET6) as six,
        serving(dual, socket.AF_INET, certificate.server()) as tls,
        proxy(dual, "--dns", "10.99.0.1") as run,
    ):
        urls = [f"http://10.99.0.1:{four}", f"http://host.test:{four}", f"http://[fd99::1]:{six}"]
        post = ["--data-binary", f"@{tmp_path / 'data'}"]
        for url in urls:
            ways = (["--socks5-hostname", run.url], ["-x", run.url, "-p"], ["-x", run.url])
            for way in ways:
                assert run.curl(*way, f"{url}/data") == DATA
                assert run.curl(*way, *post, url) == DATA
        # What is between the client and the proxy stays there.
        seen = run.curl("-x", run.url, "--proxy-user", "a:b", f"{urls[0]}/headers?x=1").decode()
        assert "Proxy-" not in seen
        assert f"Host: 10.99.0.1:{four}" in seen
        resolved = f"{certificate.name}:{tls}:10.99.0.1"
        trusted = ["--cacert", str(tmp_path / "certificate.pem")]
        secure = f"https://{certificate.name}:{tls}/data"
        way = ["--socks5", run.url, "--resolve", resolved]
        assert run.curl(*way, *trusted, secure) == DATA
        total = run.stop()
    assert total["served"] == 20
    assert total["failed"] == 0
    assert total["received"] > 10 * len(DATA)
    opened = [event for event in run.events if event["event"] == "open"]
    assert {event["protocol"] for event in opened} == {"socks5", "http-connect", "http"}
    assert opened[0]["target"] == f"10.99.0.1:{four}"
    assert opened[0]["remote"] == f"10.99.0.1:{four}"


def test_refusals(dual: Netns, names: None) -> None:
    """What curl says, what the event says."""
    with proxy(dual, "--dns", "10.99.0.1", "--timeout", "3") as run:
        for url, curl, says in (
            ("http://10.99.0.1:1/", 97, "refused"),
            ("http://none.test/", 97, "none.test"),
            ("http://10.99.0.77/", 97, "no answer from 10.99.0.77:80 within 3 s"),
            ("http://192.0.2.1/", 97, "no gateway"),
        ):
            run.curl("--socks5-hostname", run.url, url, status=curl)
            event = run.until("refused")
            assert says in event["error"]
            assert event["protocol"] == "socks5"
            error = run.curl("-x", run.url, "--no-fail", url)
            assert says in error.decode()
            assert says in run.until("refused")["error"]
        for sent, answer, says in (
            (b"\x04\x01\0\x50\x0a\0\0\1\0", b"\0\x5b", "SOCKS4"),
            (b"\x05\x01\x02", b"\x05\xff", "password"),
            (b"\x05\x01\0\x05\x02\0\x01\x7f\0\0\1\0\x50", b"\x05\0\x05\x07", "CONNECT"),
            (b"\x05\x01\0\x05\x01\0\x07\x7f\0\0\1\0\x50", b"\x05\0\x05\x08", "unknown type 7"),
            (b"\x05\x01\0\x04\x01\0\x01\x7f\0\0\1\0\x50", b"\x05\0\x05\x01", "version 4"),
            (b"GET / HTTP/1.1\r\n\r\n", b"HTTP/1.1 400", "wrong target"),
            (b"CONNECT x HTTP/1.1\r\n\r\n", b"HTTP/1.1 400", "wrong target"),
            (b"hello\r\n\r\n", b"HTTP/1.1 400", "no request of HTTP"),
            (b"GET http://x/ HTTP/1.1\r\nA: " + bytes(1 << 17), b"HTTP/1.1 431", "longer"),
            (b"\x16\x03\x01", b"", "neither SOCKS5 nor HTTP"),
        ):
            with run.connect() as client, contextlib.suppress(ConnectionResetError):
                client.sendall(sent)
                client.shutdown(socket.SHUT_WR)
                assert client.makefile("rb").read().startswith(answer)
            assert says in run.until("refused")["error"]
        # Who says nothing, or goes, is no event; the proxy serves on.
        for sent in (b"", b"\x05", b"\x05\x01\0\x05\x01\0\x03\xff"):
            with run.connect() as client:
                client.sendall(sent)
        total = run.stop(signal.SIGTERM)
    assert total["failed"] == 18
    assert total["served"] == 0


def test_datagrams(dual: Netns, names: None) -> None:
    """UDP ASSOCIATE, by addresses of both families and by name."""
    with (
        listen(dual, socket.AF_INET, DATAGRAM) as four,
        listen(dual, socket.AF_INET6, DATAGRAM) as six,
        proxy(dual, "--dns", "10.99.0.1") as run,
        run.connect() as control,
        socket.socket(socket.AF_INET, DATAGRAM) as ours,
    ):
        control.sendall(b"\x05\x01\0" + b"\x05\x03\0\x01" + bytes(6))
        reply = control.makefile("rb").read(2 + 10)
        assert reply[:6] == b"\x05\0\x05\0\0\x01"
        relay = (socket.inet_ntoa(reply[6:10]), int.from_bytes(reply[10:], "big"))
        assert relay[0] == "127.0.0.1"
        ours.settimeout(LONG)
        ours.bind(("127.0.0.1", 0))
        packed = socket.inet_pton(socket.AF_INET6, KERNEL[socket.AF_INET6])
        for server, address, seen in (
            (four, b"\x01" + bytes([10, 99, 0, 1]), b"\x01" + bytes([10, 99, 0, 1])),
            (four, b"\x03\x09host.test", b"\x01" + bytes([10, 99, 0, 1])),
            (six, b"\x04" + packed, b"\x04" + packed),
        ):
            port = struct.pack(">H", server.getsockname()[1])
            for wrong in (b"", b"\0\0\1" + address + port + b"part", b"\0\0\0\x09"):
                ours.sendto(wrong, relay)
            ours.sendto(b"\0\0\0" + address + port + b"question", relay)
            question, peer = server.recvfrom(100)
            assert question == b"question"
            assert peer[0] in ("10.99.0.2", "fd99::2")
            server.sendto(b"answer", peer)
            assert ours.recv(100) == b"\0\0\0" + seen + port + b"answer"
        # Another program's datagrams are not the client's.
        with socket.socket(socket.AF_INET, DATAGRAM) as other:
            other.sendto(b"\0\0\0" + b"\x01" + bytes([10, 99, 0, 1]) + port + b"forged", relay)
        ours.sendto(b"\0\0\0" + b"\x04" + packed + port + b"last", relay)
        assert six.recv(100) == b"last"
        control.close()
        closed = run.until("close")
        assert (closed["sent"], closed["received"]) == (3 * 8 + 4, 3 * 6)
        run.stop()


def tunnel(run: Proxy, server: socket.socket) -> tuple[socket.socket, socket.socket]:
    """Connect through the proxy: the client's end and the server's."""
    client = run.connect()
    target = f"{server.getsockname()[0]}:{server.getsockname()[1]}"
    client.sendall(f"CONNECT {target} HTTP/1.1\r\n\r\n".encode())
    theirs, _ = server.accept()
    theirs.settimeout(LONG)
    assert client.recv(1000).startswith(b"HTTP/1.1 200 ")
    return client, theirs


def test_ends_and_limits(dual: Netns) -> None:
    with (
        listen(dual, socket.AF_INET) as server,
        proxy(dual, "--connections", "2") as run,
        contextlib.ExitStack() as ends,
    ):
        client, theirs = map(ends.enter_context, tunnel(run, server))
        # Halves end one by one.
        client.sendall(b"question")
        client.shutdown(socket.SHUT_WR)
        assert theirs.makefile("rb").read() == b"question"
        theirs.sendall(b"answer")
        theirs.close()
        assert client.makefile("rb").read() == b"answer"
        assert run.until("close")["sent"] == 8
        # A reset ends the other end.
        client, theirs = map(ends.enter_context, tunnel(run, server))
        theirs.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        theirs.close()
        with contextlib.suppress(ConnectionResetError):
            assert client.recv(1) == b""
        run.until("close")
        # A third waits until one of two has ended.
        first = [ends.enter_context(one) for one in tunnel(run, server)]
        second = [ends.enter_context(one) for one in tunnel(run, server)]
        third = ends.enter_context(run.connect())
        third.sendall(b"CONNECT 10.99.0.1:1 HTTP/1.1\r\n\r\n")
        third.settimeout(0.2)
        with pytest.raises(TimeoutError):
            third.recv(1)
        for one in first:
            one.close()
        third.settimeout(LONG)
        assert third.recv(100).startswith(b"HTTP/1.1 502 ")
        # A server that does not read, and one that is read from no more: nothing piles up.
        second[0].settimeout(0.5)
        sent = 0
        with contextlib.suppress(TimeoutError):
            while True:
                sent += second[0].send(bytes(1 << 16))
        assert sent < 64 << 20
        resident = Path(f"/proc/{run.process.pid}/statm").read_text().split()[1]
        assert int(resident) * os.sysconf("SC_PAGESIZE") < 256 << 20
        # Ctrl-C resets what was open. First the server reads all: the kernel ignores a reset that
        # is beyond its window (RFC 9293, 3.10.7.4).
        second[1].settimeout(1.0)
        read = 0
        with contextlib.suppress(TimeoutError):
            while data := second[1].recv(1 << 20):
                read += len(data)
        assert read == sent
        total = run.stop()
        second[1].settimeout(LONG)
        with contextlib.suppress(ConnectionResetError):
            assert second[1].recv(1) == b""
    assert total["served"] == 4


def test_clients_wait_for_descriptors(dual: Netns) -> None:
    """A proxy without free descriptors goes on; who comes is served when one is free."""
    with (
        listen(dual, socket.AF_INET) as server,
        proxy(dual) as run,
        contextlib.ExitStack() as ends,
    ):
        taken = {int(name) for name in os.listdir(f"/proc/{run.process.pid}/fd")}  # noqa: PTH208
        # A connection takes three: the client's, and two to wait for the server's.
        free = [number for number in range(len(taken) + 3) if number not in taken][:3]
        limit = max(*taken, *free) + 1 if len(free) < 3 else free[-1] + 1
        resource.prlimit(run.process.pid, resource.RLIMIT_NOFILE, (limit, limit))
        first = [ends.enter_context(one) for one in tunnel(run, server)]
        second = ends.enter_context(run.connect())
        second.sendall(b"CONNECT 10.99.0.1:1 HTTP/1.1\r\n\r\n")
        assert "Too many open files" in run.until("waiting")["error"]
        first[0].sendall(b"still served")
        assert first[1].recv(100) == b"still served"
        for one in first:
            one.close()
        assert second.recv(100).startswith(b"HTTP/1.1 502 ")
        assert run.stop()["served"] == 1


def test_a_client_that_goes_after_its_end(dual: Netns) -> None:
    """A client ends its direction and then vanishes; the server says nothing and waits."""
    with listen(dual, socket.AF_INET) as server, proxy(dual) as run:
        client, theirs = tunnel(run, server)
        with client, theirs:
            client.shutdown(socket.SHUT_WR)
            assert theirs.recv(1) == b""
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
            client.close()
            reset = select.poll()
            reset.register(theirs, 0)
            assert reset.poll(1000 * LONG)
            run.until("close")
            run.stop()


def test_the_port_ends(dual: Netns) -> None:
    with proxy(dual) as run:
        (children,) = (
            (task / "children").read_text().split()
            for task in Path(f"/proc/{run.process.pid}/task").iterdir()
            if (task / "children").read_text()
        )
        os.kill(int(children[0]), signal.SIGKILL)
        status, warning = run.end()
        assert status == 1
        assert warning.startswith("virtnic: warning: QEMU")
    assert "SIGKILL" in run.events[-1]["error"]["message"]


def test_text_and_a_port_that_is_taken(dual: Netns) -> None:
    command = [sys.executable, "-m", "virtnic.cli", "proxy", "--hugepages", "none", "--netdev"]
    command += [dual.netdev, *ADDRESSES]
    with (
        serving(dual, socket.AF_INET) as number,
        subprocess.Popen(
            [*command, "-v", "--listen", "0"],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        ) as process,
    ):
        try:
            assert process.stdout is not None
            where = process.stdout.readline().split()[2].rstrip(",")
            tried = process.stdout.readline()
            assert tried == f"try: curl --socks5-hostname {where} http://HOST/\n"
            dual.wait_for_carrier()
            url = f"http://10.99.0.1:{number}/data"
            subprocess.run(["curl", "-s", "--socks5", where, url], check=True, capture_output=True)
            taken = subprocess.run(
                [*command, "--listen", where], check=False, capture_output=True, text=True
            )
            assert taken.returncode == 3
            assert f"--listen {where}: Address already in use" in " ".join(taken.stderr.split())
            process.send_signal(signal.SIGINT)
            out, err = process.communicate(timeout=LONG)
        finally:
            process.kill()
    assert err == ""
    opened, closed, total = out.splitlines()
    assert opened.endswith(f": socks5 to 10.99.0.1:{number}")
    assert f"{len(DATA)}" not in closed  # the head is counted as well
    assert "received" in closed
    assert total.startswith("1 connections served, 0 failed; ")
