"""The pytest plugin: ports, QEMUs and switches as fixtures.

It is available wherever virtnic is installed. ``--virtnic-qemu=COMMAND``, repeatable, runs every
test that uses one of the fixtures once with each QEMU. ``--virtnic-captures=DIRECTORY`` keeps the
frames of tests that fail. Without a QEMU or a switch the tests that need it are skipped, or fail if
``CI`` is set.
"""

from __future__ import annotations

import functools
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

import virtnic
from virtnic.qemu.find import find_qemu
from virtnic.testing.bench import READY, Attach, Bench
from virtnic.testing.kept import Kept
from virtnic.testing.marks import marked, missing

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterator

#: The fixtures of switches.
pytest_plugins = ("virtnic.testing.switches",)
#: The fixture that is parametrised with the QEMU.
_FIXTURE = "virtnic_qemu_command"
#: The fixture that starts a QEMU for all ports, unless they need none.
_BENCH = "_virtnic_bench"
#: Arguments of the marker that are for fixtures; the others are for the ports.
_NOT_FOR_PORTS = ("memory", "qemu", "ready", "ports", "testpmd", "tap", "netdev")
_FAILED = pytest.StashKey[bool]()
_KEPT = pytest.StashKey[Kept]()


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the options."""
    group = parser.getgroup("virtnic")
    group.addoption(
        "--virtnic-qemu",
        action="append",
        default=[],
        metavar="COMMAND",
        help="QEMU for virtnic's fixtures, a path or a command line; repeatable",
    )
    group.addoption(
        "--virtnic-captures",
        type=Path,
        metavar="DIRECTORY",
        help="keep what the ports of tests that fail sent and received, as pcapng files, and what "
        "their switches say: a directory for each test",
    )


def pytest_configure(config: pytest.Config) -> None:
    """Register the marker."""
    config.addinivalue_line(
        "markers",
        "virtnic(netdev='user', memory='32M', qemu={}, ready=10.0, ports=2, testpmd={}, tap={}, "
        "**options): arguments for virtnic's fixtures",
    )


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run tests that use a QEMU once with each given one."""
    commands: list[str] = metafunc.config.getoption("--virtnic-qemu")
    if _BENCH in metafunc.fixturenames and not _is_direct(metafunc.definition):
        metafunc.fixturenames.append(_FIXTURE)  # it is asked for when the marker is known
    if commands and _FIXTURE in metafunc.fixturenames:
        names = [Path(shlex.split(command)[-1]).name for command in commands]
        ids = names if len(set(names)) == len(names) else commands
        metafunc.parametrize(_FIXTURE, commands, ids=ids, indirect=True)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item,
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Remember which tests failed, and say where their captures are."""
    report = yield
    if report.when != "teardown" and report.failed:
        item.stash[_FAILED] = True
        kept = item.stash.get(_KEPT, None)
        if kept is not None and kept.directory is not None:
            report.sections.append(("virtnic", f"captured in {kept.directory}"))
    return report


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
    return missing(why)


@pytest.fixture
def virtnic_memory(request: pytest.FixtureRequest) -> virtnic.Memory:
    """Make packet memory: 32 MiB of ordinary pages, or ``@pytest.mark.virtnic(memory=…)``."""
    return virtnic.Memory(marked(request.node).get("memory", "32M"), hugepages=None)


@pytest.fixture
def virtnic_qemu(
    request: pytest.FixtureRequest, virtnic_qemu_command: str, virtnic_memory: virtnic.Memory
) -> Iterator[virtnic.Qemu]:
    """Start a QEMU without ports; ``@pytest.mark.virtnic(qemu={…})`` gives it more arguments."""
    options: dict[str, Any] = marked(request.node).get("qemu", {})
    with virtnic.Qemu(virtnic_memory, **{"qemu": virtnic_qemu_command, **options}) as qemu:
        yield qemu


@pytest.fixture
def _virtnic_bench(request: pytest.FixtureRequest) -> Iterator[Bench]:
    """Close what the other fixtures make in the right order, and keep what was captured."""
    node = request.node
    attach: Callable[..., virtnic.Port]
    if _is_direct(node):
        memory = request.getfixturevalue("virtnic_memory")
        attach = functools.partial(virtnic.open, memory=memory)
    else:
        attach = request.getfixturevalue("virtnic_qemu").attach
    ports = {key: value for key, value in marked(node).items() if key not in _NOT_FOR_PORTS}
    kept = node.stash[_KEPT] = Kept(request.config.getoption("--virtnic-captures"), node.nodeid)
    bench = Bench(attach, ports, kept)
    try:
        yield bench
    finally:
        bench.close(failed=node.stash.get(_FAILED, False))


def _is_direct(node: pytest.Item | pytest.Function) -> bool:
    """Whether the ports of a test are to have no QEMU."""
    return bool(marked(node).get("frontend") == "direct")


@pytest.fixture
def virtnic_attach(_virtnic_bench: Bench) -> Attach:
    """Give a function that attaches a port to a netdev: to your switch, for example.

    It takes the arguments of :meth:`virtnic.Qemu.attach` and ``ready``: seconds until frames pass
    (:meth:`virtnic.Port.wait_ready`), by default 10; None does not wait. The marker's arguments are
    for all ports. They are captured (``--virtnic-captures``), and closed after the test.
    """
    return _virtnic_bench.attach


@pytest.fixture
def virtnic_port(request: pytest.FixtureRequest, virtnic_attach: Attach) -> virtnic.Port:
    """Open a port on the user-mode network, or as ``@pytest.mark.virtnic(netdev, …)`` says.

    The fixture waits until frames pass: see :meth:`virtnic.Port.wait_ready`. The marker's ``ready``
    is the timeout in seconds, by default 10; None does not wait.
    """
    given = marked(request.node)
    return virtnic_attach(given.get("netdev", "user"), ready=given.get("ready", READY))
