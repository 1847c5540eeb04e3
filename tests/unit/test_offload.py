"""Negotiation of checksum and segmentation offloads."""

from typing import Any

import pytest

import virtnic
from peers.netns import Netns
from support.frames import numbered
from support.negotiated import accepted, offered
from virtnic import Offload

pytestmark = pytest.mark.needs("qemu", "netns")


def test_tunnels_are_seen(netns: Netns) -> None:
    """QEMU has offered them since 10.2, in bits beyond 64; they are reported and left alone."""
    with virtnic.open(netns.netdev, offload=True) as port:
        tunnels = [row for row in port.features if "TUNNEL_GSO" in row.name]
        assert [row.bit for row in tunnels] == [65, 66, 67, 68]
        assert not any(row.accepted for row in tunnels)
        says = {
            "not offered",
            "VIRTIO 1.4; the longer header that says where tunnels are is not driven",
        }
        assert {row.why for row in tunnels} <= says
    with pytest.raises(ValueError, match="HOST_UDP_TUNNEL_GSO cannot be insisted on"):
        virtnic.open(netns.netdev, features={"HOST_UDP_TUNNEL_GSO": True})


def test_without_offloads_there_is_nothing_to_know(netns: Netns) -> None:
    with virtnic.open(netns.netdev) as port, netns.packet_socket() as raw:
        assert "GUEST_CSUM" not in accepted(port)
        assert {"CSUM", "HOST_TSO4", "HOST_TSO6"} <= accepted(port)
        raw.send(numbered(netns.mac, 1))
        assert port.recv(1, timeout=20.0).offload is None
    with virtnic.open(netns.netdev, offload=True) as port, netns.packet_socket() as raw:
        raw.send(numbered(netns.mac, 1))
        burst = port.recv(1, timeout=20.0)
        assert burst.offload is not None
        assert list(burst.offload) == [Offload()]
        burst.release()
        assert len(burst.offload) == 0


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"offload": True, "jumbo_buffers": 0}, r"GUEST_TSO4.*up to 65550 bytes.*no jumbo buffers"),
        (
            {"features": {"GUEST_TSO4": True, "MRG_RXBUF": False}},
            "GUEST_TSO4 cannot be insisted on without MRG_RXBUF",
        ),
        (
            {"features": {"GUEST_TSO4": True, "GUEST_CSUM": False}},
            "GUEST_TSO4 cannot be insisted on without GUEST_CSUM",
        ),
    ],
)
def test_what_cannot_be_received(netns: Netns, options: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        virtnic.open(netns.netdev, **options)


def test_prerequisites_come_along(netns: Netns) -> None:
    with virtnic.open(netns.netdev, features={"GUEST_TSO4": True}) as port:
        assert {"GUEST_TSO4", "GUEST_CSUM", "MRG_RXBUF"} <= accepted(port)
        assert "GUEST_TSO6" not in accepted(port)
    # Preferred, but of no use without merging; and buffers that need none.
    with virtnic.open(netns.netdev, offload=True, features={"MRG_RXBUF": False}) as port:
        whys = {feature.name: feature.why for feature in port.features}
        assert "GUEST_CSUM" in accepted(port)
        assert whys["GUEST_TSO4"] == "needs MRG_RXBUF"
    memory = virtnic.Memory("32M", buffer_size=65550, jumbo_buffers=0)
    with virtnic.open(netns.netdev, memory=memory, queue_size=64, offload=True) as port:
        assert "GUEST_TSO4" in accepted(port)
        assert "MRG_RXBUF" not in accepted(port)


def test_what_is_offered_is_accepted(netns: Netns) -> None:
    """Also what no peer here makes use of: ECN, UFO and USO for IPv6, received."""
    send = {"CSUM", "HOST_TSO4", "HOST_TSO6", "HOST_ECN", "HOST_UFO", "HOST_USO"}
    receive = {f"GUEST_{name}" for name in ("CSUM", "TSO4", "TSO6", "ECN", "UFO", "USO4", "USO6")}
    for offload, wanted in ((True, send | receive), (None, send), (False, set())):
        with virtnic.open(netns.netdev, offload=offload) as port:
            assert {"GUEST_ECN", "GUEST_UFO", "HOST_ECN"} <= offered(port)
            assert accepted(port) & (send | receive) == offered(port) & wanted


def test_slirp_offers_nothing(port: virtnic.Port) -> None:
    assert not {"CSUM", "GUEST_CSUM", "HOST_TSO4"} & offered(port)


def test_offloads_are_values() -> None:
    one = Offload(checksum="needed", checksum_start=34, checksum_offset=6)
    assert one == Offload(checksum="needed", checksum_start=34, checksum_offset=6)
    assert hash(one) == hash(Offload(checksum="needed", checksum_start=34, checksum_offset=6))
    assert one != Offload()
    assert (bool(one), bool(Offload())) == (True, False)
    assert repr(one) == "Offload(checksum='needed', checksum_start=34, checksum_offset=6)"
    assert eval(repr(one)) == one
    full = Offload(
        checksum="needed",
        checksum_start=34,
        checksum_offset=16,
        segmentation="tcp6",
        segment_size=1000,
        header_length=74,
        ecn=True,
    )
    assert eval(repr(full)) == full
    assert (full.segmentation, full.ecn, full.header_length) == ("tcp6", True, 74)
    assert Offload(checksum="valid").checksum == "valid"
    assert (full.coalesced_segments, full.duplicate_acks) == (0, 0)
    with pytest.raises(AttributeError):
        one.checksum_start = 3  # type: ignore[misc]
    wrongs: list[tuple[dict[str, Any], str]] = [
        ({"checksum": "maybe"}, "checksum must be None, 'needed' or 'valid', not \"maybe\""),
        ({"segmentation": "sctp"}, "segmentation must be None, 'tcp4'"),
        ({"segment_size": 65536}, "segment_size must be 0 to 65535, not 65536"),
        ({"checksum_start": -1}, "checksum_start must be 0 to 65535, not -1"),
    ]
    for wrong, says in wrongs:
        with pytest.raises(ValueError, match=says):
            Offload(**wrong)
