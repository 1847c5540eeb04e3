"""The netdevs that QEMU has: one table of what virtnic has to know about each.

A new netdev is a new row, and works without one: then it has one queue pair, no descriptors and no
advice. ``docs/netdevs.md`` is made of this table (``make docs``). ``tests/device/test_netdevs.py``
compares the two, the table with QEMU, and looks for the tests that it names.
"""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

__all__ = [
    "NETDEVS",
    "Advice",
    "Helper",
    "NetdevType",
    "advice_on",
    "is_unavailable",
    "kind_of",
    "not_started",
]

Options = Mapping[str, Any]

#: What a descriptor has to be.
DescriptorKind = Literal["socket", "stream socket", "datagram socket", "TAP", "character device"]

#: How one hears that the peer came or went.
#: ``qmp``: QEMU says so by QMP, and the link and the events ``peer-connected`` and
#: ``peer-disconnected`` follow. ``backend``: the events are ``backend-lost`` and ``backend-back``.
#: ``host``: the state of the host's network device is looked at when the port is opened.
#: ``always``: the peer is a part of QEMU. ``none``: QEMU says nothing, and frames to nobody vanish.
Peer = Literal["qmp", "backend", "host", "always", "none"]


@dataclass(frozen=True, slots=True)
class Helper:
    """A program that QEMU would start for a netdev."""

    name: str
    #: The argument ``sandbox`` that lets it run.
    sandbox: Literal["spawn", False] = "spawn"
    #: What to do instead of opening the sandbox.
    instead: str = ""

    def refusal(self, netdev: str, to: str = "") -> str:
        """Say why a sandbox that is shut does not do, and ``to`` what to pass another."""
        return (
            f"the netdev {netdev!r} lets QEMU run {self.name}, which its sandbox denies; "
            f"pass sandbox={self.sandbox!r} if that is wanted{to}"
            + (f", or {self.instead}" if self.instead else "")
        )


@dataclass(frozen=True, slots=True)
class Advice:
    """What to do when QEMU says something that a pattern is found in."""

    words: str
    advice: str


def _no_helper(_options: Options) -> Helper | None:
    return None


def _always(_options: Options) -> bool:
    return True


@dataclass(frozen=True, slots=True)
class NetdevType:
    """One row."""

    name: str
    #: What the port is connected to.
    about: str = "a netdev that virtnic knows nothing about"
    #: The options that say how many queue pairs there are; without any there is one.
    queues: tuple[str, ...] = ()
    #: Entries of its queues where nobody asks for some.
    queue_size: int = 256
    #: The options that are descriptors, with what each has to be. Those whose name ends in s
    #: are lists; a dot leads into an object whose ``type`` is ``fd``.
    descriptors: Mapping[str, DescriptorKind] = field(default_factory=dict)
    #: The program that QEMU would start with these options.
    helper: Callable[[Options], Helper | None] = _no_helper
    #: In words, for the page: what is started, and when.
    helper_when: str = ""
    #: Whether timers on QEMU's virtual clock may be behind it.
    clock: bool = False
    #: Whether a backend that is given by its path is reached through an interposer of ours.
    interposed: bool = False
    peer: Peer = "none"
    #: What :meth:`virtnic.Port.wait_ready` waits for.
    ready: str = "nothing: QEMU cannot tell"
    #: Whether QEMU itself moves the frames, so that its filters have an effect.
    moves_frames: Callable[[Options], bool] = _always
    #: What to do about its usual refusals.
    advice: tuple[Advice, ...] = ()
    #: What else a user has to know.
    note: str = ""
    #: The tests with a real peer behind it.
    tests: tuple[str, ...] = ()


def _given(options: Options, *names: str) -> bool:
    return not options.keys().isdisjoint(names)


def is_on(value: object) -> bool:
    """Whether an option's value, typed or as a string, is on."""
    return value is True or value in ("on", "yes", "true", "y")


def wants_vhost(options: Options) -> bool:
    """Whether a TAP's frames pass QEMU by, in the kernel."""
    if "vhost" in options:
        return is_on(options["vhost"])
    return _given(options, "vhostfd", "vhostfds") or is_on(options.get("vhostforce"))


def _tap_helper(options: Options) -> Helper | None:
    if _given(options, "helper", "br"):
        return Helper("the bridge helper")
    for key in ("script", "downscript"):
        if options.get(key, "no") not in ("", "no"):
            return Helper(f"{key}={options[key]}")
    return None


def _user_helper(options: Options) -> Helper | None:
    if "smb" in options:
        return Helper("smbd")
    if "-cmd:" in str(options.get("guestfwd", "")):
        return Helper("the command of guestfwd")
    return None


