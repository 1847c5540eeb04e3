"""A port in Wireshark's list of interfaces: tshark and dumpcap start what they find there."""

import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import virtnic
from peers.netns import Netns
from support.frames import numbered
from support.program import virtnic as program
from support.waiting import pause
from virtnic import capture
from virtnic.cli import main
from virtnic.cli.parser import parse
from virtnic.integrations import extcap


@pytest.fixture
def folder(scratch: Path) -> Iterator[Path]:
    """A directory for Wireshark's programs and for captures."""
    path = scratch / "extcap"
    path.mkdir()
    yield path
    shutil.rmtree(path)


def fields(line: str) -> dict[str, str]:
    """Return what a line of the protocol says, as Wireshark's own parser reads it (extcap(4))."""
    return dict(re.findall(r"\{(\w+)=([^}]*)\}", line))


def asked(capsys: pytest.CaptureFixture[str], *words: str) -> list[tuple[str, dict[str, str]]]:
    """Ask the command a question; return the kind and the values of each line of the answer."""
    assert main(["extcap", *words]) == 0
    lines = capsys.readouterr().out.splitlines()
    return [(line.split()[0], fields(line)) for line in lines]


def test_it_answers_as_the_protocol_says(capsys: pytest.CaptureFixture[str]) -> None:
    (head, about), (kind, interface) = asked(capsys, "--extcap-interfaces", "--extcap-version=4.0")
    assert (head, kind) == ("extcap", "interface")
    assert about["version"] == virtnic.__version__
    assert interface["value"] == "virtnic"
    ((kind, link),) = asked(capsys, "--extcap-dlts", "--extcap-interface", "virtnic")
    assert (kind, link["number"], link["name"]) == ("dlt", "1", "EN10MB")
    options = asked(capsys, "--extcap-config", "--extcap-interface", "virtnic")
    assert [kind for kind, _ in options] == ["arg"] * len(options)
    assert [each["number"] for _, each in options] == [str(n) for n in range(len(options))]
    for _, each in options:
        # Each is an option that the command takes.
        value = each.get("default", "7")
        words = ["--capture", "--fifo", os.devnull, each["call"], value]
        assert parse(["extcap", *words]).capture


def test_a_filter_is_valid_where_nothing_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["extcap", "--extcap-interface", "virtnic", "--extcap-capture-filter"]
    assert main([*words, "udp port 53"]) == 0
    assert capsys.readouterr().out == ""
    assert main([*words, "udp prot 53"]) == 0
    assert "prot" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "wrong"),
    [
        ([], "give one of --install"),
        (["--capture"], "--fifo"),
        (["--install", "--extcap-dlts"], "give one of"),
        (["--extcap-dlts", "--directory", "/tmp"], "--directory is for --install"),
    ],
)
def test_options_that_do_not_fit_are_told(
    words: list[str], wrong: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["extcap", *words]) == 2
    assert wrong in capsys.readouterr().err


def test_another_interface_is_none_of_ours() -> None:
    words = ["--capture", "--fifo", os.devnull, "--extcap-interface", "eth0"]
    done = program("extcap", *words, status=2)
    assert "there is no interface 'eth0'" in done.stderr


