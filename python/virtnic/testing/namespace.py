"""A network namespace with a TAP device: the Linux kernel as the peer of a port.

Nothing of the machine's own network is touched. Sockets for the tests are made inside: a socket
belongs to the namespace that it was made in. It needs root, ``ip`` and ``/dev/net/tun``.
"""

from __future__ import annotations

import ctypes
import fcntl
import itertools
import os
import socket
import struct
import subprocess
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from virtnic.arguments import suggest_options
from virtnic.teardown import Closing
from virtnic.testing.programs import ProgramNotFound, find_program, mortal, run

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import virtnic

__all__ = ["TapNamespace", "find_ip"]

#: Seconds that a busy kernel may take to notice a carrier.
_LONGEST = 30.0
_CLONE_NEWNET = 0x40000000
_ETH_P_ALL = 0x0003
_SO_RCVBUFFORCE = 33
_TUNSETIFF = 0x400454CA
# IFF_TAP, IFF_NO_PI, IFF_VNET_HDR; IFF_MULTI_QUEUE.
_TAP, _MULTI_QUEUE = 0x0002 | 0x1000 | 0x4000, 0x0100
_numbers = itertools.count()
T = TypeVar("T")


def find_ip() -> str:
    """Return the path of ip(8), if namespaces can be made. Raises ProgramNotFound."""
    found = find_program("ip", "iproute2")
    if os.geteuid() != 0:
        raise ProgramNotFound("network namespaces need root: run pytest with sudo")
    if not Path("/dev/net/tun").exists():
        raise ProgramNotFound("no /dev/net/tun: `modprobe tun`; in a container, `--privileged`")
    try:
        run([find_program("unshare", "util-linux"), "--net", "true"])
    except RuntimeError as error:
        raise ProgramNotFound(
            f"no network namespaces: {error}; in a container, `--privileged`"
        ) from None
    return found


class TapNamespace(Closing):
    """A network namespace with a TAP device, an address and nothing else. A context manager."""

    @suggest_options
    def __init__(
        self, address: str = "10.99.0.1/24", *, tap: str = "tap0", queues: int = 1
    ) -> None:
        """Make it. ``address`` is the kernel's, in the TAP's network; ``queues``: pairs.

        The TAP stays when no one has it open, so its counters can be read. Raises ProgramNotFound,
        RuntimeError.
        """
        self._ip = find_ip()
        self.name = f"vt-{os.getpid()}-{next(_numbers)}"
        self.tap = tap
        self.address = address.partition("/")[0]
        self.queues = queues
        #: Ports of ours that the fixture ``virtnic_tap`` has connected to it: one.
        self.ports: tuple[virtnic.Port, ...] = ()
        run([self._ip, "netns", "add", self.name])
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
    def mac(self) -> str:
        """The TAP's own MAC address."""
        return self.run("cat", f"/sys/class/net/{self.tap}/address").strip()

    def open(self) -> list[int]:
        """Open each queue of the TAP, and return the descriptors, for the caller to close.

        A port on ``{"type": "tap", "fds": fds}`` needs no QEMU inside the namespace.
        """
        flags = _TAP | (_MULTI_QUEUE if self.queues > 1 else 0)
        opened: list[int] = []
        try:
            for _ in range(self.queues):
                opened.append(self.inside(lambda: _open_tap(self.tap, flags)))  # noqa: PERF401
        except BaseException:
            for fd in opened:
                os.close(fd)
            raise
        return opened

    @suggest_options
    def run(self, *argv: str, timeout: float = 30.0) -> str:
        """Run a command inside and return its output. Raises RuntimeError if it fails."""
        return run(self._inside(argv), timeout)

    def popen(self, argv: Sequence[str]) -> subprocess.Popen[str]:
        """Start a command inside; its output is a pipe. It ends with the thread that starts it."""
        return subprocess.Popen(
            mortal(self._inside(argv)),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def _inside(self, argv: Sequence[str]) -> list[str]:
        return [self._ip, "netns", "exec", self.name, *argv]

    def statistics(self) -> dict[str, int]:
        """Return the TAP's counters: rx is what the namespace's kernel received."""
        names = [
            f"{way}_{what}" for way in ("rx", "tx") for what in ("packets", "bytes", "dropped")
        ]
        files = [f"/sys/class/net/{self.tap}/statistics/{name}" for name in names]
        return dict(zip(names, map(int, self.run("cat", *files).split()), strict=True))

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

        def enter() -> None:
            # A thread of its own: setns moves one thread, and this one ends here.
            try:
                with open(f"/run/netns/{self.name}", "rb") as namespace:  # noqa: PTH123
                    libc = ctypes.CDLL(None, use_errno=True)
                    if libc.setns(namespace.fileno(), _CLONE_NEWNET) != 0:
                        code = ctypes.get_errno()
                        raise OSError(code, os.strerror(code), f"setns to {self.name}")
                made.append(call())
            except BaseException as error:
                failed.append(error)

        thread = threading.Thread(target=enter)
        thread.start()
        thread.join()
        if failed:
            raise failed[0]
        return made[0]

    def packet_socket(self, timeout: float = 20.0, buffer: int = 16 << 20) -> socket.socket:
        """Return a raw socket on the TAP: it sends and receives whole Ethernet frames.

        It also sees the frames that the kernel itself sends (PACKET_OUTGOING). ``timeout`` is the
        socket's, in seconds; ``buffer`` is for received frames, bytes.
        """
        self.wait_for_carrier()
        raw = self.open_socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
        raw.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, buffer)
        raw.settimeout(timeout)
        raw.bind((self.tap, _ETH_P_ALL))
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
        if Path(f"/run/netns/{self.name}").exists():
            run([self._ip, "netns", "delete", self.name])


def _open_tap(name: str, flags: int) -> int:
    fd = os.open("/dev/net/tun", os.O_RDWR | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        fcntl.ioctl(fd, _TUNSETIFF, struct.pack("16sH22x", name.encode(), flags))
    except BaseException:
        os.close(fd)
        raise
    return fd
