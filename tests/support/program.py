"""Run the program ``virtnic`` as a process."""

import contextlib
import json
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest

#: Do not depend on what the machine has reserved, and warn of nothing.
_QUICK = ["--hugepages", "none"]


def command(*arguments: str) -> list[str]:
    """Return the whole command line."""
    return [sys.executable, "-m", "virtnic.cli", *arguments, *_QUICK]


def virtnic(*arguments: str, status: int = 0) -> subprocess.CompletedProcess[str]:
    """Run it until it ends, with this exit status."""
    done = subprocess.run(
        command(*arguments), capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == status, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    return done


def virtnic_json(*arguments: str, status: int = 0) -> dict[str, Any]:
    """Run it; return what it prints with ``--json``."""
    value = json.loads(virtnic(*arguments, "--json", status=status).stdout)
    assert isinstance(value, dict)
    return value


@contextlib.contextmanager
def running(*arguments: str) -> Iterator[subprocess.Popen[str]]:
    """Start a command; it is killed when the test has not ended it."""
    with subprocess.Popen(
        command(*arguments), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        try:
            yield process
        finally:
            if process.poll() is None:
                process.kill()


@contextlib.contextmanager
def started(*arguments: str) -> Iterator[subprocess.Popen[str]]:
    """Start a command and wait until its ports are open."""
    with running(*arguments) as process:
        assert process.stdout is not None
        first = process.stdout.readline()
        if not re.match("(FORWARD|GENERATE|DROP) ", first):
            out, err = process.communicate(timeout=30)
            pytest.fail(f"it did not start: {first}{out}{err}")
        yield process


def ended(process: subprocess.Popen[str], number: signal.Signals | None = None) -> str:
    """Send a signal, wait for the end, and return what it printed; it has to end well."""
    if number is not None:
        process.send_signal(number)
    out, err = process.communicate(timeout=30)
    assert (process.returncode, err) == (0, ""), out + err
    return out