def test_what_is_installed_runs(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    place = folder / "new"
    for _ in range(2):
        assert main(["extcap", "--install", "--directory", str(place)]) == 0
        assert str(place / "virtnic") in capsys.readouterr().out
    assert [path.name for path in place.iterdir()] == ["virtnic"]
    told = subprocess.check_output([place / "virtnic", "--extcap-interfaces"], text=True)
    assert told == extcap.answer("interfaces")


@pytest.mark.parametrize(
    ("said", "found"),
    [
        ("Personal Extcap path:\t/p\nGlobal Extcap path:\t/g\nExtcap path:\t/e\n", "/p"),
        ("Temp:\t/tmp\nExtcap path:         \t/e x\n", "/e x"),
        ("", str(Path("~/.local/lib/wireshark/extcap").expanduser())),
    ],
)
def test_wireshark_is_asked_for_its_directory(
    folder: Path, monkeypatch: pytest.MonkeyPatch, said: str, found: str
) -> None:
    """Version 4.0 has one directory, later ones have another for the user."""
    tshark = folder / "tshark"
    tshark.write_text(f"#!{sys.executable}\nprint({said!r}, end='')\n")
    tshark.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    assert extcap.directory() == Path(found)


# tshark, which starts dumpcap


@pytest.fixture
def tshark(folder: Path) -> list[str]:
    """tshark, where the program is installed, as the start of a command line.

    As root it looks in one directory of the system only: a mount namespace has ours there.
    """
    installed = folder / "programs"
    extcap.install(installed)
    script = 'mount --bind "$0" "$1"; shift; exec tshark "$@"'
    inside = ["unshare", "--mount", "sh", "-ec", script]
    return [*inside, str(installed), str(extcap.directory())]


@pytest.mark.needs("tshark", "root")
def test_tshark_lists_the_interface_and_its_link_type(tshark: list[str]) -> None:
    listed = subprocess.check_output([*tshark, "-D"], text=True, timeout=120)
    assert re.search(r"^\d+\. virtnic \(a port of its own \(virtnic\)\)$", listed, re.MULTILINE)
    links = subprocess.run(
        [*tshark, "-L", "-i", "virtnic"], capture_output=True, text=True, timeout=120, check=True
    )
    assert "EN10MB" in links.stdout + links.stderr


@pytest.mark.needs("tshark", "netns", "qemu")
def test_tshark_captures_what_a_port_receives(
    netns: Netns, folder: Path, tshark: list[str]
) -> None:
    """It ends after its frames; the command and its QEMU end with it."""
    file = folder / "seen.pcapng"
    argv = [*tshark, "-i", "virtnic", "-c", "500", "-w", str(file)]
    argv += ["-o", f"extcap.virtnic.netdev:{netns.netdev}", "-f", "ether[12:2] = 0x88b5"]
    frames = [numbered(netns.mac, n, 100) for n in range(500)]
    environment = os.environ | {"VIRTNIC_QEMU": netns.qemu_command}
    with subprocess.Popen(argv, env=environment, stderr=subprocess.PIPE) as process:
        try:
            netns.wait_for_carrier(60)  # it has started the command, and that a QEMU
            with netns.packet_socket() as sender:
                while process.poll() is None:
                    for frame in frames:
                        sender.send(frame)
                    pause(0.05)
        finally:
            process.kill()
    found = [frame.frame for frame in capture.read(file)]
    assert len(found) == 500
    assert set(found) <= set(frames)


@pytest.mark.needs("netns", "qemu")
@pytest.mark.parametrize("end", ["reader", "signal"])
def test_a_capture_ends_when_its_reader_goes_or_a_signal_comes(
    netns: Netns, folder: Path, end: str
) -> None:
    fifo = folder / "pipe"
    os.mkfifo(fifo)
    argv = [sys.executable, "-m", "virtnic", "extcap", "--capture", "--fifo", str(fifo)]
    argv += ["--netdev", netns.netdev, "--hugepages", "none"]
    environment = os.environ | {"VIRTNIC_QEMU": netns.qemu_command}
    with subprocess.Popen(
        argv, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        try:
            with fifo.open("rb") as pipe, netns.packet_socket() as sender:
                head = pipe.read(4)
                assert head == b"\x0a\x0d\x0d\x0a"  # pcapng
                if end == "signal":
                    process.send_signal(signal.SIGTERM)
                    assert pipe.read()[-4:] != b""  # to its end, with the statistics
                else:
                    pipe.close()
                    while process.poll() is None:
                        sender.send(numbered(netns.mac, 1, 100))
                        pause(0.05)
            out, err = process.communicate(timeout=60)
        finally:
            process.kill()
    assert (process.returncode, out, err) == (0, "", "")
