"""``virtnic forward``, ``generate`` and ``drop`` as processes."""

import fcntl
import json
import os
import pty
import re
import select
import signal
import struct
import subprocess
import termios
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from peers.netns import Netns, PingResult
from peers.process import gone
from peers.testpmd import Testpmd
from support.frames import mac_bytes, number_of, numbered
from support.program import command, ended, running, started, virtnic, virtnic_json
from support.waiting import eventually
from virtnic.cli import main
from virtnic.cli.live import Live, drops_text, occupancy_text, rate_text
from virtnic.cli.loops import line_rates
from virtnic.loops.engine import Result

needs_kernel = pytest.mark.needs("qemu", "netns")
needs_backend = pytest.mark.needs("qemu", "testpmd", "hugepages")


def row(process: subprocess.Popen[str]) -> tuple[float, float]:
    """Wait for the next line of figures; return its time in seconds and its rate in Mpps."""
    assert process.stdout is not None
    while not (found := re.match(r" +([\d.]+) s +([\d.]+) ", process.stdout.readline())):
        assert process.poll() is None
    return float(found[1]), float(found[2])


def qemus_of(process: subprocess.Popen[str]) -> list[int]:
    children = Path(f"/proc/{process.pid}/task").glob("*/children")
    pids = [int(pid) for file in children for pid in file.read_text().split()]
    return [pid for pid in pids if b"-qtest" in Path(f"/proc/{pid}/cmdline").read_bytes()]


@pytest.fixture
def two_taps(netns: Netns) -> Netns:
    """A namespace with a second TAP device, tap1."""
    netns.run("ip", "tuntap", "add", "dev", "tap1", "mode", "tap", "vnet_hdr")
    netns.run("ip", "link", "set", "tap1", "up")
    return netns


def wait_for_carrier(netns: Netns, *taps: str) -> None:
    """Wait until the kernel sends by its TAPs: it looks at new carriers once a second."""
    deadline = time.monotonic() + 10
    files = [f"/sys/class/net/{tap}/operstate" for tap in taps or (netns.tap,)]
    while set(netns.run("cat", *files).split()) != {"up"}:
        assert time.monotonic() < deadline, "QEMU did not open the TAP"
        time.sleep(0.02)


PORTS = ["--port", "tap,ifname=tap0", "--port", "tap,ifname=tap1"]


@needs_kernel
@pytest.mark.parametrize("mode", ["io", "mac", "macswap"])
def test_forward_between_two_taps(two_taps: Netns, mode: str) -> None:
    macs = ["02:00:00:00:00:0a", "02:00:00:00:00:0b"]
    ports = [f"tap,ifname=tap{i};mac={mac}" for i, mac in enumerate(macs)]
    both = ["--port", ports[0], "--port", ports[1]]
    with two_taps.packet_socket() as left, two_taps.packet_socket() as right:
        right.bind(("tap1", 3))
        with started("forward", *both, "--mode", mode, "--packets", "200") as process:
            wait_for_carrier(two_taps, "tap0", "tap1")
            for source, sink, number in ((left, right, 1), (right, left, 0)):
                for i in range(100):
                    frame = numbered("02:00:00:00:00:99", i, 60 + i)
                    source.send(frame)
                    expected = {
                        "io": frame,
                        "mac": frame[:6] + mac_bytes(macs[number]) + frame[12:],
                        "macswap": frame[6:12] + frame[:6] + frame[12:],
                    }[mode]
                    while number_of(got := sink.recv(4096)) != i:
                        pass
                    assert got == expected
            out = ended(process)
    assert f"FORWARD tap,ifname=tap0 <-> tap,ifname=tap1, mode {mode}" not in out  # read before
    assert "--- forward statistics ---\n200 frames, 22700 bytes in " in out
    assert "tap,ifname=tap0: 100 received, 100 sent, dropped 0" in out
    assert "tap,ifname=tap1: 100 received, 100 sent, dropped 0" in out


@needs_kernel
def test_forward_connects_two_kernels(two_taps: Netns) -> None:
    with (
        Netns(tap="own0", address="10.98.0.1/24") as other,
        started("forward", *PORTS) as process,
    ):
        # QEMU has both open: now the second becomes a device of another kernel namespace.
        two_taps.run("ip", "link", "set", "tap1", "netns", other.name)
        other.run("ip", "address", "add", "10.99.0.2/24", "dev", "tap1")
        other.run("ip", "link", "set", "tap1", "up")
        wait_for_carrier(two_taps)
        wait_for_carrier(other, "tap1")
        with two_taps.start_ping("10.99.0.2", 300) as ping:
            assert ping.stdout is not None
            pings = PingResult(ping.stdout.read())
        assert (pings.sent, pings.received) == (300, 300), pings.output
        out = ended(process, signal.SIGINT)
        found = re.search(r"^(\d+) frames, ", out, re.MULTILINE)
        assert found is not None
        assert int(found[1]) >= 600


