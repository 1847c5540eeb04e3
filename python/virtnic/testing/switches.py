"""Fixtures of the pytest plugin: switches, each with ready ports of ours."""

from __future__ import annotations

import contextlib
import os
from typing import TYPE_CHECKING

import pytest

from virtnic.testing.bench import READY
from virtnic.testing.marks import marked, missing
from virtnic.testing.namespace import TapNamespace, find_ip
from virtnic.testing.ovs import OvsBridge, OvsDpdk, find_vswitchd
from virtnic.testing.programs import ProgramNotFound, private_directory
from virtnic.testing.testpmd import Testpmd, find_testpmd

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    import virtnic
    from virtnic.testing.bench import Bench

#: Modes in which testpmd sends each frame on, to one of our ports.
_RETURNS = ("io", "mac", "macswap")


def _needs(find: Callable[[], str]) -> None:
    """Skip the test, or fail it, if a program is not there."""
    try:
        find()
    except ProgramNotFound as error:
        why = str(error)
    else:
        return
    # Outside the handler, so that a report shows no nested exception.
    missing(why)


def _wait(request: pytest.FixtureRequest, ports: Iterable[virtnic.Port]) -> None:
    """Wait until frames pass, as long as the marker's ``ready`` says."""
    ready: float | None = marked(request.node).get("ready", READY)
    for port in ports:
        if ready is not None:
            port.wait_ready(ready)


@pytest.fixture(scope="session")
def virtnic_ovs_dpdk() -> Iterator[OvsDpdk]:
    """Start a private Open vSwitch with DPDK, once for all tests; without bridges.

    For another scope, or other arguments, define a fixture of this name that yields an
    :class:`virtnic.testing.OvsDpdk`.
    """
    _needs(find_vswitchd)
    with OvsDpdk() as switch:
        yield switch


@pytest.fixture
def virtnic_ovs(
    request: pytest.FixtureRequest, virtnic_ovs_dpdk: OvsDpdk, _virtnic_bench: Bench
) -> OvsBridge:
    """Add a bridge for this test, with ready ports of ours in ``.ports``: two, or ``ports=``.

    The switch connects to them (``dpdkvhostuserclient``).
    """
    directory = _virtnic_bench.enter(private_directory("vhost-"))
    bridge = _virtnic_bench.enter(virtnic_ovs_dpdk.add_bridge())
    _virtnic_bench.kept.add("ovs.txt", bridge.report)
    for number in range(marked(request.node).get("ports", 2)):
        name = f"{bridge.name}-p{number}"
        mac = f"02:00:00:00:00:{number + 1:02x}"
        port = _virtnic_bench.attach_client(
            directory / name, lambda path: bridge.add_port(path.name, path), mac=mac
        )
        bridge.connected(port, name)
    try:
        _wait(request, bridge.ports)
    except TimeoutError as error:
        if trouble := virtnic_ovs_dpdk.trouble():
            error.add_note(f"Open vSwitch: {trouble}")
        raise
    return bridge


@pytest.fixture
def virtnic_testpmd(request: pytest.FixtureRequest, _virtnic_bench: Bench) -> Testpmd:
    """Start DPDK's testpmd, with ready ports of ours in ``.ports``: two, or ``ports=``.

    It passes frames between each two (mode ``io``). ``testpmd={…}`` of the marker: other arguments
    of :class:`virtnic.testing.Testpmd`.
    """
    _needs(find_testpmd)
    given = marked(request.node)
    directory = _virtnic_bench.enter(private_directory("vhost-"))
    paths = [directory / f"p{number}" for number in range(given.get("ports", 2))]
    testpmd = _virtnic_bench.enter(Testpmd(paths, **{"mode": "io", **given.get("testpmd", {})}))
    _virtnic_bench.kept.add("testpmd.txt", lambda: testpmd.output)
    testpmd.ports = tuple(
        _virtnic_bench.attach(f"vhost-user,path={path}", ready=None) for path in paths
    )
    _wait(request, testpmd.ports)
    if testpmd.forward_mode in _RETURNS and given.get("ready", READY) is not None:
        for port in testpmd.ports:
            # The frame by which it was seen that they are ready: the test is not to get it.
            port.recv(1, timeout=READY)
    return testpmd


@pytest.fixture
def virtnic_tap(request: pytest.FixtureRequest, _virtnic_bench: Bench) -> TapNamespace:
    """Make a network namespace with a TAP device, with a ready port of ours on it in ``.ports``.

    ``tap={…}`` of the marker: arguments of :class:`virtnic.testing.TapNamespace`.
    """
    _needs(find_ip)
    namespace = _virtnic_bench.enter(TapNamespace(**marked(request.node).get("tap", {})))
    with contextlib.ExitStack() as stack:
        descriptors = namespace.open()
        for fd in descriptors:
            stack.callback(os.close, fd)
        netdev = {"type": "tap", "fds": descriptors}
        namespace.ports = (_virtnic_bench.attach(netdev, ready=None),)
    # The device is in a namespace that the port does not see into.
    namespace.wait_for_carrier()
    _wait(request, namespace.ports)
    return namespace
