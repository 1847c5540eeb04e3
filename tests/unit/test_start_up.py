"""Lazy imports: `virtnic --version` and `import virtnic` are fast."""

import subprocess
import sys

import pytest

import virtnic
from virtnic.cli.parser import COMMANDS

#: Modules that take milliseconds, and what brings them: the loop and QMP, logs, the tools.
LATER = {
    "asyncio",
    "concurrent.futures",
    "ctypes",
    "dataclasses",
    "inspect",
    "json",
    "logging",
    "numpy",
    "qemu",
    "random",
    "socket",
    "ssl",
    "subprocess",
    "tempfile",
    "threading",
    "trio",
    "virtnic.cli.output",
    "virtnic.loops.engine",
    "virtnic.memory",
    "virtnic.nic.host",
    "virtnic.nic.port",
    "virtnic.pci",
    "virtnic.qemu",
}

PROGRAMS = {
    "import": "import virtnic; virtnic.__version__, virtnic.QemuError, virtnic.Burst",
    "list": "from virtnic.cli import main; main([])",
    "--help": "from virtnic.cli import main; main(['--help'])",
    "--version": "from virtnic.cli import main; main(['--version'])",
    "typo": "from virtnic.cli import main; main(['pign'])",
    **{
        f"{name} --help": f"from virtnic.cli import main; main(['{name}', '--help'])"
        for name in COMMANDS
    },
}


@pytest.mark.parametrize("program", PROGRAMS.values(), ids=PROGRAMS)
def test_it_brings_nothing_that_it_does_not_use(program: str) -> None:
    # Without site: what the environment imports by itself (coverage, an editable install's
    # finder) is not ours.
    code = (
        f"import sys; sys.path[:0] = {sys.path!r}\n"
        f"before = set(sys.modules)\n{program}\n"
        "print(*sys.modules.keys() - before)"
    )
    printed = subprocess.check_output([sys.executable, "-I", "-S", "-c", code], text=True)
    brought = set(printed.splitlines()[-1].split())
    assert "virtnic" in brought
    assert brought & LATER == set()


def test_every_public_name_is_there_when_it_is_used() -> None:
    for name in virtnic.__all__:
        assert getattr(virtnic, name) is not None
        assert name in dir(virtnic)
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        virtnic.nonsense  # noqa: B018
    names = "import virtnic\nfrom virtnic import *\nprint(open is virtnic.open, Port, aio.Port)"
    printed = subprocess.check_output([sys.executable, "-c", names], text=True)
    assert printed.startswith(
        "True <class 'virtnic.nic.port.Port'> <class 'virtnic.aio.port.Port'>"
    )