@needs_kernel
def test_forward_copies_nothing_and_counts_per_port(two_taps: Netns) -> None:
    with (
        running("forward", *PORTS, "--packets", "50", "--json") as process,
        two_taps.packet_socket() as left,
        two_taps.packet_socket() as right,
    ):
        right.bind(("tap1", 3))
        right.settimeout(0.1)
        last = -1
        deadline = time.monotonic() + 30
        # Until the loop runs there is nobody to forward.
        while last < 49 and time.monotonic() < deadline:
            left.send(numbered("02:00:00:00:00:99", last + 1))
            try:
                while (number := number_of(right.recv(4096))) is None:
                    pass
                last = number
            except TimeoutError:
                continue
        out, _ = process.communicate(timeout=30)
    assert process.returncode == 0
    found = json.loads(out)
    assert (found["mode"], found["packets"], found["sent"]) == ("io", 50, 50)
    a, b = found["ports"]
    assert (a["netdev"], b["netdev"]) == ("tap,ifname=tap0", "tap,ifname=tap1")
    assert (a["counters"]["rx_packets"], b["counters"]["tx_packets"]) == (50, 50)
    assert b["counters"]["tx_copied"] == 0
    assert found["drops"] == dict.fromkeys(found["drops"], 0)
    assert found["unfinished"] == 0
    assert found["burst_size"] == found["packets"] / found["bursts"]
    assert found["occupancy"] == found["bursts"] / (found["bursts"] + found["idle"])
    assert found["pps"] == pytest.approx(found["packets"] / found["seconds"])


@needs_kernel
@pytest.mark.parametrize("how", [[], ["--backpressure"], ["--no-backpressure"]])
def test_forward_with_one_port_reflects(netns: Netns, how: list[str]) -> None:
    with (
        netns.packet_socket() as raw,
        started("forward", "--port", netns.netdev, "--packets", "50", *how) as process,
    ):
        wait_for_carrier(netns)
        for i in range(50):
            frame = numbered("02:00:00:00:00:99", i)
            raw.send(frame)
            while raw.recv(4096) != frame[6:12] + frame[:6] + frame[12:]:
                pass
        assert "50 received, 50 sent, dropped 0" in ended(process)


@needs_kernel
def test_generate_sends_exactly_what_was_asked(netns: Netns) -> None:
    before = netns.statistics()
    found = virtnic_json(
        "generate", "--netdev", netns.netdev, "--packets", "12345", "--size", "128"
    )
    after = netns.statistics()
    assert after["rx_packets"] - before["rx_packets"] == found["packets"] == 12345
    assert after["rx_bytes"] - before["rx_bytes"] == found["bytes"] - 4 * 12345 == 12345 * 124
    assert (found["size"], found["rate"], found["unfinished"]) == (128, None, 0)


@needs_kernel
@pytest.mark.parametrize(("rate", "pps"), [("2kpps", 2000), ("500", 500), ("1.024Mbps", 2000)])
def test_generate_at_a_rate(netns: Netns, rate: str, pps: float) -> None:
    found = virtnic_json("generate", "--netdev", netns.netdev, "--rate", rate, "--seconds", "1")
    # Never more; less where a busy machine did not let it run at the end.
    assert 0.3 * pps <= found["packets"] <= pps * found["seconds"] + 1
    assert netns.statistics()["rx_packets"] >= found["packets"]


@needs_kernel
def test_drop_counts(netns: Netns) -> None:
    with (
        netns.packet_socket() as raw,
        started("drop", "--netdev", netns.netdev, "--packets", "1000") as process,
    ):
        wait_for_carrier(netns)
        for i in range(1000):
            raw.send(numbered("02:00:00:00:00:99", i))
        assert "--- drop statistics ---\n1000 frames, 64000 bytes in " in ended(process)


