"""The feature table compared to QEMU, its page, and the effect of single bits."""

import re
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest

import features_page
import virtnic
from peers.netns import Netns
from support.frames import arp_request, is_arp_reply
from support.inside import driver_of
from support.negotiated import accepted, offered
from virtnic._native import features_table
from virtnic.qemu import quirks
from virtnic.qemu.command import Accel
from virtnic.qemu.quirks import Version

TOP = Path(__file__).resolve().parents[2]


def properties_of(text: str) -> dict[str, Any]:
    """Return ``a=on,b=5`` as ``properties=`` takes it."""
    pairs = (pair.split("=") for pair in text.split(",") if pair)
    values: dict[str, Any] = {"on": True, "off": False}
    typed = {name: values.get(value, value) for name, value in pairs}
    if "disable-legacy" in typed:
        typed["disable-legacy"] = "on"
    return {name: int(v) if str(v).isdigit() else v for name, v in typed.items()}


def has_by(row: dict[str, Any], version: Version) -> bool:
    """Whether the table says that this QEMU offers a feature."""
    if row["since"] is None:
        return False
    major, minor = map(int, row["since"].split("."))
    return version >= Version(major, minor)


def compare(netdev: str, options: dict[str, Any], *, tap: bool) -> None:
    """Open a port with each set of properties; compare what it is offered with the table."""
    rows = [row for row in features_table() if tap or row["netdev"] == "user"]
    sets = defaultdict(list)
    for row in rows:
        if tap == (row["netdev"] == "tap"):
            sets[row["properties"]].append(row)
    assert "" in sets
    for properties, mine in sets.items():
        known = "5.2" in {row["since"] for row in mine}
        try:
            port = virtnic.open(netdev, properties=properties_of(properties), **options)
        except virtnic.QemuError as error:
            if known or "not found" not in str(error):
                raise
            continue  # a property that this QEMU does not know
        with port:
            version = port.qemu.version
            has = offered(port)
            for row in mine:
                assert (row["name"] in has) == has_by(row, version), (row, str(version))
                if row["support"] == "accepted" and row["name"] in has:
                    assert row["name"] in accepted(port), port.features
                if row["support"] == "unsupported":
                    assert row["name"] not in accepted(port)
            assert has <= {row["name"] for row in features_table()}, "the table lacks a feature"
            if not tap:
                answered(port)


def answered(port: virtnic.Port) -> None:
    """Have slirp answer an ARP request."""
    port.send([arp_request(port.mac)])
    deadline = time.monotonic() + 20.0
    while not any(map(is_arp_reply, port.recv(16, timeout=1.0))):
        assert time.monotonic() < deadline, "no answer"


def test_offered_as_the_catalogue_says(qemu_command: str, accel: Accel) -> None:
    """Every set of properties, and frames pass with what is accepted then."""
    compare("user", {"accel": accel, "size": "16M"}, tap=False)


@pytest.mark.needs("netns")
def test_offered_to_a_tap_as_the_catalogue_says(
    qemu_command: str, accel: Accel, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Netns(queues=2) as netns:
        monkeypatch.setenv("VIRTNIC_QEMU", netns.qemu_command)
        compare(netns.netdev, {"accel": accel, "queues": 2, "size": "32M"}, tap=True)


def test_mtu_speed_and_duplex_are_read(qemu_command: str, accel: Accel) -> None:
    properties = {"host_mtu": 1400, "speed": 10000, "duplex": "full"}
    with virtnic.open("user", accel=accel, properties=properties) as port:
        assert {"MTU", "SPEED_DUPLEX"} <= accepted(port)
        assert (port.mtu, port.speed, port.duplex) == (1400, 10000, "full")
        assert driver_of(port).refresh_link()
        assert (port.speed, port.duplex) == (10000, "full")
    with virtnic.open("user", accel=accel, properties={"duplex": "half"}) as port:
        assert (port.speed, port.duplex) == (None, "half")
    with virtnic.open("user", accel=accel) as port:
        assert (port.mtu, port.speed, port.duplex) == (1500, None, None)


def test_a_standby_device_says_so(qemu_command: str, accel: Accel) -> None:
    with virtnic.open("user", accel=accel, properties={"failover": True}) as port:
        assert port.standby
        assert "STANDBY" not in accepted(port)
        answered(port)
    preferences: dict[str, bool | None] = {"STANDBY": True}
    with virtnic.open(
        "user", accel=accel, properties={"failover": True}, features=preferences
    ) as port:
        assert port.standby
        assert "STANDBY" in accepted(port)
        answered(port)
    with virtnic.open("user", accel=accel) as port:
        assert not port.standby


def test_unplugging_behind_the_platform(
    qemu: virtnic.Qemu, qemu_command: str, accel: Accel
) -> None:
    properties = {"iommu_platform": True, "disable-legacy": "on"}
    port = qemu.attach("user", properties=properties)
    answered(port)
    if quirks.has(qemu.version, "platform-unplug-crash"):
        qemu.detach(port)
        with pytest.raises(virtnic.QemuDied):
            qemu.attach("user")
        return
    qemu.detach(port)
    answered(qemu.attach("user"))


def test_coalescing_is_refused_where_it_is_not_offered(qemu_command: str, accel: Accel) -> None:
    with virtnic.open("user", accel=accel) as port:
        with pytest.raises(virtnic.CommandRefused, match="NOTF_COAL"):
            port.set_coalescing("rx", 8, 100)
        with pytest.raises(virtnic.CommandRefused, match="VQ_NOTF_COAL"):
            port.queue(0).set_coalescing("rx", 8, 100)
        answered(port)


@pytest.mark.needs("testpmd")
def test_an_eventfd_carries_no_data(qemu: virtnic.Qemu, testpmd: Any) -> None:
    netdev = f"vhost-user,path={testpmd().sockets[0]}"
    with pytest.raises(ValueError, match=r"NOTIFICATION_DATA.*notify=.qtest"):
        qemu.attach(netdev, features={"NOTIFICATION_DATA": True})


def test_the_page_is_the_table() -> None:
    assert features_page.PAGE.read_text() == features_page.page(), "run `make docs`"


@pytest.mark.parametrize("row", features_table(), ids=lambda row: str(row["name"]))
def test_every_supported_feature_has_a_test(row: dict[str, Any]) -> None:
    assert row["support"] == "unsupported" or row["tests"], "name one in virtio/catalogue.rs"
    for test in row["tests"]:
        file, _, name = test.partition("::")
        kind = "def" if file.endswith(".py") else "fn"
        # Tests of both ring formats are made by a macro, without a `fn`.
        definition = rf"^\s*(?:{kind} )?{name}(?:<[^>]*>)?\("
        assert re.search(definition, (TOP / file).read_text(), re.MULTILINE), test
