"""DPDK's testpmd on both sides of a vhost-user socket.

The backend is testpmd's vhost device, the one thing all frontends are measured against.
One of these frontends is testpmd as well, with DPDK's virtio-user device ("Virtio_user for
Container Networking" in DPDK's documentation).
"""

import re
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from peers.process import mortal
from peers.testpmd import Testpmd

#: Frames in flight where frames circulate: half a ring, so that none is ever lost.
CIRCULATING = 512
#: testpmd's own burst, which it primes by.
BURST = 32
#: Entries of every ring.
RING_SIZE = 1024


@dataclass(frozen=True)
class Rates:
    """Frames a second through all ports, counted and timed by that testpmd itself."""

    rx: float
    tx: float


class _Console(Testpmd):
    """Commands that both sides understand."""

    def mode(self, mode: str, size: int, prime: int = 0, ports: Sequence[int] = (0,)) -> None:
        """Stop, and start in another forwarding mode, first sending ``prime`` frames a port."""
        self.command("stop")
        self.command(f"set portlist {','.join(map(str, ports))}")
        self.command(f"set fwd {mode}")
        self.command(f"set txpkts {size}")
        self.command(f"start tx_first {prime // BURST}" if prime else "start")

    def rates(self, seconds: float) -> Rates:
        """Measure: the counters' difference over the time between two looks, by its clock."""
        self.command("show port stats all")
        time.sleep(seconds)
        found = re.findall(r"([RT]x)-pps: +(\d+)", self.command("show port stats all"))
        rx, tx = (sum(float(rate) for name, rate in found if name == way) for way in ("Rx", "Tx"))
        return Rates(rx, tx)


class Backend(_Console):
    """testpmd's vhost device."""

    def __init__(self, sockets: Sequence[Path | str], *, mode: str, cores: tuple[int, int]) -> None:
        """Start it. ``cores``: of its control thread, and of the worker that polls."""
        # Its log would come in between what it answers.
        quiet = ("--mask-event=all",)
        super().__init__(sockets, mode=mode, cores=cores, ring_size=RING_SIZE, extra=quiet)
        self.command("set log lib.vhost.config 4")


class VirtioUser(_Console):
    """testpmd's virtio-user device: DPDK's own driver of these rings, a process of its own."""

    def __init__(
        self,
        sockets: Sequence[Path | str],
        *,
        packed: bool,
        cores: tuple[int, int],
        hugepages: bool = True,
        timeout: float = 30.0,
    ) -> None:
        """Connect. ``cores``: of its control thread, and of the worker that polls."""
        self.sockets = []  # the backend's, not to be removed here
        self._timeout = timeout
        self._output = b""
        self._files = None  # it keeps none (--in-memory)
        control, worker = cores
        devices = [
            f"--vdev=net_virtio_user{number},path={path},queues=1,"
            f"queue_size={RING_SIZE},packed_vq={int(packed)}"
            for number, path in enumerate(sockets)
        ]
        # fmt: off
        argv = [
            "stdbuf", "-oL",
            "dpdk-testpmd", "--lcores", f"0@{control},1@{worker}", "--main-lcore", "0",
            # Else the backend would have to map more regions than vhost-user allows.
            "--single-file-segments",
            "-m", "256", "--no-pci", "--no-telemetry", "--file-prefix=virtio-user",
            "--in-memory" if hugepages else "--no-huge", *devices, "--",
            "-i", "--forward-mode=io", "--nb-cores=1", "--no-lsc-interrupt",
            "--disable-link-check", f"--rxd={RING_SIZE}", f"--txd={RING_SIZE}",
            "--total-num-mbufs=16384",
        ]
        # fmt: on
        self._process = subprocess.Popen(
            mortal(argv), stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )
        try:
            self._read_to_prompt(after=b"")
        except BaseException:
            self.kill()
            raise
