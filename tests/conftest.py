"""Fixtures for all tests: a port, a QEMU, real peers, and the leak check.

``--qemu=COMMAND`` and ``--accel=NAME``, both repeatable, run every test that starts a
QEMU once for each; without them ``VIRTNIC_QEMU`` or the QEMU on the path is used.
"""

import contextlib
import importlib
import os
import shlex
import signal
import tempfile
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

import virtnic
from peers import leaks, limits
from peers.components import needs, qemu_command
from peers.netns import Netns
from peers.testpmd import Testpmd
from peers.turns import Turns
from virtnic.qemu import find, machine
from virtnic.qemu.command import Accel
from virtnic.testing import OvsBridge, OvsDpdk

#: Fixtures of tests that connect to a QEMU that was started elsewhere.
pytest_plugins = ["peers.external_qemu"]

#: What needs kernel modules runs in the virtual machine of `make vm`.
collect_ignore = [] if "VIRTNIC_VM" in os.environ else ["vm"]

# Its threads would otherwise appear to belong to the first test that uses it.
with contextlib.suppress(ImportError):
    import numpy as np  # noqa: F401

# In CI a missing package is a failure, never a skip.
if os.environ.get("CI") == "true":
    pytest.importorskip = importlib.import_module  # type: ignore[assignment]

SESSION = pytest.StashKey[leaks.Session]()
FAILED = pytest.StashKey[bool]()
TURNS = pytest.StashKey[Turns]()
MEETING_PLACE = pytest.StashKey[tempfile.TemporaryDirectory[str]]()

MARKERS = [
    "needs(*components): skip when the machine lacks one of them; with CI=true, fail",
    "starts_qemu: takes the fixture qemu_command; given by itself",
    "slow: takes more than a few seconds; tox leaves it out",
    "leaks(reason): does not give everything back, on purpose",
    "alone: with `pytest -n`, no other test runs at the same time",
]


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the options that choose QEMUs and accelerators."""
    group = parser.getgroup("virtnic")
    group.addoption(
        "--qemu",
        action="append",
        default=[],
        metavar="COMMAND",
        help="a QEMU to test with, a path or a command line; repeatable",
    )
    group.addoption(
        "--accel",
        action="append",
        default=[],
        metavar="NAME",
        help="an accelerator to test with (auto, qtest, tcg, kvm); repeatable",
    )


def pytest_configure(config: pytest.Config) -> None:
    """Register the markers and redirect what is temporary."""
    for marker in MARKERS:
        config.addinivalue_line("markers", marker)
    # Machines without hugepages are tested too: there `auto` warns, which is no error here.
    config.addinivalue_line("filterwarnings", "ignore:.*pass hugepages=None:RuntimeWarning")
    # A shell that runs us in the background ignores these, and so would all that we start.
    for number in (signal.SIGINT, signal.SIGHUP, signal.SIGTERM):
        if signal.getsignal(number) is signal.SIG_IGN:
            usual = signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL
            signal.signal(number, usual)
    if config.getoption("numprocesses", None):
        # This process runs no test: those of pytest-xdist do, and take turns.
        config.stash[MEETING_PLACE] = tempfile.TemporaryDirectory(prefix="vt-")
        return
    if worker := getattr(config, "workerinput", None):
        config.stash[TURNS] = Turns(Path(worker["turns"]))
    config.stash[SESSION] = leaks.Session()
    config.pluginmanager.register(limits.Limits())


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node: Any) -> None:
    """Tell a process of pytest-xdist where the turns are taken."""
    node.workerinput["turns"] = node.config.stash[MEETING_PLACE].name


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    """Wait for the test's turn before its time limit begins."""
    turns = item.config.stash.get(TURNS, None)
    if turns is None:
        return (yield)
    with turns.turn(alone=item.get_closest_marker("alone") is not None):
        return (yield)


def pytest_unconfigure(config: pytest.Config) -> None:
    """Undo the redirection."""
    if TURNS in config.stash:
        config.stash[TURNS].close()
    if SESSION in config.stash:
        config.stash[SESSION].close()
    if MEETING_PLACE in config.stash:
        config.stash[MEETING_PLACE].cleanup()


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run the tests that start a QEMU with each that was asked for."""
    for option, fixture in (("--qemu", "qemu_command"), ("--accel", "accel")):
        values: list[str] = metafunc.config.getoption(option)
        if values and fixture in metafunc.fixturenames:
            names = [Path(shlex.split(value)[-1]).name for value in values]
            ids = names if len(set(names)) == len(names) else values
            metafunc.parametrize(fixture, values, ids=ids, indirect=True)


def pytest_itemcollected(item: pytest.Item) -> None:
    """Mark what starts a QEMU: `make matrix` runs no other test once for each."""
    if "qemu_command" in getattr(item, "fixturenames", []):
        item.add_marker("starts_qemu")


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Obey the ``needs`` marker before any fixture of the test starts."""
    for marker in item.iter_markers("needs"):
        needs(*marker.args)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, Any]:
    """Remember failures: a failed test's traceback keeps its objects alive."""
    report = yield
    if report.when in ("setup", "call") and not report.passed:
        item.stash[FAILED] = True
    return report


