"""A front-end in a process of its own, for LIFE-03: it sends frames, and waits to be killed.

Arguments: the backend's socket, its timeout in seconds, and ``split`` or ``packed``.
"""

from __future__ import annotations

import sys

from virtnic.check.clause import Bench
from virtnic.check.device import Device, frame_of


def main(path: str, timeout: str, ring: str) -> None:
    """Send 64 frames, and wait."""
    device = Device(Bench(path, timeout=float(timeout)), packed=ring == "packed")
    device.send([frame_of(number) for number in range(64)])
    sys.stdout.write("sent\n")
    sys.stdout.flush()
    sys.stdin.read()


if __name__ == "__main__":
    main(*sys.argv[1:])
