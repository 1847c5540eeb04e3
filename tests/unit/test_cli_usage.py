"""The command line without a port: help, usage errors, error reports, exit statuses."""

import json
import logging
import os
import re
import shlex
import subprocess
import sys
import types
import warnings
from typing import Any, get_args

import pytest

import virtnic
from virtnic.cli import drop, main, options
from virtnic.cli.echoes import Echoes, percentile
from virtnic.cli.output import Output, Status, status_of
from virtnic.cli.parser import COMMANDS, parse
from virtnic.cli.text import bytes_text, seconds_text
from virtnic.loops.engine import Mode
from virtnic.nic.options import QemuInterrupts
from virtnic.qemu.command import Accel, MachineType

NAMES = [name for name in COMMANDS if name != "help"]


@pytest.mark.parametrize("words", [[], ["help"], ["--help"], ["-h"], ["-v"], ["help", "help"]])
def test_the_list_has_every_command_and_the_exit_statuses(
    words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(words) == 0
    text = capsys.readouterr().out
    for name in NAMES:
        assert re.search(rf"\n    {name}\s", text)
    assert "exit status:" in text
    assert "130" in text


@pytest.mark.parametrize("name", NAMES)
def test_help_of_a_command_has_examples_that_parse(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([name, "--help"]) == 0
    text = capsys.readouterr().out
    assert main(["help", name]) == 0
    assert capsys.readouterr().out == text
    examples = re.findall(r"^  (?:source <\()?virtnic ([^|>)\n]*)", text, re.MULTILINE)
    assert any(example.startswith(name) for example in examples)
    for example in examples:
        assert parse(shlex.split(example)).command == example.split()[0]
    if name in ("check", "completions"):  # they start no QEMU
        return
    wanted = ["--qemu", "--accel", "--sandbox", "--json"]
    naming = {"capture": "--port", "replay": "--port", "measure": "--tx"}
    wanted.append(naming.get(name, "--netdev"))
    if name != "qemu-args":  # it has neither a memory nor a choice of machine
        wanted += ["--machine", "--hugepages", "--iova"]
    for option in wanted:
        assert option in text


def test_the_package_is_the_command_too() -> None:
    for module in ("virtnic", "virtnic.cli"):
        command = [sys.executable, "-m", module, "--version"]
        assert subprocess.check_output(command, text=True) == f"virtnic {virtnic.__version__}\n"


@pytest.mark.parametrize(
    ("words", "meant"),
    [
        (["pign", "10.0.2.2"], "unknown command 'pign'; did you mean ping?"),
        (["help", "forwrd"], "unknown command 'forwrd'; did you mean forward?"),
        (["--versoin"], "unknown option --versoin; did you mean --version?"),
        (["ping", "--cuont", "3", "10.0.2.2"], "unknown option --cuont; did you mean --count?"),
        (["generate", "--seconds=1", "--sise=64"], "unknown option --sise; did you mean --size?"),
    ],
)
def test_a_typo_gets_one_line_and_a_suggestion(
    words: list[str], meant: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(words) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    (line,) = captured.err.splitlines()
    assert meant in line


@pytest.mark.parametrize("place", ["before", "after", "both"])
def test_json_and_v_stand_before_the_command_or_after_it(
    place: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    said = []
    monkeypatch.setattr(drop, "run", lambda arguments, output: said.append((arguments, output)))
    before = ["--json", "-v"] if place != "after" else []
    after = ["--verbose", "--json"] if place != "before" else []
    assert not main([*before, "drop", "--netdev", "user", *after])
    ((arguments, output),) = said
    assert output.json
    assert output.verbosity == (2 if place == "both" else 1)
    assert arguments.netdev == "user"
    capsys.readouterr()


@pytest.mark.parametrize(
    ("choices", "kind"),
    [
        (options.ACCELERATORS, Accel),
        (options.MACHINES, MachineType),
        (options.INTERRUPTS, QemuInterrupts),
        (options.MODES, Mode),
    ],
)
def test_the_choices_are_those_of_the_api(choices: tuple[str, ...], kind: object) -> None:
    """They are written down twice: help does not wait for what the API imports."""
    assert choices == get_args(kind)


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"virtnic {virtnic.__version__}\n"


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["fly"], "fly"),
        (["ping"], "TARGET"),
        (["ping", "10.0.2"], "'10.0.2' is not an IPv4 or IPv6 address"),
        (["ping", "-6", "10.0.2.2"], "10.0.2.2 is an IPv4 address, which -6 excludes"),
        (["ping", "-4", "fe80::2"], "fe80::2 is an IPv6 address, which -4 excludes"),
        (["ping", "x", "--address", "fd00::1/64", "--gateway", "10.0.0.1"], "the same family"),
        (["ping", "x", "--address", "fd00::1"], "write fd00::1/64"),
        (["demo", "--address", "fd00::1/64", "--gateway", "fd00::2"], "--gateway must be IPv4"),
        (["proxy", "--listen", "host:1080"], "'host' is not an IPv4 or IPv6 address"),
        (["proxy", "--listen", "65536"], "a port must be 0 to 65535, not 65536"),
        (["proxy", "--listen", "[::1]"], "is not a whole number"),
        (["ping", "10.0.2.2", "--count", "-1"], "--count"),
        (["ping", "10.0.2.2", "--interval", "soon"], "'soon' is not a time such as"),
        (["ping", "10.0.2.2", "--timeout", "nan"], "'nan' is not a time such as"),
        (["ping", "10.0.2.2", "--address", "10.0.2.9"], "write 10.0.2.9/24"),
        (
            ["ping", "10.0.2.2", "--address", "10.0.2.9/40"],
            "not an IP address with prefix length",
        ),
        (["ping", "10.0.2.2", "--gateway", "10.0.2.1"], "--gateway needs --address"),
        (["demo", "--address", "10.0.2.9/24"], "--gateway"),
        (["demo", "--count", "0"], "'0'"),
        (["demo", "--iova", "here"], "'here' is not va, pa"),
        (["demo", "--hugepages", "4M"], "4M"),
        (["probe", "--accel", "hvf"], "hvf"),
        (["doctor", "--machine", "microvm"], "microvm"),
        (["watch", "--colour", "red"], "unknown option --colour"),
        (["forward", *["--port", "user"] * 3], "--port may be given once or twice"),
    ],
)
def test_wrong_usage_is_2_and_says_what_is_wrong(
    arguments: list[str], complaint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert complaint in captured.err
    command = f" {arguments[0]}" if arguments and arguments[0] in NAMES else ""
    assert f"ry `virtnic{command} --help`" in captured.err

    assert main([*arguments, "--json"]) == 2
    captured = capsys.readouterr()
    error = json.loads(captured.out)["error"]
    assert error["type"] == "UsageError"
    assert complaint in error["message"]
    assert captured.err == ""


NO_QEMU = ["--qemu", "/nonexistent/qemu", "--hugepages", "none"]


@pytest.mark.parametrize("command", [["demo"], ["ping", "10.0.2.2"], ["probe"]])
def test_no_qemu_is_3_with_the_package_to_install(
    command: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*command, *NO_QEMU]) == 3
    captured = capsys.readouterr()
    assert "qemu-system-x86" in captured.err
    assert "Traceback" not in captured.err
    assert all(len(line) <= 100 for line in captured.err.splitlines())

    assert main([*command, *NO_QEMU, "--json"]) == 3
    captured = capsys.readouterr()
    error = json.loads(captured.out)["error"]
    assert error["type"] == "QemuNotFound"
    assert "qemu-system-x86" in error["message"]
    assert captured.err == ""


def test_doctor_without_qemu_is_3_and_lists_what_is_missing(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["doctor", *NO_QEMU]) == 3
    text = capsys.readouterr().out
    assert text.startswith("missing  QEMU ")
    assert "virtnic does not work here yet" in text

    assert main(["doctor", *NO_QEMU, "--json"]) == 3
    found = json.loads(capsys.readouterr().out)
    assert found["ok"] is False
    assert {"name", "status", "found", "advice"} == found["checks"][0].keys()
    assert found["checks"][-1]["status"] == "missing"


def test_the_environment_names_a_qemu(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("VIRTNIC_QEMU", "/nonexistent/from-the-environment")
    assert main(["probe", "--hugepages", "none"]) == 3
    assert "from-the-environment" in capsys.readouterr().err


def test_a_traceback_only_with_vv(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["probe", *NO_QEMU, "-v"]) == 3
    assert "Traceback" not in capsys.readouterr().err
    assert main(["probe", *NO_QEMU, "-vv"]) == 3
    assert "Traceback" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (virtnic.VirtnicError("x"), 1),
        (virtnic.QemuError("x"), 1),
        (virtnic.QemuDied("x"), 1),
        (virtnic.DeviceError("x"), 1),
        (TimeoutError("x"), 1),
        (RuntimeError("x"), 1),
        (ValueError("x"), 2),
        (virtnic.QemuNotFound("x"), 3),
        (virtnic.MemoryUnavailable("x"), 3),
        (PermissionError("x"), 3),
        (FileNotFoundError("x"), 3),
        (KeyboardInterrupt(), 130),
    ],
)
def test_what_an_error_exits_with(error: BaseException, status: int) -> None:
    assert status_of(error) == status


