"""One row of the table: a run of pytest, its result, and its output."""

import os
import signal
import subprocess
import sys
import time
import xml.etree.ElementTree as ET
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from peers.process import mortal

TOP = Path(__file__).resolve().parents[2]
BUILD = TOP / "build" / "matrix"
#: Seconds that an interrupted run has for taking down what it started.
TIMEOUT = 60.0

#: The columns, each with the files of its tests. A test of any other file is counted as "other".
KINDS: dict[str, tuple[str, ...]] = {
    "start": ("test_qemu_start", "test_qemu_surroundings", "test_descriptors", "test_harness"),
    "end-to-end": ("test_port_user", "test_port_tap", "test_port_jumbo"),
    "netdevs": (
        "test_netdevs",
        "test_netdev_frames",
        "test_netdev_descriptors",
        "test_netdev_refusals",
        "test_netdev_stream",
        "test_wait_ready",
    ),
    "vhost-user": (
        "test_vhost_user",
        "test_vhost_user_disorder",
        "test_vhost_user_less",
        "test_vhost_user_loss",
        "test_vhost_user_service",
        "test_qemu_vhost_user",
    ),
    "hotplug": ("test_hotplug", "test_qemu_hotplug", "test_events"),
    "recovery": (
        "test_recovery",
        "test_recovery_moments",
        "test_recovery_policy",
        "test_restore",
        "test_needs_reset",
    ),
    "connect": ("test_connect", "test_connect_again"),
    "features": ("test_features", "test_legacy", "test_control_queue"),
    "offload": (
        "test_offload",
        "test_offload_forward",
        "test_offload_receive",
        "test_offload_send",
    ),
    "queues": ("test_multiqueue", "test_rss"),
}
OTHER = "other"
_KIND_OF = {file: kind for kind, files in KINDS.items() for file in files}


@dataclass
class Row:
    """One line of the table. ``counts`` is, by kind, how many passed, failed, were skipped."""

    qemu: str
    accel: str
    python: str
    system: str
    result: str = "did not run"
    seconds: float = 0.0
    counts: dict[str, list[int]] = field(default_factory=dict)
    failed: list[str] = field(default_factory=list)
    skipped: dict[str, list[str]] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """Its name, which no other row has."""
        return f"QEMU {self.qemu} {self.accel} ({self.system}), Python {self.python}"

    @property
    def bad(self) -> bool:
        """Whether it failed, or did not run although it should have."""
        return self.result not in ("ok", "not in this build", "not present")

    def total(self, which: int) -> int:
        """Add up the passed (0), failed (1) or skipped (2) of all kinds."""
        return sum(counts[which] for counts in self.counts.values())


def say(text: str) -> None:
    """Report progress."""
    print(text, file=sys.stderr, flush=True)


def files_of(kinds: Sequence[str]) -> list[str]:
    """Return the test files of some kinds, of all if none is named."""
    rooms = {file.stem: file.parent.name for file in (TOP / "tests").glob("*/test_*.py")}
    names = [name for kind in kinds or KINDS for name in KINDS[kind]]
    return [f"tests/{rooms.get(name, '?')}/{name}.py" for name in names]


def run(row: Row, argv: Sequence[str], name: str, environment: dict[str, str]) -> None:
    """Run pytest, which writes ``report(name)``, and fill in the row.

    Interrupted, it lets pytest take down what it started, notes what has run until then, and
    raises KeyboardInterrupt; a second one does not wait.
    """
    path = report(name)
    path.unlink(missing_ok=True)
    log = path.with_suffix(".log")
    started = time.monotonic()
    interrupted = False
    with (
        log.open("w", encoding="utf-8") as output,
        # A group of its own: the terminal's Ctrl-C is for us, and passed on once.
        subprocess.Popen(
            mortal(argv), cwd=TOP, env={**os.environ, **environment}, process_group=0,
            stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT,
        ) as process,
    ):  # fmt: skip
        try:
            process.wait()
        except KeyboardInterrupt:
            interrupted = True
            _end(process)
    row.seconds = round(time.monotonic() - started, 1)
    read(row, path)
    if interrupted:
        row.result = "interrupted"
    elif row.failed:
        row.result = "FAILED"
    elif process.returncode or not row.total(0):
        row.result = f"pytest ended with {process.returncode}, {row.total(0)} passed"
    else:
        row.result = "ok"
    say(
        f"    {row.result}: {row.total(0)} passed, {row.total(1)} failed, {row.total(2)} skipped "
        f"in {row.seconds:.0f} s ({log.relative_to(TOP)})"
    )
    for test in row.failed:
        say(f"      {test}")
    if row.bad and not row.failed:
        say("      " + "\n      ".join(log.read_text(encoding="utf-8").splitlines()[-15:]))
    if interrupted:
        raise KeyboardInterrupt