@needs_kernel
@pytest.mark.parametrize(
    ("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)], ids=["ctrl-c", "sigterm"]
)
@pytest.mark.parametrize("until", [[], ["--seconds", "600"], ["--packets", "100000000"]])
@pytest.mark.parametrize("how", [[], ["--json"]])
def test_a_signal_ends_it_with_a_summary(
    netns: Netns, number: signal.Signals, status: int, until: list[str], how: list[str]
) -> None:
    """It is the natural end where there is no other, and an interruption else."""
    options = ["--netdev", netns.netdev, "--rate", "1000", *until, *how]
    with running("generate", *options) as process:
        deadline = time.monotonic() + 30
        while netns.statistics()["rx_packets"] == 0:
            assert time.monotonic() < deadline, "it sends nothing"
            time.sleep(0.05)
        [qemu] = qemus_of(process)
        process.send_signal(number)
        out, err = process.communicate(timeout=30)
    assert process.returncode == (status if until else 0), out + err
    assert err == ""
    assert gone(qemu)
    if how:
        found = json.loads(out)
        assert (found["interrupted"], found["signal"]) == (bool(until), number.name)
        assert 0 < found["packets"] <= netns.statistics()["rx_packets"]
    else:
        assert "--- generate statistics ---" in out


def test_ctrl_c_before_the_loop_is_one_line(qemu_command: str) -> None:
    # The backend never comes: it is waited for.
    netdev = "vhost-user,path=/nonexistent/vhu0,wait=60"
    with running("drop", "--netdev", netdev) as process:
        deadline = time.monotonic() + 30
        while not qemus_of(process):
            assert time.monotonic() < deadline
            time.sleep(0.02)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=30)
    assert (process.returncode, out, err) == (130, "", "virtnic: interrupted\n")


def test_elsewhere_it_is_a_line_at_a_time(qemu_command: str) -> None:
    out = virtnic(
        "generate", "--rate", "10kpps", "--seconds", "1.25", "--interval", "0.25"
    ).stdout.splitlines()
    assert out[0] == "GENERATE on user, frames of 64 bytes, 10000 frames/s"
    assert out[1].split() == [
        "time",
        "Mpps",
        "Gb/s",
        "L2",
        "burst",
        "occupied",
        "dropped",
        "so",
        "far",
    ]
    rows = out[2 : out.index("--- generate statistics ---")]
    assert 1 <= len(rows) <= 5
    for row in rows:
        assert re.fullmatch(r" *\d+\.\d s +0\.\d+ +0\.\d+ +\d+\.\d +<?\d.* %  0", row), row
    assert "\x1b" not in "".join(out)
    quiet = virtnic("generate", "--rate", "10kpps", "--seconds", "0.5", "--interval", "0").stdout
    assert "Mpps " not in quiet.split("---")[0]


class Screen:
    """As much of a terminal as the table needs: up, erase to the end of the line, newline."""

    def __init__(self, columns: int) -> None:
        self.columns = columns
        self.lines = [""]
        self.row = 0
        self.redrawn = 0

    def write(self, text: str) -> None:
        for token in re.findall(r"\x1b\[\d*[A-Z]|\r|\n|[^\x1b\r\n]+", text):
            if token.endswith("A") and token[0] == "\x1b":
                self.row -= int(token[2:-1])
                self.redrawn += 1
                assert self.row >= 0
            elif token == "\n":
                self.row += 1
                if self.row == len(self.lines):
                    self.lines.append("")
            elif token == "\x1b[K":
                # A line of the table: written whole, and its rest erased.
                assert len(self.lines[self.row]) < self.columns, "wrapped: the next is off"
            elif token != "\r":
                self.lines[self.row] = token


def on_a_terminal(
    columns: int, *arguments: str, term: str = "xterm", ctrl_c_after: bytes | None = None
) -> tuple[Screen, str, int]:
    """Run a command on a pseudo terminal; return its screen, all it wrote, and its status.

    Ctrl-C is pressed when what it wrote matches ``ctrl_c_after``.
    """
    controller, terminal = pty.openpty()
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    environment = {k: v for k, v in os.environ.items() if k not in ("COLUMNS", "LINES")}
    process = subprocess.Popen(
        command(*arguments),
        stdin=terminal,
        stdout=terminal,
        stderr=terminal,
        env={**environment, "TERM": term},
        start_new_session=True,
        preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
    )
    os.close(terminal)
    written = b""
    began = time.monotonic()
    with process:
        while time.monotonic() - began < 60:
            if ctrl_c_after is not None and re.search(ctrl_c_after, written):
                os.write(controller, b"\x03")
                ctrl_c_after = None
            if not select.select([controller], [], [], 0.1)[0]:
                continue
            try:
                written += os.read(controller, 65536)
            except OSError:  # EIO: nobody has the terminal open any more
                break
        process.kill()  # where it has not ended
        status = process.wait()
    os.close(controller)
    screen = Screen(columns)
    screen.write(written.decode())
    return screen, written.decode(), status


