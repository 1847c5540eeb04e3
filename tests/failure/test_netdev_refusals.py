"""Netdevs that QEMU refuses or ignores: the error has QEMU's message and a remedy."""

import logging
import shutil
import socket
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import virtnic
from peers.netns import Netns
from peers.testpmd import Testpmd
from support import program
from support.inside import attachment_of, machine_of
from virtnic import net
from virtnic.nic.options import usual_size
from virtnic.qemu import parse, quirks
from virtnic.qemu.netdevs import kind_of, not_started

pytestmark = pytest.mark.needs("qemu")

no_vhost = pytest.mark.skipif(Path("/dev/vhost-net").exists(), reason="vhost-net is here")


def memory() -> virtnic.Memory:
    """Return memory that does not depend on free hugepages."""
    return virtnic.Memory("8M", hugepages=None)


# vhost.


@no_vhost
@pytest.mark.needs("netns")
@pytest.mark.parametrize("netdev", ["{tap},vhost=on", "{tap},vhostforce=on", "{tap},vhostfd={fd}"])
def test_vhost_that_cannot_be_had(netns: Netns, accel: Any, netdev: str) -> None:
    """Neither does QEMU go on without it (5.2), nor does it abort (7.2): other ports live on."""
    with virtnic.Qemu(memory(), accel=accel) as qemu, Path("/dev/null").open("r+b", 0) as null:
        other = qemu.attach("user")
        with pytest.raises(virtnic.QemuError, match=r"vhost.*`modprobe vhost_net`.*omit vhost=on"):
            qemu.attach(netdev.format(tap=netns.netdev, fd=null.fileno()))
        net.Stack(other, dhcp=True).close()
        # Nothing is left of it in QEMU (5.2 keeps the netdev): the TAP can be opened again.
        with qemu.attach(netns.netdev):
            assert len(qemu.ports) == 2


@pytest.mark.needs("netns")
def test_a_descriptor_that_is_not_vhost_net(netns: Netns) -> None:
    with virtnic.Qemu(memory()) as qemu, Path("/dev/null").open("r+b", 0) as null:
        netdev = f"{netns.netdev},vhost=on,vhostfd={null.fileno()}"
        with pytest.raises(virtnic.QemuError, match=r"vhost.*passed as vhostfd=, is not the"):
            qemu.attach(netdev)
        with qemu.attach(netns.netdev) as port:
            assert port.link


@no_vhost
def test_no_vhost_without_qemu() -> None:
    """The device that is missing, and two ways on; the command says so in one message."""
    with pytest.raises(virtnic.NetdevUnavailable, match=r"/dev/vhost-net.*`modprobe vhost_net`"):
        virtnic.open("tap,ifname=x,vhost=on", frontend="direct", size="2M")
    words = ("--netdev", "tap,ifname=x,vhost=on", "--frontend", "direct", "--memory", "2M")
    done = program.virtnic("probe", *words, status=3)
    assert done.stdout == ""
    assert done.stderr.startswith("virtnic: opening /dev/vhost-net failed")
    assert "leave --frontend direct out" in " ".join(done.stderr.split())


