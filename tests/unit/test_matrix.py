"""``make matrix``: table, columns, Ctrl-C, and that CI and tox agree with it."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from matrix import pythons, rows
from virtnic.qemu.quirks import QUIRKS

TOP = Path(__file__).resolve().parents[2]

REPORT = """<testsuites><testsuite>
<testcase classname="RECOVERY" name="test_a"/>
<testcase classname="RECOVERY" name="test_b"><failure message="no"/></testcase>
<testcase classname="RECOVERY" name="test_b"><error message="left behind"/></testcase>
<testcase classname="RECOVERY" name="test_d[1]"><error message="left behind"/></testcase>
<testcase classname="RSS" name="test_c[1]"><skipped message="has none"/></testcase>
<testcase classname="RSS" name="test_c[2]"><skipped message="has none"/></testcase>
<testcase classname="tests.device.test_aio" name="test_e"/>
</testsuite></testsuites>""".replace("RECOVERY", "tests.failure.test_recovery").replace(
    "RSS", "tests.device.test_rss"
)


def test_a_report_becomes_a_row(tmp_path: Path) -> None:
    report = tmp_path / "report.xml"
    report.write_text(REPORT)
    row = rows.Row("10.0.13", "tcg", "3.13.5", "Debian trixie", "FAILED", 61.4)
    rows.read(row, report)
    assert row.counts == {"recovery": [1, 2, 0], "queues": [0, 0, 2], "other": [1, 0, 0]}
    assert row.failed == [
        "tests/failure/test_recovery.py::test_b",
        "tests/failure/test_recovery.py::test_d[1]",
    ]
    none = rows.Row("7.2.22", "qtest", "3.13.5", "Debian bookworm", "not in this build")
    assert (row.bad, none.bad) == (True, False)
    lines = rows.table([row, none]).splitlines()
    head = "QEMU accel Python system recovery queues other total seconds result"
    assert lines[0].split() == head.split()
    cells = "10.0.13|tcg|3.13.5|Debian trixie|1 -2|0 +2|1|2 -2 +2|61|FAILED"
    assert re.split(r"  +", lines[1]) == cells.split("|")
    assert lines[2].endswith("not in this build")
    assert "Skipped: has none" in lines
    assert (
        "  QEMU 10.0.13 tcg (Debian trixie), Python 3.13.5: device/test_rss.py::test_c (2)" in lines
    )
    assert "  tests/failure/test_recovery.py::test_b" in lines


@pytest.mark.parametrize("test", sorted({quirk.test for quirk in QUIRKS}))
def test_what_shows_a_quirk_runs_on_every_qemu(test: str) -> None:
    assert test.partition("::")[0] in rows.files_of([])


def test_the_columns_are_files_that_are_there() -> None:
    files = rows.files_of([])
    assert len(set(files)) == len(files)
    assert all((TOP / file).exists() for file in files)


def test_ci_and_tox_have_the_same_pythons() -> None:
    tox = re.search(r"py3\{([\d,]+)\}", (TOP / "tox.ini").read_text())
    assert tox
    versions = [f"3.{minor}" for minor in tox[1].split(",")]
    workflow = (TOP / ".github/workflows/ci.yml").read_text()
    assert re.findall(r"image: python:|- python:(3\.\d+)-", workflow) == versions
    job = workflow[workflow.index("\n  matrix:\n") :]
    assert re.findall(r"^ +(3\.\d+)$", job, re.MULTILINE) == versions
    assert "CI=true make matrix\n" in job


def test_an_interpreter_that_does_not_run_is_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a shim of pyenv is, for a version that is not in use."""
    shim = tmp_path / "python3.12"
    shim.write_text("#!/bin/sh\necho 3.12: command not found >&2\nexit 127\n")
    shim.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    monkeypatch.setenv("PYENV_ROOT", str(tmp_path))
    assert pythons.find("3.12") is None
    shim.write_text("#!/bin/sh\necho 3.12.9\n")
    assert pythons.find("3.12") == shim


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_run_is_told(tmp_path: Path, number: signal.Signals) -> None:
    """The table has what ran until then; the processes that pytest started have ended."""
    test = tmp_path / "test_recovery.py"
    test.write_text(
        "import pathlib, pytest, time\n"
        "@pytest.fixture\n"
        "def thing(tmp_path_factory):\n"
        f"    place = pathlib.Path({str(tmp_path)!r})\n"
        "    (place / 'up').touch()\n"
        "    yield\n"
        "    (place / 'down').touch()\n"
        "def test_first(): pass\n"
        "def test_second(thing): time.sleep(60)\n"
    )
    program = f"""
import pathlib, sys
from matrix import rows, __main__
rows.BUILD = rows.TOP = pathlib.Path({str(tmp_path)!r})
def run(self):
    argv = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", {str(test)!r}]
    argv += ["--rootdir", {str(tmp_path)!r}, f"--junitxml={{rows.report('x')}}"]
    self.rows = [rows.Row("1.2.3", "tcg", "3.11", "here")]
    rows.run(self.rows[0], argv, "x", {{}})
__main__.Matrix.run = run
sys.argv[1:] = ["--suite", "sid", "--output", {str(tmp_path / "matrix.json")!r}]
sys.exit(__main__.main())
"""
    with subprocess.Popen(
        [sys.executable, "-c", program],
        env={**os.environ, "PYTHONPATH": f"{TOP / 'tools'}:{TOP / 'tests'}"},
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        deadline = time.monotonic() + 60
        while not (tmp_path / "up").exists():
            assert time.monotonic() < deadline
            time.sleep(0.05)
        process.send_signal(number)
        output, _ = process.communicate(timeout=60)
    assert process.returncode == 130
    assert (tmp_path / "down").exists()
    assert re.search(r"^1\.2\.3 .* interrupted$", output, re.MULTILINE)
    assert '"interrupted"' in (tmp_path / "matrix.json").read_text()
