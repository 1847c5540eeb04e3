"""The pytest plugin: ports and QEMUs as fixtures.

It is available wherever virtnic is installed. ``--virtnic-qemu=COMMAND``, repeatable, runs every
test that uses one of the fixtures once with each QEMU. Without a QEMU such tests are skipped, or
fail if ``CI`` is set.
"""

from __future__ import annotations

import os
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

import virtnic
from virtnic.qemu.find import find_qemu

if TYPE_CHECKING:
    from collections.abc import Iterator

#: Fixtures parametrised with the QEMU; all others depend on them.
_FIXTURE = "virtnic_qemu_command"
#: Seconds for the peer of a port to become ready.
_READY = 10.0


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add ``--virtnic-qemu``."""
    parser.getgroup("virtnic").addoption(
        "--virtnic-qemu",
        action="append",
        default=[],
        metavar="COMMAND",
        help="QEMU for virtnic's fixtures, a path or a command line; repeatable",
    )


def pytest_configure(config: pytest.Config) -> None:
    """Register the marker."""
    config.addinivalue_line(
        "markers",
        "virtnic(netdev='user', memory='32M', qemu={}, ready=10.0, **options): arguments for the "
        "fixtures virtnic_port, virtnic_memory and virtnic_qemu",
    )


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run tests that use a QEMU once with each given one."""
    commands: list[str] = metafunc.config.getoption("--virtnic-qemu")
    if commands and _FIXTURE in metafunc.fixturenames:
        names = [Path(shlex.split(command)[-1]).name for command in commands]
        ids = names if len(set(names)) == len(names) else commands
        metafunc.parametrize(_FIXTURE, commands, ids=ids, indirect=True)


@pytest.fixture
def virtnic_qemu_command(request: pytest.FixtureRequest) -> str:
    """Give the command line of the QEMU that the other fixtures start.

    One of ``--virtnic-qemu``, else ``VIRTNIC_QEMU``, else the one in PATH.
    """
    given: str | None = getattr(request, "param", None)
    try:
        return shlex.join(find_qemu(given).argv)
    except virtnic.QemuNotFound as error:
        why = str(error)
    # Outside the handler, so that a report shows no nested exception.
    if given is not None:
        pytest.fail(why, pytrace=False)
    if os.environ.get("CI", "").lower() not in ("", "0", "false"):
        pytest.fail(f"{why} (CI is set: no QEMU is a failure)", pytrace=False)
    pytest.skip(why)


@pytest.fixture
def virtnic_memory(request: pytest.FixtureRequest) -> virtnic.Memory:
    """Make packet memory: 32 MiB of ordinary pages, or ``@pytest.mark.virtnic(memory=…)``."""
    return virtnic.Memory(_marked(request).get("memory", "32M"), hugepages=None)


@pytest.fixture
def virtnic_qemu(
    request: pytest.FixtureRequest, virtnic_qemu_command: str, virtnic_memory: virtnic.Memory
) -> Iterator[virtnic.Qemu]:
    """Start a QEMU without ports; ``@pytest.mark.virtnic(qemu={…})`` gives it more arguments."""
    options: dict[str, Any] = _marked(request).get("qemu", {})
    with virtnic.Qemu(virtnic_memory, **{"qemu": virtnic_qemu_command, **options}) as qemu:
        yield qemu


@pytest.fixture
def virtnic_port(
    request: pytest.FixtureRequest, virtnic_qemu: virtnic.Qemu
) -> Iterator[virtnic.Port]:
    """Open a port on the user-mode network, or as ``@pytest.mark.virtnic(netdev, …)`` says.

    The fixture waits until frames pass: see :meth:`virtnic.Port.wait_ready`. The marker's ``ready``
    is the timeout in seconds, by default 10; None does not wait.
    """
    options = _marked(request)
    for name in ("memory", "qemu"):
        options.pop(name, None)
    ready: float | None = options.pop("ready", _READY)
    with virtnic_qemu.attach(options.pop("netdev", "user"), **options) as port:
        if ready is not None:
            port.wait_ready(ready)
        yield port


def _marked(request: pytest.FixtureRequest) -> dict[str, Any]:
    """Return the arguments of the test's markers; the nearest wins."""
    found: dict[str, Any] = {}
    for marker in reversed(list(request.node.iter_markers("virtnic"))):
        found |= marker.kwargs
        if marker.args:
            (found["netdev"],) = marker.args
    return found