def test_notes_and_file_names_are_part_of_the_message(capsys: pytest.CaptureFixture[str]) -> None:
    error = TimeoutError("no DHCP offer came.")
    error.add_note("Give --address.")
    Output(json=False).failure(error)
    assert capsys.readouterr().err == "virtnic: no DHCP offer came. Give --address.\n"
    Output(json=False).failure(FileNotFoundError(2, "No such file or directory", "/run/vhu0"))
    assert capsys.readouterr().err == "virtnic: /run/vhu0: No such file or directory\n"


def test_a_mistake_of_ours_asks_for_a_report(capsys: pytest.CaptureFixture[str]) -> None:
    assert Output(json=True).failure(KeyError("x")) == 1
    error = json.loads(capsys.readouterr().out)["error"]
    assert error["type"] == "KeyError"
    assert "internal error" in error["message"]


def test_warnings_and_logs_go_to_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    logger = logging.getLogger("virtnic.test")
    with Output(json=True, verbosity=1).diagnostics():
        warnings.warn("smaller pages", RuntimeWarning, stacklevel=1)
        logger.warning("a slot is %s", "broken")
        logger.info("said with -v")
        logger.debug("not said with -v")
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.splitlines() == [
        "virtnic: warning: smaller pages",
        "virtnic: warning: a slot is broken",
        "virtnic: said with -v",
    ]
    assert not logging.getLogger("virtnic").handlers


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.0000428, "43 µs"), (0.00124, "1.24 ms"), (0.9, "900.00 ms"), (2.031, "2.03 s")],
)
def test_times_in_words(seconds: float, text: str) -> None:
    assert seconds_text(seconds) == text


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (1 << 30, "1 GiB"),
        (64 << 20, "64 MiB"),
        (4096, "4 KiB"),
        (4097, "4097 bytes"),
        (32, "32 bytes"),
    ],
)
def test_sizes_in_words(size: int, text: str) -> None:
    assert bytes_text(size) == text


