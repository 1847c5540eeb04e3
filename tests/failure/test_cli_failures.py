"""Failing commands: the exit status is the one that ``--help`` documents."""

import json
import os
import re
import shutil
import signal
import struct
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import virtnic
from peers.netns import Netns
from support.program import command, started
from virtnic.cli import main
from virtnic.cli.parser import COMMANDS

#: The commands that open a port, with the option that says on which netdev.
OPENING = {
    "demo": (["demo"], "--netdev"),
    "ping": (["ping", "10.0.2.2"], "--netdev"),
    "proxy": (["proxy", "--listen", "0", "--seconds", "0"], "--netdev"),
    "probe": (["probe"], "--netdev"),
    "doctor": (["doctor"], "--netdev"),
    "forward": (["forward", "--seconds", "0"], "--port"),
    "generate": (["generate", "--seconds", "0"], "--netdev"),
    "drop": (["drop", "--seconds", "0"], "--netdev"),
    "watch": (["watch", "--seconds", "0"], "--port"),
    "capture": (["capture", "-w", os.devnull, "--seconds", "0"], "--port"),
    "replay": (["replay", "CAPTURE", "--seconds", "0"], "--port"),
    "extcap": (["extcap", "--capture", "--fifo", os.devnull, "--seconds", "0"], "--netdev"),
    "measure": (["measure", "latency", "--sizes", "64", "--seconds", "0"], "--tx"),
}
#: The commands that open no port.
OTHERS = {"qemu-args", "completions", "help", "check"}
NOT_CONNECTING = ("demo", "doctor")

every_command = pytest.mark.parametrize("name", OPENING)


def words(name: str, netdev: str = "user", *options: str) -> list[str]:
    """Return a command line of a command that opens a port on a netdev."""
    first, option = OPENING[name]
    first = [str(_capture) if word == "CAPTURE" else word for word in first]
    return [*first, option, netdev, "--hugepages", "none", *options]


_capture = Path("unwritten.pcap")


@pytest.fixture(autouse=True, scope="module")
def capture_file(tmp_path_factory: pytest.TempPathFactory) -> None:
    """A classic capture of one frame, for `replay`."""
    global _capture
    _capture = tmp_path_factory.mktemp("captures") / "one.pcap"
    head = struct.pack("<IHHiIII", 0xA1B2C3D4, 2, 4, 0, 0, 65535, 1)
    _capture.write_bytes(head + struct.pack("<IIII", 0, 0, 60, 60) + bytes(60))


def test_no_command_is_forgotten() -> None:
    assert {*OPENING, *OTHERS} == set(COMMANDS)


