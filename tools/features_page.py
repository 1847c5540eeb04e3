# ruff: noqa: E501 - lines of the page
"""Make docs/features.md from the table in the code: ``make docs`` runs this.

tests/device/test_features.py compares the page with the table and the table with QEMU, and checks that the
tests it names exist.
"""

from pathlib import Path
from typing import Any

from virtnic._native import features_table

TOP = Path(__file__).resolve().parents[1]
PAGE = TOP / "docs/features.md"

HEAD = """\
<!-- Made by `make docs` from rust/core/src/virtio/features.rs and catalogue.rs: edit those. -->

# Feature bits

Every feature bit of a virtio-net device in VIRTIO 1.3: its meaning, whether this driver supports it, which QEMU offers it, what controls it,
and which tests cover it.

*Offered* was measured on QEMU 5.2, 7.2, 10.0 and 11.1 with the netdev `user`, or with a TAP device where stated: the oldest of the four that
offers it, and the properties of `virtio-net-pci` that it needs, to be passed as `properties={...}` to `open()` or `attach()`. `make matrix`
measures it again. A vhost-user or vhost-vdpa backend may offer fewer.

*Accepted* features are used if offered; those *on request* if `features={"NAME": True}` is given. `features={"NAME": False}` refuses any
except VERSION_1. `virtnic probe` shows the result on a machine.

| bit | feature | a device with it | support | offered | controlled by | tested by |
|---|---|---|---|---|---|---|
"""

FOOT = """
For a feature that none of these QEMUs offers, the tests implement the device: its registers or its queues.
"""


def offered(row: dict[str, Any]) -> str:
    """Return since when and how QEMU offers it."""
    if row["since"] is None:
        return "by none"
    properties = f"`{row['properties']}`" if row["properties"] else "always"
    tap = ", TAP" if row["netdev"] == "tap" else ""
    return f"{row['since']}: {properties}{tap}"


def supported(row: dict[str, Any]) -> str:
    """Return whether it is accepted, and why."""
    support = "no" if row["support"] == "unsupported" else row["support"]
    return f"{support}: {row['why']}" if row["why"] else support


def argument(row: dict[str, Any]) -> str:
    """Return what controls it."""
    if row["support"] == "unsupported":
        return "-"
    return str(row["argument"]) or f'`features={{"{row["name"]}": …}}`'


def tests(row: dict[str, Any]) -> str:
    """Return links to the tests."""
    links = []
    for test in row["tests"]:
        file, _, name = test.partition("::")
        links.append(f"[{name}](../{file})")
    return ", ".join(links) or "-"


def page() -> str:
    """Return the whole page."""
    lines = []
    for row in sorted(features_table(), key=lambda row: int(row["bit"])):
        name = f"{row['name']} ({row['section']})"
        cells = (str(row["bit"]), name, row["about"], supported(row), offered(row), argument(row))
        lines.append(f"| {' | '.join((*cells, tests(row)))} |\n")
    return HEAD + "".join(lines) + FOOT


if __name__ == "__main__":
    PAGE.write_text(page())