def test_percentiles_are_values_that_were_measured() -> None:
    values = [float(number) for number in range(1, 101)]
    assert percentile(values, 50) == 50.0
    assert percentile(values, 99) == 99.0
    assert percentile(values, 100) == 100.0
    assert percentile([7.0], 50) == percentile([7.0], 99) == 7.0


class FakeStack:
    """A stack whose replies are given."""

    def __init__(self, replies: list[float | type[BaseException] | None]) -> None:
        self.replies = list(replies)
        self.sequences: list[int] = []

    def ping(
        self, address: str, sequence: int, payload: int, timeout: float
    ) -> types.SimpleNamespace:
        self.sequences.append(sequence)
        reply = self.replies.pop(0)
        if isinstance(reply, type):
            raise reply
        if reply is None:
            raise TimeoutError
        return types.SimpleNamespace(sequence=sequence, seconds=reply)


def echo(replies: list[Any], **options: Any) -> tuple[Echoes, FakeStack]:
    stack, echoes = FakeStack(replies), Echoes()
    echoes.send(stack, "10.0.2.2", **options)  # type: ignore[arg-type]
    return echoes, stack


def test_echo_summary_counts_the_lost() -> None:
    echoes, stack = echo([0.001, None, 0.003, 0.002], count=4)
    summary = echoes.summary()
    assert stack.sequences == [0, 1, 2, 3]
    assert (summary["sent"], summary["received"], summary["loss"]) == (4, 3, 0.25)
    assert (summary["min"], summary["p50"], summary["max"]) == (0.001, 0.002, 0.003)
    assert summary["avg"] == pytest.approx(0.002)
    first, second = echoes.text()
    assert first.startswith("4 sent, 3 received, 25 % lost, in ")
    assert second == "rtt min/avg/max/p50/p99 = 1.000/2.000/3.000/2.000/3.000 ms"


def test_echo_without_any_reply_has_no_times() -> None:
    echoes, _ = echo([None], count=1)
    assert echoes.summary()["p99"] is None
    assert len(echoes.text()) == 1


def test_echo_is_ended_by_ctrl_c() -> None:
    echoes, _ = echo([0.001, KeyboardInterrupt], count=0)
    assert echoes.interrupted
    assert echoes.summary()["sent"] == 1


def test_echo_sequence_numbers_wrap_at_16_bits() -> None:
    _, stack = echo([0.0] * 65538, count=65538)
    assert stack.sequences[-2:] == [0, 1]


def test_a_closed_pipe_ends_it_quietly() -> None:
    # `virtnic … | head -0`: the reader is gone before the first line.
    reading, writing = os.pipe()
    os.close(reading)
    command = [sys.executable, "-m", "virtnic.cli", "doctor", *NO_QEMU]
    done = subprocess.run(command, stdout=writing, stderr=subprocess.PIPE, text=True, check=False)
    os.close(writing)
    assert done.stderr == ""
    assert done.returncode == Status.FAILED


@pytest.mark.parametrize("closed", ["", "<&- >&-", "<&- >&- 2>&-"])
def test_closed_streams_are_no_error(closed: str) -> None:
    """What is opened next must not be taken for a standard stream, and nothing is printed."""
    command = f"{sys.executable} -m virtnic.cli doctor --qemu /nowhere {closed}"
    done = subprocess.run(
        ["/bin/sh", "-c", command], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 3, done.stderr
    assert "should not happen" not in done.stderr
    assert (done.stdout == "") is bool(closed)


@pytest.mark.parametrize("json_wanted", [(), ("--json",)])
def test_a_full_disk_is_said(json_wanted: tuple[str, ...]) -> None:
    with open("/dev/full", "w") as full:  # noqa: PTH123 - no path of a file
        done = subprocess.run(
            [sys.executable, "-m", "virtnic.cli", "doctor", "--qemu", "/nowhere", *json_wanted],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            timeout=60,
            check=False,
        )
    assert done.returncode == 3
    assert done.stderr == "virtnic: standard output: No space left on device\n"
