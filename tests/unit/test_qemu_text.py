"""Strings that QMP cannot carry are refused before they are sent."""

import os
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import virtnic
from support.inside import attachment_of, machine_of
from virtnic.qemu.text import check

#: A byte that is not UTF-8, as `os.fsdecode` keeps it; half a pair; NUL; noncharacters.
UNSAYABLE = ("t\udcfc", "\ud800", "a\0b", "\ufffe", "\ufdd0", "\U0001ffff")
#: Unusual characters that QMP can carry.
UNUSUAL = ("a\nb", "\x01\x7f", "\U0001f600é", '"\\u0000', "\u2028", "%s%n")

Ask = Callable[[virtnic.Qemu, str], object]


def as_argument(name: str) -> dict[str, Any]:
    """Return an argument of this name."""
    return {name: "/"}


WAYS: dict[str, Ask] = {
    "netdev": lambda qemu, text: qemu.attach(f"socket,connect={text}"),
    "netdev type": lambda qemu, text: qemu.attach({"type": text}),
    "netdev option": lambda qemu, text: qemu.attach({"type": "user", text: "on"}),
    "netdev value": lambda qemu, text: qemu.attach({"type": "user", "hostfwd": [{"str": text}]}),
    "vhost-user": lambda qemu, text: qemu.attach(
        {"type": "vhost-user", "path": f"/nowhere/{text}"}
    ),
    "mac": lambda qemu, text: qemu.attach("user", mac=text),
    "property": lambda qemu, text: qemu.attach("user", properties={text: 1}),
    "property value": lambda qemu, text: qemu.attach("user", properties={"romfile": text}),
    "feature": lambda qemu, text: qemu.attach("user", features={text: True}),
    "command": lambda qemu, text: qemu.execute(text),
    "argument": lambda qemu, text: qemu.execute("qom-list", **as_argument(text)),
    "argument value": lambda qemu, text: qemu.execute("qom-list", path=text),
    "nested value": lambda qemu, text: qemu.execute("qom-list", path={"a": [{"b": text}]}),
}


def test_text_that_qmp_cannot_carry_is_a_value_error(qemu: virtnic.Qemu) -> None:
    port = qemu.attach("user")
    for ask in WAYS.values():
        for text in UNSAYABLE:
            with pytest.raises(ValueError, match=r"cannot be passed|no virtio-net feature|codec"):
                ask(qemu, text)
        for text in UNUSUAL:
            with pytest.raises((ValueError, virtnic.QemuError)):
                ask(qemu, text)
        assert qemu.execute("query-status")
    assert [nic.id for nic in machine_of(qemu).nics] == [attachment_of(port).handle.id]


def test_an_escape_in_a_netdev_of_json_is_text_too(qemu: virtnic.Qemu) -> None:
    with pytest.raises(ValueError, match="cannot be passed"):
        qemu.attach(r'{"type": "tap", "ifname": "t\udcfc"}')
    assert qemu.execute("query-status")


def test_what_is_not_json_is_refused(qemu: virtnic.Qemu) -> None:
    deep: list[Any] = []
    for _ in range(2000):
        deep = [deep]
    loop: list[Any] = []
    loop.append(loop)
    for value in (float("nan"), float("inf"), 1 << 64, -(1 << 63) - 1, deep, loop):
        with pytest.raises(ValueError, match=r"finite|64 bits|deep"):
            qemu.execute("qom-list", path=value)
    for odd in (b"/", Path("/"), object(), {1: 2}, {"/"}, 1j):
        with pytest.raises(TypeError, match="QMP"):
            qemu.execute("qom-list", path=odd)
    assert qemu.execute("query-status")


def test_what_is_json_passes() -> None:
    check({"a": [1, -1, 1.5, True, None, "é\U0001f600"], "b": OrderedDict(c=(1 << 64) - 1)}, "it")


@pytest.mark.parametrize("word", ["a\0b", "\ud800", 5, b"\xff"])
def test_a_word_that_no_command_line_has(qemu_command: str, word: Any) -> None:
    with pytest.raises((ValueError, TypeError), match="extra"):
        virtnic.Qemu(extra=["-name", word])
    with pytest.raises(TypeError, match="list of strings"):
        virtnic.Qemu(extra="-name x")


def test_a_directory_may_have_any_name(qemu_command: str, scratch: Path) -> None:
    """The file system has no encoding; what QEMU is told by its command line has none either."""
    for number, name in enumerate(("t\udcfc", "a\nb", "\ufffe", "é")):
        place = scratch / f"{number}{name}"
        with virtnic.Qemu(directory=place, extra=["-name", name]) as qemu:
            assert qemu.attach("user").link
        place.rmdir()
    for wrong in ("a\0b", "\ud800"):
        for start in (lambda path: virtnic.Qemu(directory=path), virtnic.Qemu.connect):
            with pytest.raises(ValueError, match=r"the directory: .* cannot be a path"):
                start(os.fspath(scratch / wrong))
