"""The table of differences between QEMU versions."""

from pathlib import Path

import pytest

from virtnic.qemu import Version, quirks
from virtnic.qemu.quirks import QUIRKS

TOP = Path(__file__).parents[2]


@pytest.mark.parametrize("quirk", QUIRKS, ids=lambda quirk: quirk.name)
def test_each_row_names_a_test_that_exists(quirk: quirks.Quirk) -> None:
    file, _, name = quirk.test.partition("::")
    assert f"def {name}(" in (TOP / file).read_text(encoding="utf-8")
    assert quirk.symptom
    assert quirk.action


def test_names_are_unique() -> None:
    assert len({quirk.name for quirk in QUIRKS}) == len(QUIRKS)


@pytest.mark.parametrize(
    ("name", "version", "holds"),
    [
        ("vhost-user-msix-crash", Version(5, 2), True),
        ("vhost-user-msix-crash", Version(7, 2, 22), True),
        ("vhost-user-msix-crash", Version(10, 0, 13), False),
        ("q35-acpi-hotplug", Version(5, 2), False),
        ("q35-acpi-hotplug", Version(6, 1), True),
        ("q35-acpi-hotplug", Version(11, 1, 3), True),
        ("reconnect-in-seconds", Version(9, 1, 2), True),
        ("reconnect-in-seconds", Version(9, 2), False),
        ("qtest-clock-stands-still", Version(11, 1), True),
    ],
)
def test_versions(name: str, version: Version, holds: bool) -> None:
    assert quirks.has(version, name) is holds
    assert (name in {quirk.name for quirk in quirks.of(version)}) is holds


def test_an_unknown_quirk() -> None:
    with pytest.raises(KeyError):
        quirks.has(Version(9, 0), "no-such-quirk")


def test_versions_in_words() -> None:
    words = {quirk.name: quirk.versions for quirk in QUIRKS}
    assert words["vhost-user-msix-crash"] == "before 10.0"
    assert words["q35-acpi-hotplug"] == "since 6.1"
    assert words["no-qtest-accelerator"] == "all"
