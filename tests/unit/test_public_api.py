"""The list of public members, and that no private ones of other modules are used."""

from __future__ import annotations

import ast
import inspect
from pathlib import Path

import pytest

import virtnic
from virtnic import aio, net
from virtnic.nic.policy import Recoveries

PYTHON = Path(__file__).resolve().parents[2] / "python/virtnic"

#: A new member is added here, documented, and named in CHANGELOG.md; or it is made private.
MEMBERS: dict[type, str] = {
    virtnic.Port: """
        add_vlan away close closed duplex features fileno frontend interrupts legacy link mac
        max_queues memory mtu on_link polling qemu queue queue_addresses queue_size queues reclaim
        recv remove_vlan restart restarts ring rss rss_limits send send_all set_allmulticast
        set_coalescing set_guest_offloads set_mac set_mac_filter set_polling set_promiscuous
        set_queues set_receive_mode set_rss set_statistics set_timestamps speed standby
        statistics stats timestamps tx_fileno wait_ready wait_writable xstats
    """,
    virtnic.NetQueue: """
        active fileno index port reclaim recv send send_all set_coalescing start stats stop
        tx_fileno wait_writable
    """,
    virtnic.Qemu: """
        accel attach bus close closed command connect detach directory events execute machine
        memory pid ports recovery stderr version watch
    """,
    aio.Port: """
        close closed features interrupts link link_changes mac memory mtu port qemu queue_size recv
        ring send send_all stats wait_ready
    """,
    aio.net.Stack: """
        address addresses arp close closed configure connections create_connection
        create_datagram_endpoint create_server dhcp gateway gateways getaddrinfo name_servers
        open_connection ping remove_address stack start_server stats wait_ipv6
    """,
    net.Socket: """
        accept bind close connect connect_ex detach family fileno getblocking getpeername
        getsockname getsockopt gettimeout listen makefile proto recv recv_into recvfrom
        recvfrom_into send sendall sendmsg sendto setblocking setsockopt settimeout shutdown stats
        timeout type
    """,
    virtnic.Event: "detail kind port time",
    virtnic.Events: "close ended fileno missed wait",
    Recoveries: "outage over recoveries",
    virtnic.Recovery: "attempts backoff backoff_max pause",
}

#: Insides of other projects' classes, which have no other way.
FOREIGN = {
    ("cli/completions.py", "_actions"),
    ("cli/options.py", "_ArgumentGroup"),
    ("loops/engine.py", "_CFuncPtr"),
    ("loops/engine.py", "_sig"),
    ("qemu/loop.py", "_log_destroy_pending"),
}


def members(kind: type) -> set[str]:
    """Return the public members of a class and of its objects."""
    tree = ast.parse(Path(inspect.getsourcefile(kind) or "").read_text())
    (body,) = (n for n in tree.body if isinstance(n, ast.ClassDef) and n.name == kind.__name__)
    written = {
        node.attr
        for node in ast.walk(body)
        if isinstance(node, ast.Attribute)
        and isinstance(node.ctx, ast.Store)
        and ast.unparse(node.value) == "self"
    }
    return {name for name in {*dir(kind), *written} if not name.startswith("_")}


@pytest.mark.parametrize("kind", MEMBERS, ids=lambda kind: f"{kind.__module__}.{kind.__name__}")
def test_each_member_is_a_decision(kind: type) -> None:
    assert members(kind) == set(MEMBERS[kind].split())


def used_insides(file: Path) -> set[str]:
    """Return the names with an underscore that a file uses and that no class of it has."""
    tree = ast.parse(file.read_text())
    own, used = set(), set()
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            own.add(node.name)
        elif isinstance(node, ast.AnnAssign | ast.Assign):
            targets = [node.target] if isinstance(node, ast.AnnAssign) else node.targets
            own |= {target.id for target in targets if isinstance(target, ast.Name)}
        if isinstance(node, ast.Attribute) and node.attr.startswith("_"):
            ours = isinstance(node.value, ast.Name) and node.value.id in ("self", "cls")
            base = isinstance(node.value, ast.Call) and ast.unparse(node.value.func) == "super"
            module = ast.unparse(node.value) in ("os", "sys", "virtnic")
            if ours:
                own.add(node.attr)
            elif not (base or module or node.attr.startswith("__")):
                used.add(node.attr)
    return used - own


def test_nobody_uses_the_insides_of_another_file() -> None:
    found = {
        (str(file.relative_to(PYTHON)), name)
        for file in PYTHON.glob("**/*.py")
        for name in used_insides(file)
    }
    assert found - FOREIGN == set()
    assert found == FOREIGN  # and what is not used any more goes from the list