def report(name: str) -> Path:
    """Return where a run's JUnit report is; its log is beside it."""
    BUILD.mkdir(parents=True, exist_ok=True)
    return BUILD / f"{name}.xml"


def _end(process: subprocess.Popen[bytes]) -> None:
    say("    stopping; interrupt again not to wait")
    try:
        process.send_signal(signal.SIGINT)
        process.wait(TIMEOUT)
    except (KeyboardInterrupt, subprocess.TimeoutExpired):
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def read(row: Row, path: Path) -> None:
    """Count what a JUnit report has: it names a test twice that fails and then leaves something."""
    try:
        report = ET.parse(path).getroot()
    except (FileNotFoundError, ET.ParseError):
        return  # it ended before it wrote one
    kinds: dict[str, str] = {}
    outcomes: dict[str, int] = {}
    for case in report.iter("testcase"):
        module = str(case.get("classname"))
        test = f"{module.replace('.', '/')}.py::{case.get('name')}"
        kinds[test] = _KIND_OF.get(module.rpartition(".")[2], OTHER)
        skip = case.find("skipped")
        if case.find("failure") is not None or case.find("error") is not None:
            outcomes[test] = 1
        elif skip is not None:
            outcomes[test] = 2
            row.skipped.setdefault(str(skip.get("message")), []).append(test)
        else:
            outcomes.setdefault(test, 0)
    for test, outcome in outcomes.items():
        row.counts.setdefault(kinds[test], [0, 0, 0])[outcome] += 1
    row.failed = [test for test, outcome in outcomes.items() if outcome == 1]


def table(rows: Sequence[Row]) -> str:
    """Lay the rows out in columns, and say below why tests were skipped and which failed."""
    kinds = [kind for kind in [*KINDS, OTHER] if any(kind in row.counts for row in rows)]
    head = ["QEMU", "accel", "Python", "system", *kinds, "total", "seconds", "result"]
    lines = [head]
    for row in rows:
        cells = [_cell(row.counts.get(kind)) for kind in kinds]
        total = _cell([row.total(which) for which in range(3)]) if row.counts else ""
        time_ = f"{row.seconds:.0f}" if row.seconds else ""
        lines.append(
            [row.qemu, row.accel, row.python, row.system, *cells, total, time_, row.result]
        )
    widths = [max(len(line[column]) for line in lines) for column in range(len(head))]
    text = [
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in lines
    ]
    text += ["", "Numbers are tests passed; -N failed, +N were skipped."]
    reasons: dict[str, dict[str, list[str]]] = {}
    for row in rows:
        for reason, tests in row.skipped.items():
            reasons.setdefault(reason, {})[row.name] = tests
    for reason, by_row in reasons.items():
        text.append(f"\nSkipped: {reason}")
        text += [f"  {name}: {_names(tests)}" for name, tests in by_row.items()]
    for row in rows:
        if row.failed:
            text += [f"\nFAILED: {row.name}", *(f"  {test}" for test in row.failed)]
    return "\n".join(text)


def _cell(counts: Sequence[int] | None) -> str:
    if counts is None:
        return ""
    passed, failed, skipped = counts
    parts = [str(passed), f"-{failed}" if failed else "", f"+{skipped}" if skipped else ""]
    return " ".join(filter(None, parts))


def _names(tests: Sequence[str]) -> str:
    """Name some tests: without their parameters, and the number of each."""
    counts: dict[str, int] = {}
    for test in tests:
        name = test.removeprefix("tests/").partition("[")[0]
        counts[name] = counts.get(name, 0) + 1
    words = [f"{name} ({n})" if n > 1 else name for name, n in counts.items()]
    return ", ".join(words[:4]) + (f" and {len(words) - 4} more" if len(words) > 4 else "")