@pytest.fixture
def fails(capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Run a command that must fail, and return its output; optionally also with --json."""

    def run(argv: list[str], status: int, *, in_json: bool = False) -> str:
        assert main(argv) == status, capsys.readouterr()
        plain = capsys.readouterr()
        assert "Traceback" not in plain.err
        assert "internal error" not in plain.err
        assert not re.search(r"\[Errno|os error", plain.out + plain.err)
        if argv[0] not in ("doctor", "demo"):  # what they found until then is their result
            assert plain.out == ""
        if in_json:
            assert main([*argv, "--json"]) == status
            printed = json.loads(capsys.readouterr().out)
            if argv[0] != "doctor" or "error" in printed:
                assert set(printed) == {"error"}
                assert set(printed["error"]) == {"type", "message"}
        return " ".join((plain.out + plain.err).split())

    return run


@every_command
@pytest.mark.parametrize(
    ("netdev", "options", "status", "said"),
    [
        ("user", ["--qemu", "/nonexistent/qemu"], 3, "install the package"),
        ("user", ["--memory", "64T"], 3, "cannot be had"),
        ("user", ["--hugepages", "1G", "--memory", "64T"], 3, "--hugepages none"),
        ("vhost-user,path=/nonexistent/vhu0", [], 3, "/nonexistent/vhu0"),
        ("vhost-vdpa,vhostdev=/nonexistent/vdpa", [], 3, "/nonexistent/vdpa"),
        ("user,net=nonsense", [], 1, "QEMU refused"),
        ("carrier-pigeon", [], 2, "carrier-pigeon"),
        ("bridge,br=br0", [], 2, "give --sandbox spawn"),
        ("user", ["--memory", "3M"], 2, "power of two"),
        ("user", ["--memory", "9e99"], 2, "'9e99'"),
        ("user", ["--queue-size", "100"], 2, "--queue-size must be a power of two"),
        ("user", ["--iova", "0x123"], 2, "iova"),
        ("user", ["--nonsense"], 2, "unknown option --nonsense"),
        ("user", ["--accel", "warp"], 2, "warp"),
        ("", [], 2, "the netdev is empty"),
    ],
    ids=lambda value: (" ".join(value) if isinstance(value, list) else str(value)) or "-",
)
def test_what_goes_wrong(
    qemu_command: str,
    name: str,
    netdev: str,
    options: list[str],
    status: int,
    said: str,
    fails: Callable[..., str],
) -> None:
    assert said in fails(words(name, netdev, *options), status, in_json=True)


@pytest.mark.parametrize("name", [name for name in OPENING if name not in NOT_CONNECTING])
def test_no_directory_to_connect_in_is_3(
    name: str, scratch: Path, fails: Callable[..., str]
) -> None:
    for place in (f"{scratch}/nowhere", "/etc/hosts"):
        said = fails(words(name, "user", "--connect", place), 3)
        assert "this is the directory shared with QEMU" in said


@pytest.fixture
def unprivileged(netns: Netns, qemu_command: str, monkeypatch: pytest.MonkeyPatch) -> Netns:
    """A namespace whose QEMUs may not make a TAP."""
    if shutil.which("setpriv") is None:
        pytest.skip("setpriv is not installed")
    without = f"setpriv --bounding-set=-all --inh-caps=-all {qemu_command}"
    monkeypatch.setenv("VIRTNIC_QEMU", netns.qemu_command.replace(qemu_command, without))
    return netns


@every_command
@pytest.mark.needs("netns")
def test_a_tap_that_is_busy_is_3(netns: Netns, name: str, fails: Callable[..., str]) -> None:
    with virtnic.open(netns.netdev, size="1M", hugepages=None):
        said = fails(words(name, netns.netdev), 3)
    assert f"another program has {netns.tap} open: end it, or use another device" in said


@every_command
@pytest.mark.needs("netns")
def test_a_tap_that_is_not_there_and_cannot_be_made_is_3(
    unprivileged: Netns, name: str, fails: Callable[..., str]
) -> None:
    said = fails(words(name, "tap,ifname=mine0"), 3)
    assert "there is no mine0, and creating one needs CAP_NET_ADMIN" in said
    assert "`ip tuntap add dev mine0 mode tap user" in said


@every_command
@pytest.mark.needs("netns")
def test_a_tap_of_another_user_is_3(
    unprivileged: Netns, name: str, fails: Callable[..., str]
) -> None:
    unprivileged.run("ip", "tuntap", "add", "dev", "theirs0", "mode", "tap", "user", "12345")
    said = fails(words(name, "tap,ifname=theirs0"), 3)
    assert "theirs0 belongs to another user; as root: `ip tuntap del dev theirs0 mode tap`" in said


@every_command
@pytest.mark.needs("netns")
@pytest.mark.parametrize("several", [True, False])
def test_a_tap_with_another_number_of_queues_is_3(
    netns: Netns, name: str, several: bool, fails: Callable[..., str]
) -> None:
    more = ["multi_queue"] if several else []
    netns.run("ip", "tuntap", "add", "dev", "q0", "mode", "tap", "vnet_hdr", *more)
    netdev = "tap,ifname=q0" if several else "tap,ifname=q0,queues=2"
    said = fails(words(name, netdev), 3)
    made = "with" if several else "without"
    assert f"q0 was made {made} multi_queue" in said
    assert "`ip tuntap add dev q0 mode tap user" in said


@every_command
@pytest.mark.needs("netns")
def test_a_tap_that_is_down_is_told_of(
    netns: Netns, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    netns.run("ip", "link", "set", netns.tap, "down")
    gateway = ["--address", "10.99.0.2/24", "--gateway", "10.99.0.1"]
    options = {
        "ping": [*gateway, "--count", "1", "--timeout", "0.1"],
        "demo": [*gateway, "--count", "1"],
        "proxy": gateway,
    }
    status = {"ping": 1, "demo": 1, "measure": 1, "doctor": 3}.get(name, 0)
    assert main(words(name, netns.netdev, *options.get(name, []))) == status
    captured = capsys.readouterr()
    said = " ".join((captured.out + captured.err).split())
    assert f"{netns.tap} is down: no frames pass until `ip link set {netns.tap} up`" in said


@every_command
def test_ctrl_c_while_a_backend_is_waited_for_is_130(
    qemu_command: str, name: str, scratch: Path
) -> None:
    """A port is being opened: there are no numbers yet that a summary could have."""
    path = scratch / "nobody"
    argv = words(name, f"vhost-user,path={path},server=on,wait=60")
    with subprocess.Popen(
        command(*argv), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        try:
            for _ in waiting(process):
                if path.exists():
                    break
            process.send_signal(signal.SIGINT)
            out, err = process.communicate(timeout=30)
        finally:
            if process.poll() is None:
                process.kill()
    assert process.returncode == 130, out + err
    assert err == "virtnic: interrupted\n"


def test_ctrl_c_beside_a_qemu_that_is_stopped(qemu_command: str) -> None:
    """The port ends with its QEMU: nobody waits for it to be unplugged first."""
    with started("drop", "--hugepages", "none") as process:
        (children,) = (
            (task / "children").read_text().split()
            for task in Path(f"/proc/{process.pid}/task").iterdir()
            if (task / "children").read_text()
        )
        os.kill(int(children[0]), signal.SIGSTOP)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
    assert process.returncode == 0, out + err
    assert "drop statistics" in out
    assert "device_del" not in err


def waiting(process: subprocess.Popen[str]) -> Iterator[None]:
    """Yield for up to half a minute while it runs."""
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        assert process.poll() is None, process.communicate()
        yield
        time.sleep(0.02)
    pytest.fail("it does not get so far")


@pytest.mark.parametrize("name", sorted(OTHERS - {"help"}))
@pytest.mark.parametrize("option", ["--nonsense", "--json=1"])
def test_the_others_know_wrong_options_too(
    name: str, option: str, fails: Callable[..., str]
) -> None:
    fails([name, option], 2, in_json=True)
