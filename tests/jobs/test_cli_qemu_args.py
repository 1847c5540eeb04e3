"""``virtnic qemu-args``: how to start a QEMU that virtnic connects to."""

import json
import shlex
import stat
import subprocess
from pathlib import Path

import pytest

import virtnic
from peers.process import mortal
from virtnic.cli import main
from virtnic.qemu.command import EXTERNAL, Accel


def printed(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[str, str]:
    """Run the command and return what it wrote."""
    assert main(["qemu-args", *words]) == 0
    captured = capsys.readouterr()
    return captured.out, captured.err


def test_it_prints_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    out, err = printed(capsys, "--directory", "/run/virtnic")
    assert err == ""
    assert out.count("\n") == 1
    argv = shlex.split(out)
    assert argv[0] == "qemu-system-x86_64"
    sockets = [word for word in argv if word.startswith("socket,")]
    assert sockets == [
        f"socket,id={name},path=/run/virtnic/{name}.sock,server=on,wait=off"
        for name in ("qmp", "qtest")
    ]
    # Devices come later; of files there is none but the sockets and a lock.
    assert not [word for word in argv if "ivshmem" in word or "virtio" in word]
    paths = [word for word in argv if "/" in word and word not in sockets]
    assert paths == ["/run/virtnic/qemu.pid", "/dev/null"]


def test_it_prints_json(capsys: pytest.CaptureFixture[str]) -> None:
    out, _ = printed(capsys, "--directory", "/run/virtnic/", "--netdev", "user", "--json")
    found = json.loads(out)
    assert shlex.split(found["command"]) == found["argv"]
    assert found["sockets"] == {
        "qmp": "/run/virtnic/qmp.sock",
        "qtest": "/run/virtnic/qtest.sock",
    }
    assert found["needs"] == []


def test_a_q35_has_a_root_port_for_each(capsys: pytest.CaptureFixture[str]) -> None:
    """One for the memory and 16 for NICs; hotplug stays as this QEMU, whichever it is, has it."""
    argv = shlex.split(printed(capsys, "--directory", "/d", "--machine", "q35")[0])
    assert argv[argv.index("-machine") + 1] == "q35"
    ports = [word for word in argv if word.startswith("pcie-root-port,")]
    assert [port.split(",")[1] for port in ports] == [f"id=port{number}" for number in range(17)]
    assert "-global" not in argv


def test_no_qemu_is_needed_here(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "/nonexistent")
    monkeypatch.setenv("VIRTNIC_QEMU", "/nonexistent/qemu")
    out, _ = printed(capsys, "--directory", "/x", "--qemu", "nice -n 5 /opt/qemu/bin/qemu")
    assert out.startswith("nice -n 5 /opt/qemu/bin/qemu -no-user-config ")


def test_odd_names_are_quoted(capsys: pytest.CaptureFixture[str]) -> None:
    out, _ = printed(capsys, "--directory", "/a, b's")
    assert "socket,id=qmp,path=/a,, b's/qmp.sock,server=on,wait=off" in shlex.split(out)


def test_a_line_feed_in_a_name_ends_no_comment(capsys: pytest.CaptureFixture[str]) -> None:
    out, _ = printed(capsys, "--directory", "/a\nreboot", "--script")
    assert not [line for line in out.splitlines() if line.startswith("reboot.")]


@pytest.mark.parametrize(
    ("accel", "names"),
    [("auto", ["qtest", "tcg,tb-size=1"]), ("tcg", ["tcg,tb-size=1"]), ("qtest", ["qtest"])],
)
def test_accelerators(accel: Accel, names: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    argv = shlex.split(printed(capsys, "--directory", "/x", "--accel", accel)[0])
    assert [argv[i + 1] for i, word in enumerate(argv) if word == "-accel"] == names


@pytest.mark.parametrize(
    ("words", "name", "spawn", "need"),
    [
        ([], EXTERNAL, "deny", None),
        (["--netdev", "user"], EXTERNAL, "deny", None),
        (["--netdev", "tap,ifname=tap7"], EXTERNAL, "deny", "where QEMU runs, and tap7"),
        (["--netdev", "bridge,br=br0"], EXTERNAL + "+spawn", "allow", "the bridge helper"),
        (["--netdev", "user", "--netdev", "passt"], EXTERNAL + "+anything", None, "needs passt"),
        (["--netdev", "vhost-user,path=/d/v"], EXTERNAL, "deny", "/d/v is opened by the program"),
        (["--sandbox", "spawn"], EXTERNAL + "+spawn", "allow", None),
        (["--sandbox", "off"], EXTERNAL + "+anything", None, None),
    ],
)  # fmt: skip
def test_what_netdevs_need(
    words: list[str],
    name: str,
    spawn: str | None,
    need: str | None,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out, err = printed(capsys, "--directory", "/d", *words)
    argv = shlex.split(out)
    assert argv[argv.index("-name") + 1] == name
    sandbox = argv[argv.index("-sandbox") + 1] if "-sandbox" in argv else None
    assert (spawn is None) == (sandbox is None)
    assert sandbox is None or f",spawn={spawn}," in sandbox
    assert (need is None) == (err == "")
    found = json.loads(printed(capsys, "--directory", "/d", "--json", *words)[0])["needs"]
    assert need is None or [text for text in found if need in text]


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        ([], "--directory"),
        (["--directory", "/x", "--accel", "kvm"], "kvm"),
        (["--directory", "/x", "--script", "--json"], "exclude each other"),
        (["--directory", "/" + "x" * 100], "too long for a UNIX socket"),
        (["--directory", "/x", "--netdev", "user,id=a"], "has an id: omit it"),
        (["--directory", "/x", "--netdev", ""], "the netdev is empty"),
        (["--directory", "/x", "--sandbox", "on", "--netdev", "passt"], "--sandbox on denies"),
    ],
)
def test_wrong_usage_is_2(
    words: list[str], complaint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["qemu-args", *words]) == 2
    captured = capsys.readouterr()
    assert complaint in captured.out + captured.err


@pytest.mark.needs("qemu")
def test_the_script_starts_qemu(
    scratch: Path, qemu_command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """As any POSIX shell runs it: in a directory with spaces, with more options, for everybody."""
    directory = scratch / "a place"
    directory.mkdir()
    words = ["--directory", str(directory), "--qemu", qemu_command, "--script"]
    script, _ = printed(capsys, *words)
    assert script.startswith("#!/bin/sh\n")
    file = directory / "start"
    file.write_text(script)
    subprocess.run(["sh", "-n", str(file)], check=True)
    with subprocess.Popen(mortal(["sh", str(file), "-rtc", "base=utc"])) as process:
        try:
            memory = virtnic.Memory("8M", hugepages=None)
            with virtnic.Qemu.connect(directory, memory) as qemu:
                assert qemu.execute("query-status")["running"]
            # The umask of whoever starts it does not matter.
            for name in ("qmp.sock", "qtest.sock"):
                assert stat.S_IMODE((directory / name).stat().st_mode) == 0o777
            file.unlink()
        finally:
            process.kill()
    for left in directory.iterdir():
        left.unlink()
    directory.rmdir()


def test_the_ready_script_is_what_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    ready = Path(__file__).resolve().parents[2] / "docs/containers/start-qemu"
    assert ready.read_text() == printed(capsys, "--directory", "/run/virtnic", "--script")[0]
