"""Netdevs: from what the user writes to what QMP wants.

Users write a netdev as on QEMU's command line (``tap,ifname=tap0``), as a JSON object,
or as a dict. QMP wants typed JSON. Which key has which type is asked of QEMU itself
(:mod:`virtnic.qemu.schema`), so that every netdev it has works and none is listed here.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from virtnic.qemu import text

#: What may be given as a netdev.
Netdev = str | Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class VhostUserSocket:
    """The socket of the shorthand ``vhost-user,path=…``, for which we make the chardev."""

    path: str
    #: True: we listen and the backend connects.
    server: bool = False
    #: Seconds to wait for the backend; 0 fails at once.
    wait: float = 0.0


@dataclass(frozen=True, slots=True)
class Spec:
    """A netdev as the user gave it: strings are not typed yet."""

    type: str
    options: dict[str, Any] = field(default_factory=dict)
    socket: VhostUserSocket | None = None

    @property
    def needs_clock(self) -> bool:
        """Whether the backend's timers use QEMU's virtual clock (slirp)."""
        return self.type == "user"

    @property
    def needs_spawn(self) -> str | None:
        """Which helper or script QEMU would start for it; None when none."""
        options = self.options
        if self.type == "bridge":
            return "the bridge helper"
        if self.type == "passt":
            return "passt"
        if self.type == "tap":
            if "helper" in options or "br" in options:
                return "the bridge helper"
            for key in ("script", "downscript"):
                if options.get(key, "no") not in ("", "no"):
                    return f"{key}={options[key]}"
        if self.type == "user":
            if "smb" in options:
                return "smbd"
            if "-cmd:" in str(options.get("guestfwd", "")):
                return "the command of guestfwd"
        return None

    def arguments(self, netdev_id: str, chardev: str | None = None) -> dict[str, Any]:
        """Build the arguments of ``netdev_add``, not typed."""
        own = {"id": netdev_id} if chardev is None else {"id": netdev_id, "chardev": chardev}
        return {"type": self.type, **self.options, **own}


def parse(netdev: Netdev) -> Spec:
    """Read a netdev. Raises ValueError (syntax) or TypeError (neither string nor mapping)."""
    if isinstance(netdev, str):
        text.check(netdev, "the netdev")
        stripped = netdev.strip()
        options = _from_json(stripped) if stripped.startswith("{") else _from_text(stripped)
    elif isinstance(netdev, Mapping):
        options = dict(netdev)
        text.check(options, "the netdev")
    else:
        raise TypeError(
            f"a netdev is a string as QEMU's -netdev takes it, or a dict, not {netdev!r}"
        )
    kind = options.pop("type", None)
    if not isinstance(kind, str) or not kind:
        raise ValueError(
            f"the netdev {netdev!r} has no type; write it first, as in 'user' or 'tap'"
        )
    if kind == "nic":
        raise ValueError(
            "a nic is no netdev: the device is made by virtnic; give what it connects to"
        )
    if "id" in options:
        raise ValueError(
            f"the netdev {netdev!r} has an id: leave it out, virtnic names its own netdevs"
        )
    if kind == "vhost-user" and "chardev" not in options:
        return Spec(kind, options, _vhost_user_socket(netdev, options))
    if kind == "tap" and not options.keys() & {"fd", "fds", "helper", "br"}:
        # QEMU would run /etc/qemu-ifup, which its sandbox denies and hardly anybody has.
        options.setdefault("script", "no")
        options.setdefault("downscript", "no")
    return Spec(kind, options)


def _vhost_user_socket(netdev: Netdev, options: dict[str, Any]) -> VhostUserSocket:
    """Take our own keys of ``vhost-user`` out of the options."""
    path = options.pop("path", None)
    if not isinstance(path, str) or not path:
        raise ValueError(
            f"the netdev {netdev!r} needs the backend's socket: "
            "vhost-user,path=SOCKET[,server=on][,wait=SECONDS]"
        )
    server = boolean(options.pop("server", False), "server")
    wait = options.pop("wait", 10.0 if server else 0.0)
    try:
        seconds = float(wait)
    except (TypeError, ValueError):
        seconds = -1.0
    if isinstance(wait, bool) or not 0.0 <= seconds < 1e6:
        raise ValueError(f"wait={wait!r} is no number of seconds")
    return VhostUserSocket(path, server, seconds)


def boolean(value: object, key: str) -> bool:
    """Read on or off, as QEMU spells it. Raises ValueError."""
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
        raise ValueError(f"the netdev {netdev!r} is no valid JSON: {error}") from None
    text.check(value, "the netdev")  # what was escaped in it
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
            raise ValueError(f"in the netdev {netdev!r}, {parent!r} is a value and an object")
    if last not in where:
        where[last] = value
    elif isinstance(where[last], list):
        where[last].append(value)
    elif isinstance(where[last], str):
        where[last] = [where[last], value]
    else:
        raise ValueError(f"in the netdev {netdev!r}, {last!r} is a value and an object")
