"""Traffic between a port and the kernel behind its TAP, and the kernel's threads for it."""

import random
from pathlib import Path

import virtnic
from peers.netns import Netns, PingResult
from support.frames import number_of, numbered

VHOST = "/dev/vhost-net"
#: What may be on its way at a time: less than any ring here holds.
_IN_FLIGHT = 64


def _frames(mac: str, count: int) -> list[bytes]:
    lengths = random.Random(count)
    return [numbered(mac, number, lengths.randint(60, 1514)) for number in range(count)]


def from_the_port(port: virtnic.Port, netns: Netns, count: int) -> None:
    """All arrive at a raw socket on the TAP; in order if there is one queue pair."""
    sent, got = _frames(port.mac, count), list[bytes]()
    with netns.packet_socket() as raw:
        queued = 0
        while len(got) < count:
            if queued < min(count, len(got) + _IN_FLIGHT):
                queued += port.send(sent[queued : len(got) + _IN_FLIGHT])
            while len(got) < queued:
                frame = raw.recv(4096)
                if number_of(frame) is not None:
                    got.append(frame)
    assert got == sent
    port.reclaim()


def to_the_port(port: virtnic.Port, netns: Netns, count: int) -> None:
    """All that a raw socket sends on the TAP arrive."""
    sent, got = _frames(netns.mac, count), list[bytes]()
    with netns.packet_socket() as raw:
        queued = 0
        while len(got) < count:
            for frame in sent[queued : len(got) + _IN_FLIGHT]:
                raw.send(frame)
                queued += 1
            burst = port.recv(64, timeout=20.0)
            assert burst, f"{queued} sent, {len(got)} received: {port.stats()}"
            got += (frame for frame in burst.tobytes() if number_of(frame) is not None)
    assert sorted(got) == sorted(sent) if port.queues > 1 else got == sent


def both_ways(port: virtnic.Port, netns: Netns, count: int = 10_000) -> None:
    """Frames of all lengths go each way, and none is lost or changed."""
    netns.wait_for_carrier()
    from_the_port(port, netns, count)
    to_the_port(port, netns, count)


def vhost_threads() -> set[str]:
    """The kernel's threads that move frames; each is named after the process that it serves."""
    found = set()
    for comm in Path("/proc").glob("[0-9]*/task/[0-9]*/comm"):
        try:
            if comm.read_text().startswith("vhost-"):
                found.add(comm.parent.name)
        except OSError:
            continue
    return found


def answer_pings(port: virtnic.Port, peer: Netns, count: int) -> None:
    """Our stack answers echo requests of the kernel; on a busy machine too late for some."""
    with virtnic.net.Stack(port) as stack:
        stack.configure("10.99.0.2/24")
        with peer.start_ping("10.99.0.2", count) as ping:
            assert ping.stdout is not None
            result = PingResult(ping.stdout.read())
    assert result.sent == count, result.output
    assert result.received, result.output
