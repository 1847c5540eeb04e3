"""scapy on a port, with real peers."""

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

import virtnic
from peers.netns import Netns
from peers.testpmd import Testpmd
from support.frames import GATEWAY, GUEST
from support.traffic import settle
from support.waiting import PROMPT, eventually

pytest.importorskip("scapy")

from scapy.config import conf
from scapy.layers.inet import ICMP, IP, UDP
from scapy.layers.l2 import ARP, Dot1Q, Ether
from scapy.packet import Packet, Raw
from scapy.plist import PacketList
from scapy.sendrecv import AsyncSniffer, bridge_and_sniff, sniff
from scapy.supersocket import SuperSocket

from virtnic.integrations.scapy import VirtnicSocket

pytestmark = pytest.mark.needs("qemu")


@pytest.fixture(autouse=True)
def quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    """scapy prints what it does."""
    monkeypatch.setattr(conf, "verb", 0)


@pytest.fixture
def small(qemu_command: str) -> virtnic.Memory:
    """Memory enough for what scapy does."""
    return virtnic.Memory("8M", hugepages=None, jumbo_buffers=16)


def echoes(source: str, mac: str, ours: str, target: str, count: int) -> PacketList:
    """Return echo requests that differ in their sequence number."""
    head = Ether(src=source, dst=mac) / IP(src=ours, dst=target)
    return PacketList([head / ICMP(id=77, seq=number) / b"virtnic" for number in range(count)])


def test_arp_and_a_thousand_echoes_by_slirp(small: virtnic.Memory) -> None:
    """Each is answered, and its answer has a time after that at which it was sent."""
    with virtnic.open("user", memory=small) as port, VirtnicSocket(port) as sock:
        began = time.time_ns()
        broadcast = Ether(src=port.mac, dst="ff:ff:ff:ff:ff:ff")
        who = ARP(hwsrc=port.mac, psrc=GUEST, pdst=GATEWAY)
        reply: Any = sock.sr1(broadcast / who, timeout=30)
        assert reply[ARP].psrc == GATEWAY
        assert began <= int(reply.time * 10**9) <= time.time_ns()

        sent = echoes(port.mac, reply[ARP].hwsrc, GUEST, GATEWAY, 1000)
        answered, unanswered = sock.sr(sent, timeout=60)
        assert (len(answered), len(unanswered)) == (1000, 0)
        assert all(answer[ICMP].seq == query[ICMP].seq for query, answer in answered)
        assert all(answer.time > (query.sent_time or 0) for query, answer in answered)
        assert sock.drops == {}
        assert repr(sock) == f"<VirtnicSocket {port.mac}>"


@pytest.mark.needs("netns")
@pytest.mark.parametrize("interrupts", ["msix", "none"])
def test_the_kernel_answers_a_thousand(
    netns: Netns, small: virtnic.Memory, interrupts: Any
) -> None:
    count = 1000 if interrupts == "msix" else 100
    with (
        virtnic.open(netns.netdev, memory=small, interrupts=interrupts) as port,
        VirtnicSocket(port) as sock,
    ):
        port.wait_ready()
        netns.run("ip", "neigh", "add", "10.99.0.2", "lladdr", port.mac, "dev", netns.tap)
        sent = echoes(port.mac, netns.mac, "10.99.0.2", netns.address, count)
        answered, _ = sock.sr(sent, timeout=60)
        assert len(answered) == count
        assert sock.drops == {}


@pytest.fixture
def echo(testpmd: Callable[..., Testpmd], small: virtnic.Memory) -> Iterator[virtnic.Port]:
    """A port whose backend sends every frame back, with its addresses exchanged."""
    pmd = testpmd(extra=("--port-topology=loop", "--no-flush-rx"))
    netdev = f"vhost-user,path={pmd.sockets[0]}"
    with virtnic.open(netdev, memory=small, queue_size=256) as port:
        port.wait_ready(30)
        yield port


class PacketGenerator:
    """A test's interface in the style of VPP's: a stream is loaded, started, and captured."""

    def __init__(self, sock: SuperSocket) -> None:
        self._sock, self._stream = sock, PacketList()
        self._capture: Any = None

    def add_stream(self, packets: PacketList) -> None:
        self._stream = packets

    def enable_capture(self) -> None:
        started = threading.Event()
        self._capture = AsyncSniffer(
            opened_socket=self._sock,
            started_callback=started.set,
            lfilter=lambda packet: UDP in packet,  # not what `wait_ready` sent
        )
        self._capture.start()
        assert started.wait(30)

    def start(self) -> None:
        for packet in self._stream:
            self._sock.send(packet)

    def get_capture(self, expected: int) -> Any:
        assert eventually(lambda: self._capture.count >= expected, 30)
        return self._capture.stop()


