"""When output is coloured."""

import io
import re
import sys

import pytest

from virtnic.cli import main
from virtnic.cli.colour import has_colour, help_in_colour

ESCAPES = re.compile(r"\x1b\[[\d;]*m")


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        return True


@pytest.fixture(autouse=True)
def _plain(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("NO_COLOR", "FORCE_COLOR", "COLUMNS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm")


@pytest.mark.parametrize(
    ("environment", "on_terminal", "elsewhere"),
    [
        ({}, True, False),
        ({"TERM": "dumb"}, False, False),
        ({"NO_COLOR": "1"}, False, False),
        ({"NO_COLOR": ""}, True, False),
        ({"FORCE_COLOR": "1"}, True, True),
        ({"FORCE_COLOR": ""}, True, False),
        ({"FORCE_COLOR": "1", "TERM": "dumb"}, True, True),
        ({"FORCE_COLOR": "1", "NO_COLOR": "1"}, False, False),
    ],
)
def test_who_decides(
    environment: dict[str, str],
    on_terminal: bool,
    elsewhere: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert has_colour(Terminal()) is on_terminal
    assert has_colour(io.StringIO()) is elsewhere


def test_a_terminal_without_a_name_has_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TERM")
    assert not has_colour(Terminal())


WORDS = [
    ["--help"],
    ["generate", "--help"],
    ["pign"],
    ["ping", "x"],
    ["probe", "--qemu", "/nowhere"],
    ["doctor", "--qemu", "/nowhere"],
]


@pytest.mark.parametrize("words", WORDS, ids=" ".join)
def test_it_changes_nothing_but_the_colour(
    words: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    status = main(words)
    plain = capsys.readouterr()
    monkeypatch.setenv("FORCE_COLOR", "1")
    assert main(words) == status
    colourful = capsys.readouterr()
    assert "\x1b" not in plain.out + plain.err
    assert ESCAPES.search(colourful.out + colourful.err)
    if words[0] != "doctor":  # what is free may change meanwhile
        assert (ESCAPES.sub("", colourful.out), ESCAPES.sub("", colourful.err)) == plain


@pytest.mark.parametrize("words", WORDS[2:], ids=" ".join)
def test_json_has_none(
    words: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    main([*words, "--json"])
    assert "\x1b" not in capsys.readouterr().out


def test_each_stream_decides_for_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    out, err = io.StringIO(), Terminal()
    monkeypatch.setattr(sys, "stdout", out)
    monkeypatch.setattr(sys, "stderr", err)
    main(["pign"])
    main(["--help"])
    assert "\x1b" in err.getvalue()
    assert "\x1b" not in out.getvalue()


def test_titles_and_options_of_a_help_text() -> None:
    text = "usage: x [-h]\n\noptions:\n  -c N, --count N  how many, as --size says\n\nNot this: x\n"
    assert help_in_colour(text).replace("\x1b", "^") == (
        "^[1;32musage:^[0m x [-h]\n\n^[1;32moptions:^[0m\n  ^[36m-c^[0m N, ^[36m--count^[0m N  "
        "how many, as --size says\n\nNot this: x\n"
    )
