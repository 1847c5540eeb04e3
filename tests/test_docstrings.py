"""Every public name has a docstring when the program runs, and the stub says the same."""

import ast
import inspect
from collections.abc import Iterator
from pathlib import Path

import pytest

import virtnic
from virtnic import _native, aio, testing

STUB = Path(__file__).resolve().parents[1] / "python/virtnic/_native.pyi"


def stubbed() -> Iterator[tuple[str, str]]:
    """Yield each dotted name of the stub that has a docstring, and that."""
    for node in ast.parse(STUB.read_text()).body:
        if not isinstance(node, ast.ClassDef | ast.FunctionDef):
            continue
        if text := ast.get_docstring(node):
            yield node.name, text
        for member in node.body:
            if not isinstance(member, ast.FunctionDef) or member.name == "__new__":
                continue  # a constructor is described by its class
            if text := ast.get_docstring(member):
                yield f"{node.name}.{member.name}", text


STUBBED = list(stubbed())


def found(name: str) -> object:
    """Return what has a dotted name in the compiled module."""
    thing: object = _native
    for part in name.split("."):
        thing = inspect.getattr_static(thing, part)
    return thing


@pytest.mark.parametrize(
    ("name", "text"), list(stubbed()), ids=lambda value: value.split("\n")[0][:40]
)
def test_the_stub_says_what_help_says(name: str, text: str) -> None:
    assert inspect.getdoc(found(name)) == text


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