@pytest.mark.needs("testpmd")
def test_a_stream_is_captured_as_in_tests_of_vpp(echo: virtnic.Port) -> None:
    """Every packet once and in order, VLAN tags and all bytes of long ones included."""
    packets = PacketList()
    for number in range(300):
        frame: Any = Ether(src=echo.mac, dst="02:00:00:00:00:09")
        if number % 3 == 0:
            frame /= Dot1Q(vlan=100 + number) / Dot1Q(vlan=7)
        frame /= IP(src="192.0.2.1", dst="192.0.2.2") / UDP(sport=1000 + number, dport=9)
        packets.append(frame / Raw(bytes(number % 256 for _ in range(number * 5))))
    with VirtnicSocket(echo) as sock:
        pg = PacketGenerator(sock)
        pg.add_stream(packets)
        pg.enable_capture()
        pg.start()
        captured = pg.get_capture(len(packets))
        assert sock.drops == {}
    assert len(captured) == len(packets)
    for sent, got in zip(packets, captured, strict=True):
        raw = bytes(sent)
        assert bytes(got) == raw[6:12] + raw[:6] + raw[12:]
        assert [tag.vlan for tag in got.iterpayloads() if isinstance(tag, Dot1Q)] == [
            tag.vlan for tag in sent.iterpayloads() if isinstance(tag, Dot1Q)
        ]


@pytest.mark.needs("netns")
def test_jumbo_frames_pass(netns: Netns, small: virtnic.Memory) -> None:
    netns.run("ip", "link", "set", netns.tap, "mtu", "9000")
    with virtnic.open(netns.netdev, memory=small) as port, VirtnicSocket(port) as sock:
        port.wait_ready()
        netns.run("ip", "neigh", "add", "10.99.0.2", "lladdr", port.mac, "dev", netns.tap)
        ping = echoes(port.mac, netns.mac, "10.99.0.2", netns.address, 1)[0] / Raw(bytes(8900))
        reply: Any = sock.sr1(ping, timeout=30)
        assert bytes(reply[ICMP].payload) == bytes(ping[ICMP].payload)
        with pytest.raises(ValueError, match="the largest buffer holds"):
            sock.send(Ether() / Raw(bytes(70_000)))


@pytest.fixture
def pair(small: virtnic.Memory) -> Iterator[tuple[virtnic.Port, virtnic.Port]]:
    """Two ports with a wire between them."""
    with virtnic.Qemu(memory=small, accel="auto") as qemu:
        left = qemu.attach({"type": "hubport", "hubid": 7})
        right = qemu.attach({"type": "hubport", "hubid": 7})
        settle(left, right)
        yield left, right


def numbers(count: int, first: int = 0) -> list[Packet]:
    """Return packets with a number each."""
    return [
        Ether(src="02:00:00:00:00:01", dst="02:00:00:00:00:02", type=0x88B5)
        / Raw(number.to_bytes(4, "big") + bytes(42))
        for number in range(first, first + count)
    ]


def number(packet: Packet) -> int:
    """Return a packet's number."""
    return int.from_bytes(bytes(packet)[14:18], "big")


def test_sniff_counts_filters_and_stops(pair: tuple[virtnic.Port, virtnic.Port]) -> None:
    left, right = map(VirtnicSocket, pair)
    with left, right:
        for packet in numbers(20):
            left.send(packet)
        assert [number(p) for p in right.sniff(count=5, timeout=30)] == [0, 1, 2, 3, 4]
        # What was kept for scapy is there for the next call, and for a plain select.
        assert SuperSocket.select([left, right], 30) == [right]
        odd = right.sniff(count=5, timeout=30, lfilter=lambda p: number(p) % 2)
        assert [number(p) for p in odd] == [5, 7, 9, 11, 13]
        until = right.sniff(stop_filter=lambda p: number(p) == 17, timeout=30)
        assert [number(p) for p in until] == [14, 15, 16, 17]
        assert len(right.sniff(count=2, timeout=30)) == 2
        assert SuperSocket.select([left, right], 0) == []
        assert right.recv() is None
        assert len(right.sniff(timeout=0.05)) == 0
        sniffer: Any = AsyncSniffer(opened_socket=right)
        sniffer.start()
        assert eventually(lambda: sniffer.running)
        left.send(numbers(1, 99)[0])
        assert eventually(lambda: sniffer.count == 1)
        assert [number(p) for p in sniffer.stop()] == [99]


def test_two_ports_are_bridged(
    pair: tuple[virtnic.Port, virtnic.Port], small: virtnic.Memory
) -> None:
    """Between them a program that looks at every packet, and changes some."""
    with virtnic.Qemu(memory=small) as qemu:
        far = qemu.attach({"type": "hubport", "hubid": 8})
        end = qemu.attach({"type": "hubport", "hubid": 8})
        settle(far, end)
        left, inner, outer, right = (VirtnicSocket(port) for port in (*pair, far, end))

        def renumbered(packet: Packet) -> Packet | bool:
            if number(packet) % 2:
                return False
            packet[Raw].load = (number(packet) + 1000).to_bytes(4, "big") + packet[Raw].load[4:]
            return packet

        def bridge() -> None:
            call: Any = bridge_and_sniff  # its types know of names only
            call(inner, outer, xfrm12=renumbered, store=False, count=21)

        thread = threading.Thread(target=bridge)
        thread.start()
        for packet in numbers(20):
            left.send(packet)
        got = right.sniff(count=10, timeout=30)
        assert [number(p) for p in got] == [number + 1000 for number in range(0, 20, 2)]
        right.send(numbers(1, 5)[0])
        assert [number(p) for p in left.sniff(count=1, timeout=30)] == [5]
        thread.join(30)
        assert not thread.is_alive()
        for sock in (left, inner, outer, right):
            sock.close()


