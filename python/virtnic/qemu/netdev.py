"""Conversion of netdevs from user input to QMP.

A netdev is given as on QEMU's command line (``tap,ifname=tap0``), as a JSON object, or as a dict.
QMP needs typed JSON; QEMU itself is asked for the types (:mod:`virtnic.qemu.schema`), so all of its
netdevs work and none is listed here.
"""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Mapping
from typing import Any

from virtnic.qemu import descriptors, netdevs, text
from virtnic.qemu.netdevs import is_on, wants_vhost
from virtnic.qemu.sockets import LONGEST_PATH
from virtnic.qemu.spec import Spec, VhostUserSocket

#: Accepted forms of a netdev.
Netdev = str | Mapping[str, Any]

#: Bytes of a network device's name (Linux: IFNAMSIZ, including the NUL).
_LONGEST_NAME = 15


def parse(netdev: Netdev) -> Spec:
    """Parse a netdev. Raises ValueError (syntax) or TypeError (neither string nor mapping)."""
    if isinstance(netdev, str):
        text.check(netdev, "the netdev")
        stripped = netdev.strip()
        options = _from_json(stripped) if stripped.startswith("{") else _from_text(stripped)
    elif isinstance(netdev, Mapping):
        options = dict(netdev)
        text.check(options, "the netdev")
    else:
        raise TypeError(
            f"a netdev must be a string as for QEMU's -netdev, or a dict, not {netdev!r}"
        )
    kind = options.pop("type", None)
    if not isinstance(kind, str) or not kind:
        raise ValueError(
            f"the netdev {netdev!r} has no type; write it first, as in 'user' or 'tap'"
        )
    if kind == "nic":
        raise ValueError(
            "a nic is not a netdev: virtnic creates the device; give what it connects to"
        )
    if "id" in options:
        raise ValueError(f"the netdev {netdev!r} has an id: omit it, virtnic chooses the ids")
    if kind == "vhost-user" and "chardev" not in options:
        return Spec(kind, options, _vhost_user_socket(netdev, options))
    wait = None
    if netdevs.kind_of(kind).peer == "qmp" and "wait" in options:
        wait = _seconds("wait", options.pop("wait"))
    if kind == "tap":
        _tap(options)
    elif kind == "user":
        _user(options)
    elif kind == "stream":
        kind = _stream(options)
    spec = Spec(kind, options, wait=wait)
    descriptors.check(spec)
    return spec


def _tap(options: dict[str, Any]) -> None:
    """Set what QEMU would guess otherwise. Raises ValueError."""
    if not options.keys() & {"fd", "fds", "helper", "br"}:
        # QEMU would run /etc/qemu-ifup, which its sandbox denies and which rarely exists.
        options.setdefault("script", "no")
        options.setdefault("downscript", "no")
    name = str(options.get("ifname", ""))
    if len(name.encode(errors="surrogateescape")) > _LONGEST_NAME:
        # QEMU would truncate it and open or create another device.
        raise ValueError(
            f"ifname={name!r} is too long: a network device's name has up to {_LONGEST_NAME} bytes"
        )
    if name in (".", "..") or re.search(r"[/:\s]", name):  # Linux: dev_valid_name()
        raise ValueError(f"ifname={name!r} is not a valid network device name")
    if wants_vhost(options):
        # Without it, if vhost is not available, QEMU continues without, or aborts (7.2).
        if "vhostforce" in options and not is_on(options["vhostforce"]):
            raise ValueError(
                "vhostforce=off lets QEMU silently continue without vhost, or abort; omit it, or "
                "vhost=on"
            )
        options["vhostforce"] = "on" if isinstance(options.get("vhost", "on"), str) else True


def _user(options: dict[str, Any]) -> None:
    """Translate ``ipv6-net`` as QEMU's command line does (net/net.c): QMP does not have it."""
    if "ipv6-net" not in options:
        return
    net = str(options.pop("ipv6-net"))
    prefix, slash, length = net.partition("/")
    if not prefix or (slash and not (length.isascii() and length.isdigit())):
        raise ValueError(f"ipv6-net={net!r} is not of the form PREFIX/LENGTH, such as fec0::/64")
    options["ipv6-prefix"] = prefix
    options["ipv6-prefixlen"] = length if slash else "64"


