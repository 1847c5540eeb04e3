"""Control queue commands: their effect on received frames, and refusals."""

import struct
import time
from collections.abc import Callable
from typing import Any

import pytest

import virtnic
from peers.netns import Netns
from support.frames import BROADCAST, arp_request, is_arp_reply, mac_bytes, number_of, numbered
from support.inside import driver_of
from support.waiting import pause
from virtnic import net

OTHER = "02:00:00:00:00:77"
GROUP, OTHER_GROUP = "01:00:5e:00:00:11", "01:00:5e:00:00:22"


def tagged(frame: bytes, vlan: int) -> bytes:
    """Put a frame into a VLAN (IEEE 802.1Q)."""
    return frame[:12] + struct.pack("!HH", 0x8100, vlan) + frame[12:]


class Sender:
    """Which frames arrive, by their addresses."""

    def __init__(self, netns: Netns, port: virtnic.Port) -> None:
        self._raw = netns.packet_socket()
        self._mac = netns.mac
        self._port = port

    def close(self) -> None:
        self._raw.close()

    def arrive(self, *addresses: str, vlans: tuple[int, ...] = ()) -> set[str | int]:
        """Send a frame to each address and in each VLAN; the last one is known to arrive."""
        wanted: list[str | int] = [*addresses, *vlans]
        for at, address in enumerate(addresses):
            self._raw.send(numbered(self._mac, at, destination=address))
        for at, vlan in enumerate(vlans, len(addresses)):
            frame = numbered(self._mac, at, destination=self._port.mac)
            self._raw.send(tagged(frame, vlan))
        self._raw.send(numbered(self._mac, 999, destination=self._port.mac))
        seen: set[str | int] = set()
        until = time.monotonic() + 10
        while time.monotonic() < until:
            for frame in self._port.recv(64, timeout=0.5).tobytes():
                plain = frame[:12] + frame[16:] if frame[12:14] == b"\x81\x00" else frame
                number = number_of(plain)
                if number == 999:
                    return seen
                if number is not None:
                    seen.add(wanted[number])
        raise AssertionError("the frame that must arrive did not")


@pytest.mark.needs("qemu", "netns")
def test_filters_decide_what_arrives(netns: Netns) -> None:
    with virtnic.open(netns.netdev) as port:
        sender = Sender(netns, port)
        everything = (BROADCAST, OTHER, GROUP, OTHER_GROUP)
        try:
            # QEMU's devices start promiscuous.
            assert sender.arrive(*everything) == set(everything)
            port.set_promiscuous(False)
            assert sender.arrive(*everything) == {BROADCAST}
            port.set_allmulticast(True)
            assert sender.arrive(*everything) == {BROADCAST, GROUP, OTHER_GROUP}
            port.set_allmulticast(False)
            port.set_mac_filter(unicast=[OTHER], multicast=[GROUP])
            assert sender.arrive(*everything) == {BROADCAST, OTHER, GROUP}
            port.set_mac_filter()
            assert sender.arrive(*everything) == {BROADCAST}
            port.set_receive_mode("all-unicast")
            assert sender.arrive(*everything) == {BROADCAST, OTHER}
            port.set_receive_mode("all-unicast", False)
            port.set_receive_mode("no-broadcast")
            assert sender.arrive(*everything) == set()
            port.set_promiscuous()
            assert sender.arrive(*everything) == set(everything)
        finally:
            sender.close()


@pytest.mark.needs("qemu", "netns")
def test_vlans_are_filtered(netns: Netns) -> None:
    with virtnic.open(netns.netdev) as port:
        sender = Sender(netns, port)
        try:
            assert sender.arrive(vlans=(5, 6)) == {5, 6}
            port.set_promiscuous(False)
            assert sender.arrive(vlans=(5, 6)) == set()
            port.add_vlan(5)
            assert sender.arrive(vlans=(5, 6)) == {5}
            port.add_vlan(6)
            port.remove_vlan(5)
            assert sender.arrive(vlans=(5, 6)) == {6}
        finally:
            sender.close()


@pytest.mark.needs("qemu", "netns")
def test_a_new_mac_address_is_received_and_sent(netns: Netns) -> None:
    with virtnic.open(netns.netdev) as port:
        port.set_promiscuous(False)
        sender = Sender(netns, port)
        try:
            assert sender.arrive(OTHER) == set()
            before = port.mac
            port.set_mac(OTHER)
            assert port.mac == OTHER
            assert sender.arrive(before) == set()
        finally:
            sender.close()
        with net.Stack(port, address="10.99.0.2/24") as stack:
            assert stack.arp("10.99.0.1").mac == netns.mac