@pytest.mark.needs("netns")
def test_a_port_is_bridged_to_a_socket_of_scapys(netns: Netns, small: virtnic.Memory) -> None:
    """The one select for both is that of scapy's own socket."""
    from scapy.arch.linux import L2Socket

    with virtnic.Qemu(memory=small) as qemu:
        port = qemu.attach(netns.netdev)
        port.wait_ready()
        ours = VirtnicSocket(port)
        netns.wait_for_carrier()
        theirs = netns.inside(lambda: L2Socket(iface=netns.tap))
        with ours, theirs:
            for packet in numbers(3):
                theirs.send(packet)
                ours.send(packet)
            both = sniff(
                opened_socket={theirs: "kernel", ours: "port"},
                lfilter=lambda p: p.type == 0x88B5 and p.sniffed_on == "port",
                count=3,
                timeout=30,
            )
            assert [number(p) for p in both] == [0, 1, 2]


@pytest.mark.parametrize("end", ["close", "kill"])
def test_the_end_of_a_port_ends_what_scapy_does(
    small: virtnic.Memory, end: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Soon, in all threads, and no thread of scapy's dies of it."""
    failed: list[Any] = []
    threading.excepthook, before = failed.append, threading.excepthook
    try:
        with virtnic.open("user", memory=small) as port:
            sock = VirtnicSocket(port)
            sniffer = AsyncSniffer(opened_socket=sock)
            sniffer.start()
            assert eventually(lambda: sniffer.running)
            if end == "close":
                port.close()
            else:
                os.kill(port.qemu.pid, signal.SIGKILL)
            sniffer.join(PROMPT)
            assert not sniffer.running
            assert sniffer.exception is None
            assert sock.closed
            error = virtnic.PortClosed if end == "close" else virtnic.QemuDied
            with pytest.raises(error):
                sock.send(numbers(1)[0])
            with pytest.raises(EOFError):
                sock.recv()
    finally:
        threading.excepthook = before
    assert not failed
    assert ("QEMU" in caplog.text) == (end == "kill")


def test_a_signal_handler_closes_a_socket_that_receives(small: virtnic.Memory) -> None:
    """In the middle of it: it does not wait for what it interrupted."""

    class Interrupted:
        def __init__(self, port: virtnic.Port) -> None:
            self._port = port

        def __getattr__(self, name: str) -> Any:
            return getattr(self._port, name)

        def recv(self, *arguments: Any, **options: Any) -> Any:
            os.kill(os.getpid(), signal.SIGUSR1)
            [None for _ in range(1000)]  # the handler has run by now
            return self._port.recv(*arguments, **options)

    with virtnic.open("user", memory=small) as port:
        socket = VirtnicSocket(port)
        before = signal.signal(signal.SIGUSR1, lambda *_: socket.close())
        try:
            socket.port = Interrupted(port)  # type: ignore[assignment]
            with pytest.raises(EOFError):
                socket.recv_raw()
            assert socket.closed
            assert socket.pending
        finally:
            signal.signal(signal.SIGUSR1, before)


def test_a_request_whose_port_ends_does_not_wait(small: virtnic.Memory) -> None:
    with virtnic.open("user", memory=small) as port:
        sock = VirtnicSocket(port)
        nobody = Ether(dst="ff:ff:ff:ff:ff:ff") / ARP(psrc=GUEST, pdst="10.0.2.77")
        answers: list[object] = []
        thread = threading.Thread(target=lambda: answers.append(sock.sr1(nobody)))
        thread.start()
        assert eventually(lambda: port.stats()["tx_packets"] > 0)
        port.close()
        thread.join(PROMPT)
        assert not thread.is_alive()
        assert answers == [None]


def test_a_packet_without_room_is_counted_and_told_of(
    small: virtnic.Memory, caplog: pytest.LogCaptureFixture
) -> None:
    """QEMU stands still, so that nothing leaves the ring."""
    with virtnic.open("user", memory=small) as port:
        sock = VirtnicSocket(port, send_timeout=0.01)
        packet = numbers(1)[0]
        os.kill(port.qemu.pid, signal.SIGSTOP)
        try:
            while sock.send(packet):
                pass
            assert sock.send(packet) == 0
            assert sock.drops == {"tx_no_room": 2}
            assert "2 tx_no_room" in repr(sock)
            assert caplog.text.count("no room in the transmit ring") == 1
        finally:
            os.kill(port.qemu.pid, signal.SIGCONT)
        sock.close()
        assert "2 tx_no_room" in caplog.text