_BRIDGE_ADVICE = (
    Advice(
        "acl file",
        "the bridge helper obeys /etc/qemu/bridge.conf: `echo 'allow BRIDGE' >> "
        "/etc/qemu/bridge.conf`, a file of root's with mode 0644",
    ),
    Advice(
        "failed to create tun device|Operation not permitted|failed to launch|bridge helper failed",
        "the bridge helper makes a TAP device, which takes root or CAP_NET_ADMIN (some "
        "distributions install it setuid root), /dev/net/tun, and a bridge that exists",
    ),
)
_VHOST_ADVICE = Advice(
    "vhost char device|/dev/vhost-net|vhost-net requested|vhost_set_owner",
    "vhost=on needs the kernel's vhost-net where QEMU runs: `modprobe vhost_net`, and "
    "/dev/vhost-net readable and writable; or leave vhost=on out: QEMU moves the frames then",
)

#: By name, as ``-netdev help`` of one QEMU or another says them.
NETDEVS: tuple[NetdevType, ...] = (
    NetdevType(
        "user",
        "a network of QEMU's own (slirp): DHCP, DNS, NAT to the host's networks",
        helper=_user_helper,
        helper_when="`smb=`, `guestfwd=…-cmd:…`",
        clock=True,
        peer="always",
        ready="nothing: it always is",
        advice=(
            Advice(
                "Could not set up host forwarding rule",
                "the host's port is taken, or below 1024 and not ours to take",
            ),
        ),
        note="`ipv6-net=PREFIX/LENGTH` is translated to `ipv6-prefix=` and `ipv6-prefixlen=`, as "
        "QEMU's command line does.",
        tests=("tests/device/test_port_user.py::test_chosen_mac_and_queue_size",),
    ),
    NetdevType(
        "tap",
        "a TAP device of the host's kernel",
        queues=("queues", "fds"),
        descriptors={
            "fd": "TAP",
            "fds": "TAP",
            "vhostfd": "character device",
            "vhostfds": "character device",
        },
        helper=_tap_helper,
        helper_when="`helper=`, `br=`, `script=`, `downscript=`",
        peer="host",
        ready="the device is up, and the kernel has noticed that it was opened (up to a second)",
        moves_frames=lambda options: not wants_vhost(options),
        advice=(_VHOST_ADVICE, *_BRIDGE_ADVICE),
        note="`script=` and `downscript=` are `no` unless given. With `vhost=on` (virtnic adds "
        "`vhostforce=on`, so that QEMU goes on without it neither silently nor by aborting) the "
        "kernel moves the frames: there are no packed rings, HASH_REPORT or RSC_EXT, filters are "
        "accepted without effect (a warning says so), and a broken receive ring is not reported.",
        tests=("tests/device/test_port_tap.py::test_the_kernel_pings_our_stack",),
    ),
    NetdevType(
        "bridge",
        "a bridge of the host's kernel, by a TAP device that a helper makes",
        helper=lambda _options: Helper("the bridge helper"),
        helper_when="always",
        peer="host",
        ready="the device is up, and the kernel has noticed that it was opened (up to a second)",
        advice=_BRIDGE_ADVICE,
        tests=("tests/failure/test_netdev_refusals.py::test_a_bridge_without_its_rights",),
    ),
    NetdevType(
        "passt",
        "the host's network through passt, which QEMU starts (10.1 and later)",
        helper=lambda _options: Helper(
            "passt",
            False,
            "start passt yourself and connect to it: "
            "stream,server=off,addr.type=unix,addr.path=SOCKET, or, where passt has --vhost-user, "
            "vhost-user,path=SOCKET",
        ),
        helper_when="always; `sandbox='spawn'` will not do: QEMU's filter of system calls kills "
        "passt (signal 31)",
        peer="none",
        tests=("tests/failure/test_netdev_refusals.py::test_passt_needs_no_sandbox",),
    ),
    NetdevType(
        "vhost-user",
        "a backend in another process that reads and writes the rings itself: a switch, DPDK",
        queues=("queues",),
        queue_size=1024,
        interposed=True,
        peer="backend",
        ready="the link is up, and the backend has taken a frame: `wait_ready` sends one from the "
        "port's address to itself: a learning switch keeps it, what passes all on (testpmd's io "
        "mode) passes it on too, and an echoing backend gives it back",
        moves_frames=lambda _options: False,
        note="Given as `vhost-user,path=SOCKET[,server=on][,wait=SECONDS]`; virtnic makes the "
        "chardev.",
        tests=("tests/device/test_ovs.py::test_a_bridge_switches_two_ports",),
    ),
    NetdevType(
        "vhost-vdpa",
        "a vDPA device of the kernel's",
        queues=("queues",),
        descriptors={"vhostfd": "character device"},
        ready="the link is up",
        moves_frames=lambda _options: False,
        advice=(
            Advice(
                "DMA mapping failed|Cannot allocate memory",
                "pinned memory counts against RLIMIT_MEMLOCK: `ulimit -l unlimited`, or a "
                "smaller Memory",
            ),
        ),
        note="Queues have 256 entries unless more are asked for: some devices refuse more. What it "
        "filters is the device's affair.",
    ),
    NetdevType(
        "socket",
        "another QEMU or program, by TCP, UDP or multicast, or by a connected socket",
        descriptors={"fd": "socket"},
        ready="with `connect=` or `listen=`, somebody who is connected",
        note="A peer that goes is told of by nothing: the link stays up and frames vanish. One "
        "that is not there (`connect=`) is a warning when the port is opened. `stream` tells.",
        tests=("tests/device/test_netdev_descriptors.py::test_a_socket_of_ours",),
    ),
    NetdevType(
        "stream",
        "another QEMU, passt or any program, by a TCP or UNIX stream (7.2 and later)",
        descriptors={"addr.str": "stream socket"},
        peer="qmp",
        ready="somebody is connected",
        note="The link is down while nobody is connected. `wait=SECONDS` (virtnic's own) waits for "
        "the peer and fails without one. `reconnect=` (seconds) and `reconnect-ms=` become what "
        "this QEMU has: none before 8.0, seconds before 9.2. `addr.type=fd` is translated to "
        "`socket,fd=`, the same frames: QEMU itself takes no descriptor for it by QMP, and then "
        "nothing tells of the peer.",
        tests=("tests/device/test_netdev_stream.py::test_the_link_follows_the_peer",),
    ),
    NetdevType(
        "dgram",
        "another QEMU or program, by UDP, multicast or UNIX datagrams (7.2 and later)",
        descriptors={"local.str": "datagram socket"},
        note="As with any datagram, a peer that is not there is told of by nothing.",
        tests=("tests/device/test_netdev_descriptors.py::test_a_datagram_socket_of_ours",),
    ),
    NetdevType(
        "hubport",
        "a hub inside QEMU, and with it what else is plugged into that",
        clock=True,
        note="The other ports of a hub are given by `extra=`.",
        tests=("tests/device/test_netdevs.py::test_slirp_behind_a_hub_has_a_clock",),
    ),
    NetdevType(
        "l2tpv3",
        "a static L2TPv3 tunnel, to the kernel for example",
        note="Linux' default l2spec needs `counter=on`. A peer that is not there is told of by "
        "nothing.",
    ),
    NetdevType(
        "vde",
        "a VDE switch",
        note="A switch that goes is told of by nothing.",
    ),
    NetdevType(
        "af-xdp",
        "a device of the kernel's, by AF_XDP (8.2 and later; in no Debian QEMU)",
        queues=("queues", "sock-fds"),
        descriptors={"sock-fds": "socket"},
        peer="host",
    ),
    NetdevType("netmap", "a netmap port or VALE switch (in no Debian QEMU)"),
)

