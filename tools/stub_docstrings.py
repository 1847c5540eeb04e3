"""Write the docstrings of the compiled module, which are those of the Rust sources, into its stub.

``make docs`` runs it; ``tests/unit/test_docstrings.py`` fails while the two differ.
"""

import ast
import inspect
from collections.abc import Iterator
from pathlib import Path

from virtnic import _native

STUB = Path(__file__).resolve().parents[1] / "python/virtnic/_native.pyi"
Described = ast.ClassDef | ast.FunctionDef


def described() -> Iterator[tuple[str, Described]]:
    """Yield what the stub has a docstring for, by its dotted name, in its order.

    A constructor has none at run time: it is described by its class.
    """
    for node in ast.parse(STUB.read_text()).body:
        if not isinstance(node, Described):
            continue
        if ast.get_docstring(node):
            yield node.name, node
        for member in node.body:
            named = isinstance(member, ast.FunctionDef) and member.name != "__new__"
            if named and isinstance(member, ast.FunctionDef) and ast.get_docstring(member):
                yield f"{node.name}.{member.name}", member


def at_run_time(name: str) -> str | None:
    """Return the docstring that a dotted name of the compiled module has."""
    thing: object = _native
    for part in name.split("."):
        thing = inspect.getattr_static(thing, part)
    # A static method's own docstring is that of its kind.
    return inspect.getdoc(thing.__func__ if isinstance(thing, staticmethod) else thing)


def write() -> None:
    """Replace each docstring of the stub that is another at run time."""
    lines = STUB.read_text().splitlines()
    for name, node in reversed(list(described())):
        text, said = at_run_time(name), node.body[0]
        if text is None or text == ast.get_docstring(node) or said.end_lineno is None:
            continue
        indent = " " * said.col_offset
        first, *more = text.splitlines()
        block = [f'{indent}"""{first}', *(f"{indent}{line}".rstrip() for line in more)]
        block[-1] += '"""' if not more else ""
        block += [f'{indent}"""'] if more else []
        lines[said.lineno - 1 : said.end_lineno] = block
    STUB.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    write()
