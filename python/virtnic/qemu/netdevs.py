"""QEMU's netdevs: one table of what virtnic has to know about each.

A netdev without a row works too: it then has one queue pair, no descriptors and no advice.
``docs/netdevs.md`` is made from this table (``make docs``). ``tests/device/test_netdevs.py``
compares the two, the table with QEMU, and checks that the tests it names exist.
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

#: Required kind of a descriptor.
DescriptorKind = Literal["socket", "stream socket", "datagram socket", "TAP", "character device"]

#: How the peer's presence becomes known. ``qmp``: QEMU reports it by QMP; the link and the events
#: ``peer-connected`` and ``peer-disconnected`` follow. ``backend``: events ``backend-lost`` and
#: ``backend-back``. ``host``: the host's network device is checked when the port is opened.
#: ``always``: the peer is part of QEMU. ``none``: QEMU reports nothing, and frames without a peer
#: are lost.
Peer = Literal["qmp", "backend", "host", "always", "none"]


@dataclass(frozen=True, slots=True)
class Helper:
    """A program that QEMU would start for a netdev."""

    name: str
    #: The argument ``sandbox`` that allows it.
    sandbox: Literal["spawn", False] = "spawn"
    #: An alternative to opening the sandbox.
    instead: str = ""

    def refusal(self, netdev: str, to: str = "") -> str:
        """Return the error for a closed sandbox; ``to``: who else to pass the argument to."""
        return (
            f"the netdev {netdev!r} makes QEMU run {self.name}, which its sandbox denies; "
            f"pass sandbox={self.sandbox!r} if that is wanted{to}"
            + (f", or {self.instead}" if self.instead else "")
        )


@dataclass(frozen=True, slots=True)
class Advice:
    """What to do if QEMU's message matches a pattern."""

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
    about: str = "a netdev unknown to virtnic"
    #: Options that set the number of queue pairs; without any there is one.
    queues: tuple[str, ...] = ()
    #: Default number of queue entries.
    queue_size: int = 256
    #: Options that are descriptors, with the required kind. Those ending in s are lists; a dot
    #: leads into an object whose ``type`` is ``fd``.
    descriptors: Mapping[str, DescriptorKind] = field(default_factory=dict)
    #: The program that QEMU would start with these options.
    helper: Callable[[Options], Helper | None] = _no_helper
    #: For the page: what is started, and when.
    helper_when: str = ""
    #: Whether it may depend on timers of QEMU's virtual clock.
    clock: bool = False
    #: Whether a backend given by path is reached through our interposer.
    interposed: bool = False
    peer: Peer = "none"
    #: The first QEMU that has it, and where none of Debian's does; empty if 5.2 has it.
    since: str = ""
    #: Which frames are lost though nothing fails, and why.
    loses: str = "nothing"
    #: Events that come when the peer is lost, and what happens to the port.
    tells: frozenset[str] = frozenset()
    gone: str = "nothing is told, the link stays up: frames are lost"
    #: What QEMU's user, or the machine, must have.
    privileges: str = "none"
    #: What :meth:`virtnic.Port.wait_ready` waits for.
    ready: str = "nothing: QEMU cannot tell"
    #: Whether QEMU itself moves the frames, so that its filters take effect.
    moves_frames: Callable[[Options], bool] = _always
    #: Advice for common errors.
    advice: tuple[Advice, ...] = ()
    #: Further notes for users.
    note: str = ""
    #: Tests with a real peer.
    tests: tuple[str, ...] = ()


def _given(options: Options, *names: str) -> bool:
    return not options.keys().isdisjoint(names)


def is_on(value: object) -> bool:
    """Whether an option's value, typed or text, is on."""
    return value is True or value in ("on", "yes", "true", "y")


