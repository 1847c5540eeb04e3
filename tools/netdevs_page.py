# ruff: noqa: E501 - lines of the page
"""Make docs/netdevs.md from the table in the code: ``make docs`` runs this.

tests/device/test_netdevs.py compares the page with the table and the table with QEMU, and checks that the tests it
names exist.
"""

from pathlib import Path

from virtnic.qemu.netdevs import NETDEVS, NetdevType

TOP = Path(__file__).resolve().parents[1]
PAGE = TOP / "docs/netdevs.md"

HEAD = """\
<!-- Made by `make docs` from python/virtnic/qemu/netdevs.py: edit that. -->

# Netdevs

A port connects to any QEMU netdev, given as on QEMU's command line without an id (`"user"`, `"tap,ifname=tap0"`), as JSON or as a dict. Types
of options are taken from QEMU itself, and an unknown option is an error that lists the known ones. A type that is not in this table
works too, with one queue pair and without advice.

| netdev | connects to | queue pairs | entries | by descriptor | sandbox | peer reported by | `wait_ready()` waits for |
|---|---|---|---|---|---|---|---|
"""

NOTES = """
*Entries*: default size of each queue. *Sandbox*: options that make QEMU start a program that its sandbox denies, and the value of `sandbox=`
that allows it.

## Losses, peers, privileges

| netdev | since QEMU | what it loses | when its peer goes | privileges |
|---|---|---|---|---|
"""

AFTER = """
Each netdev that a Debian QEMU has carries 10,000 numbered frames of all lengths each way, byte for byte, and then loses its peer, in
[test_netdev_frames.py](../tests/device/test_netdev_frames.py): on the machine's QEMU by `make test`, on 5.2, 7.2, 10.0 and 11.1 by
`make matrix`. At most 32 frames are on the way there: what datagrams lose without such a limit is the second column.

## Notes

"""

FOOT = """
## The peer

If QEMU reports the peer, the link follows it: `port.link`, `on_link`, and the events `link-up` and `link-down`; the events `peer-connected`
and `peer-disconnected` have its address. A port can be opened without a peer, with its link down and a warning. If nobody reports the
peer, the link is up, and frames without a peer are lost, as on a wire.

`port.wait_ready(timeout)`, also of an `aio` port, returns when frames pass in both directions, as far as that can be determined; otherwise it
raises TimeoutError with the reason. The pytest fixture `virtnic_port` calls it. Call it after `attach()`: Open vSwitch loses frames from
and to a new port for 50 to 250 ms, and Linux sends nothing on a TAP until it has noticed, once a second, that it is open.

## Descriptors

Descriptors are those of this process, in text or, in a dict, as integers: `"tap,fd=5"`, `{"type": "tap", "fds": [5, 6]}`. QEMU gets
duplicates; yours stay open, for you to close. A descriptor that is not open or of the wrong kind is a ValueError. If QEMU is restarted
(`recover=True`) it gets them again: duplicates are kept for that until the port is closed.

## QEMU's messages

An error quotes QEMU's reply and what QEMU or one of its helpers wrote to stderr meanwhile, and gives advice. Other output on stderr is
logged as a warning. If QEMU reports that a started device does not run (*unable to start vhost net*), `attach()` raises QemuError.
"""

PEERS = {
    "qmp": "QEMU: link and events",
    "backend": "the backend: link and events",
    "host": "the kernel, when the port is opened",
    "always": "always there",
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
    """Return the sandbox setting that the helper of a netdev needs, and when it is started."""
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
        proof = f" Tested by {links}." if links else ""
        if row.note or proof:
            notes.append(f"- `{row.name}`: {row.note}{proof}".replace(":  ", ": ") + "\n")
    more = [
        f"| `{row.name}` | {row.since or 'all'} | {row.loses} | {row.gone} | {row.privileges} |\n"
        for row in NETDEVS
    ]
    return HEAD + "".join(lines) + NOTES + "".join(more) + AFTER + "".join(notes) + FOOT


if __name__ == "__main__":
    PAGE.write_text(page())