@pytest.mark.parametrize(
    ("netdev", "words"),
    [
        ("user", "is for vhost-user,path=SOCKET and tap"),
        ("tap,ifname=x,vhost=off", "is vhost=on"),
        ("tap,vhost=on", "needs the TAP's ifname="),
        ("tap,ifname=x,vhost=on,script=/etc/up", "knows no script"),
        ("tap,fd=0,vhost=on", "must be a TAP"),
    ],
)
def test_netdevs_that_need_a_qemu(netdev: str, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        virtnic.open(netdev, frontend="direct", size="2M")


def test_going_on_without_vhost_is_not_asked_for() -> None:
    assert parse("tap,ifname=x,vhost=on").options["vhostforce"] == "on"
    assert parse({"type": "tap", "ifname": "x", "vhost": True}).options["vhostforce"] is True
    assert "vhostforce" not in parse("tap,ifname=x,vhost=off").options
    assert "vhostforce" not in parse("tap,ifname=x").options
    with pytest.raises(ValueError, match="vhostforce=off lets QEMU silently continue"):
        parse("tap,ifname=x,vhost=on,vhostforce=off")


@pytest.mark.parametrize(
    "said",
    [
        "qemu-system-x86_64: unable to start vhost net: 22: falling back on userspace virtio",
        "vhost_set_vring_num failed: Invalid argument (22)\nunable to start vhost net: 22",
    ],
)
def test_a_device_that_did_not_start(
    qemu: virtnic.Qemu, monkeypatch: pytest.MonkeyPatch, said: str
) -> None:
    """No vDPA here: what such a QEMU writes to stderr while the driver starts the device."""
    monkeypatch.setattr(machine_of(qemu).process, "stderr_since", lambda _position: said)
    with pytest.raises(virtnic.QemuError, match=r"did not start the user device \(QEMU: .*: 22"):
        qemu.attach("user")
    assert qemu.ports == ()
    monkeypatch.undo()
    with qemu.attach("user") as port:
        assert port.link


def test_memory_that_may_not_be_pinned() -> None:
    said = "DMA mapping failed\nunable to start vhost net: 12: falling back on userspace virtio\n"
    assert "`ulimit -l unlimited`" in str(not_started(kind_of("vhost-vdpa"), said))
    assert not_started(kind_of("vhost-vdpa"), "warning: something else") is None


def test_the_usual_size_of_queues() -> None:
    """A vDPA device may refuse more than 256 entries; a vhost-user one gets its size by QEMU."""
    sizes = {
        netdev: usual_size(parse(netdev), {}, legacy=False)
        for netdev in ("user", "vhost-vdpa,vhostdev=/dev/v", "vhost-user,path=/v")
    }
    assert sizes == {"user": 256, "vhost-vdpa,vhostdev=/dev/v": 256, "vhost-user,path=/v": 0}


# What QEMU says on stderr.


@pytest.mark.skipif(
    not Path("/usr/lib/qemu/qemu-bridge-helper").exists(), reason="no bridge helper is installed"
)
def test_a_bridge_without_its_rights(netns: Netns) -> None:
    """QEMU's refusal says that its helper failed; the helper says why, on stderr."""
    with (
        virtnic.Qemu(memory(), sandbox="spawn") as qemu,
        pytest.raises(virtnic.QemuError, match=r"bridge helper failed.*acl file.*bridge\.conf"),
    ):
        qemu.attach("bridge,br=nobr0,helper=/usr/lib/qemu/qemu-bridge-helper")


def test_what_qemu_warns_of_reaches_the_user(qemu: virtnic.Qemu) -> None:
    """Long after the start, too: here of a socket that it cannot connect to, and tries again."""
    heard = threading.Event()

    class Handler(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if record.levelno == logging.WARNING and "/nowhere/at-all" in record.getMessage():
                heard.set()

    handler = Handler()
    logger = logging.getLogger("virtnic")
    logger.addHandler(handler)
    try:
        seconds = quirks.has(qemu.version, "reconnect-in-seconds")
        again = {"reconnect": 1} if seconds else {"reconnect-ms": 100}
        address = {"type": "unix", "data": {"path": "/nowhere/at-all"}}
        backend = {"type": "socket", "data": {"addr": address, "server": False, **again}}
        qemu.execute("chardev-add", id="nobody", backend=backend)
        assert heard.wait(10.0)
    finally:
        logger.removeHandler(handler)


def test_passt_needs_no_sandbox(qemu: virtnic.Qemu) -> None:
    """``spawn`` is not enough: QEMU's filter would kill passt (signal 31)."""
    words = r"passt, which its sandbox denies; pass sandbox=False.*stream,.*vhost-user,path="
    with pytest.raises(ValueError, match=words):
        qemu.attach("passt")
    with (
        virtnic.Qemu(memory(), sandbox="spawn") as opened,
        pytest.raises(ValueError, match=words),
    ):
        opened.attach("passt")


# The sugar of the command line.


@pytest.mark.parametrize(
    ("net", "prefix", "length"),
    [("fec0::/64", "fec0::", "64"), ("fd00:1::/48", "fd00:1::", "48"), ("fec0::", "fec0::", "64")],
)
def test_ipv6_net(qemu: virtnic.Qemu, net: str, prefix: str, length: str) -> None:
    netdev = f"user,ipv6-net={net}"
    assert parse(netdev).options == {"ipv6-prefix": prefix, "ipv6-prefixlen": length}
    with qemu.attach(netdev):
        words: dict[str, Any] = {"command-line": "info network"}
        assert "type=user" in qemu.execute("human-monitor-command", **words)


def test_ipv6_net_that_is_none() -> None:
    with pytest.raises(ValueError, match="is not of the form PREFIX/LENGTH"):
        parse("user,ipv6-net=fec0::/many")


# What it takes without effect.


@pytest.mark.parametrize("mac", ["01:00:5e:00:00:01", "ff:ff:ff:ff:ff:ff", "00:00:00:00:00:00"])
def test_an_address_that_no_station_has(qemu: virtnic.Qemu, mac: str) -> None:
    """QEMU takes a group's, from which bridges drop all frames, and has its own for zeroes."""
    with pytest.raises(ValueError, match=r"is a group address|all zeros is not a valid address"):
        qemu.attach("user", mac=mac)


def test_a_device_that_does_not_tell_of_its_link(qemu: virtnic.Qemu) -> None:
    """A callback that would never be called is refused."""
    links: list[bool] = []
    for refused in ({"features": {"STATUS": False}}, {"properties": {"status": False}}):
        options: dict[str, Any] = refused
        with pytest.raises(ValueError, match="does not report its link: STATUS"):
            qemu.attach("user", on_link=lambda port: links.append(port.link), **options)
        with qemu.attach("user", **options) as port:
            assert attachment_of(port).tells_link is False
    assert links == []


def test_a_socket_to_nobody(qemu: virtnic.Qemu, caplog: pytest.LogCaptureFixture) -> None:
    """Its link is up all the same, but QEMU knows when it is asked."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
        with qemu.attach(f"socket,connect={address}") as port:
            assert caplog.text == ""
            port.wait_ready(5.0)
    with qemu.attach(f"socket,connect={address}") as port:
        with pytest.raises(TimeoutError, match="the socket has no peer"):
            port.wait_ready(0.1)
        assert port.link


@pytest.mark.needs("testpmd")
def test_filters_that_have_no_effect(
    qemu: virtnic.Qemu, testpmd: Callable[..., Testpmd], caplog: pytest.LogCaptureFixture
) -> None:
    """The device takes them; what passes QEMU by is not filtered, and that is said once."""
    with qemu.attach("user") as port:
        port.set_promiscuous(False)
        assert caplog.text == ""
    with qemu.attach(f"vhost-user,path={testpmd().sockets[0]}") as port:
        port.set_promiscuous(True)
        port.add_vlan(7)
        assert "no effect" not in caplog.text
        port.set_promiscuous(False)
        port.set_mac_filter(["02:00:00:00:00:01"])
    assert caplog.text.count("have no effect: the frames of this vhost-user netdev") == 1


def test_which_netdevs_filter() -> None:
    filters = {
        netdev: kind_of("tap").moves_frames(parse(netdev).options)
        for netdev in ("tap,ifname=x", "tap,ifname=x,vhost=on", "tap,ifname=x,vhost=off")
    }
    assert list(filters.values()) == [True, False, True]
    assert not kind_of("vhost-vdpa").moves_frames({})


# TAP devices.


@pytest.mark.needs("netns")
def test_a_tap_that_is_down(netns: Netns, caplog: pytest.LogCaptureFixture) -> None:
    netns.run("ip", "link", "set", netns.tap, "down")
    with virtnic.open(netns.netdev, memory=memory()) as port:
        assert f"{netns.tap} is down" in caplog.text
        assert f"`ip link set {netns.tap} up`" in caplog.text
        with pytest.raises(TimeoutError, match=f"`ip link set {netns.tap} up`"):
            port.wait_ready(0.0)
        netns.run("ip", "link", "set", netns.tap, "up")
        port.wait_ready(5.0)
        caplog.clear()
    with virtnic.open(netns.netdev, memory=memory()):
        assert caplog.text == ""


@pytest.mark.needs("netns")
def test_a_tap_that_qemu_has_to_make(netns: Netns, caplog: pytest.LogCaptureFixture) -> None:
    with virtnic.open("tap,ifname=new0", memory=memory()):
        assert "`ip link set new0 up`" in caplog.text


@pytest.mark.needs("netns")
def test_a_tap_that_somebody_has_open(netns: Netns) -> None:
    with (
        virtnic.Qemu(memory()) as qemu,
        qemu.attach(netns.netdev),
        pytest.raises(virtnic.QemuError, match=f"another program has {netns.tap} open"),
    ):
        qemu.attach(netns.netdev)


@pytest.mark.needs("netns")
def test_a_tap_with_another_number_of_queues(netns: Netns) -> None:
    netns.run("ip", "tuntap", "add", "dev", "many0", "mode", "tap", "vnet_hdr", "multi_queue")
    with virtnic.Qemu(memory()) as qemu:
        words = f"{netns.tap} was made without multi_queue.*`ip tuntap add .*multi_queue`"
        with pytest.raises(virtnic.QemuError, match=words):
            qemu.attach(netns.netdev, queues=2)
        with pytest.raises(virtnic.QemuError, match=r"many0 was made with multi_queue.*one queue"):
            qemu.attach("tap,ifname=many0")


@pytest.mark.needs("netns")
@pytest.mark.parametrize(
    ("name", "words"), [("lo", "is not a TAP device"), ("tun0", "a TUN device")]
)
def test_a_device_that_is_no_tap(netns: Netns, name: str, words: str) -> None:
    netns.run("ip", "tuntap", "add", "dev", "tun0", "mode", "tun")
    with virtnic.Qemu(memory()) as qemu, pytest.raises(virtnic.QemuError, match=words):
        qemu.attach(f"tap,ifname={name}")


def test_a_name_that_is_too_long() -> None:
    """QEMU would cut it off, and make a device of another name."""
    assert parse("tap,ifname=a23456789012345").type == "tap"
    with pytest.raises(ValueError, match="is too long: a network device's name has up to 15"):
        parse("tap,ifname=a234567890123456")


@pytest.mark.parametrize("name", ["a/0", "a:0", "a b", ".", ".."])
def test_a_name_that_is_none(name: str) -> None:
    """The kernel's refusal is `Invalid argument`, which says nothing."""
    with pytest.raises(ValueError, match="is not a valid network device name"):
        parse(f"tap,ifname={name}")


@pytest.mark.needs("netns")
@pytest.mark.skipif(shutil.which("setpriv") is None, reason="setpriv is not installed")
def test_a_tap_without_the_right_to_make_one(netns: Netns, qemu_command: str) -> None:
    """As somebody who is not root, with the command that root gives to mend it."""
    unprivileged = netns.qemu_command.replace(
        qemu_command, f"setpriv --bounding-set=-all --inh-caps=-all {qemu_command}"
    )
    with (
        virtnic.Qemu(memory(), qemu=unprivileged) as qemu,
        pytest.raises(virtnic.QemuError, match=r"there is no mine0, .*`ip tuntap add dev mine0"),
    ):
        qemu.attach("tap,ifname=mine0")
