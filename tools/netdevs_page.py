# ruff: noqa: E501 - lines of the page
"""Makes docs/netdevs.md of the code's own table: ``make docs`` runs this.

What it says cannot be edited by hand: tests/device/test_netdevs.py compares the page with the table, the
table with QEMU, and looks for the tests that it names.
"""

from pathlib import Path

from virtnic.qemu.netdevs import NETDEVS, NetdevType

TOP = Path(__file__).resolve().parents[1]
PAGE = TOP / "docs/netdevs.md"

HEAD = """\
<!-- Made by `make docs` of python/virtnic/qemu/netdevs.py: change that. -->

# Netdevs

What a port can be connected to: whatever QEMU has as a netdev, given as on its command line without an id (`"user"`,
`"tap,ifname=tap0"`), as JSON or as a dict. Options that need a type get it from QEMU itself, and what it does not know is an
error that lists what it has. A type that is not in this table works too: with one queue pair, and without advice.

| netdev | connects to | queue pairs | entries | by descriptor | sandbox | who tells of the peer | `wait_ready()` waits for |
|---|---|---|---|---|---|---|---|
"""

NOTES = """
*Entries* are those of each queue unless `queue_size=` says otherwise. *Sandbox*: what lets QEMU start something that its
sandbox denies, and the value of `sandbox=` that does not.

## What else to know

"""

FOOT = """
## The peer

Where QEMU tells of the peer, the link follows it: `port.link`, `on_link`, and the events `link-up` and `link-down`; the
events `peer-connected` and `peer-disconnected` say who. A port opens while nobody is there, with its link down and a
warning. Where nobody can tell, the link is up, and frames to nobody vanish as they do on a wire.

`port.wait_ready(timeout)`, also of an `aio` port, returns when frames pass in both directions as far as that can be known,
and raises TimeoutError, which says what is missing. The pytest fixture `virtnic_port` has called it. It is for the moment after
`attach()`: Open vSwitch loses what it gets or has for a port in the first 50 to 250 ms, and Linux sends nothing by a TAP
until it has noticed, once a second, that it was opened.

## Descriptors

A descriptor is one of this process, by number or, in a dict, as an integer: `"tap,fd=5"`, `{"type": "tap", "fds": [5, 6]}`.
QEMU gets a copy; yours stays open, and is yours to close. One that is not open, or not of its kind, is a ValueError. A QEMU
that dies and comes back (`recover=True`) gets it again: a copy is kept for that until the port is closed.

## What QEMU says

An error quotes what QEMU answered and what it, or a helper of its, wrote to stderr meanwhile, with what to do about it. What
it writes there at any other time is logged as a warning (logger `virtnic.qemu.process`). Where it says that a
device was started and does not run (*unable to start vhost net*), `attach()` raises QemuError.
"""

PEERS = {
    "qmp": "QEMU: link and events",
    "backend": "the backend: link and events",
    "host": "the kernel, when the port is opened",
    "always": "it is always there",
    "none": "nobody",
}


def queues(row: NetdevType) -> str:
    """Return how many queue pairs there are."""
    return " or ".join(f"`{option}=`" for option in row.queues) or "1"


def descriptors(row: NetdevType) -> str:
    """Return the options that are descriptors."""
    found = []
    for option in row.descriptors:
        parent, dot, _ = option.rpartition(".")
        found.append(f"`{parent}.type=fd,{option}=`" if dot else f"`{option}=`")
    return ", ".join(found) or "-"


def sandbox(row: NetdevType) -> str:
    """Return what is started, and what lets it."""
    if not row.helper_when:
        return "-"
    helper = row.helper({})
    needed = "spawn" if helper is None else helper.sandbox
    return f"`sandbox={needed!r}`: {row.helper_when}"


def page() -> str:
    """Return the whole page."""
    lines, notes = [], []
    for row in NETDEVS:
        cells = (
            f"`{row.name}`",
            row.about,
            queues(row),
            str(row.queue_size),
            descriptors(row),
            sandbox(row),
            PEERS[row.peer],
            row.ready,
        )
        lines.append(f"| {' | '.join(cells)} |\n")
        links = ", ".join(
            f"[{test.partition('::')[2]}](../{test.partition('::')[0]})" for test in row.tests
        )
        proof = f" Proven by {links}." if links else ""
        if row.note or proof:
            notes.append(f"- `{row.name}`: {row.note}{proof}".replace(":  ", ": ") + "\n")
    return HEAD + "".join(lines) + NOTES + "".join(notes) + FOOT


if __name__ == "__main__":
    PAGE.write_text(page())
