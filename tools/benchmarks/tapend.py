"""The programs that ``tap`` compares: ``python -m benchmarks.tapend WHO WAY TAP SIZE SECONDS``.

WHO is ``plain`` (the TAP device by os.read and os.write), ``virtnic``, or ``kernel`` (a
packet socket: what makes the frames to receive). Says ``ready``, waits for a line, runs,
and prints how many frames it moved in how many seconds.
"""

import fcntl
import json
import os
import socket
import struct
import sys
import time
from collections.abc import Callable

from support.frames import numbered

TUNSETIFF = 0x400454CA
IFF_TAP, IFF_NO_PI = 0x0002, 0x1000
#: Turns between looks at the clock.
STRIDE = 64
SOURCE = "02:00:00:00:00:01"


def repeat(seconds: float, turn: Callable[[], int]) -> tuple[int, float]:
    """Repeat until the time is over."""
    frames = 0
    began = now = time.perf_counter()
    while now - began < seconds:
        for _ in range(STRIDE):
            frames += turn()
        now = time.perf_counter()
    return frames, now - began


def plain(way: str, tap: str, size: int) -> Callable[[], int]:
    """One system call per frame."""
    # tuntap.rst, section 3: open the clone device, then say which interface.
    file = os.open("/dev/net/tun", os.O_RDWR)
    fcntl.ioctl(file, TUNSETIFF, struct.pack("16sH22x", tap.encode(), IFF_TAP | IFF_NO_PI))
    frames = [numbered(SOURCE, number, size) for number in range(256)]

    def send() -> int:
        for frame in frames:
            os.write(file, frame)
        return len(frames)

    def receive() -> int:
        os.read(file, 2048)
        return 1

    return send if way == "send" else receive


def ours(way: str, tap: str, size: int) -> Callable[[], int]:
    """A list of bytes objects in, a list of bytes objects out: what the plain program has."""
    import virtnic

    port = virtnic.open(f"tap,ifname={tap},script=no,downscript=no")
    frames = [numbered(SOURCE, number, size) for number in range(256)]

    def send() -> int:
        return port.send(frames)

    def receive() -> int:
        return len(port.recv(256, timeout=0.1).tobytes())

    return send if way == "send" else receive


def kernel(_way: str, tap: str, size: int) -> Callable[[], int]:
    """Send through a packet socket, past the queueing discipline."""
    raw = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
    raw.setsockopt(263, 20, 1)  # SOL_PACKET, PACKET_QDISC_BYPASS (packet(7))
    raw.bind((tap, 0))
    frame = numbered(SOURCE, 0, size)

    def send() -> int:
        try:
            raw.send(frame)
        except OSError:  # the device's queue is full
            time.sleep(0)
        return 1

    return send


def main() -> None:
    """Run one of them."""
    who, way, tap, size, seconds = sys.argv[1:]
    makers = {"plain": plain, "virtnic": ours, "kernel": kernel}
    turn = makers[who](way, tap, int(size))
    print("ready", flush=True)
    if not sys.stdin.readline():
        return
    frames, passed = repeat(float(seconds), turn)
    print(json.dumps({"frames": frames, "seconds": passed}), flush=True)


if __name__ == "__main__":
    main()
