"""The netdev table compared to its page and to QEMU."""

import re
import socket
import time
from pathlib import Path
from typing import Any

import pytest

import netdevs_page
import virtnic
from peers.streams import receive_frame
from support.frames import numbered
from support.inside import machine_of
from virtnic import net
from virtnic.qemu import find_qemu
from virtnic.qemu.netdevs import NETDEVS, NetdevType, kind_of
from virtnic.qemu.schema import Schema

TOP = Path(__file__).resolve().parents[2]
#: Types that are no netdev to a port.
NO_NETDEVS = {"none", "nic"}


def memory() -> virtnic.Memory:
    """Return memory that does not depend on free hugepages."""
    return virtnic.Memory("8M", hugepages=None)


def test_the_page_is_that_of_the_table() -> None:
    assert netdevs_page.PAGE.read_text() == netdevs_page.page(), "run `make docs`"


@pytest.mark.parametrize("row", NETDEVS, ids=lambda row: row.name)
def test_every_row_has_the_tests_that_it_names(row: NetdevType) -> None:
    for test in row.tests:
        file, _, name = test.partition("::")
        assert re.search(rf"^def {name}\(", (TOP / file).read_text(), re.MULTILINE), test


@pytest.mark.needs("qemu")
def test_every_netdev_of_this_qemu_has_a_row(qemu_command: str) -> None:
    """And QEMU has each option that the table names, where it has the type."""
    (entities,) = find_qemu(qemu_command).ask("query-qmp-schema")
    schema = Schema(entities)
    types = set(schema.choices("netdev_add")) - NO_NETDEVS
    assert types <= {row.name for row in NETDEVS}
    for row in NETDEVS:
        if row.name not in types:
            continue
        for option in {*row.queues, *row.descriptors}:
            if (row.name, option) == ("vhost-vdpa", "vhostfd") and "stream" not in types:
                continue  # 5.2 has not got it yet
            name, dot, _ = option.partition(".")
            value: Any = {"type": "fd", "str": "x"} if dot else "1"
            schema.arguments("netdev_add", {"type": row.name, name: value}, what="netdev")


def test_a_netdev_that_is_not_in_the_table() -> None:
    row = kind_of("telepathy")
    assert (row.name, row.queues, row.peer, row.clock) == ("telepathy", (), "none", False)


@pytest.mark.needs("qemu")
def test_slirp_behind_a_hub_has_a_clock(qemu_command: str, accel: Any) -> None:
    """The peers of a hub are unknown: its timers run under the accelerator qtest too."""
    extra = ["-netdev", "user,id=slirp", "-netdev", "hubport,id=hub,hubid=7,netdev=slirp"]
    with virtnic.Qemu(memory(), accel=accel, extra=extra) as qemu:
        port = qemu.attach("hubport,hubid=7")
        if qemu.accel == "qtest":
            began = machine_of(qemu).qtest.clock_step(1)
            deadline = time.monotonic() + 10.0
            while machine_of(qemu).qtest.clock_step(1) - began < 0.2e9:
                assert time.monotonic() < deadline, "the clock stands still"
                time.sleep(0.02)
        net.Stack(port, dhcp=True).close()


@pytest.mark.needs("qemu")
@pytest.mark.parametrize("timer", ["timer", "bh"])
def test_a_device_that_sends_by_a_timer(qemu: virtnic.Qemu, timer: str) -> None:
    """``tx=timer`` sends when QEMU's clock says so, whatever the netdev is."""
    here, there = socket.socketpair()
    there.settimeout(5.0)
    with here, there:
        port = qemu.attach(f"socket,fd={here.fileno()}", properties={"tx": timer})
        port.send([numbered(port.mac, 1)])
        assert receive_frame(there) == numbered(port.mac, 1)
        qemu.detach(port)
