"""Frames between ports of Open vSwitch with DPDK. Each test has a bridge of its own."""

import pytest

#: From the first port to the second one: type 0x88b5 is for experiments, and a number follows.
FRAMES = [
    bytes.fromhex("020000000002 020000000001 88b5") + number.to_bytes(46, "big")
    for number in range(1000)
]


def received(port, count):
    """Return so many frames of a port, or fewer when none comes for two seconds."""
    frames = []
    while len(frames) < count and (burst := port.recv(count - len(frames), timeout=2.0)):
        frames += burst.tobytes()
    return frames


def test_the_switch_forwards(virtnic_ovs):
    a, b = virtnic_ovs.ports
    for start in range(0, len(FRAMES), 100):
        part = FRAMES[start : start + 100]
        a.send_all(part, timeout=5.0)
        assert received(b, len(part)) == part


def test_a_flow_decides(virtnic_ovs):
    a, b = virtnic_ovs.ports
    virtnic_ovs.add_flow(f"in_port={virtnic_ovs.number(a)},actions=mod_vlan_vid:7,NORMAL")
    a.send_all(FRAMES[:1], timeout=5.0)
    (frame,) = received(b, 1)
    assert frame[12:16] == bytes.fromhex("8100 0007")


@pytest.mark.virtnic(ports=3)
def test_a_known_address_goes_to_its_port_only(virtnic_ovs):
    a, b, c = virtnic_ovs.ports
    b.send_all([bytes(6) + FRAMES[0][:6] + FRAMES[0][12:]], timeout=5.0)
    assert len(received(a, 1)) == len(received(c, 1)) == 1  # flooded; now b is known
    a.send_all(FRAMES[:10], timeout=5.0)
    assert received(b, 10) == FRAMES[:10]
    assert len(c.recv(1)) == 0
