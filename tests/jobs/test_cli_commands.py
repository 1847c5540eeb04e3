"""The commands as processes, against a real QEMU."""

import json
import os
import re
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from peers.names import NameServer
from peers.netns import Netns
from support.program import command, virtnic, virtnic_json
from support.waiting import PROMPT, pause
from virtnic import net
from virtnic.cli import main

#: A reply that takes its time on a busy machine is not a lost one.
SLOW = ("--timeout", "20")


@pytest.fixture(autouse=True)
def _qemu(qemu_command: str) -> None:
    """Every test here needs one; the processes find it through VIRTNIC_QEMU."""


def test_demo_takes_a_lease_and_pings_the_gateway(accel: str) -> None:
    done = virtnic("demo", "--count", "5", "--accel", accel)
    assert done.stderr == ""
    steps = re.findall(r"^ *\d+\.\d{3} s  (\w+)", done.stdout, re.MULTILINE)
    assert steps == [
        *("found", "memory", "qemu", "pci", "features", "port"),
        *("dhcp", "arp", "ping", "counters", "guest", "closed"),
    ]
    assert "10.0.2.15/24, gateway 10.0.2.2" in done.stdout
    assert "5 sent, 5 received, 0 % lost" in done.stdout
    assert "none ran" in done.stdout
    assert "QEMU has ended" in done.stdout


@pytest.mark.parametrize("machine", ["pc", "q35"])
@pytest.mark.parametrize("interrupts", ["msix", "intx", "none"])
def test_demo_in_json_on_every_machine_with_every_interrupt(machine: str, interrupts: str) -> None:
    found = virtnic_json("demo", "--machine", machine, "--interrupts", interrupts, "--count", "3")
    assert found["ok"] is True
    steps = {step["step"]: step for step in found["steps"]}
    assert steps["qemu"]["machine"] == machine
    assert steps["port"]["interrupts"] == interrupts
    assert steps["dhcp"]["address"] == "10.0.2.15/24"
    assert steps["ping"]["received"] == 3
    assert steps["counters"]["counters"]
    assert steps["guest"]["cs"] == 0xF000
    assert not Path(f"/proc/{steps['qemu']['pid']}").exists()
    times = [step["at"] for step in found["steps"]]
    assert times == sorted(times)


def test_ping_prints_each_reply_and_a_summary() -> None:
    done = virtnic("ping", "10.0.2.2", "--count", "3", "--interval", "0.01", "--size", "100", *SLOW)
    first, *replies, header, counts, times = done.stdout.splitlines()
    assert first == "PING 10.0.2.2 from 10.0.2.15/24, leased, netdev user: 100 data bytes"
    for number, reply in enumerate(replies):
        assert re.fullmatch(
            rf"108 bytes from 10\.0\.2\.2: seq={number} time=\d+\.\d{{3}} ms", reply
        )
    assert len(replies) == 3
    assert header == "--- 10.0.2.2 ping statistics ---"
    assert counts.startswith("3 sent, 3 received, 0 % lost, in ")
    assert re.fullmatch(r"rtt min/avg/max/p50/p99 = (\d+\.\d{3}/){4}\d+\.\d{3} ms", times)


def test_ping_in_json_has_every_reply() -> None:
    found = virtnic_json("ping", "10.0.2.2", "--count", "20", "--interval", "0", *SLOW)
    assert (found["sent"], found["received"], found["loss"]) == (20, 20, 0.0)
    assert [reply["sequence"] for reply in found["replies"]] == list(range(20))
    times = sorted(reply["seconds"] for reply in found["replies"])
    assert (found["min"], found["max"]) == (times[0], times[-1])
    assert found["p50"] == times[9]
    assert found["p99"] == times[19]
    assert found["avg"] == pytest.approx(sum(times) / 20)


def test_ping_waits_between_requests() -> None:
    found = virtnic_json("ping", "10.0.2.2", "--count", "4", "--interval", "0.2")
    assert 0.6 <= found["seconds"] < PROMPT


def test_ping_without_any_reply_is_1() -> None:
    # Nobody has this address: not even ARP is answered.
    options = ["--count", "2", "--interval", "0", "--timeout", "0.2"]
    done = virtnic("ping", "10.0.2.99", *options, status=1)
    assert done.stdout.count("no reply from 10.0.2.99") == 2
    assert "2 sent, 0 received, 100 % lost" in done.stdout
    found = virtnic_json("ping", "10.0.2.99", *options, status=1)
    assert found["p50"] is None
    assert [reply["seconds"] for reply in found["replies"]] == [None, None]


def test_ping_by_ipv6_with_an_address_from_a_router(qemu_command: str) -> None:
    found = virtnic_json("ping", "-6", "fec0::2", "--count", "3", "--interval", "0", *SLOW)
    assert found["received"] == 3
    assert found["address"].startswith("fec0::")
    assert found["gateway"].startswith("fe80::")
    assert "server" not in found
    found = virtnic_json("ping", "fe80::2", "--count", "1", *SLOW)
    assert found["address"].startswith("fe80::")


