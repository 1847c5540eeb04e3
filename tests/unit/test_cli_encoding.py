"""Terminals and files with limited encodings."""

import contextlib
import io
import json
import os
import subprocess
import sys
from collections.abc import Callable

import pytest

from virtnic.cli import main
from virtnic.cli.encoding import any_encoding
from virtnic.cli.output import Output
from virtnic.cli.text import seconds_text


def written(encoding: str, write: Callable[[], object]) -> bytes:
    """Return the output of a standard output with this encoding."""
    file = io.BytesIO()
    stream = io.TextIOWrapper(file, encoding=encoding)
    with contextlib.redirect_stdout(stream):
        with any_encoding():
            write()
        assert stream.errors == "strict"
    stream.flush()
    return file.getvalue()


@pytest.mark.parametrize(
    ("encoding", "expected"),
    [
        ("ascii", b"43 us ... ? ?\n"),
        ("iso8859-2", b"43 us ... \xe9 ?\n"),
        ("gbk", b"43 us \xa1\xad \xa8\xa6 ?\n"),
        ("utf-8", "43 µs … é ?\n".encode()),
    ],
)
def test_what_cannot_be_written_is_replaced(encoding: str, expected: bytes) -> None:
    """The last character stands for a byte of a file name that is not UTF-8."""
    text = f"{seconds_text(43e-6)} … é \udcff"
    assert written(encoding, lambda: Output(json=False).line(text)) == expected


@pytest.mark.parametrize("encoding", ["ascii", "iso8859-2", "utf-8"])
def test_json_loses_nothing(encoding: str) -> None:
    result = {"command": "µ … \udcff"}
    text = written(encoding, lambda: Output(json=True).result(result))
    assert json.loads(text.decode(encoding)) == result


def test_help_can_be_read_anywhere() -> None:
    text = written("ascii", lambda: main(["ping", "--help"]))
    assert b'"type": ..., "message": ...' in text


def test_a_command_in_the_c_locale(qemu_command: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "virtnic.cli", "ping", "10.0.2.2", "--count", "1"],
        env={**os.environ, "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
        capture_output=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert b" us" in done.stdout
