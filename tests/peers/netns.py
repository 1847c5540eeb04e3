"""A network namespace with a TAP device: the Linux kernel as the peer.

QEMU runs inside the namespace (``qemu_command``), so that the TAP it opens is the
namespace's and nothing of the machine's own network is touched. Sockets for the
tests are made inside as well: a socket belongs to the namespace that it was made in.
"""

import ctypes
import itertools
import os
import re
import shlex
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Sequence
from typing import TypeVar

from peers.closing import Closing

from .components import qemu_command
from .process import mortal, run

#: Seconds that a busy kernel may take to notice a carrier.
_LONGEST = 30.0
CLONE_NEWNET = 0x40000000
ETH_P_ALL = 0x0003
SO_RCVBUFFORCE = 33
_numbers = itertools.count()
T = TypeVar("T")


class PingResult:
    """The counters of ping(8)."""

    def __init__(self, output: str) -> None:
        """Parse ping's summary."""
        match = re.search(r"(\d+) packets transmitted, (\d+) received", output)
        if match is None:
            raise RuntimeError(f"ping said: {output}")
        self.sent, self.received = int(match[1]), int(match[2])
        self.output = output


class Netns(Closing):
    """A network namespace with a TAP device, an address and nothing else."""

    def __init__(self, tap: str = "tap0", address: str = "10.99.0.1/24", queues: int = 1) -> None:
        """Make it. The TAP stays when no one has it open, so its counters can be read."""
        self.name = f"vt-{os.getpid()}-{next(_numbers)}"
        self.tap = tap
        self.address = address.partition("/")[0]
        self.queues = queues
        self.qemu_command = f"ip netns exec {shlex.quote(self.name)} {qemu_command()}"
        """The command line that starts QEMU inside (for VIRTNIC_QEMU)."""
        run(["ip", "netns", "add", self.name])
        try:
            # Without this the kernel sends router solicitations of its own. (No sysctl(8):
            # it is not everywhere.)
            for scope in ("all", "default"):
                file = f"/proc/sys/net/ipv6/conf/{scope}/disable_ipv6"
                self.run("sh", "-c", f"[ ! -e {file} ] || echo 1 > {file}")
            self.run("ip", "link", "set", "lo", "up")
            several = ["multi_queue"] if queues > 1 else []
            # QEMU opens its TAPs with a vnet header where it can: same flags, same device.
            self.run("ip", "tuntap", "add", "dev", tap, "mode", "tap", "vnet_hdr", *several)
            self.run("ip", "address", "add", address, "dev", tap)
            self.run("ip", "link", "set", tap, "up")
        except BaseException:
            self.close()
            raise

    @property
    def netdev(self) -> str:
        """The -netdev that opens the TAP."""
        return f"tap,ifname={self.tap},script=no,downscript=no"

    @property
    def mac(self) -> str:
        """The TAP's own MAC address."""
        return self.run("cat", f"/sys/class/net/{self.tap}/address").strip()

    def run(self, *argv: str, timeout: float = 30.0) -> str:
        """Run a command inside and return its output."""
        return run(["ip", "netns", "exec", self.name, *argv], timeout)

    def popen(self, argv: Sequence[str]) -> subprocess.Popen[str]:
        """Start a command inside; its output is a pipe."""
        return subprocess.Popen(
            mortal(["ip", "netns", "exec", self.name, *argv]),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def statistics(self) -> dict[str, int]:
        """Return the TAP's counters: rx is what the namespace's kernel received."""
        names = [
            f"{way}_{what}" for way in ("rx", "tx") for what in ("packets", "bytes", "dropped")
        ]
        files = [f"/sys/class/net/{self.tap}/statistics/{name}" for name in names]
        return dict(zip(names, map(int, self.run("cat", *files).split()), strict=True))

    def ping(
        self, target: str, count: int = 10, interval: float = 0.002, timeout: float = 60.0
    ) -> PingResult:
        """Let the kernel ping an address."""
        with self.start_ping(target, count, interval) as process:
            try:
                output, _ = process.communicate(timeout=timeout)
            except BaseException:
                process.kill()
                raise
        return PingResult(output)

    def start_ping(self, target: str, count: int, interval: float = 0.002) -> subprocess.Popen[str]:
        """Start the kernel's pings; give the output to PingResult."""
        self.wait_for_carrier()
        return self.popen(
            ["ping", "-n", "-q", "-c", str(count), "-i", str(interval), "-W", "1", target]
        )

    def open_socket(
        self,
        family: int = socket.AF_INET,
        kind: int = socket.SOCK_DGRAM,
        protocol: int = 0,
    ) -> socket.socket:
        """Return a socket of the namespace."""
        return self.inside(lambda: socket.socket(family, kind, protocol))

    def inside(self, call: Callable[[], T]) -> T:
        """Call something in the namespace: what it opens there belongs to that."""
        made: list[T] = []
        failed: list[BaseException] = []

        def run() -> None:
            # A thread of its own: setns moves one thread, and this one ends here.
            try:
                with open(f"/run/netns/{self.name}", "rb") as namespace:  # noqa: PTH123
                    libc = ctypes.CDLL(None, use_errno=True)
                    if libc.setns(namespace.fileno(), CLONE_NEWNET) != 0:
                        code = ctypes.get_errno()
                        raise OSError(code, os.strerror(code), f"setns to {self.name}")
                made.append(call())
            except BaseException as error:
                failed.append(error)

        thread = threading.Thread(target=run)
        thread.start()
        thread.join()
        if failed:
            raise failed[0]
        return made[0]

    def packet_socket(self, timeout: float = 20.0, buffer: int = 16 << 20) -> socket.socket:
        """Return a raw socket on the TAP: it sends and receives whole Ethernet frames.

        It also sees the frames that the kernel itself sends (PACKET_OUTGOING).
        """
        self.wait_for_carrier()
        raw = self.open_socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
        raw.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, buffer)
        raw.settimeout(timeout)
        raw.bind((self.tap, ETH_P_ALL))
        return raw

    def wait_for_carrier(self, seconds: float = 3.0) -> None:
        """Wait until the kernel has noticed that a QEMU opened the TAP.

        It looks about once a second, more rarely on a busy machine, and drops what is sent until
        then. Without a QEMU there is nothing to wait for, and nothing is said.
        """
        began = time.monotonic()
        state = "cd /sys/class/net/$0; cat operstate; cat carrier 2>/dev/null || echo down"
        while True:
            operstate, carrier = self.run("sh", "-c", state, self.tap).split()
            if operstate == "up":
                return
            if time.monotonic() - began > (_LONGEST if carrier == "1" else seconds):
                return
            time.sleep(0.02)

    def close(self) -> None:
        """Remove the namespace and everything in it."""
        run(["ip", "netns", "delete", self.name])
