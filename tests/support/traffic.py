"""Send traffic through ports, for tests of switches and backends."""

import time

import virtnic
from support.frames import arp_request, is_arp_reply, numbered

#: No frame of a test has this number.
_PROBE = numbered("03:00:00:00:00:01", 0xFFFFFFFF)  # a multicast source: no bridge learns it


def arp_works(port: virtnic.Port, seconds: float = 20.0) -> bool:
    """Return whether slirp's gateway answers an ARP request in time."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        port.send([arp_request(port.mac)])
        if any(is_arp_reply(frame) for frame in port.recv(64, timeout=0.2).tobytes()):
            return True
    return False


def echo(port: virtnic.Port, count: int, in_flight: int = 256, seconds: float = 30.0) -> None:
    """Send numbered frames of many lengths to a peer that swaps addresses; all must come back."""
    sent = [numbered(port.mac, number, 60 + number % 1400) for number in range(count)]
    got: list[bytes] = []
    queued = 0
    deadline = time.monotonic() + seconds
    while len(got) < count:
        assert time.monotonic() < deadline, f"{queued} sent, {len(got)} came back: {port.stats()}"
        if room := min(in_flight - (queued - len(got)), 64):
            queued += port.send(sent[queued : queued + room])
        got += port.recv(256, timeout=0.0 if queued < count else 1.0).tobytes()
    assert got == [frame[6:12] + frame[:6] + frame[12:] for frame in sent]


def drain(port: virtnic.Port, quiet: float = 0.2, least: int = 0) -> list[bytes]:
    """Receive until nothing comes any more; wait longer for the first ``least`` frames."""
    got: list[bytes] = []
    while burst := port.recv(256, timeout=quiet if len(got) >= least else 20.0):
        got += burst.tobytes()
    return got


def settle(a: virtnic.Port, b: virtnic.Port, seconds: float = 30.0) -> None:
    """Return once the peer between two ports forwards both ways and no frame is in flight.

    A backend learns of DRIVER_OK some time after we wrote it; what a switch has for a
    port that is not up yet is lost, as on any wire.
    """
    deadline = time.monotonic() + seconds
    for source, sink in ((a, b), (b, a)):
        source.send([_PROBE])
        while not sink.recv(64, timeout=0.2):
            assert time.monotonic() < deadline, f"nothing comes through to {sink}"
            source.send([_PROBE])
    while drain(a, 0.3) or drain(b, 0.3):
        pass
