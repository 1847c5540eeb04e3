"""The Rust core of virtnic.

Every call that waits releases the interpreter and can be interrupted by Ctrl-C.
Sizes are bytes, times are seconds, addresses are integers.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from os import PathLike
from typing import Any, Literal, Self, SupportsBytes, TypeAlias, final, overload

from typing_extensions import Buffer, disjoint_base

__all__ = [
    "ArpReply",
    "Burst",
    "CaptureReader",
    "CaptureWriter",
    "CapturedFrame",
    "Child",
    "CommandRefused",
    "Connection",
    "Descriptor",
    "DeviceError",
    "EventFd",
    "Feature",
    "FrontEnd",
    "Interposer",
    "IvshmemServer",
    "Lease",
    "Memory",
    "MemoryUnavailable",
    "NetPort",
    "NetQueue",
    "NetSocket",
    "NetStack",
    "Offload",
    "Offloads",
    "PingReply",
    "PluggingLock",
    "PortBusy",
    "PortClosed",
    "PortDriver",
    "QTest",
    "QemuDied",
    "QemuError",
    "QemuNotFound",
    "StackWire",
    "VhostWire",
    "VirtnicError",
    "__version__",
    "after_fork_in_child",
    "as_frames",
    "brings_devices_back",
    "drop",
    "exchange",
    "features_table",
    "forward",
    "generate",
    "hugepages",
    "measure",
    "play",
    "reflect",
    "run",
    "set_log_level",
    "spawn",
]
__version__: str

class VirtnicError(Exception):
    """Base of the exceptions that are virtnic's own."""

class MemoryUnavailable(VirtnicError):
    """Shared memory of the requested kind, size or address is not available."""

class QemuError(VirtnicError):
    """QEMU refused something; the message quotes QEMU."""

class QemuNotFound(QemuError):
    """No usable QEMU was found."""

class QemuDied(QemuError):
    """QEMU has ended."""

class DeviceError(VirtnicError):
    """The device violated the specification; its port is unusable."""

class CommandRefused(VirtnicError):
    """The device refused or does not support a command; the port remains usable."""

class PortClosed(VirtnicError):
    """The port was closed or its device was removed."""

class PortBusy(VirtnicError):
    """The queue is in use by an engine loop or another call."""

def set_log_level(level: str) -> None:
    """Set the lowest level (off, error, warn, info, debug, trace) that the core logs to stderr."""

def hugepages(node: int | None = None) -> list[tuple[int, int, int]]:
    """Return (page size, total, free) for each huge page size, of the machine or one NUMA node.

    Raises ValueError when the node does not exist.
    """

def brings_devices_back() -> None:
    """Declare that this thread restores devices: its calls raise PortBusy instead of waiting."""

def features_table() -> list[dict[str, Any]]:
    """Return what is known of each virtio-net feature bit, in order of number.

    ``bit``, ``name``, ``section`` of VIRTIO 1.3; ``support`` (required, accepted, on request,
    unsupported) and ``why``; ``about``: a description; ``since``: the oldest QEMU of 5.2, 7.2, 10.0
    and 11.1 that offers it, or None, with which ``netdev`` and ``properties`` of
    ``virtio-net-pci``; ``argument``: what controls it in virtnic; ``tests`` that cover it.
    """

@disjoint_base
class Memory:
    """One shared, mapped, prefaulted and sealed file, with a packet pool in it."""

    def __new__(
        cls,
        size: int,
        *,
        pages: int = 0,
        iova: Literal["va", "pa"] | int = "va",
        node: int | None = None,
        directory: str | None = None,
        buffer_size: int = 2048,
        jumbo_buffers: int | None = None,
        jumbo_size: int | None = None,
    ) -> Self:
        """Create one. ``pages``: 0 for the largest that is free, else a page size in bytes.

        Raises ValueError, MemoryUnavailable, PermissionError.
        """
    @property
    def size(self) -> int:
        """Size in bytes."""
    @property
    def page_size(self) -> int:
        """Size in bytes of the pages behind it."""
    @property
    def iova(self) -> int:
        """The address at which devices see it: the address of QEMU's BAR."""
    @property
    def address(self) -> int:
        """The address at which this process sees it."""
    @property
    def path(self) -> str | None:
        """The path of the file, if it has one."""
    @property
    def fallback(self) -> str | None:
        """Why the pages are smaller than the largest size; None if they are not."""
    @property
    def buffer_size(self) -> int:
        """Data bytes that a packet buffer holds."""
    @property
    def buffers(self) -> int:
        """Number of packet buffers."""
    @property
    def buffers_free(self) -> int:
        """Packet buffers that are neither with a device nor in a burst."""
    @property
    def jumbo_buffers(self) -> int:
        """Number of buffers for frames longer than ``buffer_size``."""
    @property
    def jumbo_buffers_free(self) -> int:
        """Jumbo buffers that are neither with a device nor in a burst."""
    @property
    def largest_frame(self) -> int:
        """Length in bytes of the longest frame that fits a buffer."""
    def fileno(self) -> int:
        """Return the file's descriptor.

        Raises ValueError if the file was closed; :func:`virtnic.open` closes that of a memory it
        makes.
        """
    def forget_file(self) -> None:
        """Close the file unless it has a path; the mapping is kept."""
    def read(self, offset: int, length: int) -> bytes:
        """Copy bytes out. Raises ValueError if they are not inside the file.

        2, 4 or 8 bytes at a multiple of their number are one atomic load, before all that
        follows.
        """
    def write(self, offset: int, data: Buffer) -> None:
        """Copy bytes in. Raises ValueError if they are not inside the file.

        2, 4 or 8 bytes at a multiple of their number are one atomic store: all that was written
        before is visible first.
        """
    def iova_of(self, offset: int, length: int = 1) -> int:
        """Convert an offset to a device address. Raises ValueError if it is outside the file."""
    def offset_of(self, iova: int, length: int = 1) -> int:
        """Convert a device address to an offset. Raises ValueError if it is outside the file."""

@final
class Descriptor:
    """A descriptor that stays open as long as this object lives, for a wait in an event loop."""

    def fileno(self) -> int:
        """Return the descriptor number."""

@final
class EventFd:
    """A Linux eventfd (eventfd(2)), non-blocking."""

    def __new__(cls) -> Self: ...
    def fileno(self) -> int:
        """Return the descriptor, open until :meth:`close`; -1 afterwards.

        ``select``, ``poll`` and asyncio can wait on it.
        """
    def lend(self) -> int:
        """Return the descriptor and keep it open as long as this object lives.

        After :meth:`close` it stays readable. Raises OSError if no descriptor is left.
        """
    def borrow(self) -> Descriptor:
        """Return an object that keeps the descriptor open during a wait. Raises as :meth:`lend`."""
    def close(self) -> None:
        """Signal it permanently, and close the descriptor unless it was lent.

        The descriptor is closed once no :meth:`wait` or borrower uses it. Closing twice is allowed.
        """
    def signal(self) -> None:
        """Add one to the count."""
    def drain(self) -> int:
        """Reset the count to zero and return what it was."""
    def wait(self, timeout: float | None = None) -> bool:
        """Wait until it is signalled; False after the timeout. Does not drain."""

