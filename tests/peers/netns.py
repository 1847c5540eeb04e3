"""A network namespace with a TAP device, whose kernel pings; QEMU runs inside.

So the TAP that QEMU opens by its name is the namespace's.
"""

import re
import shlex
import subprocess

from support.waiting import eventually
from virtnic.testing import TapNamespace

from .components import qemu_command

__all__ = ["Netns", "PingResult"]


class PingResult:
    """The counters of ping(8)."""

    def __init__(self, output: str) -> None:
        """Parse ping's summary."""
        match = re.search(r"(\d+) packets transmitted, (\d+) received", output)
        if match is None:
            raise RuntimeError(f"ping said: {output}")
        self.sent, self.received = int(match[1]), int(match[2])
        self.output = output


class Netns(TapNamespace):
    """The namespace, with what the tests do in it."""

    def __init__(self, tap: str = "tap0", address: str = "10.99.0.1/24", queues: int = 1) -> None:
        """Make it."""
        super().__init__(address, tap=tap, queues=queues)
        self.qemu_command = f"ip netns exec {shlex.quote(self.name)} {qemu_command()}"
        """The command line that starts QEMU inside (for VIRTNIC_QEMU)."""

    @property
    def netdev(self) -> str:
        """The -netdev that opens the TAP."""
        return f"tap,ifname={self.tap},script=no,downscript=no"

    def add_ipv6(self, address: str, device: str = "") -> None:
        """Give a device, the TAP by default, an IPv6 address with prefix length, ready for use.

        ip(8) returns before the kernel takes frames for the address: its route is made by a worker
        (addrconf_dad_work), on a busy machine 20 ms later. What comes before that is dropped.
        """
        device = device or self.tap
        self.run("sh", "-c", f"echo 0 > /proc/sys/net/ipv6/conf/{device}/disable_ipv6")
        self.run("ip", "-6", "address", "add", address, "dev", device, "nodad")
        wanted = f"local {address.partition('/')[0]} dev {device} "
        eventually(lambda: wanted in self.run("ip", "-6", "route", "show", "table", "local"))

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