def test_ping_by_name(dual: Netns) -> None:
    server = NameServer(dual)
    options = ["--netdev", dual.netdev, "--address", "10.99.0.2/24", "--address", "fd99::2/64"]
    options += ["--dns", "10.99.0.1", "--count", "1", *SLOW]
    try:
        found = virtnic_json("ping", "host.test", *options)
        assert (found["target"], found["to"]) == ("host.test", "10.99.0.1")
        assert found["received"] == 1
        done = virtnic("ping", "-6", "both.test", *options[:-2], "--timeout", "0.1", status=1)
        assert "PING both.test (fd99::77) from fd99::2/64" in done.stdout
        done = virtnic("ping", "none.test", *options, status=3)
        assert "the name 'none.test' does not exist" in " ".join(done.stderr.split())
        nameless = [*options[:-6], *options[-4:]]
        done = virtnic("ping", "host.test", *nameless, status=3)
        assert "no name server; give --dns ADDRESS" in " ".join(done.stderr.split())
        found = virtnic_json("ping", "-6", "fd99::1", *options)
        assert found["address"] == "fd99::2/64"
        assert found["received"] == 1
    finally:
        server.close(dual)


def test_ping_the_kernel_through_a_tap_without_dhcp(netns: Netns) -> None:
    network = netns.address.rpartition(".")[0]
    options = ["--netdev", netns.netdev, "--address", f"{network}.2/24", *SLOW]
    found = virtnic_json("ping", netns.address, "--count", "50", "--interval", "0", *options)
    assert found["received"] == 50
    assert found["address"] == f"{network}.2/24"
    assert found["gateway"] is None


def test_probe_decodes_the_bus_and_the_features() -> None:
    found = virtnic_json("probe")
    by_id = {function["id"]: function for function in found["functions"]}
    shared = by_id["1af4:1110"]
    [memory] = [bar for bar in shared["bars"] if bar["index"] == 2]
    assert memory["size"] == found["memory"]["size"]
    assert memory["address"] == found["memory"]["iova"] == found["memory"]["address"]
    [nic] = [function for function in found["functions"] if "virtio network" in function["name"]]
    names = {capability["name"] for capability in nic["capabilities"]}
    assert {"MSI-X", "virtio common", "virtio notify", "virtio ISR", "virtio device"} <= names
    assert all(function["problems"] == [] for function in found["functions"])
    features = {feature["name"]: feature for feature in found["features"]}
    assert features["VERSION_1"]["bit"] == 32
    assert features["VERSION_1"]["accepted"]
    assert features["MAC"]["offered"]
    for feature in found["features"]:
        assert feature["offered"] or not feature["accepted"]
        assert feature["accepted"] or feature["why"]
    assert re.fullmatch(r"52:54:00(:[0-9a-f]{2}){3}", found["port"]["mac"])


def test_probe_in_words() -> None:
    text = virtnic("probe", "--machine", "q35").stdout
    assert "8086:29c0" in text
    assert "ivshmem shared memory" in text
    assert re.search(r"^ +32  VERSION_1 +yes +yes", text, re.MULTILINE)
    more = virtnic("probe", "--machine", "q35", "-v").stdout
    assert more.count("root port") > text.count("root port")


@pytest.mark.parametrize("place", ["0x100000000", "0x2000000000"])
def test_probe_puts_the_memory_where_it_is_told(place: str) -> None:
    found = virtnic_json("probe", "--iova", place, "--memory", "16M")
    assert found["memory"]["iova"] == int(place, 16)
    assert found["memory"]["size"] == 16 << 20


def test_doctor_opens_a_port() -> None:
    found = virtnic_json("doctor")
    assert found["ok"] is True
    assert found["checks"][-1]["name"] == "a port"
    assert {check["status"] for check in found["checks"]} <= {"ok", "warn", "missing"}
    text = virtnic("doctor").stdout
    assert text.endswith("virtnic works here.\n")


def test_doctor_tries_the_options_given() -> None:
    missing = "vhost-user,path=/nonexistent/vhu0"
    assert "missing  a port" in virtnic("doctor", "--netdev", missing, status=3).stdout
    done = virtnic("doctor", "--netdev", "tap,ifname=nosuchtap0/0", status=2)
    assert "'nosuchtap0/0' is not a valid network device name" in done.stderr


def test_a_netdev_that_qemu_rejects_is_1_in_its_words() -> None:
    error = virtnic_json("ping", "10.0.2.2", "--netdev", "user,net=nonsense", status=1)
    assert error["error"]["type"] == "QemuError"
    assert "net" in error["error"]["message"]


