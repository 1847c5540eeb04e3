"""The public callables that take options by keyword."""

from __future__ import annotations

import importlib
import inspect
from typing import TYPE_CHECKING, Any

import virtnic
from virtnic import measure
from virtnic.net.stack import StackOptions
from virtnic.nic.opening import OpenOptions
from virtnic.nic.options import QemuOptions
from virtnic.nic.port import PortOptions

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["CALLED", "PASSED_ON", "options_of"]

#: The public modules; those of tools/website/pages.py, and the package itself.
MODULES = (
    *("virtnic", "virtnic.aio", "virtnic.aio.net", "virtnic.capture", "virtnic.check"),
    *("virtnic.loops", "virtnic.measure", "virtnic.net", "virtnic.testing", "virtnic.vhost_user"),
    *("virtnic.integrations.httpcore", "virtnic.integrations.httpx"),
    *("virtnic.integrations.aiohttp", "virtnic.integrations.scapy"),
)
#: Classes that users make from their fields. All others hold answers.
MADE = {virtnic.Recovery, measure.Increment, measure.Random, measure.Stream}
#: Those that pass further options on, to something else that checks them.
PASSED_ON = {
    "virtnic.Qemu.execute": "QMP",
    "virtnic.integrations.aiohttp.StackConnector": "aiohttp",
    "virtnic.integrations.httpx.AsyncStackTransport": "httpx",
    "virtnic.integrations.httpx.StackTransport": "httpx",
}
#: Options that are passed on as they are, by their annotation.
UNPACKED = {
    f"Unpack[{options.__name__}]": options.__optional_keys__
    for options in (OpenOptions, PortOptions, QemuOptions, StackOptions)
}
#: Made by this package only.
OURS = {"virtnic.Port", "virtnic.PacketPort"}


def functions_of(value: Any) -> Iterator[tuple[str, Any]]:
    """Yield the constructor and the public methods of a class."""
    for name in dir(value):
        member = getattr(value, name)
        if name in ("__init__", "__new__"):
            yield "", member
        elif not name.startswith("_") and inspect.isroutine(member):
            yield f".{name}", member


def public() -> Iterator[tuple[str, Any, Any]]:
    """Yield all public functions and constructors written in Python: path, what to call, function.

    The core's own are not among them: pyo3 says which option is unknown, and no more. The one with
    several options is `Offload`, of which there may be one for each frame.
    """
    for module in MODULES:
        space = importlib.import_module(module)
        for name in space.__all__:
            value = getattr(space, name)
            inside = functions_of(value) if inspect.isclass(value) else [("", value)]
            for suffix, member in inside:
                function = getattr(member, "__func__", member)
                if not inspect.isfunction(function) or not is_ours(function):
                    continue
                called = member if suffix or not inspect.isclass(value) else value
                yield f"{module}.{name}{suffix}", called, function


def is_ours(function: Any) -> bool:
    """Whether a function is not inherited from a class of another project.

    The `__init__` of a dataclass has no module of its own.
    """
    name: str = function.__module__ or function.__globals__["__name__"]
    return name.startswith("virtnic")


def takes_options(function: Any) -> bool:
    """Whether it takes options by keyword only."""
    kinds = {parameter.kind for parameter in inspect.signature(function).parameters.values()}
    return not kinds.isdisjoint((inspect.Parameter.KEYWORD_ONLY, inspect.Parameter.VAR_KEYWORD))


FUNCTIONS: dict[str, list[Any]] = {}
CALLED = {}
for path, called, function in public():
    if path not in OURS and (called in MADE or takes_options(function)):
        FUNCTIONS.setdefault(path, []).append(function)
        CALLED[path] = called


def options_of(path: str) -> set[str]:
    """Return the names of the options that something takes."""
    names: set[str] = set()
    is_made = CALLED[path] in MADE
    for function in FUNCTIONS[path]:
        for name, parameter in inspect.signature(function).parameters.items():
            if parameter.kind is inspect.Parameter.VAR_KEYWORD:
                names |= UNPACKED.get(parameter.annotation, frozenset())
            elif parameter.kind is inspect.Parameter.KEYWORD_ONLY or (is_made and name != "self"):
                names.add(name)
    return names
