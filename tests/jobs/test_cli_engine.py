"""``virtnic forward``, ``generate`` and ``drop`` as processes."""

import json
import os
import re
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from peers.netns import Netns, PingResult
from peers.process import gone
from peers.testpmd import Testpmd
from support.frames import mac_bytes, number_of, numbered
from support.program import ended, running, started, virtnic, virtnic_json
from support.waiting import eventually
from virtnic.cli import main

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
