"""Every public name has a docstring at run time, equal to that of the stub."""

import ast
import dataclasses
import importlib
import inspect
import re
from collections.abc import Iterator

import pytest

import virtnic
from stub_docstrings import at_run_time, described
from virtnic import aio, testing

STUBBED = [(name, ast.get_docstring(node)) for name, node in described()]


@pytest.mark.parametrize(("name", "text"), STUBBED, ids=[name for name, _ in STUBBED])
def test_the_stub_says_what_help_says(name: str, text: str) -> None:
    """`make docs` writes the stub's from those of the sources."""
    assert at_run_time(name) == text


def public(owner: object, prefix: str) -> Iterator[tuple[str, object]]:
    """Yield the public names of a module or class, and those of its classes."""
    names = getattr(owner, "__all__", None) or [name for name in dir(owner) if name[0] != "_"]
    for name in names:
        look = inspect.getattr_static if inspect.isclass(owner) else getattr  # a module may be lazy
        thing = look(owner, name)
        yield f"{prefix}.{name}", thing
        if inspect.isclass(thing) and not issubclass(thing, BaseException):
            yield from public(thing, f"{prefix}.{name}")


@pytest.mark.parametrize("module", [virtnic, aio, testing], ids=lambda module: module.__name__)
def test_every_public_name_has_a_docstring(module: object) -> None:
    described = (property, staticmethod, classmethod)
    missing = [
        name
        for name, thing in public(module, str(getattr(module, "__name__", "")))
        if (callable(thing) or isinstance(thing, described) or inspect.isgetsetdescriptor(thing))
        and not inspect.getdoc(thing)
    ]
    assert not missing


#: The modules whose answers are frozen classes.
ANSWERS = (
    "nic.events",
    "nic.policy",
    "nic.rss",
    "loops",
    "capture",
    "check",
    "vhost_user",
    "doctor",
)


def test_help_of_an_answer_names_its_fields() -> None:
    """Fields have no docstring of their own: that of the class describes them."""
    found = {}
    for name in ANSWERS:
        module = importlib.import_module(f"virtnic.{name}")
        for public_name in getattr(module, "__all__", None) or vars(module):
            kind = getattr(module, public_name)
            if not inspect.isclass(kind) or not kind.__module__.startswith(module.__name__):
                continue
            if dataclasses.is_dataclass(kind):
                own = [field for field in kind.__annotations__ if field[0] != "_"]
                text = kind.__doc__ or ""
                found[kind.__name__] = [
                    field for field in own if not re.search(rf"\b{field}\b", text)
                ]
    assert len(found) > 8
    assert {kind: missing for kind, missing in found.items() if missing} == {}
