# ruff: noqa: E501 - lines of the page
"""Makes docs/features.md of the code's own table: ``make docs`` runs this.

What it says cannot be edited by hand: tests/device/test_features.py compares the page with the table,
the table with QEMU, and looks for the tests that it names.
"""

from pathlib import Path
from typing import Any

from virtnic._native import features_table

TOP = Path(__file__).resolve().parents[1]
PAGE = TOP / "docs/features.md"

HEAD = """\
<!-- Made by `make docs` of rust/core/src/virtio/features.rs and catalogue.rs: change those. -->

# Feature bits

Every feature bit of a virtio-net device in VIRTIO 1.3: what a device that has it does, whether this driver accepts it,
since which QEMU it is offered, what controls it, and which tests prove that.

*Offered* is what was measured on QEMU 5.2, 7.2, 10.0 and 11.1 with the netdev `user`, or with a TAP device where it says
so: the oldest of the four that offers it, and the properties of `virtio-net-pci` that it takes, which
`properties={...}` of `open()` and `attach()` passes on. `make matrix` measures it again. A vhost-user or vhost-vdpa
backend can take features away.

*Accepted* features are used where they are offered; those *on request* when `features={"NAME": True}` asks for them.
`features={"NAME": False}` refuses any but VERSION_1. `virtnic probe` says what became of each on this machine.

| bit | feature | a device with it | here | offered | controlled by | proven by |
|---|---|---|---|---|---|---|
"""

FOOT = """
Where no QEMU here offers a feature, the tests drive a device of their own: its registers or its queues are in the test.
"""


def offered(row: dict[str, Any]) -> str:
    """Return since when and how QEMU offers it."""
    if row["since"] is None:
        return "by none"
    properties = f"`{row['properties']}`" if row["properties"] else "always"
    tap = ", TAP" if row["netdev"] == "tap" else ""
    return f"{row['since']}: {properties}{tap}"


def supported(row: dict[str, Any]) -> str:
    """Return what we do about it, and why."""
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