@pytest.mark.parametrize("columns", [100, 50])
def test_on_a_terminal_it_is_redrawn_in_place(qemu_command: str, columns: int) -> None:
    again = rb"\x1b\[3A(.*\r\n){3}"
    screen, written, status = on_a_terminal(
        columns, "generate", "--rate", "10kpps", ctrl_c_after=again
    )
    assert status == 0
    assert screen.redrawn >= 1
    assert "^C" in written
    assert screen.lines[0].startswith("GENERATE on user")
    heading, row, everything, after, summary = screen.lines[1:6]
    assert re.match(r"\d\.\d s ", heading)
    assert re.match(r"user +0\.000 +0\.000 +0\.\d+ ", row)
    assert re.match(r"all +0\.\d+ Mpps +0\.\d+ Gb", everything)
    assert (after, summary) == ("^C", "--- generate statistics ---")
    assert all(len(line) < columns for line in screen.lines[1:4])


def test_a_terminal_without_a_table(qemu_command: str) -> None:
    screen, _, status = on_a_terminal(
        100, "drop", "--interval", "0", "--seconds", "60", ctrl_c_after=rb"DROP .*\r\n"
    )
    assert status == 130
    assert screen.redrawn == 0
    assert screen.lines[1:3] == ["^C", "--- drop statistics ---"]
    assert screen.lines[-2].startswith("user: 0 received")


@pytest.mark.parametrize(
    ("words", "begun", "then", "wanted"),
    [
        (
            ["ping", "10.0.2.2", "--count", "0"],
            rb"seq=0.*\r\n",
            r"--- 10.0.2.2 ping statistics",
            130,
        ),
        (["watch"], rb"attached.*\r\n", r"[\d:.]+  detached", 0),
        (
            ["demo", "--netdev", "hubport,hubid=0"],
            rb" s  port .*\r\n",
            r"virtnic: interrupted",
            130,
        ),
    ],
    ids=["ping", "watch", "demo"],
)
def test_ctrl_c_on_a_terminal_ends_its_line(
    qemu_command: str, words: list[str], begun: bytes, then: str, wanted: int
) -> None:
    """The terminal writes ^C there; what follows begins in the next."""
    _, written, status = on_a_terminal(100, *words, ctrl_c_after=begun)
    assert status == wanted, written
    lines = [re.sub(r"\x1b\[[\d;]*m", "", line) for line in written.split("\r\n")]
    at = next(number for number, line in enumerate(lines) if line.endswith("^C"))
    assert re.match(then, lines[at + 1]), written


def test_a_dumb_terminal_gets_lines(qemu_command: str) -> None:
    _, written, status = on_a_terminal(
        100, "drop", "--interval", "0.05", term="dumb", ctrl_c_after=rb"0 %  0\r\n"
    )
    assert status == 0
    assert "\x1b" not in written
    assert "time       Mpps" in written


def test_a_reader_that_has_seen_enough(qemu_command: str) -> None:
    with started("drop", "--interval", "0.1") as process:
        assert process.stdout is not None
        process.stdout.close()
        assert process.stderr is not None
        assert process.stderr.read() == ""
        assert process.wait(10) == 1


def test_qemu_killed_in_mid_loop(qemu_command: str) -> None:
    with started("generate", "--rate", "1000", "--interval", "0.1") as process:
        row(process)
        os.kill(qemus_of(process)[0], signal.SIGKILL)
        out, err = process.communicate(timeout=10)
    assert process.returncode == 1
    # What it had done until then, and then what ended it.
    assert "--- generate statistics ---" in out
    assert "killed by SIGKILL" in err
    assert "Traceback" not in err


def test_qemu_killed_in_mid_loop_with_recovery(qemu_command: str) -> None:
    with started("generate", "--rate", "1000", "--interval", "0.1", "--recover") as process:
        seconds, _ = row(process)
        began = time.monotonic() - seconds
        (first,) = qemus_of(process)
        os.kill(first, signal.SIGKILL)
        assert eventually(lambda: set(qemus_of(process)) - {first})
        back = time.monotonic() - began
        rows = (row(process) for _ in range(200))
        assert any(seconds > back and rate > 0.0 for seconds, rate in rows), "it sends no more"
        process.send_signal(signal.SIGINT)
        out, _ = process.communicate(timeout=30)
    assert process.returncode == 0
    assert re.search(r"^(\d+) frames, ", out, re.MULTILINE)


