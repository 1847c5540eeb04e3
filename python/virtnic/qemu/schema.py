"""Argument types of QMP commands, from QEMU's introspection.

``query-qmp-schema`` lists every command and type (QEMU documentation, "QAPI: client JSON protocol
introspection"). This module converts strings to the required types.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

_SUFFIX = {"": 0, "b": 0, "k": 10, "m": 20, "g": 30, "t": 40, "p": 50, "e": 60}
_TRUE = ("on", "yes", "true", "y")
_FALSE = ("off", "no", "false", "n")


class Schema:
    """The schema of one QEMU binary."""

    def __init__(self, entities: Iterable[Mapping[str, Any]]) -> None:
        self._by_name = {entity["name"]: entity for entity in entities}

    def commands(self) -> set[str]:
        """Names of all commands."""
        return {n for n, entity in self._by_name.items() if entity["meta-type"] == "command"}

    def choices(self, command: str, tag: str = "type") -> list[str]:
        """Possible values of the tag of a command's arguments, such as netdev types."""
        arguments = self._by_name[self._by_name[command]["arg-type"]]
        for member in arguments["members"]:
            if member["name"] == tag:
                return list(self._by_name[member["type"]].get("values", ()))
        return []

    def arguments(self, command: str, given: Mapping[str, Any], *, what: str) -> dict[str, Any]:
        """Convert the strings in ``given`` to the types of the command.

        Raises ValueError with the key, the value and the allowed values.
        """
        return self._object(self._by_name[command]["arg-type"], given, what)

    def _members(self, name: str, given: Mapping[str, Any], what: str) -> dict[str, str]:
        """Return the member types of an object, including those of the selected variant."""
        entity = self._by_name[name]
        members = {member["name"]: member["type"] for member in entity["members"]}
        tag = entity.get("tag")
        if tag is None:
            return members
        chosen = given.get(tag)
        cases = {case["case"]: case["type"] for case in entity["variants"]}
        values = self._by_name[members[tag]].get("values", list(cases))
        if chosen not in values:
            raise ValueError(
                f"{what}: {tag}={chosen!r} is unknown to this QEMU; it has "
                + ", ".join(sorted(values))
            )
        if chosen in cases:
            members |= self._members(cases[chosen], given, what)
        return members

    def _object(self, name: str, given: object, what: str) -> dict[str, Any]:
        if not isinstance(given, Mapping):
            raise ValueError(f"{what}: {given!r} is not an object; write {what}.key=value")
        members = self._members(name, given, what)
        unknown = [key for key in given if key not in members]
        if unknown:
            raise ValueError(
                f"{what}: {unknown[0]!r} is unknown to this QEMU; it has "
                + ", ".join(sorted(key for key in members if key != "id"))
            )
        return {
            key: self._value(
                members[key], value, f"{what}: {key}" if what == "netdev" else f"{what}.{key}"
            )
            for key, value in given.items()
        }

    def _value(self, name: str, value: Any, what: str) -> Any:
        entity = self._by_name[name]
        kind = entity["meta-type"]
        if kind == "object":
            # QEMU's class String: an object around one string.
            if isinstance(value, str) and [m["name"] for m in entity["members"]] == ["str"]:
                return {"str": value}
            return self._object(name, value, what)
        if kind == "array":
            return [
                self._value(entity["element-type"], item, f"{what}[{index}]")
                for index, item in enumerate(_items(value))
            ]
        if kind == "enum":
            text = (
                {True: "on", False: "off"}.get(value, value) if isinstance(value, bool) else value
            )
            if text not in entity["values"]:
                raise ValueError(f"{what}={value!r} is not one of " + ", ".join(entity["values"]))
            return text
        if kind == "builtin":
            return convert(entity["json-type"], value, what)
        return value


def _items(value: Any) -> list[Any]:
    """Return a list from a list, a single value, or the keys ``0``, ``1``, …."""
    if isinstance(value, (list, tuple)):
        return list(value)
    if isinstance(value, Mapping) and value and all(str(key).isdigit() for key in value):
        return [value[key] for key in sorted(value, key=int)]
    return [value]


def convert(json_type: str, value: Any, what: str) -> Any:
    """Convert a value to a JSON type as QEMU's command line does. Raises ValueError."""
    if json_type == "boolean":
        if isinstance(value, bool):
            return value
        if value in _TRUE:
            return True
        if value in _FALSE:
            return False
        raise ValueError(f"{what}={value!r} is neither on nor off")
    if json_type == "int":
        return _integer(value, what)
    if json_type == "number":
        try:
            return float(value)
        except (TypeError, ValueError):
            raise ValueError(f"{what}={value!r} is not a number") from None
    if json_type == "string":
        if isinstance(value, bool):
            return "on" if value else "off"
        if isinstance(value, (str, int)):
            return str(value)
        raise ValueError(f"{what}={value!r} is not a string")
    return value


def _integer(value: Any, what: str) -> int:
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    if isinstance(value, str):
        try:
            return int(value, 0)
        except ValueError:
            match = re.fullmatch(r"(\d+)([bkmgtpe]?)", value.lower())
            if match is not None:
                return int(match[1]) << _SUFFIX[match[2]]
    raise ValueError(f"{what}={value!r} is not an integer")