@final
class QTest:
    """A connection to QEMU's QTest socket, usable from any thread.

    Every method raises QemuDied if QEMU is gone, TimeoutError if no reply comes, ValueError for an
    argument on which QEMU would abort, QemuError if QEMU refuses. Connect only to a QEMU that is
    listening.
    """

    def __new__(cls, path: str, timeout: float = 5.0) -> Self: ...
    def inb(self, port: int) -> int:
        """Port input, 8 bits."""
    def inw(self, port: int) -> int:
        """Port input, 16 bits."""
    def inl(self, port: int) -> int:
        """Port input, 32 bits."""
    def outb(self, port: int, value: int) -> None:
        """Port output, 8 bits; does not wait."""
    def outw(self, port: int, value: int) -> None:
        """Port output, 16 bits; does not wait."""
    def outl(self, port: int, value: int) -> None:
        """Port output, 32 bits; does not wait."""
    def indexed_in(self, selector: int, index: int, port: int, width: int) -> int:
        """Port input of a register that is selected first, by writing its index to a 32-bit port.

        No other access comes between the two, not even that of a signal handler.
        """
    def indexed_out(self, selector: int, index: int, port: int, width: int, value: int) -> None:
        """Port output to such a register; does not wait."""
    def readb(self, address: int) -> int:
        """MMIO read, 8 bits."""
    def readw(self, address: int) -> int:
        """MMIO read, 16 bits."""
    def readl(self, address: int) -> int:
        """MMIO read, 32 bits."""
    def readq(self, address: int) -> int:
        """MMIO read, 64 bits."""
    def writeb(self, address: int, value: int) -> None:
        """MMIO write, 8 bits; does not wait."""
    def writew(self, address: int, value: int) -> None:
        """MMIO write, 16 bits; does not wait."""
    def writel(self, address: int, value: int) -> None:
        """MMIO write, 32 bits; does not wait."""
    def writeq(self, address: int, value: int) -> None:
        """MMIO write, 64 bits; does not wait."""
    def read(self, address: int, length: int) -> bytes:
        """Read bytes."""
    def write(self, address: int, data: Buffer) -> None:
        """Write bytes."""
    def flush(self) -> None:
        """Wait until all earlier writes are done."""
    def intercept(self, path: str) -> None:
        """Intercept the interrupts that reach one device (on a PC: ``ioapic``)."""
    def on_irq(self, line: int, event: EventFd) -> None:
        """Signal the eventfd each time the line is raised."""
    def watch(self, event: EventFd) -> None:
        """Signal the eventfd when the connection ends."""
    def clock_step(self, ns: int | None = None) -> int:
        """Step the virtual clock; return its time in nanoseconds."""
    def run_clock(self, period: float) -> None:
        """Step the virtual clock in real time from a thread, every ``period`` seconds."""
    @property
    def death(self) -> str | None:
        """Why the connection ended; None while it is up."""
    def close(self) -> None:
        """Close the connection and end its threads."""

@final
class IvshmemServer:
    """Hands the memory and the interrupt eventfds to QEMU over a UNIX socket.

    Each vector is a peer of its own, so the device has ``vectors=1``. A connected QEMU is told of
    vectors that are added later.
    """

    def __new__(cls, path: str, memory: Memory) -> Self:
        """Create one that does not listen yet."""
    @property
    def vectors(self) -> int:
        """How many vectors exist, including those given back."""
    @property
    def left(self) -> int | None:
        """How many more vectors can be taken; None if unlimited."""
    def listen(self) -> None:
        """Accept new QEMUs, which know no vectors yet. Earlier connections must have ended.

        Raises OSError, ValueError (the path, or a memory whose file was closed).
        """
    def stop_listening(self) -> None:
        """Accept no more connections; existing ones are kept."""
    def take_vector(self) -> tuple[int, int, EventFd]:
        """Reserve a vector: its number, the doorbell value that fires it, its eventfd.

        QEMU may not know it yet: ring until the eventfd is signalled. Raises OSError if no
        descriptor is left, ValueError after :meth:`hang_up`.
        """
    def tell(self) -> None:
        """Send connected QEMUs the vectors they have not been told of, without blocking."""
    def give_vector(self, vector: int) -> None:
        """Give a vector back."""
    def lose_vector(self, vector: int) -> None:
        """Give back a vector that QEMU was not told of: it is reused only by the next QEMU."""
    def hang_up(self) -> None:
        """Close the connections; vectors are kept."""
    def close(self) -> None:
        """Stop listening and close the connections."""

@final
class FrontEnd:
    """A virtio-net device without QEMU, whose rings a vhost-user backend processes.

    A :class:`PortDriver` drives it. Its link is up while a backend is connected.
    """

    def __new__(
        cls,
        memory: Memory,
        backend: str,
        mac: str,
        *,
        server: bool = False,
        wait: float = 0.0,
        pairs: int = 1,
        mtu: int | None = None,
        calls: Sequence[EventFd] = (),
        config: EventFd | None = None,
        retry: tuple[int, float, float] | None = None,
        reply_timeout: float = 10.0,
        changed: EventFd | None = None,
    ) -> FrontEnd:
        """Connect to the backend, waiting for it up to ``wait`` seconds.

        ``memory``: what is shared with it. ``server``: listen at ``backend``, and the backend
        connects. ``mac``, ``mtu``: those of the device; the MTU is sent to a backend that supports
        NET_MTU. ``pairs``: the least number of queue pairs. ``calls``: the eventfds that it
        signals, by queue; none for polling. ``config``: signalled when the link goes up or down.
        ``retry``: the number of attempts to find a lost backend again, and the first and the
        longest pause in seconds; None is for ever, every 0.1 s. ``reply_timeout``: seconds that it
        may take to set a device up or to stop it. ``changed``: signalled when its state changes;
        several may share it.

        Raises FileNotFoundError or ConnectionRefusedError if no backend listens, TimeoutError if
        none connects, QemuError if it violates the protocol or lacks queue pairs, ValueError,
        OSError.
        """
    @staticmethod
    def kernel(
        memory: Memory,
        pairs: Sequence[tuple[int, int]],
        mac: str,
        *,
        name: str,
        mtu: int | None = None,
        calls: Sequence[EventFd] = (),
        config: EventFd | None = None,
        reply_timeout: float = 10.0,
        changed: EventFd | None = None,
    ) -> FrontEnd:
        """Return a device whose rings the kernel's vhost-net processes.

        ``pairs``: for each queue pair a descriptor of ``/dev/vhost-net`` that has no owner yet, and
        one of a TAP's queue; both are duplicated. ``name``: the TAP's name in messages. The rest is
        as for the class.

        Raises PermissionError if a descriptor has an owner, ValueError, OSError.
        """
    @property
    def connected(self) -> bool:
        """Whether a backend is connected."""
    @property
    def serving(self) -> bool:
        """Whether a backend processes the rings."""
    @property
    def refusal(self) -> str | None:
        """Why the last backend is not used; None if it is, or none has connected."""
    def spare(self, port: PortDriver) -> None:
        """Hold a new backend that only lacks features that the port can do without.

        It waits until the port has renegotiated. A backend that lacks others is refused.
        """
    @property
    def held(self) -> str | None:
        """What the held backend lacks; None if none is held."""
    def take_first(self) -> int | None:
        """Return a descriptor of the first backend's socket, once; the caller closes it."""
    @property
    def features(self) -> int:
        """The feature bits that the last backend offered."""
    @property
    def given_up(self) -> str | None:
        """Why it has stopped to reconnect; None if it has not."""
    @property
    def changed(self) -> EventFd:
        """Signalled when ``connected``, ``serving``, ``refusal``, ``held``, ``given_up`` change."""
    def watch(self) -> None:
        """Start to supervise the backend: reconnect when it is lost.

        Raises OSError if the thread cannot be started.
        """
    def stats(self) -> dict[str, int]:
        """Return counters.

        ``messages`` (sent), ``links`` (backends used), ``refusals`` (connected backends
        that were not used), ``backend_losses``, ``kicks_lost`` (kicks without a backend).
        """
    def close(self) -> None:
        """Close the connection and remove the socket, if any; call after the port has stopped."""

