"""Each netdev of the table: 10,000 numbered frames each way, byte for byte, and a lost peer."""

import contextlib
from pathlib import Path

import pytest

import virtnic
from peers.netdevs import NOWHERE, PEERS, Bench, Peer
from support.frames import number_of, numbered
from support.waiting import eventually
from virtnic import net
from virtnic.qemu import find_qemu
from virtnic.qemu.netdevs import NETDEVS, NetdevType
from virtnic.qemu.schema import Schema

pytestmark = pytest.mark.needs("qemu")

FRAMES = 10_000
#: Frames on the way at the same time: datagrams that find no room are lost, by design.
ON_THE_WAY = 32


def test_every_row_has_a_peer_or_a_reason() -> None:
    assert {row.name for row in NETDEVS} == PEERS.keys() | NOWHERE.keys()
    assert not PEERS.keys() & NOWHERE.keys()
    assert {row.name for row in NETDEVS if "not tried" in row.loses} == NOWHERE.keys()


@pytest.mark.parametrize(
    "row", [row for row in NETDEVS if row.name not in NOWHERE], ids=lambda row: row.name
)
def test_frames_and_a_lost_peer(row: NetdevType, qemu_command: str, scratch: Path) -> None:
    (entities,) = find_qemu(qemu_command).ask("query-qmp-schema")
    if row.name not in Schema(entities).choices("netdev_add"):
        assert row.since, "a QEMU has not got it, and the table does not say since when"
        pytest.skip(f"this QEMU has no netdev {row.name}: {row.since}")
    with contextlib.ExitStack() as stack:
        peer = PEERS[row.name](Bench(scratch, stack))
        memory = virtnic.Memory("8M", hugepages=None)
        qemu = stack.enter_context(virtnic.Qemu(memory, **{"qemu": qemu_command, **peer.qemu}))
        with qemu.attach(peer.netdev) as port:
            events = qemu.events()
            peer.meet(port)
            exchange(port, peer)
            peer.kill()
            lost = what_is_told(events)
            assert lost == row.tells, f"{lost}, link {port.link}"
            assert port.link is ("link-down" not in lost)
            # The port goes on, or says what is wrong; the QEMU stays.
            with contextlib.suppress(virtnic.VirtnicError, TimeoutError):
                port.send_all([peer.wrap(numbered(port.mac, 1))], timeout=1.0)
            assert qemu.execute("query-status")
        if words := dies_of(row.name, qemu.version):
            assert eventually(lambda: words in state(qemu))
            return
        with qemu.attach("user") as another:
            net.Stack(another, dhcp=True, timeout=30.0).close()


def dies_of(netdev: str, version: tuple[int, ...]) -> str:
    """Return how a QEMU dies when a port is closed whose peer is lost: notes of the table."""
    if netdev == "passt" and version[:2] == (11, 1):
        return "SIGSEGV"
    if netdev == "tap" and version[:2] == (10, 0):
        return "TUNSETVNETHDRSZ ioctl() failed"
    return ""


def state(qemu: virtnic.Qemu) -> str:
    """Return how a QEMU died; empty if it lives."""
    try:
        qemu.execute("query-status")
    except virtnic.QemuDied as error:
        return str(error)
    return ""


def exchange(port: virtnic.Port, peer: Peer) -> None:
    """Send frames of all lengths to the peer, and then those that come back."""
    span = peer.longest - 59
    sent = [numbered(port.mac, n, 60 + n % span) for n in range(FRAMES)]
    got: list[bytes] = []
    while len(got) < FRAMES:
        part = sent[len(got) : len(got) + ON_THE_WAY]
        port.send_all([peer.wrap(frame) for frame in part], timeout=30.0)
        wanted = len(got) + len(part)
        while len(got) < wanted:
            frame = peer.receive()
            if number_of(frame) is not None:
                got.append(frame)
    assert got == sent
    back: list[bytes] = []
    while len(back) < FRAMES:
        part = sent[len(back) : len(back) + ON_THE_WAY]
        for frame in part:
            peer.send(frame)
        wanted = len(back) + len(part)
        while len(back) < wanted:
            burst = port.recv(wanted - len(back), timeout=30.0)
            assert burst, f"{len(back)} of {FRAMES} came: {port.stats()}"
            payloads = map(peer.unwrap, burst.tobytes())
            back += [each for each in payloads if number_of(each) is not None]
    assert back == sent


def what_is_told(events: virtnic.Events) -> set[str]:
    """Return the kinds of events that come when a peer is lost."""
    kinds: set[str] = set()
    with contextlib.suppress(TimeoutError):
        while event := events.wait(1.0):
            kinds.add(event.kind)
    return kinds
