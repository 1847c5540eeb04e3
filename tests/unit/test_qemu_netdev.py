"""Parsing netdev strings, and their QMP form."""

from typing import Any

import pytest

from virtnic.qemu import find_qemu
from virtnic.qemu.netdev import parse
from virtnic.qemu.schema import Schema, convert
from virtnic.qemu.spec import Spec, VhostUserSocket


@pytest.mark.parametrize(
    ("netdev", "kind", "options"),
    [
        ("user", "user", {}),
        ("user,restrict=on,hostname=a", "user", {"restrict": "on", "hostname": "a"}),
        ("user,restrict", "user", {"restrict": "on"}),
        ("type=user,ipv6=off", "user", {"ipv6": "off"}),
        ("user,hostfwd=tcp::5555-:22", "user", {"hostfwd": "tcp::5555-:22"}),
        ("user,hostfwd=a,hostfwd=b,hostfwd=c", "user", {"hostfwd": ["a", "b", "c"]}),
        ("user,bootfile=a,,b=c", "user", {"bootfile": "a,b=c"}),
        (
            "stream,server=off,addr.type=inet,addr.host=h,addr.port=1",
            "stream",
            {"server": "off", "addr": {"type": "inet", "host": "h", "port": "1"}},
        ),
        ('{"type": "user", "restrict": true}', "user", {"restrict": True}),
        ({"type": "user", "hostfwd": ["a"]}, "user", {"hostfwd": ["a"]}),
        (
            "tap,ifname=tap0",
            "tap",
            {"ifname": "tap0", "script": "no", "downscript": "no"},
        ),
        ("tap,script=/up", "tap", {"script": "/up", "downscript": "no"}),
        ("tap,br=br0", "tap", {"br": "br0"}),
        ("vhost-user,chardev=c", "vhost-user", {"chardev": "c"}),
    ],
)
def test_what_users_write(netdev: Any, kind: str, options: dict[str, Any]) -> None:
    assert parse(netdev) == Spec(kind, options)


@pytest.mark.parametrize(
    ("netdev", "socket"),
    [
        ("vhost-user,path=/run/v", VhostUserSocket("/run/v", server=False, wait=0.0)),
        ("vhost-user,path=/run/v,server=on", VhostUserSocket("/run/v", server=True, wait=10.0)),
        ("vhost-user,path=/run/v,wait=2.5", VhostUserSocket("/run/v", server=False, wait=2.5)),
        (
            {"type": "vhost-user", "path": "/v", "server": True, "wait": 1},
            VhostUserSocket("/v", True, 1.0),
        ),
    ],
)
def test_vhost_user_shorthand(netdev: Any, socket: VhostUserSocket) -> None:
    spec = parse(netdev)
    assert spec.socket == socket
    assert spec.options == {}


def test_vhost_user_keeps_the_other_options() -> None:
    assert parse("vhost-user,path=/run/v,queues=2").options == {"queues": "2"}