@final
class VhostWire:
    """A connection to a vhost-user backend, for any messages."""

    def __new__(cls, path: str) -> VhostWire:
        """Connect to a backend that listens there.

        Raises FileNotFoundError or ConnectionRefusedError where none does, ValueError, OSError.
        """
    def send(
        self,
        request: int,
        flags: int,
        payload: bytes = b"",
        fds: Sequence[int] = (),
        timeout: float = 5.0,
    ) -> None:
        """Send a message without checking it; descriptors go with its first byte and stay open.

        Raises ValueError if it is too long, TimeoutError, ConnectionError if the backend
        disconnected.
        """
    def receive(self, timeout: float = 5.0) -> tuple[int, int, bytes, list[int]] | None:
        """Return the next message; None if none arrives in time.

        A tuple of request, flags, payload and descriptors, which the caller closes. Raises
        ConnectionError if the backend disconnected, DeviceError if it broke the protocol.
        """
    def close(self) -> None:
        """Disconnect. Idempotent."""

@final
class Interposer:
    """Forwards messages between a QEMU and a vhost-user backend.

    QEMU's chardev connects to ``listen`` and must reconnect: the socket only exists while a backend
    answers and no QEMU is connected.
    """

    def __new__(
        cls,
        listen: str,
        backend: str,
        server: bool = False,
        wait: float = 0.0,
        calls: Sequence[EventFd | None] = (),
        retry: tuple[int, float, float] | None = None,
        pairs: int = 1,
        reply_timeout: float = 10.0,
        changed: EventFd | None = None,
    ) -> Interposer:
        """Connect to the backend, waiting for it up to ``wait`` seconds, then listen for QEMU.

        ``server``: listen at ``backend``, and the backend connects. ``calls``: the eventfds that
        the backend signals, by queue; None, or a queue past the end, leaves QEMU's own eventfd.
        ``retry``: the number of attempts to find a lost backend again, and the first and the
        longest pause in seconds; None is for ever, every 0.1 s. ``pairs``: the least number of
        queue pairs. ``reply_timeout``: seconds that either side may leave a message unread or
        unanswered. ``changed``: signalled when the backend's state changes; several may share it.

        Raises FileNotFoundError or ConnectionRefusedError if no backend listens, TimeoutError if
        none connects, QemuError if it violates the protocol or lacks queue pairs, ValueError,
        OSError.
        """
    @property
    def connected(self) -> bool:
        """Whether a QEMU and a backend are connected through it."""
    @property
    def serving(self) -> bool:
        """Whether the backend processes the rings: they are started, and it has answered since."""
    @property
    def refusal(self) -> str | None:
        """Why the last backend is not used; None if it is, or none has connected."""
    def begin_trial(self) -> None:
        """Call before QEMU creates its netdev, so that a failing backend does not block QEMU."""
    def end_trial(self) -> str | None:
        """Call after QEMU has created its netdev; return why the backend failed, else None."""
    def spare(self, port: PortDriver) -> None:
        """Hold a new backend that only lacks features that the port can do without.

        A backend that lacks others is refused. QEMU chooses a device's features when it is plugged,
        so the device is replugged; :meth:`accept_held` is called once the old one is gone.
        """
    @property
    def held(self) -> str | None:
        """What the held backend lacks; None if none is held."""
    def accept_held(self) -> None:
        """Let QEMU connect to the held backend, whose features are the new minimum."""
    def take_first(self) -> int | None:
        """Return a descriptor of the first backend's socket, once; the caller closes it."""
    @property
    def features(self) -> int:
        """The feature bits that the last backend offered."""
    @property
    def given_up(self) -> str | None:
        """Why it has stopped to reconnect; None if it has not."""
    @property
    def changed(self) -> EventFd:
        """Signalled when ``connected``, ``serving``, ``refusal``, ``held``, ``given_up`` change."""
    def kick(self, queue: int) -> None:
        """Kick a queue's current backend, as a port does."""
    def stats(self) -> dict[str, int]:
        """Return counters.

        ``messages_to_backend``, ``messages_to_qemu``, ``links`` (how often the two were connected),
        ``refusals`` (connected backends that were not used), ``backend_losses``, ``qemu_losses``,
        ``kicks_learnt``, ``kicks_not_kept`` (eventfds closed because descriptors are scarce: the
        backend is kicked through QEMU), ``calls_replaced``, ``kicks_lost`` (kicks without a
        backend).
        """
    def close(self) -> None:
        """Close the connections and remove the sockets."""

@final
class Child:
    """A child process that is killed when this process ends, even by SIGKILL."""

    @property
    def pid(self) -> int:
        """Its process id."""
    def wait(self, timeout: float | None = None) -> int | None:
        """Wait for its end. Return the exit code, or minus the signal; None after the timeout."""
    def terminate(self) -> bool:
        """Send SIGTERM. False if that is not permitted, because it now runs as another user."""
    def kill(self) -> bool:
        """Send SIGKILL, to its process group too. False as for :meth:`terminate`."""

def spawn(argv: Sequence[str], environment: dict[str, str], stderr: int) -> Child:
    """Start a program whose stderr is a duplicate of the given descriptor.

    No signal is blocked or ignored in it. It is killed when this process ends, even if one of them
    has changed its user by then. Raises FileNotFoundError, OSError.
    """

def after_fork_in_child() -> None:
    """Tell the core that this is a forked child.

    Objects made before the fork belong to the parent: their methods raise PortClosed from now on,
    and dropping them has no effect outside this process.
    """

