"""``virtnic completions``: the scripts work in the installed shells."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from peers.components import needs
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