def wants_vhost(options: Options) -> bool:
    """Whether a TAP's frames bypass QEMU, in the kernel."""
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
        "/etc/qemu/bridge.conf`, owned by root with mode 0644",
    ),
    Advice(
        "failed to create tun device|Operation not permitted|failed to launch|bridge helper failed",
        "the bridge helper creates a TAP device, which needs root or CAP_NET_ADMIN (some "
        "distributions install it setuid root), /dev/net/tun, and a bridge that exists",
    ),
)
_VHOST_ADVICE = (
    Advice(
        "vhost_set_owner",
        "what was opened, or passed as vhostfd=, is not the kernel's vhost-net, or is in use: open "
        "/dev/vhost-net (`modprobe vhost_net`) once for each queue pair, by a process that may use "
        "it; or omit vhost=on and vhostfd=: QEMU then moves the frames",
    ),
    Advice(
        "vhost char device|/dev/vhost-net|vhost-net requested",
        "vhost=on needs the kernel's vhost-net where QEMU runs: `modprobe vhost_net`, and "
        "/dev/vhost-net readable and writable; or omit vhost=on: QEMU then moves the frames",
    ),
)

#: By name, as listed by ``-netdev help`` of some QEMU.
NETDEVS: tuple[NetdevType, ...] = (
    NetdevType(
        "user",
        "QEMU's user-mode network (slirp): DHCP, DNS, NAT to the host's networks",
        helper=_user_helper,
        helper_when="`smb=`, `guestfwd=…-cmd:…`",
        clock=True,
        peer="always",
        ready="nothing: it is always ready",
        advice=(
            Advice(
                "Could not set up host forwarding rule",
                "the host's port is in use, or below 1024 and not permitted",
            ),
        ),
        note="`ipv6-net=PREFIX/LENGTH` is translated to `ipv6-prefix=` and `ipv6-prefixlen=`, as "
        "QEMU's command line does.",
        tests=("tests/device/test_port_user.py::test_chosen_mac_and_queue_size",),
        loses="UDP datagrams that find no room in a socket of the host",
        gone="it is part of QEMU; a refused or lost connection is TCP's or ICMP's affair",
    ),
    NetdevType(
        "tap",
        "a TAP device of the host",
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
        ready="the device is up, and the kernel has noticed that it is open (up to a second)",
        moves_frames=lambda options: not wants_vhost(options),
        advice=(*_VHOST_ADVICE, *_BRIDGE_ADVICE),
        note="`script=` and `downscript=` default to `no`. With `vhost=on` (virtnic adds "
        "`vhostforce=on`, so that QEMU neither silently continues without vhost nor aborts) the "
        "kernel moves the frames: there are no packed rings, HASH_REPORT or RSC_EXT, filters are "
        "accepted without effect (with a warning), and a broken receive ring is not reported. "
        "`frontend='direct'` does so without QEMU.",
        tests=(
            "tests/device/test_port_tap.py::test_the_kernel_pings_our_stack",
            "tests/vm/test_vhost_net.py::test_numbered_frames",
            "tests/vm/test_direct_vhost_net.py::test_numbered_frames",
        ),
        gone="nothing is told, the link stays up: frames are lost. If the device was deleted, QEMU "
        "10.0 aborts when the port is closed",
        loses="frames to the port when its ring is full: the TAP counts them, `tx_dropped`",
        privileges="CAP_NET_ADMIN for `ifname=`, or a TAP of QEMU's user; none by descriptor",
    ),
    NetdevType(
        "bridge",
        "a bridge of the host, through a TAP device that a helper creates",
        helper=lambda _options: Helper("the bridge helper"),
        helper_when="always",
        peer="host",
        ready="the device is up, and the kernel has noticed that it is open (up to a second)",
        advice=_BRIDGE_ADVICE,
        tests=("tests/failure/test_netdev_refusals.py::test_a_bridge_without_its_rights",),
        loses="as `tap`",
        privileges="root for the helper, and a line in `/etc/qemu/bridge.conf`",
    ),
    NetdevType(
        "passt",
        "the host's network through passt, which QEMU starts",
        helper=lambda _options: Helper(
            "passt",
            False,
            "start passt yourself and connect to it: "
            "stream,server=off,addr.type=unix,addr.path=SOCKET, or, where passt has --vhost-user, "
            "vhost-user,path=SOCKET",
        ),
        helper_when="always; `sandbox='spawn'` is not enough: QEMU's system call filter kills "
        "passt (signal 31)",
        peer="none",
        tests=("tests/failure/test_netdev_refusals.py::test_passt_needs_no_sandbox",),
        since="10.1",
        loses="as `user`",
        gone="nothing is told, the link stays up: frames are lost",
        privileges="none; passt, if started by root, becomes `nobody`, who may not write QEMU's "
        "file for its process id: `param.0=--runas,param.1=0`",
        note="QEMU 11.1 dies (SIGSEGV) when the netdev is deleted, and so when the port is closed: "
        "use a QEMU of its own, as `virtnic.open` does.",
    ),
    NetdevType(
        "vhost-user",
        "a backend in another process that polls the rings itself: a switch, DPDK",
        queues=("queues",),
        queue_size=1024,
        interposed=True,
        peer="backend",
        ready="the link is up, and the backend has taken a frame: `wait_ready` sends one from the "
        "port's address to itself, which a learning switch keeps, a forwarder of everything "
        "(testpmd's io mode) forwards, and an echoing backend returns",
        moves_frames=lambda _options: False,
        note="Given as `vhost-user,path=SOCKET[,server=on][,wait=SECONDS]`; virtnic creates the "
        "chardev.",
        tests=("tests/device/test_ovs.py::test_a_bridge_switches_two_ports",),
        tells=frozenset({"link-down", "backend-lost"}),
        gone="link down, events `backend-lost` and `link-down`; the next backend continues",
        loses="nothing, unless the backend has no room: then it counts them",
        privileges="write permission for the socket",
    ),
    NetdevType(
        "vhost-vdpa",
        "a vDPA device of the kernel",
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
        note="Queues have 256 entries by default: some devices refuse more. Filtering is up to the "
        "device.",
        privileges="/dev/vhost-vdpa-N, and locked memory (`ulimit -l`)",
        loses="not tried here",
        gone="not tried here",
    ),
    NetdevType(
        "socket",
        "another QEMU or program, by TCP, UDP or multicast, or by a connected socket",
        descriptors={"fd": "socket"},
        ready="with `connect=` or `listen=`, a connection",
        note="A lost peer is not reported: the link stays up and frames are lost. A missing one "
        "(`connect=`) is a warning when the port is opened. `stream` reports both.",
        tests=("tests/device/test_netdev_descriptors.py::test_a_socket_of_ours",),
        loses="with `udp=` and `mcast=`, what finds no room in a socket; multicast brings one's "
        "own frames back",
    ),
    NetdevType(
        "stream",
        "another QEMU, passt or any program, by a TCP or UNIX stream",
        descriptors={"addr.str": "stream socket"},
        peer="qmp",
        ready="a connection",
        note="The link is down without a connection. `wait=SECONDS` (virtnic's own) waits for the "
        "peer and fails without one. `reconnect=` (seconds) and `reconnect-ms=` are translated to "
        "what the QEMU has: none before 8.0, seconds before 9.2. `addr.type=fd` is translated to "
        "`socket,fd=`, with the same frames: QEMU itself takes no descriptor for it by QMP, and "
        "then a lost peer is not reported.",
        tests=("tests/device/test_netdev_stream.py::test_the_link_follows_the_peer",),
        since="7.2",
        tells=frozenset({"link-down", "peer-disconnected"}),
        gone="link down, events `peer-disconnected` and `link-down`",
    ),
    NetdevType(
        "dgram",
        "another QEMU or program, by UDP, multicast or UNIX datagrams",
        descriptors={"local.str": "datagram socket"},
        note="As with any datagrams, a missing peer is not reported.",
        tests=("tests/device/test_netdev_descriptors.py::test_a_datagram_socket_of_ours",),
        since="7.2",
        loses="over UDP what finds no room in a socket; nothing over UNIX sockets",
    ),
    NetdevType(
        "hubport",
        "a hub inside QEMU, and everything else plugged into it",
        clock=True,
        note="Give the hub's other ports by `extra=`.",
        tests=("tests/device/test_netdevs.py::test_slirp_behind_a_hub_has_a_clock",),
        loses="as the others on the hub; before 11.1 frames may change their order",
    ),
    NetdevType(
        "l2tpv3",
        "a static L2TPv3 tunnel, for example to the kernel",
        note="Linux' default l2spec needs `counter=on`. A peer that is not there is told of by "
        "nothing.",
        loses="what finds no room in a socket",
        privileges="CAP_NET_RAW without `udp=on`",
    ),
    NetdevType(
        "vde",
        "a VDE switch",
        note="A lost switch is not reported.",
        loses="what finds no room in a socket of the switch",
        privileges="write permission for the switch's directory",
    ),
    NetdevType(
        "af-xdp",
        "a network device of the host, through AF_XDP (in no Debian QEMU)",
        queues=("queues", "sock-fds"),
        descriptors={"sock-fds": "socket"},
        peer="host",
        since="8.2",
        privileges="CAP_NET_ADMIN and others, fewer with `sock-fds=`",
        loses="not tried here",
        gone="not tried here",
    ),
    NetdevType(
        "netmap",
        "a netmap port or VALE switch (in no Debian QEMU)",
        loses="not tried here",
        gone="not tried here",
        privileges="/dev/netmap: a kernel module",
    ),
)