@final
class Offload:
    """The offload metadata of a frame: its checksum and its segmentation.

    The fields of ``virtio_net_hdr`` (VIRTIO 1.3, section 5.1.6). True if any of them is set.
    """

    def __new__(
        cls,
        *,
        checksum: Literal["needed", "valid"] | None = None,
        checksum_start: int = 0,
        checksum_offset: int = 0,
        segmentation: Literal["tcp4", "tcp6", "udp", "udp_l4"] | None = None,
        segment_size: int = 0,
        header_length: int = 0,
        ecn: bool = False,
    ) -> Self:
        """Describe a frame. Raises ValueError for a number of more than 16 bits, or a wrong name.

        Whether it fits a frame is checked when that is sent.
        """
    @property
    def checksum(self) -> Literal["needed", "valid"] | None:
        """``"needed"``: not calculated yet; the field holds the sum of the pseudo-header.

        ``"valid"``: verified by the device; ignored on transmission.
        """
    @property
    def checksum_start(self) -> int:
        """Where the checksummed bytes start: the transport header (0 unless needed)."""
    @property
    def checksum_offset(self) -> int:
        """Where the checksum is stored, from there: 16 for TCP, 6 for UDP (0 unless needed)."""
    @property
    def segmentation(self) -> Literal["tcp4", "tcp6", "udp", "udp_l4", "unknown"] | None:
        """How the frame is segmented: TCP segments, IP fragments (``udp``) or UDP datagrams.

        ``unknown`` is a value that VIRTIO 1.3 does not define.
        """
    @property
    def segment_size(self) -> int:
        """Payload bytes per segment."""
    @property
    def header_length(self) -> int:
        """Length in bytes of all headers; 0 if not given. Only a hint on reception."""
    @property
    def ecn(self) -> bool:
        """Whether the TCP segment has CWR set (ECN), which only the first segment keeps."""
    @property
    def coalesced_segments(self) -> int:
        """How many segments the device coalesced into this frame (RSC); 0 if it did not."""
    @property
    def duplicate_acks(self) -> int:
        """How many of them were duplicate acknowledgements."""
    def __bool__(self) -> bool: ...
    def __eq__(self, other: object, /) -> bool: ...
    def __hash__(self) -> int: ...

@final
class Offloads(Sequence[Offload]):
    """The offload metadata of each frame of a burst: a snapshot.

    ``numpy.asarray(burst.offload)`` is a structured array whose fields are those of
    ``virtio_net_hdr``: flags, gso_type, hdr_len, gso_size, csum_start, csum_offset.
    """

    def __len__(self) -> int: ...
    @overload
    def __getitem__(self, index: int, /) -> Offload: ...
    @overload
    def __getitem__(self, index: slice, /) -> list[Offload]: ...
    def __iter__(self) -> Iterator[Offload]: ...
    def __contains__(self, value: object, /) -> bool: ...
    def __reversed__(self) -> Iterator[Offload]: ...
    def index(self, value: object, start: int = 0, stop: int | None = None) -> int: ...
    def count(self, value: object) -> int: ...

#: One frame: a bytes-like object, or one that ``bytes()`` accepts, such as a scapy packet.
_Frame: TypeAlias = Buffer | SupportsBytes

#: The offload metadata of frames: one for all, or one for each.
_Offload: TypeAlias = Offload | Offloads | Iterable[Offload | None] | None

@final
class Feature:
    """The outcome of negotiating a feature bit."""

    @property
    def name(self) -> str:
        """Name in VIRTIO 1.3, without the prefix: ``MRG_RXBUF``."""
    @property
    def bit(self) -> int:
        """Bit number."""
    @property
    def offered(self) -> bool:
        """Whether the device offers it."""
    @property
    def accepted(self) -> bool:
        """Whether it was negotiated."""
    @property
    def why(self) -> str:
        """The reason."""
    def __eq__(self, other: object, /) -> bool: ...
    def __hash__(self) -> int: ...

@final
class Lease:
    """A DHCP lease (RFC 2131), now used by the stack."""

    @property
    def address(self) -> str:
        """Our address, without prefix length."""
    @property
    def prefix(self) -> int:
        """Prefix length in bits."""
    @property
    def gateway(self) -> str | None:
        """Default gateway; None if the server names none."""
    @property
    def server(self) -> str:
        """The server's address."""
    @property
    def dns(self) -> list[str]:
        """Name servers, in order of preference."""
    @property
    def duration(self) -> float:
        """Lease time in seconds."""
    @property
    def elapsed(self) -> float:
        """Seconds until the lease was received."""
    def __eq__(self, other: object, /) -> bool: ...

@final
class ArpReply:
    """The reply to an ARP request (RFC 826)."""

    @property
    def mac(self) -> str:
        """MAC address of the IP address."""
    @property
    def seconds(self) -> float:
        """Seconds from the request to the reply."""
    def __eq__(self, other: object, /) -> bool: ...

@final
class PingReply:
    """An ICMP echo reply (RFC 792)."""

    @property
    def sequence(self) -> int:
        """Sequence number of the request."""
    @property
    def seconds(self) -> float:
        """Seconds from the request to the reply."""
    def __eq__(self, other: object, /) -> bool: ...

@final
class CapturedFrame:
    """A frame of a capture file. It unpacks as ``timestamp, frame``."""

    @property
    def timestamp(self) -> int | None:
        """When it was captured, nanoseconds since 1970; None where the file does not say."""
    @property
    def frame(self) -> bytes:
        """Its bytes, as many as the file has."""
    @property
    def length(self) -> int:
        """Its length on the wire, bytes."""
    @property
    def interface(self) -> int:
        """Which of the file's interfaces it passed, from 0."""
    @property
    def link_type(self) -> int:
        """The kind of its first header; 1 is Ethernet (the registry of link types)."""
    @property
    def direction(self) -> Literal["received", "sent"] | None:
        """``received`` or ``sent``, seen from the capturing host; None if the file does not say."""
    @property
    def comment(self) -> str | None:
        """Its comment, or None."""
    def __iter__(self) -> Iterator[Any]: ...

@final
class CaptureReader:
    """A capture file that is being read: an iterator over its frames."""

    def __new__(cls, path: str | PathLike[str]) -> Self: ...
    def __iter__(self) -> Self: ...
    def __next__(self) -> CapturedFrame: ...
    def close(self) -> None:
        """Close the file; no more frames follow. Closing twice is allowed."""

@final
class CaptureWriter:
    """A capture that is being written, by a thread of the core."""

    def __new__(
        cls,
        path: str | PathLike[str],
        ports: Sequence[tuple[NetPort, str, str]],
        *,
        snaplen: int,
        buffer: int,
        rotate: tuple[int, int | None] | None = None,
        comment: str | None = None,
        filter: tuple[int, bytes, str] | None = None,  # noqa: A002
    ) -> Self: ...
    def counts(self) -> dict[str, int]:
        """Return the counters so far, by name."""
    @property
    def failed(self) -> bool:
        """Whether it ended because the file could not be written."""
    def comment(self, text: str) -> None:
        """Add a comment to the next frame that is written. Raises ValueError."""
    def close(self) -> None:
        """Write the remaining frames and end. Raises OSError, once, if that failed."""

def play(
    port: NetPort,
    path: str | PathLike[str],
    pace: tuple[Literal["times", "rate", "max"], float],
    times: int,
    parts: bool,
    until: _Until,
) -> dict[str, Any]:
    """Send the frames of a file; see virtnic.capture.replay."""

