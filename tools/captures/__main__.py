"""Read public captures as libpcap does, replay those of Ethernet into a TAP, and compare.

``make captures`` runs it over those of tcpdump's own tests, many of which were made to break
readers. Prints a line for what differs, and a table; ends with 1 where something does.
"""

import argparse
import os
import sys
from collections import Counter
from pathlib import Path

import virtnic
from captures import libpcap
from peers.netns import Netns
from virtnic import capture

ETHERNET = 1
#: The kernel takes no shorter frame from a TAP, and keeps VLAN tags beside the frame.
_SHORTEST, _TAG = 14, (b"\x81\x00", b"\x88\xa8")
_WRAP = 2**32 * 10**9


def differs(ours: capture.CapturedFrame, theirs: libpcap.Record) -> str:
    """Return the differences, except for those in which libpcap is known to differ.

    It takes seconds for signed, cuts frames to the length that the file's header says, and
    believes a length on the wire that is less than what there is.
    """
    if not ours.frame.startswith(theirs.frame):
        return "bytes"
    if ours.length != max(theirs.length, len(ours.frame)) and ours.length != theirs.length:
        return "length"
    if ours.timestamp is not None and ours.timestamp < 2**63 - 1:
        apart = abs(ours.timestamp - theirs.timestamp) % (_WRAP // 1000 * 1000)
        # Fractions of more than a second, which both just add.
        if apart not in (0, _WRAP) and (ours.timestamp - theirs.timestamp) % (2**32 * 1000):
            return "time"
    return ""


def read(file: Path) -> tuple[list[capture.CapturedFrame], str]:
    """Read a file with virtnic: the frames, and the error about the rest."""
    found: list[capture.CapturedFrame] = []
    try:
        found.extend(capture.read(file))
    except ValueError as error:
        return found, str(error)
    return found, ""


def compare(file: Path) -> str:
    """Return how our reading differs from libpcap's; or nothing."""
    ours, our_error = read(file)
    theirs: list[libpcap.Record] = []
    their_error = ""
    try:
        theirs.extend(libpcap.read(file))
    except libpcap.Refused as error:
        their_error = str(error)
    if len(ours) != len(theirs):
        return f"{len(ours)} frames, libpcap {len(theirs)} ({our_error}, {their_error})"
    if bool(our_error) != bool(their_error):
        return f"{our_error or 'no error'}, libpcap {their_error or 'none'}"
    for number, (one, other) in enumerate(zip(ours, theirs, strict=True)):
        what = differs(one, other)
        if what:
            return f"{what} of frame {number}"
    return ""


def replayed(port: virtnic.Port, netns: Netns, file: Path, frames: list[bytes]) -> str:
    """Replay a file into a TAP and return how what arrives differs; or nothing."""
    with netns.packet_socket(timeout=5.0) as raw:
        capture.replay(port, file, speed="max", truncated=True)
        for number, frame in enumerate(frames):
            try:
                got = raw.recv(100_000)
            except TimeoutError:
                return f"frame {number} of {len(frames)} did not arrive"
            if got != frame:
                return f"frame {number} is another"
    return ""


def passes_a_tap(frames: list[capture.CapturedFrame]) -> bool:
    """Return whether a TAP and a raw socket pass these frames unchanged."""
    return bool(frames) and all(
        each.link_type == ETHERNET
        and _SHORTEST <= len(each.frame) <= 65_535
        and each.frame[12:14] not in _TAG
        for each in frames
    )


def main() -> int:
    """Run it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("directory", type=Path)
    parser.add_argument("--least", type=int, default=1, help="files that there must be")
    arguments = parser.parse_args()
    files = sorted(f for f in arguments.directory.iterdir() if ".pcap" in f.name)
    counts, wrong = Counter[str](), 0

    def tell(file: Path, what: str) -> None:
        nonlocal wrong
        wrong += 1
        print(f"{file.name}: {what}")

    with Netns() as netns:
        os.environ["VIRTNIC_QEMU"] = netns.qemu_command
        netns.run("ip", "link", "set", netns.tap, "mtu", "65500", "arp", "off")
        netns.run("ip", "address", "flush", "dev", netns.tap)
        memory = virtnic.Memory("32M", hugepages=None, jumbo_buffers=64)
        with virtnic.open(netns.netdev, memory=memory) as port:
            port.wait_ready()
            for file in files:
                counts["files"] += 1
                what = compare(file)
                if what:
                    tell(file, what)
                frames, error = read(file)
                counts["frames"] += len(frames)
                counts["cut or malformed"] += bool(error)
                if error or not passes_a_tap(frames):
                    continue
                counts["files replayed"] += 1
                counts["frames replayed"] += len(frames)
                what = replayed(port, netns, file, [each.frame for each in frames])
                if what:
                    tell(file, f"replayed: {what}")
    for name, count in counts.items():
        print(f"{name:<18}{count:>8}")
    print(f"{'wrong':<18}{wrong:>8}")
    return 1 if wrong or counts["files"] < arguments.least else 0


if __name__ == "__main__":
    sys.exit(main())
