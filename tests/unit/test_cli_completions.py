"""``virtnic completions``: the scripts work in the installed shells."""

import json
import os
import pty
import select
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from peers.components import needs
from support.waiting import eventually
from virtnic.cli import main
from virtnic.cli.completions import SHELLS
from virtnic.cli.parser import COMMANDS

needs_shtab = pytest.mark.needs("shtab")

#: Sources the script on its input, and completes its arguments, of which the last is begun.
COMPLETE = """
source /dev/stdin
COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1))
_shtab_virtnic
printf '%s\\n' "${COMPREPLY[@]}"
"""


@pytest.fixture
def script(request: pytest.FixtureRequest, capsys: pytest.CaptureFixture[str]) -> str:
    """What is printed for a shell."""
    assert main(["completions", getattr(request, "param", "bash")]) == 0
    return capsys.readouterr().out


@needs_shtab
@pytest.mark.parametrize(
    ("words", "wanted"),
    [
        (["virtnic", ""], set(COMMANDS)),
        (["virtnic", "pi"], {"ping"}),
        (["virtnic", "--js"], {"--json"}),
        (["virtnic", "--json", "watch", "--po"], {"--port"}),
        (["virtnic", "ping", "--accel", ""], {"auto", "qtest", "tcg", "kvm"}),
        (["virtnic", "drop", "--connect", "/dev/sh"], {"/dev/shm"}),
        (["virtnic", "generate", "--pcap", "/etc/host"], {"/etc/hosts"}),
        (["virtnic", "completions", ""], set(SHELLS)),
        (["virtnic", "help", "dr"], {"drop"}),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_bash_completes(script: str, words: list[str], wanted: set[str]) -> None:
    done = subprocess.run(
        ["bash", "--norc", "-u", "-c", COMPLETE, "bash", *words],
        input=script,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.stderr == ""
    found = set(done.stdout.split())
    assert wanted <= found if "/" in words[-1] else wanted == found


@needs_shtab
@pytest.mark.parametrize("script", ["fish"], indirect=True)
@pytest.mark.parametrize(
    ("line", "wanted"),
    [
        ("virtnic gen", ["generate"]),
        ("virtnic ping --accel ", ["auto", "qtest", "tcg", "kvm"]),
        ("virtnic check --on", ["--only"]),
        ("virtnic help re", ["replay"]),
        ("virtnic generate --pcap /etc/hostn", ["/etc/hostname"]),
    ],
)
def test_fish_completes(script: str, line: str, wanted: list[str]) -> None:
    needs("fish")
    done = subprocess.run(
        ["fish", "--no-config", "-c", "source; complete -C $argv[1]", line],
        input=script,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.stderr == ""
    assert [found.partition("\t")[0] for found in done.stdout.splitlines()] == wanted


@needs_shtab
@pytest.mark.parametrize("script", ["zsh"], indirect=True)
@pytest.mark.parametrize(
    ("line", "wanted"),
    [
        ("virtnic gen", "generate"),
        ("virtnic check --onl", "--only"),
        ("virtnic ping --ac", "--accel"),
    ],
)
def test_zsh_completes(script: str, line: str, wanted: str, tmp_path: Path) -> None:
    needs("zsh")
    (tmp_path / "_virtnic").write_text(script)
    (tmp_path / ".zshrc").write_text(
        f"PS1='ready> '\nfpath=({tmp_path} $fpath)\nautoload compinit\ncompinit -u -D\n"
    )
    pid, terminal = pty.fork()
    if pid == 0:
        os.environ.update(ZDOTDIR=str(tmp_path), TERM="dumb")
        os.execvp("zsh", ["zsh", "-i"])
    shown = ""

    def has(text: str) -> bool:
        nonlocal shown
        if select.select([terminal], [], [], 0)[0]:
            shown += os.read(terminal, 65536).decode(errors="replace")
        return text in shown

    try:
        assert eventually(lambda: has("ready> ")), shown
        os.write(terminal, f"{line}\t".encode())
        assert eventually(lambda: has(f"{wanted} ")), shown
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        os.close(terminal)


@needs_shtab
@pytest.mark.parametrize("script", SHELLS, indirect=True)
def test_a_script_knows_every_command_and_option(script: str) -> None:
    for word in (*COMMANDS, "queue-size", "no-backpressure", "destination-mac"):
        assert word in script


@needs_shtab
@pytest.mark.parametrize(
    ("script", "shell"), [(shell, shell) for shell in SHELLS], indirect=["script"]
)
def test_a_script_can_be_read_by_its_shell(script: str, shell: str, scratch: Path) -> None:
    needs(shell)
    file = scratch / "script"
    file.write_text(script)
    try:
        subprocess.run([shell, "-n", file], check=True, timeout=60)
    finally:
        file.unlink()


@needs_shtab
def test_the_script_in_json(script: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["completions", "bash", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"shell": "bash", "script": script.rstrip("\n")}


def test_without_shtab_it_is_3_and_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "shtab", None)
    assert main(["completions", "fish"]) == 3
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err == (
        "virtnic: completions need the Python package shtab, which is not installed; "
        "pip install\n'virtnic[cli]'\n"
    )
    assert main(["--json", "completions", "fish"]) == 3
    assert "virtnic[cli]" in json.loads(capsys.readouterr().out)["error"]["message"]
