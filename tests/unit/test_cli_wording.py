"""CLI errors name options where the library's name arguments."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.options import CALLED, options_of
from virtnic.cli import main
from virtnic.cli.parser import build
from virtnic.cli.wording import ARGUMENTS, PHRASES, of_options

TOP = Path(__file__).resolve().parents[2]

#: The options of all public callables.
OPTIONS = set().union(*map(options_of, CALLED))
#: What only a program can use: an option, a function or a class of the API.
API = re.compile(
    rf"(?<![\w,.<-])(?:{'|'.join(sorted(OPTIONS))})=(?![\"\d%])"
    rf"|\b(?:{'|'.join(sorted(name for name in OPTIONS if '_' in name))})\b"
    r"|\bvirtnic(?:\.\w+)+|\b[a-z_.]+\(\)"
)
#: Where no command can cause a message: folders and files below `virtnic` and the core.
NOT_OF_COMMANDS = (
    # virtnic.aio and the integrations
    *("virtnic/aio/net.py", "virtnic/aio/port.py", "virtnic/async_library.py"),
    *("virtnic/integrations/scapy.py", "virtnic/qemu/patched.py", "virtnic/nic/direct.py"),
    # no messages: the pages on features, netdevs and backends, a JSON schema, patterns
    *("virtio/catalogue.rs", "virtnic/qemu/netdevs.py", "virtnic/measure/schema.py"),
    "virtnic/qemu/backends.py",
    *("virtnic/measure/plots.py", "virtnic/qemu/peer.py", "virtnic/check/messages.py"),
)
#: Messages that no command can cause, by a part of them.
NO_COMMAND = {
    "STATUS was refused (features=)": "no command chooses features",
    "call events() for each task": "no command waits for events in tasks",
    "frontend='direct'": "no command chooses a front-end",
    "memory must be a virtnic.Memory": "a command's memory is its own",
    "memory=virtnic.Memory()": "a command's memory is for one QEMU",
    "MSI-X needs shmem='doorbell'": "always so in a command",
    "this port cannot be recovered": "no command recovers one port alone",
    "a virtnic.Recovery, not": "no command has a policy of its own",
    "at most backoff_max": "no command has a policy of its own",
    "a port of another Qemu": "no command detaches ports",
    "set_rss: the device": "no command steers packets",
    "no longer on the bus": "no command uses the bus",
    "With `offload=True`": "no command segments",
    "send it with flow=False": "a command's frames have room for a signature",
    "no more interrupt vectors": "a command attaches one port to such a QEMU",
    "pass node=None": "no command binds memory to a node",
    "a filter has at most": "no command sets filters",
    "queue X cannot be X alone": "no command stops queues",
    "(queues=)": "an option of the netdev",
    "(give it queues=)": "an option of the netdev",
    "make the memory without jumbo_size": "no command has it",
    "there is no queue X": "no command names queues",
    "queue X is stopped": "no command stops queues",
    "queue X is being stopped": "no command stops queues",
    "call listen() first": "the proxy listens on sockets of the kernel",
    "use ipv6=True": "a command's stack has IPv6",
    "copy with headers() instead": "no command copies headers",
    "reflect() sends frames back": "a command's ports differ",
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
        # The extcap has a command line of its own.
        if not {"cli", "testing", "extcap.py"} & set(file.relative_to(TOP).parts):
            found += [(str(file.relative_to(TOP)), text) for text in python_strings(file)]
    for folder in ("rust/core/src", "rust/python/src"):
        for file in sorted((TOP / folder).glob("**/*.rs")):
            if not re.search("test|loom", str(file.relative_to(TOP))):
                found += [(str(file.relative_to(TOP)), text) for text in rust_strings(file)]
    return found


def test_the_messages_are_found() -> None:
    """Otherwise the next tests would pass without checking anything."""
    told = {found[0] for _, text in messages() for found in API.finditer(text)}
    assert {"hugepages=", "iova=", "sandbox=", "interrupts=", "virtnic.Qemu", "restart()"} <= told


def test_no_word_of_the_api_reaches_the_user_of_a_command() -> None:
    left = [
        f"{file}: {found[0]} in {text!r}"
        for file, text in messages()
        if not file.endswith(NOT_OF_COMMANDS) and is_sentence(text)
        for found in API.finditer(of_options(re.sub(r"\bX\b", "64", text)))
        if not any(part in text for part in NO_COMMAND)
    ]
    assert not left, "\n".join(left)


def test_every_exception_is_needed() -> None:
    texts = [text for _, text in messages()]
    assert [part for part in NO_COMMAND if not any(part in text for text in texts)] == []


def is_sentence(text: str) -> bool:
    """Whether it is not only a name, or the `repr` of something."""
    return " " in text and not re.match(r"<|\w+\(", text)


def test_every_rule_has_a_message() -> None:
    """One without was for a message that is not there any more."""
    texts = [text for _, text in messages()]
    filled = [*texts, *(re.sub(r"\bX\b", "64", text) for text in texts)]
    dead = []
    for pattern, words in PHRASES:
        dead += [] if any(map(pattern.search, filled)) else [pattern.pattern]
        filled = [pattern.sub(words, text) for text in filled]
    for name in ARGUMENTS:
        dead += [] if any(re.search(rf"(?<![\w,.-]){name}=", text) for text in filled) else [name]
    assert dead == []


def test_every_option_in_a_rule_is_one() -> None:
    named = {f"--{name}" for name in ARGUMENTS}
    named |= {option for _, words in PHRASES for option in re.findall(r"--[a-z-]+", words)}
    assert named <= options_of_commands()


def options_of_commands() -> set[str]:
    """Return the long options of all commands."""
    (commands,) = (a.choices for a in build()._actions if isinstance(a.choices, dict))
    return {
        name
        for command in commands.values()
        for name in command._option_string_actions
        if name.startswith("--")
    }


def test_no_option_of_a_command_is_in_what_the_library_says() -> None:
    options = options_of_commands() - {"--help"}
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
        ("call set_queues(2) first", "give --queues 2"),
        ("again (recover=False): attach the port again", "again (without --recover)"),
        ("with recover=True another", "with --recover another"),
        ("cannot open tap,mac=X", "cannot open tap,mac=X"),
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
        (["--connect", "/none", "--accel", "tcg"], "--connect cannot be combined with", "connect="),
        (["--queues", "4"], "--queues 4: a netdev of type 'user' has 1 queue pair", "queues="),
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