@final
class Burst(Sequence[memoryview]):
    """Frames received or to be sent together; each is a writable memoryview.

    No frame is copied: a view is the packet memory itself. A buffer returns to the pool when its
    burst and all views of it are gone.
    """

    def __len__(self) -> int: ...
    @overload
    def __getitem__(self, index: int, /) -> memoryview: ...
    @overload
    def __getitem__(self, index: slice, /) -> list[memoryview]: ...
    def __iter__(self) -> Iterator[memoryview]: ...
    def __contains__(self, value: object, /) -> bool: ...
    def __reversed__(self) -> Iterator[memoryview]: ...
    def index(self, value: object, start: int = 0, stop: int | None = None) -> int: ...
    def count(self, value: object) -> int: ...
    @property
    def lengths(self) -> memoryview:
        """The frames' lengths: a read-only view of 32-bit unsigned integers (a snapshot)."""
    @property
    def ids(self) -> memoryview:
        """The buffers' indices in the pool, in the same form."""
    @property
    def hashes(self) -> memoryview | None:
        """The hash of each frame (unsigned 32 bits); None if the device reports none."""
    @property
    def hash_types(self) -> memoryview | None:
        """What each hash covers: 0 nothing, 1 IPv4, 2 TCPv4, 3 UDPv4, 4 IPv6 etc.

        The values of ``hash_report`` in VIRTIO 1.3, section 5.1.6.4.4.
        """
    @property
    def timestamp(self) -> int | None:
        """When the frames were taken from the ring, in nanoseconds since 1970 (``time.time_ns()``).

        No frame arrived later. It may have arrived earlier: with polling, by up to the time since
        the previous poll; after a wait, by the latency of the interrupt. None unless the port was
        opened with ``timestamps=True``.
        """
    @property
    def offload(self) -> Offloads | None:
        """The offload metadata of each frame: what is left to do, or what the device has verified.

        None if no offload of received frames was negotiated.
        """
    @property
    def data(self) -> memoryview:
        """The frames as one two-dimensional view (frame, byte) of their buffers, without a copy.

        Row ``i`` is the whole buffer of frame ``i``, whose first ``lengths[i]`` bytes are the
        frame. Raises BufferError if the buffers are not adjacent; use ``headers`` then.
        """
    def headers(self, count: int = 64) -> Any:
        """Copy the first ``count`` bytes of every frame into a NumPy array (frame, byte).

        Shorter frames are padded with zeros. Raises ValueError, ImportError without NumPy.
        """
    def put_headers(self, headers: Any) -> None:
        """Copy one row of bytes over the start of each frame, up to the frame's length.

        ``headers`` is C-contiguous with one row of unsigned bytes per frame. Raises ValueError for
        any other shape.
        """
    def tobytes(self, *, checksums: bool = False) -> list[bytes]:
        """Return copies of all frames.

        With ``checksums``, those that the device left out or vouches for are calculated in the
        copies: see :attr:`offload`. Some devices vouch for checksums whatever was negotiated.
        """
    def release(self) -> None:
        """Return the buffers to the pool now; the burst is empty afterwards."""

@final
class PluggingLock:
    """A reentrant lock, held while devices are plugged, unplugged or restored.

    While a thread has it, its calls raise PortBusy instead of waiting for a device that is away:
    who restores that needs the lock, and a signal handler may have interrupted its holder.
    In Rust, so that no signal handler runs between taking it and the next step of a ``with``.
    """

    def __new__(cls) -> Self: ...
    def acquire(self, timeout: float | None = None) -> bool:
        """Take it; False if that takes longer than ``timeout`` seconds (None: for ever)."""
    def release(self) -> None:
        """Give it back."""
    def __enter__(self) -> None: ...
    def __exit__(self, *_error: object) -> None: ...

@final
class PortDriver:
    """A started virtio-net device, for the code that plugs, restores and unplugs it.

    Users have a :class:`NetPort`, which is made from this.
    """

    def __new__(
        cls,
        *,
        memory: Memory,
        qtest: QTest | None = None,
        registers: tuple[int, int, int, int, int, int] | None = None,
        legacy_io: tuple[int, int, bool] | None = None,
        front_end: FrontEnd | None = None,
        queues: int = 1,
        queue_size: int = 0,
        vectors: tuple[list[tuple[int, int]], int] | None = None,
        events: tuple[list[tuple[EventFd, EventFd]], EventFd] | None = None,
        intx: EventFd | None = None,
        kicks: Interposer | None = None,
        features: dict[str, bool | None] | None = None,
        ended: Callable[[], str],
    ) -> Self:
        """Negotiate, set the queues up and start.

        ``registers``: addresses of the common, ISR, device and notify structures
        (VIRTIO 1.3, section 4.1.4), length of the device structure, notify multiplier.
        ``legacy_io``, instead of them: the first port of the legacy registers, how many there
        are, and whether MSI-X is enabled (section 4.1.4.10).
        ``front_end``, instead of ``qtest`` and both: a device without QEMU.
        ``queues``: pairs of them. ``queue_size``: 0 for the device's own, at most 1,024.
        ``vectors``: MSI-X table entries of each pair (receive, transmit) and of configuration
        changes, None without MSI-X; ``events``: what they signal; None for polling.
        ``intx``: the eventfd of the interrupt line, which is then
        used instead of MSI-X and passed on to ``events``.
        ``kicks``: rings the backend's own eventfds instead of the device's registers.
        ``features``: by name, True to insist, False to refuse, None to prefer.
        ``ended`` says how QEMU ended, for the QemuDied of calls.

        Raises ValueError, DeviceError, QemuDied, MemoryUnavailable, CommandRefused.
        """
    def restart_if_needed(self) -> bool:
        """Reset the device if it set DEVICE_NEEDS_RESET (VIRTIO 1.3, 2.1); return whether it had.

        Raises as :meth:`NetPort.restart`.
        """
    def set_recoverable(self, on: bool) -> None:
        """Treat the end of QEMU as an outage."""
    def abandon(self, why: str) -> None:
        """Give up waiting for another device."""
    def suspend(self) -> None:
        """Suspend the queues of a device that is gone or about to be unplugged.

        Raises VirtnicError, TimeoutError.
        """
    def reattach(
        self,
        qtest: QTest | None = None,
        registers: tuple[int, int, int, int, int, int] | None = None,
        legacy_io: tuple[int, int, bool] | None = None,
        front_end: FrontEnd | None = None,
    ) -> None:
        """Continue with another device like the last one."""
    @property
    def link(self) -> bool:
        """Whether the link is up, as last reported."""
    def check(self) -> None:
        """Raise what ended the port, if it has ended: PortClosed, QemuDied, DeviceError."""
    @property
    def drops_long_frames(self) -> bool:
        """Whether received frames were dropped, and counted, because they fit no buffer."""
    def refresh_link(self) -> bool:
        """Query the device, and return whether the link is up."""
    def rx_descriptor(self) -> Descriptor:
        """Return the descriptor of :meth:`NetPort.fileno` for a single wait.

        A port closed meanwhile closes it after the wait.
        """
    def tx_descriptor(self) -> Descriptor:
        """Return the descriptor of :meth:`NetPort.tx_fileno` for a single wait."""
    @property
    def rss_limits(self) -> tuple[int, int, int] | None:
        """The device's limits: key length, table length, hash types; None if it does not hash."""
    def rss_config(self) -> tuple[list[int], list[int], int, int] | None:
        """Return the current key, table, types and the queue of unhashed packets."""
    def set_rss_config(
        self, key: Sequence[int], table: Sequence[int], types: int, unclassified: int = 0
    ) -> None:
        """Set steering and hashing; see :meth:`virtnic.Port.set_rss`."""
    def refuse(self) -> None:
        """Raise PortClosed from now on, also in waiting calls.

        QEMU is not involved: ``stop`` does the rest.
        """
    @property
    def withholds(self) -> bool:
        """Whether it was stopped, but its device was not reset and still has its buffers."""
    def device_gone(self) -> None:
        """Report that a device that kept buffers is gone."""
    def stop(self) -> None:
        """Reset the device and take every buffer back; waiting calls raise PortClosed.

        If QEMU does not answer in time, the buffers stay with the device until that is gone.
        """