@pytest.mark.parametrize(
    ("netdev", "words"),
    [
        ("", "empty"),
        ("user,,restrict=on", "has no type|key=value"),
        ("user,=x", "where key=value should be"),
        ("restrict=on", "has no type"),
        ("user,id=mine", "omit it"),
        ({"type": "user", "id": "x"}, "omit it"),
        ({}, "has no type"),
        ({"type": 4}, "has no type"),
        ("nic,model=virtio", "a nic is not a netdev"),
        ("{not json", "not valid JSON"),
        ("user,a=1,a.b=2", "a value and an object"),
        ("user,a.b=2,a=1", "a value and an object"),
        ("vhost-user", "path=SOCKET"),
        ("vhost-user,path=/x,server=maybe", "neither on nor off"),
        ("vhost-user,path=/x,wait=soon", "not a number of seconds"),
        ("vhost-user,path=/x,wait=-1", "not a number of seconds"),
        ("vhost-user,path=/x,wait=nan", "not a number of seconds"),
    ],
)
def test_bad_syntax(netdev: Any, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        parse(netdev)


@pytest.mark.parametrize("netdev", [None, 3, b"user", ["user"]])
def test_neither_string_nor_mapping(netdev: Any) -> None:
    with pytest.raises(TypeError, match="a netdev must be a string"):
        parse(netdev)


@pytest.mark.parametrize(
    ("netdev", "helper"),
    [
        ("user", None),
        ("tap,ifname=tap0", None),
        ("user,guestfwd=tcp:10.0.2.100:80-tcp:1.2.3.4:80", None),
        ("bridge,br=br0", "the bridge helper"),
        ("tap,br=br0", "the bridge helper"),
        ("tap,script=/etc/up", "script=/etc/up"),
        ("user,smb=/srv", "smbd"),
        ("user,guestfwd=tcp:10.0.2.100:80-cmd:nc x", "the command of guestfwd"),
    ],
)
def test_what_needs_the_sandbox_open(netdev: str, helper: str | None) -> None:
    found = parse(netdev).helper
    assert (found and found.name) == helper


@pytest.fixture
def schema(qemu_command: str) -> Schema:
    (entities,) = find_qemu(qemu_command).ask("query-qmp-schema")
    return Schema(entities)


def test_types_come_from_this_qemu(schema: Schema) -> None:
    given = parse("user,restrict=on,ipv6-prefixlen=64,hostname=on,hostfwd=tcp::1-:2").arguments("n")
    assert schema.arguments("netdev_add", given, what="netdev") == {
        "type": "user",
        "id": "n",
        "restrict": True,
        "ipv6-prefixlen": 64,
        "hostname": "on",
        "hostfwd": [{"str": "tcp::1-:2"}],
    }
    given = parse("tap,ifname=0,vhost=off,queues=0x2,sndbuf=1M").arguments("n")
    assert schema.arguments("netdev_add", given, what="netdev") == {
        "type": "tap",
        "id": "n",
        "ifname": "0",
        "vhost": False,
        "queues": 2,
        "sndbuf": 1 << 20,
        "script": "no",
        "downscript": "no",
    }


def test_python_types_are_taken_too(schema: Schema) -> None:
    given = {"type": "user", "restrict": True, "ipv6-prefixlen": 64, "hostfwd": ["a", {"str": "b"}]}
    assert schema.arguments("netdev_add", given, what="netdev") == {
        "type": "user",
        "restrict": True,
        "ipv6-prefixlen": 64,
        "hostfwd": [{"str": "a"}, {"str": "b"}],
    }


@pytest.mark.parametrize(
    ("netdev", "words"),
    [
        ("user,colour=red", r"'colour' is unknown to this QEMU; it has .*hostfwd.*restrict"),
        ("user,restrict=maybe", "restrict='maybe' is neither on nor off"),
        ("user,ipv6-prefixlen=many", "ipv6-prefixlen='many' is not an integer"),
        ("telepathy", "type='telepathy' is unknown to this QEMU; it has .*tap.*user"),
        ("user,restrict.deep=on", "restrict=.* is neither on nor off"),
    ],
)
def test_what_this_qemu_has_not(schema: Schema, netdev: str, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        schema.arguments("netdev_add", parse(netdev).arguments("n"), what="netdev")


def test_nested_objects_and_variants(schema: Schema) -> None:
    if "stream" not in schema.choices("netdev_add"):
        pytest.skip("this QEMU has no stream netdev (7.2 brought it)")
    given = parse("stream,server=off,addr.type=inet,addr.host=::1,addr.port=80,addr.ipv6=on")
    typed = schema.arguments("netdev_add", given.arguments("n"), what="netdev")
    assert typed["server"] is False
    assert typed["addr"] == {"type": "inet", "host": "::1", "port": "80", "ipv6": True}
    unknown = parse("stream,addr.type=pigeon").arguments("n")
    with pytest.raises(ValueError, match=r"addr: type='pigeon' is unknown"):
        schema.arguments("netdev_add", unknown, what="netdev")


@pytest.mark.parametrize(
    ("kind", "value", "result"),
    [
        ("int", "10", 10),
        ("int", "0x10", 16),
        ("int", "64K", 65536),
        ("int", 7, 7),
        ("boolean", "yes", True),
        ("boolean", False, False),
        ("string", True, "on"),
        ("string", 3, "3"),
        ("number", "0.5", 0.5),
        ("any", [1], [1]),
    ],
)
def test_conversions(kind: str, value: Any, result: Any) -> None:
    converted = convert(kind, value, "x")
    assert converted == result
    assert type(converted) is type(result)


@pytest.mark.parametrize(
    ("kind", "value"),
    [
        ("int", True),
        ("int", "1.5"),
        ("int", None),
        ("boolean", 1),
        ("boolean", "2"),
        ("string", []),
        ("number", "x"),
    ],
)
def test_refused_conversions(kind: str, value: Any) -> None:
    with pytest.raises(ValueError, match="x="):
        convert(kind, value, "x")