_BY_NAME = {row.name: row for row in NETDEVS}


def kind_of(name: str) -> NetdevType:
    """Return the row of a type; an empty one for a type that is not in the table."""
    return _BY_NAME.get(name) or NetdevType(name)


#: What QEMU says, on whichever netdev, and what to do about it.
_ANY = (
    Advice(
        "Could not open '?/dev/net/tun|could not open /dev/net/tun",
        "TAP devices need /dev/net/tun where QEMU runs, for QEMU's user: `modprobe tun`; in a "
        "container, `--device /dev/net/tun`",
    ),
    Advice(
        "Permission denied",
        "the user that QEMU runs as may not: see who owns what the netdev names",
    ),
)


#: What QEMU says when a device was started and does not run: it tells the driver nothing of it.
_NOT_STARTED = re.compile(r"unable to start vhost net|vhost_set_vring_num failed")


def not_started(kind: NetdevType, said: str) -> str | None:
    """Return an error for what QEMU said while a device was started; None where it runs."""
    lines = [line for line in said.splitlines() if line.strip()]
    if not any(_NOT_STARTED.search(line) for line in lines):
        return None
    quoted = " | ".join(lines[-4:])
    advice = advice_on(kind, said) or (
        "the kernel refused the rings or the memory: queues of 256 entries, split rings and "
        "`ulimit -l unlimited` are what most take"
    )
    return f"QEMU did not start the {kind.name} device (QEMU: {quoted}); {advice}"


def advice_on(kind: NetdevType, words: str) -> str:
    """Return what to do about what QEMU said; empty where nobody knows."""
    for advice in (*kind.advice, *_ANY):
        if re.search(advice.words, words):
            return advice.advice
    return ""


#: The kernel's words, which QEMU quotes, for what is not there, in use or not permitted.
_ERRNOS = (
    *(errno.ENOENT, errno.ENODEV, errno.ENXIO, errno.ENOTDIR, errno.EBUSY),
    *(errno.EPERM, errno.EACCES, errno.ECONNREFUSED, errno.EADDRINUSE, errno.EADDRNOTAVAIL),
    *(errno.ENETUNREACH, errno.EHOSTUNREACH, errno.ENETDOWN),
)
_UNAVAILABLE = re.compile(
    "|".join(map(re.escape, map(os.strerror, _ERRNOS)))
    + "|[Rr]esource busy|Could not set up host forwarding rule|bridge helper failed"
    "|is not compiled into this binary"
)


def is_unavailable(words: str) -> bool:
    """Whether QEMU refused a netdev for something that the machine lacks, not for its options."""
    return _UNAVAILABLE.search(words) is not None