_BY_NAME = {row.name: row for row in NETDEVS}


def kind_of(name: str) -> NetdevType:
    """Return the row of a type; an empty row if it has none."""
    return _BY_NAME.get(name) or NetdevType(name)


#: Messages of QEMU for any netdev, and what to do.
_ANY = (
    Advice(
        "Could not open '?/dev/net/tun|could not open /dev/net/tun",
        "TAP devices need /dev/net/tun where QEMU runs, for QEMU's user: `modprobe tun`; in a "
        "container, `--device /dev/net/tun`",
    ),
    Advice(
        "Permission denied",
        "QEMU's user has no permission: check the owner of what the netdev names",
    ),
)


#: QEMU's messages for a started device that does not run, of which it does not tell the driver.
_NOT_STARTED = re.compile(r"unable to start vhost net|vhost_set_vring_num failed")


def not_started(kind: NetdevType, said: str) -> str | None:
    """Return an error for QEMU's messages while a device was started; None if it runs."""
    lines = [line for line in said.splitlines() if line.strip()]
    if not any(_NOT_STARTED.search(line) for line in lines):
        return None
    quoted = " | ".join(lines[-4:])
    advice = advice_on(kind, said) or (
        "the kernel refused the rings or the memory: queues of 256 entries, split rings and "
        "`ulimit -l unlimited` usually work"
    )
    return f"QEMU did not start the {kind.name} device (QEMU: {quoted}); {advice}"


def advice_on(kind: NetdevType, words: str) -> str:
    """Return advice for QEMU's message; empty if there is none."""
    for advice in (*kind.advice, *_ANY):
        if re.search(advice.words, words):
            return advice.advice
    return ""


#: The kernel's messages, quoted by QEMU, for something missing, in use or not permitted.
_ERRNOS = (
    *(errno.ENOENT, errno.ENODEV, errno.ENXIO, errno.ENOTDIR, errno.EISDIR, errno.EBUSY),
    *(errno.EPERM, errno.EACCES, errno.ECONNREFUSED, errno.EADDRINUSE, errno.EADDRNOTAVAIL),
    *(errno.ENETUNREACH, errno.EHOSTUNREACH, errno.ENETDOWN),
)
_UNAVAILABLE = re.compile(
    "|".join(map(re.escape, map(os.strerror, _ERRNOS)))
    + "|[Rr]esource busy|Could not set up host forwarding rule|bridge helper failed"
    "|is not compiled into this binary"
)


def is_unavailable(words: str) -> bool:
    """Whether QEMU refused a netdev for something missing on the machine, not for its options."""
    return _UNAVAILABLE.search(words) is not None