@disjoint_base
class NetPort:
    """A started virtio-net device for users. Made from its :class:`PortDriver`.

    A subclass adds what is not part of the device; all methods may be called from any thread.
    """

    def __new__(cls, driver: PortDriver, **kwargs: Any) -> Self: ...
    @property
    def mac(self) -> str:
        """The device's MAC address, as ``52:54:00:12:34:56``."""
    @property
    def mtu(self) -> int:
        """The device's MTU; 1500 if it does not report one."""
    @property
    def link(self) -> bool:
        """Whether the link is up. Without interrupts this asks the device (some 50 µs)."""
    @property
    def away(self) -> bool:
        """Whether the device is being reset, or was lost with its QEMU and may come back."""
    @property
    def restarts(self) -> int:
        """How often the device was restarted."""
    def restart(self) -> None:
        """Reset the device and restart it with the same settings.

        Also works for a broken port. Frames that had arrived are still received; those that were
        with the device are counted as ``tx_lost``. Raises DeviceError, CommandRefused, QemuDied,
        PortClosed.
        """
    @property
    def speed(self) -> int | None:
        """The line speed in Mbit/s as last reported; None if unknown.

        Feature SPEED_DUPLEX; QEMU's property ``speed``.
        """
    @property
    def duplex(self) -> Literal["half", "full"] | None:
        """The duplex mode as last reported; None if unknown."""
    @property
    def standby(self) -> bool:
        """Whether the device is a standby for another one with the same MAC address.

        Feature STANDBY; QEMU's property ``failover``.
        """
    @property
    def features(self) -> list[Feature]:
        """All offered or known features, in order of number."""
    @property
    def queue_size(self) -> int:
        """Number of entries of each queue."""
    @property
    def queue_addresses(self) -> list[tuple[str, int, int, int]]:
        """Each queue's name (``rx``, ``tx``) and the IOVAs of its three areas (VIRTIO 1.3, 2.6)."""
    @property
    def ring(self) -> str:
        """Ring format: ``split`` or ``packed``."""
    @property
    def legacy(self) -> bool:
        """Whether the device is driven through its legacy interface (virtio 0.9.5)."""
    def send(self, frames: Burst | Iterable[_Frame], offload: _Offload = None) -> int:
        """Queue frames for transmission and return how many fitted the ring.

        ``frames`` is a burst or an iterable of bytes-like objects or objects accepted by
        ``bytes()``, such as scapy packets; a single frame is a TypeError. A burst is moved: queued
        frames leave it, and no byte is copied, except for frames with live views or in another
        memory, which are counted as copied. Other frames are copied once. Frames that did not fit
        are not an error: they are counted and can be sent again.

        ``offload``: their offload metadata (an :class:`Offload` for all, or one or None for each).
        It must match the frame, and its feature must have been negotiated; otherwise ValueError.
        Without it, frames of a burst keep the metadata with which they were received: a checksum
        that this device does not support is calculated, and a frame that it cannot segment
        (``tx_no_offload``), or that does not match its metadata (``tx_bad_offload``), is dropped
        and counted.

        Raises ValueError (an empty frame, or one longer than a buffer) and TypeError (not
        bytes-like); the attribute ``queued`` is the number of frames queued before it. Raises
        PortClosed, QemuDied, DeviceError, PortBusy.
        """
    def recv(self, maximum: int = 256, timeout: float | None = 0.0) -> Burst:
        """Return up to ``maximum`` frames; an empty burst if none came in time.

        ``timeout`` in seconds: 0 does not wait, None waits for ever. Waits only for the first
        frame.

        Raises PortClosed, QemuDied, DeviceError, PortBusy, ValueError.
        """
    def fileno(self) -> int:
        """Return an eventfd that is readable when ``recv`` would find frames or an error.

        From the first call on, interrupts stay enabled between calls of ``recv``. The eventfd stays
        open, and readable once the port is closed, as long as this object lives. Raises ValueError
        if the port has no interrupts.
        """
    def tx_fileno(self) -> int:
        """Return an eventfd that is readable until ``send`` does not take all frames.

        It is readable again once half of the queue is free and the memory has a free buffer, or on
        an error. It stays open as that of :meth:`fileno`. Raises ValueError if the port has no
        interrupts.
        """
    def wait_writable(self, timeout: float | None = None) -> bool:
        """Wait until half of the transmit queue is free; False after the timeout.

        Uses the transmit interrupt if the port has interrupts. After a ``send`` that found no free
        buffer, also waits for one. Raises as ``recv``.
        """
    @property
    def polling(self) -> float:
        """Microseconds for which a waiting ``recv`` polls before it sleeps; see ``set_polling``."""
    def set_polling(self, microseconds: float) -> None:
        """Make a waiting ``recv`` poll the ring before it sleeps; 0 disables polling.

        It polls only while recent waits were shorter than that, so a busy port needs no interrupts
        and an idle one no processor. ``stats`` counts waits ended by polling (``rx_polls``) and
        sleeps (``rx_sleeps``). Raises ValueError (negative, more than 100,000).
        """
    def stats(self) -> dict[str, int]:
        """Return packets, bytes, drops by reason, kicks and interrupts since the start.

        These are sums over all queues; :meth:`NetQueue.stats` has those of one.
        """
    def xstats(self) -> dict[str, int]:
        """Return all counters: those of ``stats``, and those of each queue.

        Named ``rx_q0_packets`` and so on, as in DPDK's extended statistics: the counters of
        :meth:`stats`; ``errors``, the sum of ``bad_length`` and ``bad_chain``; ``ring_size``,
        ``ring_used`` and ``ring_free``, descriptors as they were after the last call that moved
        frames. With ``set_statistics("sizes")`` also ``undersize_packets`` (below 64
        bytes on the wire, so with the four of the checksum that nobody sees),
        ``size_64_packets``, ``size_65_127_packets``, ``size_128_255_packets``,
        ``size_256_511_packets``, ``size_512_1023_packets``, ``size_1024_1518_packets``,
        ``size_1519_max_packets``; with ``"extended"`` these, ``unicast_packets``,
        ``multicast_packets`` and ``broadcast_packets``.

        Takes no lock: the data path is not delayed.
        """
    @property
    def statistics(self) -> Literal["basic", "sizes", "extended"]:
        """The setting of ``set_statistics``."""
    def set_statistics(self, which: Literal["basic", "sizes", "extended"]) -> None:
        """Choose ``basic`` or ``extended`` statistics, also for running loops.

        ``sizes`` counts lengths, which costs next to nothing. ``extended`` counts destinations too,
        so that the first bytes of every received frame are read. Raises ValueError.
        """
    @property
    def timestamps(self) -> bool:
        """Whether received bursts have a timestamp."""
    def set_timestamps(self, on: bool = True) -> None:
        """Record when received bursts were taken from the ring (:attr:`Burst.timestamp`).

        From the next burst on. Costs one reading of the clock per burst, and nothing if disabled.
        """
    @property
    def queues(self) -> int:
        """Number of queue pairs in use."""
    @property
    def max_queues(self) -> int:
        """Number of queue pairs that the port was opened with."""
    def set_queues(self, count: int) -> None:
        """Use the first ``count`` queue pairs, while the port runs.

        Frames already received by the others remain readable. Ends steering by RSS. Raises
        ValueError (none, more than ``max_queues``), CommandRefused, PortBusy, and as ``recv``.
        """
    def set_receive_mode(self, mode: str, on: bool = True) -> None:
        """Turn a receive mode on or off (VIRTIO 1.3, section 5.1.6.5.1).

        ``promiscuous``, ``all-multicast``, ``all-unicast``, ``no-multicast``, ``no-unicast``,
        ``no-broadcast``. Raises ValueError, CommandRefused, and as ``recv``.
        """
    def set_mac(self, mac: str) -> None:
        """Change the device's MAC address. Raises ValueError, CommandRefused, and as ``recv``."""
    def set_mac_filter(self, unicast: Sequence[str] = (), multicast: Sequence[str] = ()) -> None:
        """Set the addresses to receive besides the device's own and broadcast.

        They replace earlier ones; at most 64 in total. No effect while the device is promiscuous.
        Raises ValueError, CommandRefused, and as ``recv``.
        """
    def add_vlan(self, vlan: int) -> None:
        """Receive a VLAN's frames (0 to 4094) while the device is not promiscuous.

        Raises ValueError, CommandRefused, and as ``recv``.
        """
    def remove_vlan(self, vlan: int) -> None:
        """Stop receiving a VLAN's frames. Raises as ``add_vlan``."""
    def set_guest_offloads(self, offloads: Sequence[str]) -> None:
        """Choose which of the negotiated offloads of received packets are active.

        By feature name, such as ``GUEST_CSUM``. Raises ValueError for one that was not negotiated,
        CommandRefused, and as ``recv``.
        """
    def set_coalescing(self, direction: str, packets: int, microseconds: int) -> None:
        """Delay interrupts of all ``rx`` or ``tx`` queues by a number of packets or a time.

        Raises CommandRefused if the device does not offer NOTF_COAL, ValueError, and as ``recv``.
        """
    def reclaim(self) -> None:
        """Take back the buffers of transmitted frames that the device has finished.

        ``send`` does this when it needs room. Raises as ``recv``.
        """
    @property
    def closed(self) -> bool:
        """Whether the port was closed."""

