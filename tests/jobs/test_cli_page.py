"""``docs/commands.md`` compared to the commands, units, exit statuses and JSON keys."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import virtnic as library
from peers.checked_backend import CheckedBackend
from support.program import virtnic, virtnic_json
from virtnic.capture import Writer
from virtnic.cli import main
from virtnic.cli.parser import COMMANDS
from virtnic.cli.status import EXIT_STATUSES
from virtnic.units import (
    COUNTS,
    RATES,
    SIZES,
    TIMES,
    parse_count,
    parse_rate,
    parse_size,
    parse_time,
)

PAGE = (Path(__file__).resolve().parents[2] / "docs/commands.md").read_text()


def rows(title: str) -> list[tuple[str, str]]:
    """Return the rows of the table whose heading begins so."""
    heading = rf"^\| {re.escape(title)} \| \|\n\|---\|---\|\n"
    found = re.search(rf"{heading}((?:\|.*\n)+)", PAGE, re.MULTILINE)
    assert found is not None, title
    cells = (line.strip("| ").split(" | ", 1) for line in found[1].splitlines())
    return [(first, second) for first, second in cells]


def test_every_command_is_listed() -> None:
    listed = re.findall(r"^\| `virtnic ([\w-]+)", PAGE, re.MULTILINE)
    assert set(listed) | {"help"} == set(COMMANDS)


@pytest.mark.parametrize(
    ("title", "spellings"),
    [("size", SIZES), ("rate", RATES), ("time", TIMES), ("count", COUNTS)],
)
def test_the_spellings_are_those_of_the_parser(
    title: str, spellings: tuple[tuple[str, str], ...]
) -> None:
    page = [(first.replace("`", ""), second) for first, second in rows(title)]
    assert page == [*spellings]


SIZE = {
    **dict.fromkeys(["65536", "0x10000", "64K", "64k", "64KiB", "64 kB"], 65536),
    **dict.fromkeys(["64M", "64MiB", "64 MB"], 64 << 20),
    "1e6": 1_000_000,
    "1g": 1 << 30,
    "1.5G": 3 << 29,
}
#: In frames of 64 bytes.
RATE = {
    "1000": 1e3,
    "10k": 10e3,
    "1.5M": 1.5e6,
    "1e6": 1e6,
    "10kpps": 10e3,
    "1.5Mpps": 1.5e6,
    "10 kp/s": 10e3,
    "10kfps": 10e3,
    "100 frames/s": 100,
    "100Mbps": 1e8 / 512,
    "100Mbit/s": 1e8 / 512,
    "1gbit": 1e9 / 512,
    "1 Gb/s": 1e9 / 512,
    "10G": 1e10 / 512,
    "125MB/s": 1e9 / 512,
    "125 Mbytes/s": 1e9 / 512,
}


TIME = {
    "10": 10,
    "0.5": 0.5,
    "1e3": 1000,
    "10s": 10,
    "0.5 sec": 0.5,
    "500ms": 0.5,
    "200us": 2e-4,
    "2m": 120,
    "90 min": 5400,
    "1.5h": 5400,
    "1h30m": 5400,
    "2m30s": 150,
}
COUNT = {
    "1000": 1000,
    "1_000": 1000,
    "1e6": 1_000_000,
    "10k": 10_000,
    "1.5M": 1_500_000,
    "2G": 2_000_000_000,
}


@pytest.mark.parametrize("text", ["", "m", "1d", "-1", "nan", "inf", "1m2h", "1m1m", "10 10"])
def test_what_is_not_a_time(text: str) -> None:
    with pytest.raises(ValueError, match="a time must be in seconds"):
        parse_time(text)


@pytest.mark.parametrize("text", ["", "k", "1.5", "-1", "1e-3", "1e30", "10kpps"])
def test_what_is_not_a_count(text: str) -> None:
    with pytest.raises(ValueError, match="a count must be a whole number"):
        parse_count(text)


def test_every_spelling_is_read() -> None:
    assert {text for row in SIZES for text in row[0].split(", ")} == SIZE.keys()
    assert {text for row in RATES for text in row[0].split(", ")} == RATE.keys()
    assert {text for row in TIMES for text in row[0].split(", ")} == TIME.keys()
    assert {text for row in COUNTS for text in row[0].split(", ")} == COUNT.keys()
    for text, seconds in TIME.items():
        assert parse_time(text) == pytest.approx(seconds)
    for text, count in COUNT.items():
        assert parse_count(text) == count
    for text, size in SIZE.items():
        assert parse_size(text) == size
    for text, rate in RATE.items():
        assert parse_rate(text, 64) == pytest.approx(rate)


def test_the_exit_statuses_are_those_of_the_help() -> None:
    listed = dict(re.findall(r"^  (\d+) +(.*)$", EXIT_STATUSES, re.MULTILINE))
    page = dict(re.findall(r"^\| (\d+) \| (.*) \|$", PAGE, re.MULTILINE))
    assert listed.items() <= page.items()


def paths(value: Any, at: str = "") -> Iterator[str]:
    """Yield where each value of an object is: ``replies[].seconds``."""
    if isinstance(value, dict):
        for key, each in value.items():
            yield from paths(each, f"{at}.{key}" if at else key)
    elif isinstance(value, list):
        yield f"{at}[]"
        for each in value:
            yield from paths(each, f"{at}[]")
    else:
        yield at


def is_told_of(path: str, told: set[str]) -> bool:
    """Whether the page has a key, or says that there are more there."""
    parts = path.split(".")
    return path in told or any(
        ".".join([*parts[:count], "…"]) in told for count in range(1, len(parts))
    )


QUICK = ["--interval", "0"]
LOOP = [["forward", "--port", "user"], ["generate"], ["drop"]]


@pytest.mark.parametrize(
    ("title", "commands"),
    [
        ("`ping`", [["ping", "10.0.2.2", *QUICK]]),
        ("`watch`, per line", [["watch", "--seconds", "0"]]),
        ("`probe`", [["probe"]]),
        ("`demo`", [["demo", "--count", "1"]]),
        ("`doctor`", [["doctor"]]),
    ],
)
def test_the_keys_of_the_objects(qemu_command: str, title: str, commands: list[list[str]]) -> None:
    keys_are_told_of(title, [virtnic_lines(*words) for words in commands])


def test_the_keys_of_the_loops(qemu_command: str, scratch: Path) -> None:
    file = str(scratch / "run.pcapng")
    loops = [*LOOP, ["capture", "--port", "user", "-w", file]]
    try:
        printed = [virtnic_lines(*words, "--seconds", "0", "--xstats") for words in loops]
        with library.open("user", hugepages=None) as port, Writer(file, port):
            port.send([bytes(60)])
        printed.append(virtnic_lines("replay", "--port", "user", file, "--xstats"))
    finally:
        (scratch / "run.pcapng").unlink()
    keys_are_told_of("`forward`, `generate`, `drop`, `capture`, `replay`", printed)


def virtnic_lines(*words: str) -> list[dict[str, Any]]:
    """Return the objects that a command prints."""
    if words[0] != "watch":
        return [virtnic_json(*words)]
    return [json.loads(line) for line in virtnic(*words, "--json").stdout.splitlines()]


def keys_are_told_of(title: str, printed: list[list[dict[str, Any]]]) -> None:
    told = {key for first, _ in rows(title) for key in re.findall(r"`([^`]+)`", first)}
    found = {path for lines in printed for line in lines for path in paths(line)}
    lists = {path for path in found if path.endswith("[]") and f"{path}." in " ".join(found)}
    assert found - lists
    assert {path for path in found - lists if not is_told_of(path, told)} == set()
    gone = {key for key in told if not key.endswith("…")} - found
    assert gone == set()
    opened = {key.removesuffix("…") for key in told if key.endswith("…")}
    assert all(any(path.startswith(key) for path in found) for key in opened)


def test_the_keys_of_commands_without_a_qemu(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["qemu-args", "--directory", "/d", "--netdev", "tap,ifname=a0", "--json"]) == 0
    keys_are_told_of("`qemu-args`", [[json.loads(capsys.readouterr().out)]])


def test_the_keys_of_check(scratch: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with CheckedBackend(scratch / "checked") as backend:
        assert (
            main(["check", f"vhost-user,path={backend.path}", "--only", "FEAT-02", "--json"]) == 0
        )
    keys_are_told_of("`check`", [[json.loads(capsys.readouterr().out)]])


@pytest.mark.needs("shtab")
def test_the_keys_of_completions(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["completions", "bash", "--json"]) == 0
    keys_are_told_of("`completions`", [[json.loads(capsys.readouterr().out)]])