@needs_backend
def test_vhost_user_generate(qemu_command: str, testpmd: Callable[..., Testpmd]) -> None:
    backend = testpmd(mode="rxonly")
    found = virtnic_json(
        "generate", "--netdev", f"vhost-user,path={backend.sockets[0]}", "--packets", "300000"
    )
    assert found["unfinished"] == 0
    assert found["packets"] == backend.stats()["RX-packets"] == 300_000


@needs_backend
def test_vhost_user_forward(qemu_command: str, testpmd: Callable[..., Testpmd]) -> None:
    """Bursts go round: by testpmd from one port to the other, by us back."""
    backend = testpmd(ports=2, mode="io")
    first, second = (f"vhost-user,path={path}" for path in backend.sockets)
    ports = ["--port", first, "--port", f"{second};ring=split;queue-size=512"]
    with started("forward", *ports, "--queue-size", "256") as process:
        backend.command("stop")
        backend.command("start tx_first")
        assert eventually(lambda: backend.stats()["RX-packets"] > 20_000)
        out = ended(process, signal.SIGINT)
    found = re.search(r"^(\d+) frames, ", out, re.MULTILINE)
    assert found is not None
    assert int(found[1]) > 10_000


@needs_kernel
def test_forward_of_several_options(two_taps: Netns) -> None:
    first = "tap,ifname=tap0;mac=02:00:00:00:00:01;interrupts=none;queue-size=256"
    found = virtnic_json(
        "forward",
        *("--port", first, "--port", "tap,ifname=tap1;queue-size=64;ring=split"),
        *("--interrupts", "intx", "--queue-size", "128", "--seconds", "0.1"),
    )
    a, b = found["ports"]
    assert (a["mac"], a["interrupts"]) == ("02:00:00:00:00:01", "none")
    assert b["interrupts"] == "intx"
    assert (a["queue_size"], b["queue_size"]) == (256, 64)


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["forward"], "--port"),
        (["forward", "--port", "user", "--mode", "route"], "route"),
        (["forward", *["--port", "user"] * 3], "once or twice, not 3 times"),
        (
            ["forward", "--port", "user;speed=10"],
            "'speed=10' in 'user;speed=10' is not a port option",
        ),
        (["forward", "--port", "user;mac"], "'mac' in 'user;mac' is not a port option"),
        (["forward", "--port", "user;interrupts=maybe"], "msix, intx or none, not 'maybe'"),
        (["forward", "--port", "user;queue-size=0"], "'0' is not greater than 0"),
        (["forward", "--port", "user", "--packets", "0"], "'0' is not greater than 0"),
        (["forward", "--port", "user", "--seconds", "-1"], "'-1' is not a time such as"),
        (["generate", "--rate", "fast"], "10Mpps"),
        (["generate", "--rate", "0"], "above 0"),
        (["generate", "--rate", "nan"], "above 0"),
        (["generate", "--size", "63"], "'63' is neither"),
        (["generate", "--size", "huge"], "'huge' is neither"),
        (["generate", "--size", "70000"], "64 to 65553"),
        (["generate", "--vlan", "4095"], "'4095' is greater than 4094"),
        (["generate", "--vlan", "1", "--size", "64"], "at least 68 bytes"),
        (["generate", "--source-mac", "5:4"], "six bytes such as 52:54:00:12:34:56, not '5:4'"),
        (["generate", "--destination", "here"], "'here' is not an IPv4 or IPv6 address"),
        (["generate", "--vlan", "1", "--source", "::1", "--size", "69"], "at least 70 bytes"),
        (["generate", "--source", "10.0.0.1", "--destination", "::1"], "not both IPv4 or both"),
        (
            ["generate", "--payload", "00" * 30, "--size", "64"],
            "needs 76 bytes; --size 64 is too small",
        ),
        (["generate", "--payload", "00" * 30, "--size", "imix"], "needs 76 bytes"),
        (["generate", "--payload", "0"], "'0' is not a hexadecimal"),
        (["generate", "--source-port", "65536"], "'65536' is greater than 65535"),
        (["generate", "--frame", "0f1"], "'0f1' is not a hexadecimal string"),
        (["generate", "--frame", "00", "--pcap", "x"], "--pcap and --frame"),
        (
            ["generate", "--pcap", "x", "--destination", "10.0.0.1"],
            "--destination cannot be used with",
        ),
        (["drop", "--interval", "often"], "'often' is not a time such as"),
    ],
)
def test_wrong_usage_is_2_and_says_what_is_wrong(
    arguments: list[str], complaint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert complaint in captured.err
    assert main([*arguments, "--json"]) == 2
    captured = capsys.readouterr()
    assert complaint in json.loads(captured.out)["error"]["message"]
    assert captured.err == ""


@pytest.mark.parametrize(
    ("arguments", "status", "complaint"),
    [
        (["generate", "--size", "9000", "--memory", "1M"], 2, "8996 bytes"),
        (["forward", "--port", "carrier-pigeon"], 2, "carrier-pigeon"),
        (["forward", "--port", "user", "--port", "user,net=nonsense"], 1, "net"),
        (["forward", "--port", ""], 2, "the netdev is empty"),
        (["drop", "--netdev", "vhost-user,path=/nonexistent/vhu0"], 3, "/nonexistent/vhu0"),
        (["drop", "--notify", "eventfd"], 2, "vhost-user"),
        (["drop", "--queue-size", "100"], 2, "power of two"),
    ],
)
def test_what_only_the_device_can_refuse(
    qemu_command: str, arguments: list[str], status: int, complaint: str
) -> None:
    done = virtnic(*arguments, status=status)
    assert done.stdout == "" or "---" not in done.stdout
    assert complaint in done.stderr
    assert len(done.stderr.splitlines()) <= 6
    error = virtnic_json(*arguments, status=status)["error"]
    assert complaint in error["message"]


def test_numbers_in_words() -> None:
    assert rate_text(12_345_678, 1e6) == "12.346"
    assert rate_text(1_000, 1e6) == "0.001000"
    assert rate_text(0, 1e6) == "0.000"
    assert [occupancy_text(*turns) for turns in ((0, 0), (1, 3), (3, 997), (1, 10**7))] == [
        "0 %",
        "25 %",
        "0.30 %",
        "<0.01 %",
    ]
    assert drops_text({"tx_ring_full": 0}) == "0"
    drops = {"tx_ring_full": 12, "tx_no_buffer": 0, "rx_bad_chain": 3}
    assert drops_text(drops) == "15: 12 ring full, 3 broken chain"


def result(seconds: float, packets: int, bursts: int, idle: int) -> Result:
    return Result(packets, 60 * packets, seconds, packets, packets, bursts, idle, 0, 0, 0)


def test_a_line_of_ten_gigabits() -> None:
    """14.88 million frames of 64 bytes a second fill it: RFC 2544, and everybody since."""
    l2, l1 = line_rates(result(1.0, 14_880_952, 1, 0))
    assert l2 == pytest.approx(7.619e9, rel=1e-3)
    assert l1 == pytest.approx(10e9, rel=1e-6)
    assert line_rates(result(0.0, 0, 0, 0)) == (0.0, 0.0)


def test_rates_are_those_since_the_last_refresh(capsys: pytest.CaptureFixture[str]) -> None:
    counters = dict.fromkeys(("rx_packets", "rx_bytes", "tx_packets", "tx_bytes"), 0)
    live = Live(["user"], lambda: [counters], 1.0)
    live.show(result(0.9, 1, 1, 1))
    live.show(result(1.0, 1_000_000, 100_000, 100_000))
    live.show(result(1.5, 1_500_000, 200_000, 200_000))
    counters["tx_ring_full"] = 7
    live.show(result(2.0, 3_000_000, 200_000, 400_000))
    # Held up: the next one is an interval later, not at once.
    live.show(result(9.0, 3_000_000, 200_000, 400_000))
    live.show(result(9.1, 9_000_000, 200_000, 400_000))
    heading, *rows = capsys.readouterr().out.splitlines()
    assert heading.split()[0] == "time"
    assert [row.split() for row in rows] == [
        ["1.0", "s", "1.000", "0.512", "10.0", "50", "%", "0"],
        ["2.0", "s", "2.000", "1.024", "20.0", "25", "%", "7:", "7", "ring", "full"],
        ["9.0", "s", "0.000", "0.000", "-", "0", "%", "7:", "7", "ring", "full"],
    ]