@disjoint_base
class NetQueue:
    """One queue pair of a port, usable from its own thread."""

    def __new__(cls, port: NetPort, index: int) -> Self: ...
    @property
    def port(self) -> NetPort:
        """The port it belongs to."""
    @property
    def index(self) -> int:
        """Its number, from 0."""
    @property
    def active(self) -> bool:
        """Whether it carries frames: it is neither stopped nor beyond the pairs in use."""
    def send(self, frames: Burst | Iterable[_Frame], offload: _Offload = None) -> int:
        """Queue frames, as :meth:`NetPort.send`. Raises PortClosed if the pair is not active."""
    def recv(self, maximum: int = 256, timeout: float | None = 0.0) -> Burst:
        """Return received frames, as :meth:`NetPort.recv`.

        Raises PortClosed if the pair is stopped, or not in use and empty.
        """
    def fileno(self) -> int:
        """Return its receive eventfd, as :meth:`NetPort.fileno`."""
    def tx_fileno(self) -> int:
        """Return its transmit eventfd, as :meth:`NetPort.tx_fileno`."""
    def wait_writable(self, timeout: float | None = None) -> bool:
        """Wait until half of its transmit queue is free, as :meth:`NetPort.wait_writable`."""
    def stats(self) -> dict[str, int]:
        """Return its counters, as :meth:`NetPort.stats`."""
    def reclaim(self) -> None:
        """Take back the buffers of transmitted frames, as :meth:`NetPort.reclaim`."""
    def stop(self) -> None:
        """Reset both queues of the pair and take their buffers back; other pairs are not affected.

        Raises CommandRefused if the device does not offer RING_RESET, PortBusy, and as ``recv``.
        """
    def start(self) -> None:
        """Set the pair up again after ``stop``. Raises as ``stop``."""
    def set_coalescing(self, direction: str, packets: int, microseconds: int) -> None:
        """Delay ``rx`` or ``tx`` interrupts, as :meth:`NetPort.set_coalescing`."""

@final
class StackWire:
    """A wire whose frames Python moves."""

    def __new__(cls, mac: Sequence[int], mtu: int) -> Self: ...
    def feed(self, frames: Iterable[_Frame]) -> int:
        """Pass received frames to the stack; return how many it took."""
    def take(self, timeout: float) -> list[bytes] | None:
        """Return the sent frames, waiting for the first; None after the stack has ended."""
    def fail(self, why: str) -> None:
        """Fail the wire: no more frames are moved."""
    @property
    def ended(self) -> bool:
        """Whether the stack was closed."""

@final
class Connection:
    """One socket of a stack, as ``connections`` lists it."""

    @property
    def protocol(self) -> str:
        """``tcp`` or ``udp``."""
    @property
    def state(self) -> str:
        """The state: ``established``, ``listen`` and so on."""
    @property
    def local(self) -> tuple[str, int] | None:
        """The local address and port; None if it is not bound."""
    @property
    def remote(self) -> tuple[str, int] | None:
        """The peer's address and port; None if it is not connected."""
    @property
    def receive_queue(self) -> int:
        """Bytes that the program has not received yet; connections that it has not accepted yet."""
    @property
    def send_queue(self) -> int:
        """Bytes that the peer has not acknowledged yet."""
    @property
    def stats(self) -> dict[str, Any]:
        """The counters, as ``stats`` of the socket."""

