"""CLI errors name options where the library's name arguments."""

import ast
import inspect
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import virtnic
from virtnic.cli import main
from virtnic.cli.parser import build
from virtnic.cli.wording import of_options
from virtnic.nic.options import QemuOptions

TOP = Path(__file__).resolve().parents[2]

#: The arguments that messages may name: those of public functions.
ARGUMENTS = {
    name
    for call in (virtnic.Memory.__new__, virtnic.Qemu.attach, virtnic.Qemu.connect, virtnic.Qemu)
    for name in (*inspect.signature(call).parameters, *QemuOptions.__optional_keys__)
    if name not in ("self", "cls", "args", "kwargs", "options", "netdev", "size")
}
#: One of them with a value: a word of Python, or text in quotes, or what is filled in.
TOLD = re.compile(
    rf"\b(?:{'|'.join(sorted(ARGUMENTS))})=(?:None|True|False|virtnic\.|[\[{{\"'X])[^\s,;)]*"
)

#: Messages that no command can cause: none has an option for the argument.
NO_OPTION = {
    "node=None": "no command binds memory to a node",
    "memory=virtnic.Memory(": "a command's memory is its own",
    "shmem='doorbell'": "always so in a command",
    "queues=X": "a command's port has one pair",
    "offload=True": "programs ask for that, see the page on offloads",
    "features=": "no command chooses features",
    "on_link=": "no command calls back",
    "properties=": "no command sets properties",
    "extra=": "no command has it",
    "directory=X": "no command has it",
    "recover=X": "of one port, which no command asks for",
    "legacy=": "no command chooses the interface",
}


def text_of(node: ast.expr) -> str | None:
    """Return a string with X where something is filled in."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    if isinstance(node, ast.JoinedStr):
        return "".join(
            str(part.value) if isinstance(part, ast.Constant) else "X" for part in node.values
        )
    return None


def python_strings(file: Path) -> Iterator[str]:
    """Yield the strings of a module that are no docstrings."""
    tree = ast.parse(file.read_text())
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    skipped = {
        id(node.body[0].value)
        for node in ast.walk(tree)
        if isinstance(node, documented) and node.body and isinstance(node.body[0], ast.Expr)
    }
    inside = {id(part) for n in ast.walk(tree) if isinstance(n, ast.JoinedStr) for part in n.values}
    for node in ast.walk(tree):
        if isinstance(node, ast.expr) and id(node) not in skipped | inside:
            text = text_of(node)
            if text is not None:
                yield text


def rust_strings(file: Path) -> Iterator[str]:
    """Yield the strings of a Rust file without those of its tests and comments."""
    code = re.split(r"#\[cfg\((?:all\()?test\b", file.read_text())[0]
    code = re.sub(r"^\s*//.*$", "", code, flags=re.MULTILINE)
    code = re.sub(r"text_signature = \"[^\"]*\"", "", code)
    for text in re.findall(r'"((?:[^"\\]|\\.)*)"', code, re.DOTALL):
        joined = re.sub(r"\\\n\s*", "", text).replace('\\"', '"')
        yield re.sub(r"\{[^}]*\}", "X", joined)


def messages() -> list[tuple[str, str]]:
    """Return the library's messages, each with its file."""
    found = []
    for file in sorted((TOP / "python/virtnic").glob("**/*.py")):
        if not {"cli", "testing"} & set(file.relative_to(TOP).parts):
            found += [(file.name, text) for text in python_strings(file)]
    for folder in ("rust/core/src", "rust/python/src"):
        for file in sorted((TOP / folder).glob("**/*.rs")):
            if not re.search("test|loom", str(file.relative_to(TOP))):
                found += [(file.name, text) for text in rust_strings(file)]
    return found


def test_the_messages_are_found() -> None:
    """Otherwise the next test would pass without checking anything."""
    told = {found[0] for _, text in messages() for found in TOLD.finditer(text)}
    assert {"hugepages=None", 'iova="va"', "sandbox=False", "interrupts='intx'"} <= {
        word.rstrip(":") for word in told
    }


def test_no_argument_of_the_library_reaches_the_user_of_a_command() -> None:
    left = [
        f"{file}: {found[0]} in {text!r}"
        for file, text in messages()
        for found in TOLD.finditer(of_options(text))
        if not any(found[0].startswith(known) for known in NO_OPTION)
    ]
    assert not left, "\n".join(left)


def test_no_option_of_a_command_is_in_what_the_library_says() -> None:
    (commands,) = (a.choices for a in build()._actions if isinstance(a.choices, dict))
    options = {
        name
        for command in commands.values()
        for name in command._option_string_actions
        if name.startswith("--")
    } - {"--help"}
    named = re.compile(rf"(?<![\w-])(?:{'|'.join(sorted(options))})(?![\w-])")
    left = []
    for file, text in messages():
        # A whole command is another matter, and so is somebody else's option.
        bare = re.sub(r"`virtnic [^`]*`", "", text)
        left += [f"{file}: {found[0]} in {text!r}" for found in named.finditer(bare)]
    assert not left, "\n".join(left)


@pytest.mark.parametrize(
    ("said", "told"),
    [
        (
            "or pass hugepages=None for ordinary pages",
            "or give --hugepages none for ordinary pages",
        ),
        ('or use iova="va", which', "or use --iova va, which"),
        ("iova=-1: not an address", "--iova -1: not an address"),
        ("pass sandbox='spawn' if", "give --sandbox spawn if"),
        ("pass sandbox=False, or", "give --sandbox off, or"),
        ("(use accel=auto)", "(use --accel auto)"),
        ("or use interrupts='intx'", "or use --interrupts intx"),
        ("mac='01:00:5e:00:00:01' is", "--mac 01:00:5e:00:00:01 is"),
        ("queue_size must be a power", "--queue-size must be a power"),
        ("boot with `hugepagesz=1G hugepages=1`", "boot with `hugepagesz=1G hugepages=1`"),
        ("QEMU refused netdev_add: queue_sizes", "QEMU refused netdev_add: queue_sizes"),
    ],
)
def test_an_argument_becomes_an_option(said: str, told: str) -> None:
    assert of_options(said) == told


@pytest.mark.parametrize(
    ("words", "told", "said"),
    [
        (["--queue-size", "100"], "--queue-size must be a power of two", "queue_size"),
        (["--mac", "01:00:5e:00:00:01"], "--mac 01:00:5e:00:00:01 is a group address", "mac="),
        (["--iova", "-1"], "--iova -1: not an address; give va, pa or", "iova="),
        (["--netdev", "bridge,br=x"], "give --sandbox spawn", "sandbox="),
        (["--hugepages", "1G", "--memory", "1T"], "--hugepages none", "hugepages=N"),
    ],
)
def test_a_command_speaks_of_its_options(
    qemu_command: str, words: list[str], told: str, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["drop", "--hugepages", "none", *words]) in (2, 3)
    text = " ".join(capsys.readouterr().err.split())
    assert told in text
    assert said not in text