def _stream(options: dict[str, Any]) -> str:
    """Return the type to use: of the two only ``socket`` takes a descriptor by QMP."""
    address = options.get("addr")
    if not isinstance(address, Mapping) or address.get("type") != "fd":
        return "stream"
    server = boolean(options.get("server", False), "server")
    more = [key for key in options if key not in ("addr", "server")]
    if server or more:
        raise ValueError(
            "a stream by descriptor is already connected: "
            f"{'server=on' if server else more[0]} cannot be used with it"
        )
    number = address.get("str")
    if number is None:
        raise ValueError("addr.type=fd needs the descriptor, addr.str=NUMBER")
    descriptors.check(Spec("stream", {"addr": dict(address)}))
    options.clear()
    options["fd"] = number
    return "socket"


def with_reconnect(options: Mapping[str, Any], in_seconds: bool) -> dict[str, Any]:
    """Return a stream's options with ``reconnect`` in the unit that the QEMU has."""
    options = dict(options)
    seconds, ms = options.pop("reconnect", None), options.pop("reconnect-ms", None)
    if seconds is not None and ms is not None:
        raise ValueError(
            "reconnect (seconds) and reconnect-ms are the same option; give one of them"
        )
    if seconds is None and ms is None:
        return options
    wanted = _seconds("reconnect", seconds) if ms is None else _seconds("reconnect-ms", ms) / 1e3
    if in_seconds:
        options["reconnect"] = math.ceil(wanted)
    else:
        options["reconnect-ms"] = round(wanted * 1e3)
    return options


def _seconds(key: str, value: object) -> float:
    """Parse a number of seconds. Raises ValueError."""
    try:
        seconds = float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        seconds = -1.0
    if isinstance(value, bool) or not 0.0 <= seconds < 1e9:
        raise ValueError(f"{key}={value!r} is not a number of seconds")
    return seconds


def _vhost_user_socket(netdev: Netdev, options: dict[str, Any]) -> VhostUserSocket:
    """Remove virtnic's own keys of ``vhost-user`` from the options."""
    path = options.pop("path", None)
    if not isinstance(path, str) or not path:
        raise ValueError(
            f"the netdev {netdev!r} needs the backend's socket: "
            "vhost-user,path=SOCKET[,server=on][,wait=SECONDS]"
        )
    if (length := len(os.fsencode(path))) > LONGEST_PATH:
        directory, name = os.path.split(path)
        raise ValueError(
            f"the socket {path} has a path of {length} bytes, {LONGEST_PATH} fit (unix(7)); mount "
            f"its directory at a shorter one, or make a link: `ln -s {directory} /run/vhost`, and "
            f"path=/run/vhost/{name}"
        )
    server = boolean(options.pop("server", False), "server")
    seconds = _seconds("wait", options.pop("wait", 10.0 if server else 0.0))
    return VhostUserSocket(path, server, seconds)


def boolean(value: object, key: str) -> bool:
    """Parse on or off, as QEMU spells it. Raises ValueError."""
    if isinstance(value, bool):
        return value
    if value in ("on", "yes", "true", "y"):
        return True
    if value in ("off", "no", "false", "n"):
        return False
    raise ValueError(f"{key}={value!r} is neither on nor off")


def _from_json(netdev: str) -> dict[str, Any]:
    try:
        value = json.loads(netdev)
    except ValueError as error:
        raise ValueError(f"the netdev {netdev!r} is not valid JSON: {error}") from None
    text.check(value, "the netdev")  # escaped characters
    return dict(value)


def _from_text(netdev: str) -> dict[str, Any]:
    """Split ``type,key=value,…`` as QEMU does: a double comma is a comma."""
    if not netdev:
        raise ValueError("the netdev is empty; give one such as 'user' or 'tap,ifname=tap0'")
    words = [word.replace("\0", ",") for word in netdev.replace(",,", "\0").split(",")]
    options: dict[str, Any] = {}
    if "=" not in words[0]:
        options["type"] = words.pop(0)
    for word in words:
        key, equals, value = word.partition("=")
        if not key:
            raise ValueError(
                f"the netdev {netdev!r} has {word!r} where key=value should be; "
                "a comma in a value is written twice"
            )
        # As in QEMU, a bare word is a flag: `restrict` is restrict=on.
        _put(options, key, value if equals else "on", netdev)
    return options


def _put(options: dict[str, Any], key: str, value: str, netdev: str) -> None:
    """Store one value: dots make objects and lists, a repeated key makes a list."""
    *parents, last = key.split(".")
    where = options
    for parent in parents:
        where = where.setdefault(parent, {})
        if not isinstance(where, dict):
            raise ValueError(f"in the netdev {netdev!r}, {parent!r} is both a value and an object")
    if last not in where:
        where[last] = value
    elif isinstance(where[last], list):
        where[last].append(value)
    elif isinstance(where[last], str):
        where[last] = [where[last], value]
    else:
        raise ValueError(f"in the netdev {netdev!r}, {last!r} is both a value and an object")
