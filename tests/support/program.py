"""The program ``virtnic``, run as a user runs it: as a process."""

import json
import subprocess
import sys
from typing import Any

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