def test_a_netdev_that_nobody_knows_is_2() -> None:
    done = virtnic("probe", "--netdev", "carrier-pigeon", status=2)
    assert "carrier-pigeon" in done.stderr
    assert "user" in done.stderr  # what there is


def test_a_memory_that_is_no_power_of_two_is_2() -> None:
    done = virtnic("probe", "--memory", "3M", status=2)
    assert "power of two" in done.stderr


def test_a_fallback_to_smaller_pages_is_said_once() -> None:
    found = virtnic_json("probe")
    done = virtnic("ping", "10.0.2.2", "--count", "1")
    expected = 1 if found["memory"]["fallback"] else 0
    assert done.stderr.count("warning: ") == expected


def started(*arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        command(*arguments), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


@pytest.fixture
def endless() -> Iterator[subprocess.Popen[str]]:
    """A ping that has had its first reply and goes on for ever."""
    with started("ping", "10.0.2.2", "--count", "0", "--interval", "0.05") as process:
        assert process.stdout is not None
        while "seq=1" not in process.stdout.readline():
            assert process.poll() is None
        yield process
        if process.poll() is None:
            process.kill()


def qemus_of(process: subprocess.Popen[str]) -> list[int]:
    """Return the process ids of the QEMUs that a command has started."""
    children = Path(f"/proc/{process.pid}/task").glob("*/children")
    pids = [int(pid) for file in children for pid in file.read_text().split()]
    return [pid for pid in pids if b"-qtest" in Path(f"/proc/{pid}/cmdline").read_bytes()]


def qemu_of(process: subprocess.Popen[str]) -> int:
    """Return the process id of its only QEMU."""
    [qemu] = qemus_of(process)
    return qemu


def gone(pid: int, seconds: float = 20.0) -> bool:
    deadline = time.monotonic() + seconds
    while Path(f"/proc/{pid}").exists():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.01)
    return True


def test_ctrl_c_prints_the_summary_and_leaves_nothing(endless: subprocess.Popen[str]) -> None:
    qemu = qemu_of(endless)
    endless.send_signal(signal.SIGINT)
    out, err = endless.communicate(timeout=10)
    assert endless.returncode == 130
    assert "--- 10.0.2.2 ping statistics ---" in out
    assert err == ""
    assert gone(qemu)


def test_ctrl_c_during_a_wait_is_one_line() -> None:
    # Nobody else is on this hub: the command waits ten seconds for a DHCP server.
    with started("ping", "10.0.2.2", "-v", "--netdev", "hubport,hubid=0") as process:
        deadline = time.monotonic() + 10
        while not (qemus := qemus_of(process)):
            assert time.monotonic() < deadline
            time.sleep(0.01)
        pause(1.0)  # opening the port takes half of it
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=5)
    assert process.returncode == 130
    assert err.splitlines()[-1] == "virtnic: interrupted"
    assert "Traceback" not in err
    assert gone(qemus[0])


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_to_end_leaves_nothing(
    endless: subprocess.Popen[str], number: signal.Signals
) -> None:
    qemu = qemu_of(endless)
    endless.send_signal(number)
    _, err = endless.communicate(timeout=10)
    assert endless.returncode == 128 + number
    assert err == f"virtnic: ended by {number.name}\n"
    assert gone(qemu)


def test_qemu_killed_is_told_at_once(endless: subprocess.Popen[str]) -> None:
    os.kill(qemu_of(endless), signal.SIGKILL)
    start = time.monotonic()
    _, err = endless.communicate(timeout=30)
    assert time.monotonic() - start < PROMPT
    assert endless.returncode == 1
    assert err.splitlines()[-1].startswith("virtnic: QEMU ")
    assert "Traceback" not in err


def test_qemu_killed_is_told_in_json() -> None:
    # The error object, not stderr: a log line there names the signal too, at times.
    with started("ping", "10.0.2.2", "--count", "0", "--json", "-vv") as ping:
        assert ping.stderr is not None
        while " attached " not in ping.stderr.readline():
            assert ping.poll() is None
        os.kill(qemu_of(ping), signal.SIGKILL)
        out, _ = ping.communicate(timeout=30)
    assert ping.returncode == 1
    assert json.loads(out)["error"]["type"] == "QemuDied"


def test_no_dhcp_server_is_1_and_says_what_to_do(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    dhcp = net.Stack.dhcp
    monkeypatch.setattr(net.Stack, "dhcp", lambda stack: dhcp(stack, timeout=0.5))
    assert main(["ping", "10.0.2.2", "--netdev", "hubport,hubid=0"]) == 1
    assert "--address A.B.C.D/N" in capsys.readouterr().err


def test_our_own_sigkill_takes_qemu_along(endless: subprocess.Popen[str]) -> None:
    qemu = qemu_of(endless)
    endless.kill()
    endless.communicate(timeout=10)
    assert gone(qemu)