@pytest.mark.needs("qemu", "netns")
def test_the_port_announces_itself_when_asked(netns: Netns) -> None:
    with virtnic.open(netns.netdev) as port, netns.packet_socket() as raw:
        port.qemu.execute("announce-self", initial=50, max=100, rounds=2, step=50)
        until = time.monotonic() + 10
        while time.monotonic() < until:
            frame = raw.recv(4096)
            if frame[12:14] == b"\x80\x35":
                break
        else:
            pytest.fail("no reverse ARP")
        assert frame[:12] == mac_bytes(BROADCAST) + mac_bytes(port.mac)
        assert frame[20:22] == b"\0\3"
        # An unacknowledged announcement would be repeated at each interrupt.
        pause(0.5)
        sent = port.stats()["tx_packets"]
        driver_of(port).refresh_link()
        assert port.stats()["tx_packets"] == sent


def test_slirp_takes_commands(port: virtnic.Port) -> None:
    """Traffic continues meanwhile."""
    for round_ in range(20):
        port.set_promiscuous(bool(round_ % 2))
        port.set_mac_filter([OTHER], [GROUP])
        port.add_vlan(round_)
        port.send([arp_request(port.mac)])
        assert any(is_arp_reply(frame) for frame in port.recv(8, timeout=20.0))


@pytest.mark.needs("testpmd")
@pytest.mark.parametrize("ring", ["split", "packed"])
def test_commands_with_either_ring(
    qemu: virtnic.Qemu, testpmd: Callable[..., Any], ring: Any
) -> None:
    path = testpmd().sockets[0]
    with qemu.attach(f"vhost-user,path={path}", ring=ring) as port:
        # More than the control queue has descriptors.
        for vlan in range(100):
            port.add_vlan(vlan)
        port.set_mac(OTHER)
        assert port.mac == OTHER


def test_a_refused_command_says_which_and_the_port_goes_on(port: virtnic.Port) -> None:
    """QEMU refuses offloads that were not negotiated; ours is not asked, so ask it otherwise."""
    with pytest.raises(ValueError, match="GUEST_CSUM was not negotiated"):
        port.set_guest_offloads(["GUEST_CSUM"])
    with pytest.raises(virtnic.CommandRefused, match=r"NOTF_COAL_RX_SET\(max_packets=8.*NOTF_COAL"):
        port.set_coalescing("rx", 8, 100)
    with pytest.raises(virtnic.CommandRefused, match=r"NOTF_COAL_VQ_SET\(vqn=1.*VQ_NOTF_COAL"):
        port.queue(0).set_coalescing("tx", 8, 100)
    with pytest.raises(virtnic.CommandRefused, match="does not compute hashes"):
        port.set_rss()
    port.send([arp_request(port.mac)])
    assert any(is_arp_reply(frame) for frame in port.recv(8, timeout=20.0))


def test_without_a_control_queue_nothing_can_be_asked(qemu: virtnic.Qemu) -> None:
    with qemu.attach("user", features={"CTRL_VQ": False}) as port:
        accepted = {feature.name for feature in port.features if feature.accepted}
        assert not {name for name in accepted if name.startswith("CTRL")} | accepted & {"MQ"}
        with pytest.raises(virtnic.CommandRefused, match=r"VLAN_ADD\(5\).*CTRL_VLAN"):
            port.add_vlan(5)
        with pytest.raises(virtnic.CommandRefused, match=r"RX_PROMISC\(on\).*CTRL_RX"):
            port.set_promiscuous()
        port.send([arp_request(port.mac)])
        assert any(is_arp_reply(frame) for frame in port.recv(8, timeout=20.0))


def test_bad_arguments_never_reach_the_device(port: virtnic.Port) -> None:
    cases: list[tuple[Callable[[], object], str]] = [
        (lambda: port.add_vlan(4095), "4094, not 4095"),
        (lambda: port.remove_vlan(-1), "4094, not -1"),
        (lambda: port.set_mac("no"), "52:54:00:12:34:56"),
        (lambda: port.set_mac("52:54:00:12:34:567"), "52:54:00:12:34:56"),
        (lambda: port.set_mac(GROUP), "multicast"),
        (lambda: port.set_mac("00:00:00:00:00:00"), "no address"),
        (lambda: port.set_mac_filter([GROUP]), "no unicast"),
        (lambda: port.set_mac_filter([], [OTHER]), "no multicast"),
        (lambda: port.set_mac_filter([OTHER] * 65), "64 addresses, not 65"),
        (lambda: port.set_receive_mode("most"), "most"),
        (lambda: port.set_guest_offloads(["CSUM"]), "not an offload of received"),
        (lambda: port.set_guest_offloads(["NONSENSE"]), "NONSENSE"),
        (lambda: port.set_coalescing("both", 1, 1), "both"),
    ]
    for call, words in cases:
        with pytest.raises(ValueError, match=words):
            call()
    assert not port.closed


def test_commands_to_a_closed_port(port: virtnic.Port) -> None:
    port.close()
    calls: list[Callable[[], None]] = [
        port.set_promiscuous,
        lambda: port.add_vlan(1),
        lambda: port.set_queues(1),
    ]
    for call in calls:
        with pytest.raises(virtnic.PortClosed):
            call()