@pytest.fixture(autouse=True)
def leak_check(request: pytest.FixtureRequest) -> Iterator[None]:
    """Fail a test that leaves a process, thread, descriptor, hugepage or file behind."""
    session = request.config.stash[SESSION]
    before = leaks.snapshot(session)
    yield
    node = request.node
    if node.stash.get(FAILED, False) or node.get_closest_marker("leaks"):
        return
    if node.funcargs is None:
        return  # interrupted: what the test holds goes with the process
    # The other fixtures are torn down by now; pytest would keep their values a moment longer.
    node.funcargs.clear()
    left = leaks.wait_for_none(session, before)
    if left:
        pytest.fail("left behind:\n  " + "\n  ".join(left), pytrace=False)


@pytest.fixture
def scratch(request: pytest.FixtureRequest) -> Path:
    """The session's short-named temporary directory: UNIX sockets fit here.

    A test that leaves a file in it fails.
    """
    return request.config.stash[SESSION].directory


@pytest.fixture
def accel(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """The accelerator under test: what ``auto`` is, too, for tests that choose none."""
    name = str(getattr(request, "param", "auto"))
    if name != "auto":
        monkeypatch.setattr(find, "ACCELERATORS", (name,))
        monkeypatch.setattr(machine, "_auto", {})
    return name


@pytest.fixture(name="qemu_command")
def _qemu_command(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, accel: Accel
) -> str:
    """The command line of the QEMU under test, which the library gets from VIRTNIC_QEMU."""
    command = str(getattr(request, "param", "") or qemu_command())
    monkeypatch.setenv("VIRTNIC_QEMU", command)
    if not hasattr(request, "param"):
        needs("qemu")
    return command


@pytest.fixture
def memory() -> virtnic.Memory:
    """Shared memory of 64 MiB."""
    return virtnic.Memory("64M")


@pytest.fixture
def qemu(memory: virtnic.Memory, qemu_command: str, accel: Accel) -> Iterator[virtnic.Qemu]:
    """A started QEMU on ``memory``."""
    with virtnic.Qemu(memory=memory, accel=accel) as qemu:
        yield qemu


@pytest.fixture
def port(qemu_command: str, accel: Accel) -> Iterator[virtnic.Port]:
    """A port on QEMU's user-mode network."""
    with virtnic.open("user", accel=accel) as port:
        yield port


@pytest.fixture
def netns(qemu_command: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Netns]:
    """A network namespace with a TAP device; QEMUs of this test start inside it.

    ``virtnic.open(netns.netdev)`` is then a port whose peer is the Linux kernel.
    """
    needs("netns")
    with Netns() as netns:
        monkeypatch.setenv("VIRTNIC_QEMU", netns.qemu_command)
        yield netns


@pytest.fixture
def dual(netns: Netns) -> Netns:
    """A namespace whose TAP has an IPv6 address as well."""
    netns.add_ipv6("fd99::1/64")
    return netns


@pytest.fixture
def testpmd(scratch: Path) -> Iterator[Callable[..., Testpmd]]:
    """Start DPDK's testpmd as a vhost-user backend, once for each call.

    Takes the keyword arguments of ``Testpmd``; ``ports`` is the number of sockets,
    which are in ``.sockets`` of the result.
    """
    needs("testpmd")
    with contextlib.ExitStack() as stack:
        count = 0

        def start(*, ports: int = 1, **options: Any) -> Testpmd:
            nonlocal count
            paths = [scratch / f"vhu{count + number}" for number in range(ports)]
            count += ports
            return stack.enter_context(Testpmd(paths, **options))

        yield start


@pytest.fixture
def ovs() -> Iterator[Callable[..., OvsBridge]]:
    """Start a private Open vSwitch with DPDK and one bridge.

    ``clients`` are the paths that the bridge's ports connect to (we listen there: ``server=on``),
    by the port's name; ``servers`` are names of ports that listen themselves, in the switch's
    directory.
    """
    needs("ovs")
    with contextlib.ExitStack() as stack:

        def start(
            clients: Mapping[str, Path] | None = None, servers: Sequence[str] = ()
        ) -> OvsBridge:
            bridge = stack.enter_context(OvsDpdk()).add_bridge()
            for name, path in (clients or {}).items():
                bridge.add_port(name, path)
            for name in servers:
                bridge.add_port(name)
            return bridge

        yield start