@disjoint_base
class NetStack:
    """A TCP/IP stack with its own thread, on a port, a queue or a StackWire."""

    def __new__(
        cls,
        port: NetPort | NetQueue | StackWire,
        *,
        ipv6: bool = True,
        mtu: int | None = None,
        **_kwargs: Any,
    ) -> Self: ...
    def close(self) -> None:
        """Reset the connections, close the sockets, end the thread."""
    @property
    def closed(self) -> bool:
        """Whether it was closed."""
    @property
    def addresses(self) -> list[str]:
        """All addresses with their prefixes: ``10.0.2.15/24``, ``fe80::…/64``."""
    @property
    def gateways(self) -> list[str]:
        """The default gateways, IPv4 first."""
    @property
    def name_servers(self) -> list[str]:
        """The name servers of the DHCP lease."""
    def configure(self, address: str, gateway: str | None = None) -> None:
        """Add an address with its prefix, and set the default gateway of its family.

        Raises ValueError; then nothing has changed.
        """
    def remove_address(self, address: str) -> None:
        """Remove an address, and the gateway that only its network reaches.

        The prefix length may be omitted. Removing the address of the DHCP lease ends the lease.
        Sockets that are bound to the address remain, but receive nothing more. Raises ValueError if
        it is none of the stack's addresses.
        """
    def dhcp(self, timeout: float | None = 10.0) -> Lease:
        """Get a lease by DHCP, use it, and keep renewing it.

        It takes the place of an earlier lease; addresses that were configured remain, and so does
        their gateway. Raises TimeoutError without a lease within ``timeout`` seconds.
        """
    def wait_ipv6(self, timeout: float | None = 10.0) -> str:
        """Wait for an IPv6 address of global scope from a router; return it with its prefix.

        Raises TimeoutError without one within ``timeout`` seconds.
        """
    def arp(self, address: str, timeout: float | None = 1.0) -> ArpReply:
        """Resolve an IPv4 address.

        Raises TimeoutError without a reply within ``timeout`` seconds.
        """
    def ping(
        self, address: str, sequence: int = 0, payload: int = 56, timeout: float | None = 1.0
    ) -> PingReply:
        """Send one ICMP echo request with ``payload`` bytes, and wait for its reply.

        Raises TimeoutError without a reply within ``timeout`` seconds.
        """
    def _open(self, stream: bool, ipv6: bool) -> NetSocket:
        """Create a socket: TCP or UDP, IPv4 or IPv6."""
    def stats(self) -> dict[str, int]:
        """Return the counters by name."""
    def connections(self) -> list[Connection]:
        """Return all sockets, in the order of creation."""

@final
class NetSocket:
    """One socket of a stack. A ``timeout`` is in seconds; None waits forever, 0 not at all."""

    def bind(self, host: str, port: int) -> None:
        """Bind to an address and a port; port 0 selects a free one."""
    def listen(self, backlog: int) -> None:
        """Listen for connections, of which ``backlog`` can wait to be accepted."""
    def accept(self, timeout: float | None = None) -> tuple[NetSocket, tuple[str, int]]:
        """Accept a connection; return it and its peer's address."""
    def connect(self, host: str, port: int, timeout: float | None = None) -> None:
        """Connect to a peer."""
    def send(self, data: Buffer, timeout: float | None = None) -> int:
        """Send at least one of the bytes; return how many."""
    def send_all(self, data: Buffer, timeout: float | None = None) -> None:
        """Send all bytes."""
    def recv(self, size: int, timeout: float | None = None, peek: bool = False) -> bytes:
        """Return up to ``size`` bytes; none after the peer has shut down sending."""
    def recv_into(
        self, buffer: Buffer, size: int = 0, timeout: float | None = None, peek: bool = False
    ) -> int:
        """Receive up to ``size`` bytes (0: its length) into a buffer; return how many."""
    def send_to(
        self, data: Buffer, address: tuple[str, int] | None, timeout: float | None = None
    ) -> int:
        """Send one datagram to an address (None: the connected peer); return its length."""
    def recv_from(
        self, size: int, timeout: float | None = None, peek: bool = False
    ) -> tuple[bytes, int, tuple[str, int] | None]:
        """Return one datagram, cut to ``size`` bytes, its whole length, and its sender."""
    def recv_from_into(
        self, buffer: Buffer, size: int = 0, timeout: float | None = None, peek: bool = False
    ) -> tuple[int, int, tuple[str, int] | None]:
        """Receive a datagram into a buffer; return its bytes there, its length, and its sender."""
    def available(self) -> int:
        """Return how many bytes can be received now; for UDP, the length of the next datagram."""
    def shutdown(self, how: int) -> None:
        """Shut down receiving (0), sending (1) or both (2)."""
    def close(self) -> None:
        """Close the socket."""
    def local(self) -> tuple[str, int] | None:
        """Return the local address; None if it is not bound."""
    def peer(self) -> tuple[str, int]:
        """Return the peer's address."""
    def option(self, name: str) -> float:
        """Return the value of an option."""
    def set_option(self, name: str, value: float) -> None:
        """Set an option."""
    def take_error(self) -> int:
        """Return and clear the pending error number; 0 for none."""
    def membership(self, group: str, join: bool) -> None:
        """Join or leave a multicast group."""
    def fileno(self) -> int:
        """Return a descriptor to wait on for reading and writing."""
    def ready(self) -> tuple[bool, bool]:
        """Return whether receiving, and whether sending, would return at once."""
    def stats(self) -> dict[str, Any]:
        """Return the counters by name."""

#: Seconds, packets, a function called with the counters 20 times a second (False ends the loop),
#: and the processors of the threads.
_Until: TypeAlias = tuple[
    float | None, int | None, Callable[[dict[str, Any]], object] | None, Sequence[int]
]

def as_frames(frames: Burst | Iterable[_Frame]) -> Burst | list[Buffer] | tuple[Buffer, ...]:
    """Convert a ``frames`` argument into a burst, a list or a tuple of bytes-like objects.

    Items that are not bytes-like but define ``__bytes__`` are converted. A list or tuple without
    such items is returned as it is. Raises TypeError for a single frame (anything bytes-like or
    with ``__bytes__``), and whatever ``__bytes__`` raises.
    """

def forward(a: NetPort, b: NetPort, mode: str, backpressure: bool, until: _Until) -> dict[str, Any]:
    """Forward between two ports; see virtnic.forward."""

def reflect(port: NetPort, mode: str, backpressure: bool, until: _Until) -> dict[str, Any]:
    """Send frames back on the port they came from; see virtnic.reflect."""

def drop(port: NetPort, until: _Until) -> dict[str, Any]:
    """Receive and discard frames; see virtnic.drop."""

def generate(
    port: NetPort, frames: list[Buffer], rate: float | None, until: _Until
) -> dict[str, Any]:
    """Send frames cyclically; see virtnic.generate."""

def exchange(
    port: NetPort, frames: list[Buffer], rate: float | None, until: _Until
) -> dict[str, Any]:
    """Send frames cyclically while receiving and discarding; see virtnic.exchange."""

def measure(
    ports: tuple[NetPort, NetPort | None],
    streams: Sequence[tuple[Any, ...]],
    times: tuple[float, float],
    verify: bool,
    until: _Until,
) -> dict[str, Any]:
    """Send streams by one port and receive them by another; see virtnic.measure.run."""

def run(ports: Sequence[NetPort], address: int, until: _Until) -> dict[str, Any]:
    """Run the compiled function at an address on every burst; see virtnic.run."""
