"""Command lines, terminals and environments that newcomers have."""

import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import virtnic
from virtnic.cli import main
from virtnic.errors import message_of

COMMAND = f"{shlex.quote(sys.executable)} -m virtnic"


def shell(line: str, environment: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    """Run a line of sh in which ``virtnic`` is the command."""
    function = f'virtnic() {{ {COMMAND} "$@"; }}\n'
    return subprocess.run(
        ["/bin/sh", "-c", function + line],
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        errors="surrogateescape",
        timeout=60,
        check=False,
    )


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([""], "unknown command ''"),
        ([" "], "unknown command ' '"),
        (["PING", "10.0.2.2"], "did you mean ping?"),
        (["version"], "did you mean --version?"),
        (["list"], "did you mean help?"),
        (["send"], "did you mean generate?"),
        (["-version"], "unknown option -version; did you mean --version?"),
        (["ping", "-count", "3", "10.0.2.2"], "unknown option -count; did you mean --count?"),
        (["10.0.2.2", "ping"], "the command comes first, as in `virtnic ping 10.0.2.2`"),
        (["--netdev", "user", "ping"], "--netdev comes after the command, as in `virtnic ping"),
        (["--nonsense", "ping"], "unknown option --nonsense"),
        (["ping", "10.0.2.2", "10.0.2.3"], "unrecognized arguments: 10.0.2.3"),
        (["drop", "user"], "unrecognized arguments: user; did you mean --netdev user?"),
        (["forward", "tap,ifname=a", "user"], "did you mean --port tap,ifname=a?"),
        (["forward"], "--port is required once or twice"),
        (["generate", "--rate", "10", "Mpps"], "unrecognized arguments: Mpps; try"),
        (["generate", "--payload", "hello"], "'hello' is not a hexadecimal string"),
        (["generate", "--frame", ""], "it has no hexadecimal digits"),
        (["ping", ""], "'' is not an IPv4 or IPv6 address"),
        (["ping", "10.0.2.2 "], "'10.0.2.2 ' is neither an address nor a name"),
        (["ping", "１0.0.2.2"], "is not an IPv4 or IPv6 address"),  # noqa: RUF001 - a wide digit
        (["generate", "--pcap", ""], "argument --pcap: it is empty"),
        (["generate", "--pcap", "/dev/zero"], "/dev/zero is no capture"),
        (["drop", "--connect", ""], "argument --connect: it is empty"),
        (["drop", "--qemu", ""], "argument --qemu: it is empty"),
        (["drop", "--memory", ""], "the size must be a number of bytes"),
        (["drop", "--mac", ""], "six bytes"),
        (["qemu-args", "--directory", ""], "argument --directory: it is empty"),
        (["qemu-args", "--directory", "/d", "--qemu", ""], "argument --qemu: it is empty"),
    ],
)
def test_a_line_that_is_wrong(
    words: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(words) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert said in captured.err


@pytest.mark.parametrize(
    "words",
    [
        ["--", "qemu-args", "--directory", "/d"],
        ["--json", "--", "qemu-args", "--directory", "/d"],
        ["qemu-args", "--directory=/d"],
        ["qemu-args", "--dir", "/d"],
        ["-v", "qemu-args", "-v", "--directory", "/d"],
    ],
)
def test_a_line_that_is_right(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(words) == 0
    assert "/d/qmp.sock" in capsys.readouterr().out


@pytest.mark.parametrize("words", [["--"], ["--", "--help"], ["-h"], ["help", "--"]])
def test_help_in_odd_places(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(words) == 0
    assert "commands:" in capsys.readouterr().out


@pytest.mark.parametrize("words", [["-V"], ["--version"], ["-v", "--version"], ["--json", "-V"]])
def test_the_version(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(words) == 0
    assert capsys.readouterr().out == f"virtnic {virtnic.__version__}\n"


@pytest.mark.parametrize(
    "words",
    [
        ["x" * 50_000],
        ["drop", "--" + "x" * 50_000],
        ["drop", "--netdev", "vhost-user,path=/" + "x" * 50_000],
        ["drop", "--connect", "/" + "x" * 50_000],
    ],
    ids=["command", "option", "netdev", "path"],
)
def test_a_very_long_word_does_not_fill_the_screen(
    words: list[str], qemu_command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(words) in (2, 3)
    assert len(capsys.readouterr().err) < 2_000


@pytest.mark.parametrize(
    ("line", "status", "said"),
    [
        ("virtnic --help >/dev/full", 3, "virtnic: standard output: No space left on device\n"),
        ("virtnic ping -h >/dev/full", 3, "virtnic: standard output: No space left on device\n"),
        ("virtnic --version >/dev/full", 3, "virtnic: standard output: No space left on device\n"),
        ("virtnic >&-", 0, ""),
        ("virtnic --version >&-", 0, ""),
        ("virtnic pign 2>&-", 2, ""),
        ("virtnic pign 2>/dev/full", 2, ""),
        ("virtnic ping 1.2 2>/dev/full", 2, ""),
        ("virtnic drop --qemu /nowhere 2>&-", 3, ""),
        ("virtnic drop --qemu /nowhere 2>/dev/full", 3, ""),
        ("virtnic drop --qemu /nowhere >&- 2>&- <&-", 3, ""),
    ],
)
def test_streams_that_take_nothing(line: str, status: int, said: str) -> None:
    done = shell(line)
    assert (done.returncode, done.stderr, done.stdout) == (status, said, "")


def test_a_reader_of_help_that_has_seen_enough() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run(
        [sys.executable, "-m", "virtnic", "generate", "--help"],
        stdout=writing,
        stderr=subprocess.PIPE,
        text=True,
        timeout=60,
        check=False,
    )
    os.close(writing)
    assert (done.returncode, done.stderr) == (1, "")


@pytest.mark.parametrize("columns", ["20", "1", "0", "-5", "x", "100000"])
def test_help_on_any_width(columns: str) -> None:
    done = shell("virtnic generate --help", {**os.environ, "COLUMNS": columns, "TERM": "dumb"})
    assert (done.returncode, done.stderr) == (0, "")
    assert "--destination-mac" in done.stdout


def test_bytes_that_are_no_text() -> None:
    for line in (r"virtnic '\377'", r"virtnic ping '\377'", r"virtnic generate --pcap '/\377'"):
        done = shell(f"eval \"$(printf '%b' {shlex.quote(line)})\"")
        assert done.returncode in (2, 3)
        assert "Traceback" not in done.stderr
        assert done.stderr.startswith("virtnic")


def test_an_environment_of_nothing(qemu_command: str) -> None:
    """No HOME, no TERM, no LANG; a QEMU that is in PATH or named."""
    path = os.environ["PATH"]
    done = shell(
        "virtnic ping 10.0.2.2 --count 1 --hugepages none",
        {"PATH": path, "VIRTNIC_QEMU": qemu_command},
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert "1 sent, 1 received" in done.stdout


@pytest.mark.needs("root")
def test_as_nobody(qemu_command: str) -> None:
    """Everything that needs no privilege, in a directory of another user."""
    python = shutil.which("python3", path="/usr/bin:/bin")
    if shutil.which("setpriv") is None or python is None:
        pytest.skip("setpriv or a Python for everybody is not installed")
    places = [Path(virtnic.__file__).parents[1], *map(Path, sys.path)]
    as_nobody = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"]
    environment = {
        "PATH": "/usr/bin:/bin",
        "PYTHONPATH": os.pathsep.join(map(str, places)),
        "PYTHONDONTWRITEBYTECODE": "1",
        "VIRTNIC_QEMU": qemu_command,
    }
    command = [*as_nobody, python, "-m", "virtnic"]

    def run(*words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*command, words[0], "--hugepages", "none", *words[1:]],
            cwd="/",
            env=environment,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    if subprocess.run([*command, "-V"], env=environment, check=False, cwd="/").returncode:
        pytest.skip("nobody can run this Python with these packages")
    done = run("ping", "10.0.2.2", "--count", "1")
    assert (done.returncode, done.stderr) == (0, "")
    done = run("drop", "--netdev", "tap,ifname=nobodys0", "--seconds", "0")
    assert done.returncode == 3
    assert "as root: `ip tuntap add dev nobodys0 mode tap" in " ".join(done.stderr.split())
    done = run("drop", "--iova", "pa", "--seconds", "0", "--hugepages", "2M", "--memory", "2M")
    assert done.returncode == 3
    assert "or use --iova va" in " ".join(done.stderr.split())


def test_an_error_of_the_system_has_no_number() -> None:
    assert message_of(PermissionError(13, "Permission denied", "/run/x")) == (
        "/run/x: Permission denied"
    )
    assert message_of(PermissionError(13, "connecting: Permission denied")) == (
        "connecting: Permission denied"
    )
