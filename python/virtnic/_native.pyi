"""The Rust core of virtnic.

Every call that waits releases the interpreter and can be interrupted by Ctrl-C.
Sizes are bytes, times are seconds, addresses are integers.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Literal, Self, SupportsBytes, TypeAlias, final, overload

from typing_extensions import Buffer, disjoint_base

__all__ = [
    "ArpReply",
    "Burst",
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
    "PortBusy",
    "PortClosed",
    "PortDriver",
    "QTest",
    "QemuDied",
    "QemuError",
    "QemuNotFound",
    "Stack",
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
    "reflect",
    "run",
    "set_log_level",
    "spawn",
]
__version__: str

class VirtnicError(Exception):
    """Anything that virtnic raises and Python has no exception of its own for."""

class MemoryUnavailable(VirtnicError):
    """Shared memory of the wanted kind, size or place cannot be had."""

class QemuError(VirtnicError):
    """QEMU refused something; the message quotes its own words."""

class QemuNotFound(QemuError):
    """There is no usable QEMU."""

class QemuDied(QemuError):
    """QEMU is gone."""

class DeviceError(VirtnicError):
    """The device broke a rule of the specification; its port is unusable."""

class CommandRefused(VirtnicError):
    """The device refused a command, or cannot be asked for it; the port goes on."""

class PortClosed(VirtnicError):
    """The port was closed or its device was removed."""

class PortBusy(VirtnicError):
    """The queue is in use by a running engine loop or another call."""

def set_log_level(level: str) -> None:
    """Set from which level (off, error, warn, info, debug, trace) the core logs to stderr."""

def hugepages(node: int | None = None) -> list[tuple[int, int, int]]:
    """Return what the machine, or one NUMA node, has: (page size, total, free) for each size.

    Raises ValueError when the node does not exist.
    """

def brings_devices_back() -> None:
    """Say that this thread may have to bring a device back: calls in it wait for none that is away.

    They raise PortBusy then.
    """

def features_table() -> list[dict[str, Any]]:
    """Return what is known of each virtio-net feature bit, by number.

    ``bit``, ``name``, ``section`` of VIRTIO 1.3; ``support`` (required, accepted, on request,
    unsupported) and ``why``; ``about`` it in words; ``since``: the oldest QEMU of 5.2, 7.2, 10.0
    and 11.1 that offers it, or None, on which ``netdev`` and with which ``properties`` of
    ``virtio-net-pci``; ``argument``: what controls it here; ``tests`` that prove it.
    """

@disjoint_base
class Memory:
    """One shared file, mapped, prefaulted and sealed, with a packet pool in it."""

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
        """Make one. ``pages``: 0 for the largest that is free, else a page size in bytes.

        Raises ValueError, MemoryUnavailable, PermissionError.
        """
    @property
    def size(self) -> int:
        """Bytes."""
    @property
    def page_size(self) -> int:
        """Bytes of a page that backs it."""
    @property
    def iova(self) -> int:
        """Where the device sees it; QEMU's BAR goes there."""
    @property
    def address(self) -> int:
        """Where this process sees it."""
    @property
    def path(self) -> str | None:
        """The file's path where it has one."""
    @property
    def fallback(self) -> str | None:
        """Why the pages are smaller than the largest size there is."""
    @property
    def buffer_size(self) -> int:
        """Bytes of data a packet buffer holds."""
    @property
    def buffers(self) -> int:
        """Packet buffers in all."""
    @property
    def buffers_free(self) -> int:
        """Packet buffers that are with no device and in no burst."""
    @property
    def jumbo_buffers(self) -> int:
        """Buffers for frames longer than ``buffer_size``, in all."""
    @property
    def jumbo_buffers_free(self) -> int:
        """Those of them that are with no device and in no burst."""
    @property
    def largest_frame(self) -> int:
        """Bytes of the longest frame that fits a buffer."""
    def fileno(self) -> int:
        """Return the file's descriptor.

        Raises ValueError where it was closed: :func:`virtnic.open` keeps none of a memory that
        it makes.
        """
    def forget_file(self) -> None:
        """Close the file, where it has no path; what is mapped stays."""
    def read(self, offset: int, length: int) -> bytes:
        """Copy bytes out, for diagnosis. Raises ValueError outside the file."""
    def write(self, offset: int, data: Buffer) -> None:
        """Copy bytes in, for diagnosis. Raises ValueError outside the file."""
    def iova_of(self, offset: int, length: int = 1) -> int:
        """Return the device's address of an offset. Raises ValueError outside the file."""
    def offset_of(self, iova: int, length: int = 1) -> int:
        """Return the offset of a device's address. Raises ValueError outside the file."""

@final
class Descriptor:
    """A descriptor that is open as long as this object lives: for a wait in an event loop."""

    def fileno(self) -> int:
        """Return its number."""

@final
class EventFd:
    """A Linux eventfd (eventfd(2)), non-blocking."""

    def __new__(cls) -> Self: ...
    def fileno(self) -> int:
        """Return the descriptor, which is open until :meth:`close`; -1 after that.

        ``select``, ``poll`` and asyncio can wait on it.
        """
    def lend(self) -> int:
        """Return the descriptor, and keep it open for as long as this object lives.

        After :meth:`close` it is readable for good. Raises OSError where there are no more.
        """
    def borrow(self) -> Descriptor:
        """Return what keeps the descriptor open for the time of a wait; else as :meth:`lend`."""
    def close(self) -> None:
        """Signal it for good, and give the descriptor back unless it was lent.

        That happens when nobody waits in :meth:`wait` or has borrowed it any more. Twice is fine.
        """
    def signal(self) -> None:
        """Add one."""
    def drain(self) -> int:
        """Set the count to zero and return what it was."""
    def wait(self, timeout: float | None = None) -> bool:
        """Wait until it is signalled; False after the timeout. Does not drain."""

@final
class QTest:
    """A connection to QEMU's QTest socket. Any thread may use it.

    Every method raises QemuDied when QEMU is gone, TimeoutError when no reply
    comes, ValueError for what QEMU would abort on, QemuError for a refusal. It is connected
    to a QEMU that is known to listen.
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
        """Wait until everything written before is done."""
    def intercept(self, path: str) -> None:
        """Ask for the interrupts that reach one device (on a PC: ``ioapic``)."""
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
        """Why the connection ended, where it has."""
    def close(self) -> None:
        """End the connection and its threads."""

@final
class IvshmemServer:
    """Gives QEMU the memory and our interrupt eventfds over one UNIX socket.

    Each vector is a peer of its own, so the device's ``vectors=`` is 1. A QEMU hears of those
    that come later as long as it is connected.
    """

    def __new__(cls, path: str, memory: Memory) -> Self:
        """Make one that does not listen yet."""
    @property
    def vectors(self) -> int:
        """How many vectors there are, those given back among them."""
    @property
    def left(self) -> int | None:
        """How many vectors can be taken; None: as many as are wanted."""
    def listen(self) -> None:
        """Let QEMUs connect that know of no vector yet; who was connected is gone.

        Raises OSError, ValueError (the path, or a memory whose file was closed).
        """
    def stop_listening(self) -> None:
        """Let nobody connect any more; who is connected stays so."""
    def take_vector(self) -> tuple[int, int, EventFd]:
        """Reserve a vector: its number, the doorbell value that fires it, its eventfd.

        QEMU may not know of it yet: ring until it is heard. Raises OSError without a
        descriptor, ValueError after :meth:`hang_up`.
        """
    def tell(self) -> None:
        """Tell those who are connected what they have not heard yet, as far as they listen."""
    def give_vector(self, vector: int) -> None:
        """Give a vector back."""
    def lose_vector(self, vector: int) -> None:
        """Give a vector back that QEMU has not got: nobody takes it before another QEMU comes."""
    def hang_up(self) -> None:
        """End the connections; the vectors that there are go on."""
    def close(self) -> None:
        """Stop listening and end the connections."""

@final
class FrontEnd:
    """A virtio-net device without QEMU: a vhost-user backend serves its rings.

    A :class:`PortDriver` drives it. Its link is up while there is a backend.
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
        patience: float = 10.0,
        changed: EventFd | None = None,
    ) -> FrontEnd:
        """Meet the backend, waiting for it up to ``wait`` seconds.

        ``memory``: what is shared with it. ``server``: listen at ``backend``, and the backend
        connects. ``mac``, ``mtu``: what the device says of itself; a backend that wants to know
        the MTU is told it. ``pairs``: the queue pairs that it must have. ``calls``: what it
        signals, by queue; none for polling. ``config``: what is signalled when the link goes up or
        down. ``retry``: how often a backend that went is looked for, and the first and the
        longest pause in seconds; None is for ever, every 0.1 s. ``patience``: seconds that it
        may take to set a device up, or to stop it. ``changed``: what is signalled when something
        becomes of it; several may have the same.

        Raises FileNotFoundError or ConnectionRefusedError when no backend listens,
        TimeoutError when none connects, QemuError when it does not answer as a vhost-user
        backend does, or lacks queue pairs, ValueError, OSError.
        """
    @property
    def connected(self) -> bool:
        """Whether there is a backend."""
    @property
    def serving(self) -> bool:
        """Whether a backend serves the rings."""
    @property
    def refusal(self) -> str | None:
        """Why the last backend that came does not serve; None where it does, or none has come."""
    def spare(self, port: PortDriver) -> None:
        """Hold a backend that returns without features that the port can do without.

        Others are refused. It waits until the port has negotiated anew.
        """
    @property
    def held(self) -> str | None:
        """What a backend that is there lacks, where it waits for that."""
    def take_first(self) -> int | None:
        """Return a descriptor of the first backend's socket, the caller's to close; once."""
    @property
    def features(self) -> int:
        """The feature bits that the backend offered when it came last."""
    @property
    def given_up(self) -> str | None:
        """Why no backend is looked for any more; None while one is."""
    @property
    def changed(self) -> EventFd:
        """Signalled when ``connected``, ``serving``, ``refusal``, ``held``, ``given_up`` change."""
    def watch(self) -> None:
        """Look after the backend from now on: see when it goes, and look for the next.

        Raises OSError where the thread cannot be started.
        """
    def stats(self) -> dict[str, int]:
        """Return what has happened so far.

        ``messages`` (sent), ``links`` (backends that served), ``refusals`` (backends that came
        and did not serve), ``backend_losses``, ``kicks_lost`` (kicks without a backend).
        """
    def close(self) -> None:
        """Hang up, and remove the socket where there is one; after the port has stopped."""

@final
class VhostWire:
    """A connection to a vhost-user backend. Whole messages go and come, whatever they say."""

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
        """Send a message as it is; descriptors go with its first byte, and stay the caller's.

        Raises ValueError for one that is too long, TimeoutError, ConnectionError where the
        backend is gone.
        """
    def receive(self, timeout: float = 5.0) -> tuple[int, int, bytes, list[int]] | None:
        """Return the next message; None where none came in time.

        Its request, flags, payload and descriptors, which are the caller's to close. Raises
        ConnectionError where the backend is gone, DeviceError where it broke the protocol.
        """
    def close(self) -> None:
        """Hang up. Twice is fine."""

@final
class Interposer:
    """Stands between a QEMU and a vhost-user backend.

    QEMU's chardev connects to ``listen`` and must be one that connects again: the socket
    is there only while there is a backend that answers and no QEMU is served.
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
        patience: float = 10.0,
        changed: EventFd | None = None,
    ) -> Interposer:
        """Connect to the backend, waiting for it up to ``wait`` seconds, then listen for QEMU.

        ``server``: listen at ``backend``, and the backend connects. ``calls``: what the
        backend signals, by queue; None, or a queue past the end, leaves QEMU's own eventfd.
        ``retry``: how often a backend that went is looked for, and the first and the longest
        pause in seconds; None is for ever, every 0.1 s. ``pairs``: the queue pairs that it must
        have. ``patience``: seconds that either side may leave a message unread or unanswered.
        ``changed``: what is signalled when something becomes of the backend; several may have
        the same.

        Raises FileNotFoundError or ConnectionRefusedError when no backend listens,
        TimeoutError when none connects, QemuError when it does not answer as a vhost-user
        backend does, or lacks queue pairs, ValueError, OSError.
        """
    @property
    def connected(self) -> bool:
        """Whether a QEMU and a backend are joined."""
    @property
    def serving(self) -> bool:
        """Whether the backend serves: its rings are started, and it has said something since."""
    @property
    def refusal(self) -> str | None:
        """Why the last backend that came does not serve; None where it does, or none has come."""
    def begin_trial(self) -> None:
        """Have QEMU, which is about to make its netdev, let out of that should the backend fail."""
    def end_trial(self) -> str | None:
        """Say why no backend is behind the netdev that QEMU has made, where that is so."""
    def spare(self, port: PortDriver) -> None:
        """Hold a backend that returns without features that the port can do without.

        Others are refused. QEMU chooses a device's features when it is plugged in: what has the
        device plugged in anew calls :meth:`accept_held` when the old one is gone.
        """
    @property
    def held(self) -> str | None:
        """What a backend that is there lacks, where it waits until it is accepted."""
    def accept_held(self) -> None:
        """Let QEMU meet the backend that waits; from now on no more is demanded of one."""
    def take_first(self) -> int | None:
        """Return a descriptor of the first backend's socket, the caller's to close; once."""
    @property
    def features(self) -> int:
        """The feature bits that the backend offered when it came last."""
    @property
    def given_up(self) -> str | None:
        """Why no backend is looked for any more; None while one is."""
    @property
    def changed(self) -> EventFd:
        """Signalled when ``connected``, ``serving``, ``refusal``, ``held``, ``given_up`` change."""
    def kick(self, queue: int) -> None:
        """Kick the backend that serves a queue at the moment, as a port does."""
    def stats(self) -> dict[str, int]:
        """Return what has happened so far.

        ``messages_to_backend``, ``messages_to_qemu``, ``links`` (times that the two were
        joined), ``refusals`` (backends that came and did not serve), ``backend_losses``,
        ``qemu_losses``, ``kicks_learnt``, ``kicks_not_kept`` (eventfds let go because
        descriptors are scarce: the backend is kicked through QEMU), ``calls_replaced``,
        ``kicks_lost`` (kicks without a backend).
        """
    def close(self) -> None:
        """End the connections and remove the sockets."""

@final
class Child:
    """A child process that dies with this one, even on SIGKILL."""

    @property
    def pid(self) -> int:
        """Its process id."""
    def wait(self, timeout: float | None = None) -> int | None:
        """Wait for its end: exit code, or minus the signal; None after the timeout."""
    def terminate(self) -> bool:
        """Send SIGTERM; False when it runs as another user than we do by now, so we may not."""
    def kill(self) -> bool:
        """Send SIGKILL, to its process group too; False as :meth:`terminate` says."""

def spawn(argv: Sequence[str], environment: dict[str, str], stderr: int) -> Child:
    """Start a program whose stderr goes to a duplicate of the descriptor given.

    It blocks and ignores no signal, and is killed when this process ends, whoever both run as then.

    Raises FileNotFoundError, OSError.
    """

def after_fork_in_child() -> None:
    """Tell the core that this is a forked child.

    Objects made before the fork belong to the parent: their calls raise PortClosed from
    now on, and their end does nothing outside this process.
    """

@final
class Offload:
    """What is left to do to one frame: its checksum, its segmentation.

    The header in front of each frame, ``virtio_net_hdr`` (VIRTIO 1.3, section 5.1.6), in words.
    True where there is something to know or to do.
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

        Whether it fits a frame is seen when that is sent.
        """
    @property
    def checksum(self) -> Literal["needed", "valid"] | None:
        """``"needed"``: it is not calculated; its field has the sum of the pseudo-header.

        ``"valid"``: the device has seen that it is right; of no meaning when sent.
        """
    @property
    def checksum_start(self) -> int:
        """Where the checksummed bytes start: at the transport header (0 unless needed)."""
    @property
    def checksum_offset(self) -> int:
        """Where the checksum goes, from there: 16 for TCP, 6 for UDP (0 unless needed)."""
    @property
    def segmentation(self) -> Literal["tcp4", "tcp6", "udp", "udp_l4", "unknown"] | None:
        """How the frame becomes several: TCP segments, fragments (``udp``) or datagrams.

        ``unknown`` is what a device says that VIRTIO 1.3 does not know of.
        """
    @property
    def segment_size(self) -> int:
        """Bytes of payload of each segment."""
    @property
    def header_length(self) -> int:
        """Bytes of all headers; 0: what the frame says. Received, it is a hint."""
    @property
    def ecn(self) -> bool:
        """Whether the TCP segment has ECN's CWR set, which only the first segment keeps."""
    @property
    def coalesced_segments(self) -> int:
        """How many segments the device made this frame of (RSC); 0 where it did not."""
    @property
    def duplicate_acks(self) -> int:
        """How many duplicate acknowledgements were among them."""
    def __bool__(self) -> bool: ...
    def __eq__(self, other: object, /) -> bool: ...
    def __hash__(self) -> int: ...

@final
class Offloads(Sequence[Offload]):
    """What is left to do to each frame of a burst, as it was when it was asked for.

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

#: One frame: an object that shows its bytes, or that ``bytes()`` takes, as a scapy packet.
_Frame: TypeAlias = Buffer | SupportsBytes

#: What is left to do to frames: the same to all, or something to each.
_Offload: TypeAlias = Offload | Offloads | Iterable[Offload | None] | None

@final
class Feature:
    """What became of a feature bit of the device."""

    @property
    def name(self) -> str:
        """Its name in VIRTIO 1.3, without the prefix: ``MRG_RXBUF``."""
    @property
    def bit(self) -> int:
        """Its number."""
    @property
    def offered(self) -> bool:
        """Whether the device offers it."""
    @property
    def accepted(self) -> bool:
        """Whether it is in force."""
    @property
    def why(self) -> str:
        """Why it is, or is not."""
    def __eq__(self, other: object, /) -> bool: ...
    def __hash__(self) -> int: ...

@final
class Lease:
    """A DHCP lease (RFC 2131), which the stack uses from then on."""

    @property
    def address(self) -> str:
        """Our address, without its prefix."""
    @property
    def prefix(self) -> int:
        """Bits of the network's prefix."""
    @property
    def gateway(self) -> str | None:
        """The default gateway; None where the server names none."""
    @property
    def server(self) -> str:
        """Who gave it."""
    @property
    def dns(self) -> list[str]:
        """Name servers, the first one first."""
    @property
    def duration(self) -> float:
        """Seconds for which it holds."""
    @property
    def elapsed(self) -> float:
        """Seconds that it took to get it."""
    def __eq__(self, other: object, /) -> bool: ...

@final
class ArpReply:
    """Who answered an ARP request (RFC 826), and how soon."""

    @property
    def mac(self) -> str:
        """The MAC address that has the IP address."""
    @property
    def seconds(self) -> float:
        """Seconds from the request to the reply."""
    def __eq__(self, other: object, /) -> bool: ...

@final
class PingReply:
    """An ICMP echo reply (RFC 792)."""

    @property
    def sequence(self) -> int:
        """The number of the request that it answers."""
    @property
    def seconds(self) -> float:
        """Seconds from the request to the reply."""
    def __eq__(self, other: object, /) -> bool: ...

@final
class Burst(Sequence[memoryview]):
    """Frames received together, or to be sent together; each a writable memoryview.

    No frame is copied: a view is the packet memory itself. A buffer goes back
    to the pool when its burst and every view of it are gone.
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
        """The frames' lengths, a read-only view of 32-bit unsigned integers (a snapshot)."""
    @property
    def ids(self) -> memoryview:
        """The buffers' indices in the pool, likewise."""
    @property
    def hashes(self) -> memoryview | None:
        """The hash of each frame (unsigned 32 bits), None where the device reports none."""
    @property
    def hash_types(self) -> memoryview | None:
        """What each hash was calculated over: 0 nothing, 1 IPv4, 2 TCPv4, 3 UDPv4, 4 IPv6 etc.

        The values of ``hash_report`` in VIRTIO 1.3, section 5.1.6.4.4.
        """
    @property
    def timestamp(self) -> int | None:
        """When the frames were taken from their ring, nanoseconds since 1970 (``time.time_ns()``).

        No frame of the burst came later. How much earlier one may have come: what was received by
        polling, the time since the look at the ring before; what a wait found, the time that the
        interrupt takes. None where the port was opened without ``timestamps=True``.
        """
    @property
    def offload(self) -> Offloads | None:
        """What is left to do to each frame, or what the device has done to it already.

        None where the port negotiated no offload of received frames.
        """
    @property
    def data(self) -> memoryview:
        """The frames as one two-dimensional view (packet, byte) of their buffers, no copy.

        Row ``i`` is the whole buffer of frame ``i``: its first ``lengths[i]`` bytes are the frame.
        Raises BufferError where the buffers do not lie in a row; ``headers`` works then.
        """
    def headers(self, count: int = 64) -> Any:
        """Copy the first ``count`` bytes of every frame into a NumPy array (packet, byte).

        What a shorter frame does not have is zero. Raises ValueError, ImportError without NumPy.
        """
    def put_headers(self, headers: Any) -> None:
        """Copy rows of bytes over the starts of the frames, as far as each frame goes.

        ``headers`` is C-contiguous, with one row of unsigned bytes for each frame.
        Raises ValueError when it has another shape.
        """
    def tobytes(self) -> list[bytes]:
        """Copy every frame out."""
    def release(self) -> None:
        """Give the buffers back now; the burst is empty afterwards."""

@final
class PortDriver:
    """A started virtio-net device, as those have it who plug it in, bring it back and unplug it.

    Users have a :class:`NetPort`, which is made of this.
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
        """Reset the device where it says DEVICE_NEEDS_RESET (VIRTIO 1.3, 2.1); whether it did.

        As :meth:`NetPort.restart`.
        """
    def set_recoverable(self, patient: bool) -> None:
        """Take the end of QEMU for an outage."""
    def abandon(self, why: str) -> None:
        """Expect no other device any more."""
    def suspend(self) -> None:
        """Set the queues of a device aside that is gone, or is about to be unplugged.

        Raises VirtnicError, TimeoutError.
        """
    def reattach(
        self,
        qtest: QTest | None = None,
        registers: tuple[int, int, int, int, int, int] | None = None,
        legacy_io: tuple[int, int, bool] | None = None,
        front_end: FrontEnd | None = None,
    ) -> None:
        """Go on with another device like the last one."""
    @property
    def link(self) -> bool:
        """Whether the link is up, as last reported."""
    def check(self) -> None:
        """Raise what ended the port, if something did: PortClosed, QemuDied, DeviceError."""
    @property
    def drops_long_frames(self) -> bool:
        """Whether received frames were dropped, and counted, because no buffer holds them."""
    def refresh_link(self) -> bool:
        """Ask the device, and return whether the link is up."""
    def rx_descriptor(self) -> Descriptor:
        """Return what :meth:`NetPort.fileno` does, for one wait.

        A closed port gives it back when that is over.
        """
    def tx_descriptor(self) -> Descriptor:
        """Return what :meth:`NetPort.tx_fileno` does, for one wait."""
    @property
    def rss_limits(self) -> tuple[int, int, int] | None:
        """The longest key and table and the hash types that the device can do, or None."""
    def rss_config(self) -> tuple[list[int], list[int], int, int] | None:
        """Return key, table, types and the queue of unhashed packets as they were set last."""
    def set_rss_config(
        self, key: Sequence[int], table: Sequence[int], types: int, unclassified: int = 0
    ) -> None:
        """Set how the device steers and hashes; see :meth:`virtnic.Port.set_rss`."""
    def refuse(self) -> None:
        """Raise PortClosed from now on, also in calls that wait.

        QEMU is not asked: ``stop`` does the rest.
        """
    @property
    def withholds(self) -> bool:
        """Whether it was stopped, but its device was not reset and still has its buffers."""
    def device_gone(self) -> None:
        """Say that the device is gone that kept buffers."""
    def stop(self) -> None:
        """Reset the device and take every buffer back; waiting calls raise PortClosed.

        Where QEMU does not answer in time the buffers stay with the device until that is gone.
        """

@disjoint_base
class NetPort:
    """A started virtio-net device, as users have it. Made of its :class:`PortDriver`.

    A subclass adds what is not the device's; all methods may be called from any thread.
    """

    def __new__(cls, driver: PortDriver, **kwargs: Any) -> Self: ...
    @property
    def mac(self) -> str:
        """The device's MAC address, as ``52:54:00:12:34:56``."""
    @property
    def mtu(self) -> int:
        """The device's MTU, 1500 where it does not say."""
    @property
    def link(self) -> bool:
        """Whether the link is up. Without interrupts this asks the device (some 50 µs)."""
    @property
    def away(self) -> bool:
        """Whether the device is being reset, or was lost with its QEMU and may come back."""
    @property
    def restarts(self) -> int:
        """How often the device was brought up again."""
    def restart(self) -> None:
        """Reset the device and bring it up again as it was, with all that it was told.

        Also where the port is broken. Frames that had arrived are still received, those that were
        with the device are counted as ``tx_lost``. Raises DeviceError, CommandRefused, QemuDied,
        PortClosed.
        """
    @property
    def speed(self) -> int | None:
        """The line's speed in Mbit/s as last reported, None where the device does not know.

        Feature SPEED_DUPLEX; QEMU's property ``speed``.
        """
    @property
    def duplex(self) -> Literal["half", "full"] | None:
        """The line's duplex mode as last reported, None where the device does not know."""
    @property
    def standby(self) -> bool:
        """Whether the device is offered as standby for another with the same MAC address.

        Feature STANDBY; QEMU's property ``failover``.
        """
    @property
    def features(self) -> list[Feature]:
        """Each feature that is offered or known, by its number."""
    @property
    def queue_size(self) -> int:
        """Entries of each queue."""
    @property
    def queue_addresses(self) -> list[tuple[str, int, int, int]]:
        """Each queue's name (``rx``, ``tx``) and the IOVAs of its three areas (VIRTIO 1.3, 2.6)."""
    @property
    def ring(self) -> str:
        """The ring format: ``split`` or ``packed``."""
    @property
    def legacy(self) -> bool:
        """Whether the device is driven by its legacy interface, that of virtio 0.9.5."""
    def send(self, frames: Burst | Iterable[_Frame], offload: _Offload = None) -> int:
        """Queue frames for transmission and return how many fitted the ring.

        ``offload``: what is left to do to them (an :class:`Offload` for all, one or None for each).
        It must fit the frame, and its feature must be in force: else ValueError, and ``queued``
        of the error says how many frames before it were queued. Without it, frames of a burst
        are sent with what was left to do to them when they were received: a checksum that
        this device cannot do is calculated, a frame that it cannot segment is dropped and counted
        (``tx_no_offload``), as is one that does not fit its metadata (``tx_bad_offload``).

        A burst is moved: what fitted leaves it, no byte is copied (except for frames
        of which a view is alive, or that live in another memory: these are copied
        and counted). Other frames are copied once: bytes-like objects, and what ``bytes()`` takes,
        such as packets of scapy. One frame in the place of several is a TypeError. Frames
        that did not fit are not an error: they are counted and can be sent again.

        Raises ValueError (an empty frame, one longer than a buffer) and TypeError (not
        bytes-like) with a note of how many were queued before it;
        PortClosed, QemuDied, DeviceError, PortBusy.
        """
    def recv(self, maximum: int = 256, timeout: float | None = 0.0) -> Burst:
        """Return up to ``maximum`` frames; an empty burst when none came in time.

        ``timeout`` 0 looks once, None waits for ever. Waits for the first frame only.

        Raises PortClosed, QemuDied, DeviceError, PortBusy, ValueError.
        """
    def fileno(self) -> int:
        """Return an eventfd that is readable when ``recv`` would find frames or an error.

        From the first call on, interrupts stay enabled between calls of ``recv``. It stays open,
        and readable, for as long as this object lives, also when the port is closed.
        Raises ValueError when the port has no interrupts.
        """
    def tx_fileno(self) -> int:
        """Return an eventfd that is readable until ``send`` does not take all.

        After that it is readable again once half of the queue is free and, where there was none,
        the memory has a buffer again, or when there is an error. It stays open as that of
        :meth:`fileno`. Raises ValueError when the port has no interrupts.
        """
    def wait_writable(self, timeout: float | None = None) -> bool:
        """Wait until half of the transmit queue is free; False after the timeout.

        By the transmit interrupt, where the port has interrupts. After a ``send`` that found no
        free buffer in the memory, also until there is one, whoever gives it back. Raises as
        ``recv``.
        """
    @property
    def polling(self) -> float:
        """Microseconds that a wait in ``recv`` polls before it sleeps; see ``set_polling``."""
    def set_polling(self, microseconds: float) -> None:
        """Have waits in ``recv`` poll the ring for a while before they sleep; 0 for never.

        They do only where recent waits were shorter than that: a busy port needs no
        interrupts then, an idle one no processor. ``stats`` counts ``rx_polls``, waits that
        polling ended, and ``rx_sleeps``. Raises ValueError (negative, more than 100,000).
        """
    def stats(self) -> dict[str, int]:
        """Return packets, bytes, drops by reason, kicks and interrupts since the start.

        Sums over all queues; :meth:`NetQueue.stats` has those of one.
        """
    def xstats(self) -> dict[str, int]:
        """Return everything that is counted: what ``stats`` has, and each queue's own numbers.

        ``rx_q0_packets`` and so on, as in DPDK's extended statistics: the counters of
        :meth:`stats`; ``errors``, the sum of ``bad_length`` and ``bad_chain``; ``ring_size``,
        ``ring_used`` and ``ring_free``, descriptors as they were after the last call that moved
        frames. With ``set_statistics("extended")`` also ``undersize_packets`` (below 64
        bytes on the wire, so with the four of the checksum that nobody sees),
        ``size_64_packets``, ``size_65_127_packets``, ``size_128_255_packets``,
        ``size_256_511_packets``, ``size_512_1023_packets``, ``size_1024_1518_packets``,
        ``size_1519_max_packets`` (lengths are without frame check sequence),
        ``unicast_packets``, ``multicast_packets`` and ``broadcast_packets``.

        Takes no lock: nobody who moves frames is kept waiting.
        """
    @property
    def statistics(self) -> Literal["basic", "extended"]:
        """What was set by ``set_statistics``."""
    def set_statistics(self, which: Literal["basic", "extended"]) -> None:
        """Say whether the kinds of frames are counted, from now on and in running loops too.

        ``extended`` reads the first bytes of every frame. Raises ValueError.
        """
    @property
    def timestamps(self) -> bool:
        """Whether received bursts say when they were taken from their ring."""
    def set_timestamps(self, on: bool = True) -> None:
        """Have received bursts say when they were taken from their ring (:attr:`Burst.timestamp`).

        From the next burst on. Costs one reading of the clock for each burst, and nothing when off.
        """
    @property
    def queues(self) -> int:
        """The queue pairs that the device uses."""
    @property
    def max_queues(self) -> int:
        """The queue pairs that the port was opened with."""
    def set_queues(self, count: int) -> None:
        """Have the device use the first ``count`` queue pairs, while the port runs.

        What the others received stays readable. Ends steering by RSS.
        Raises ValueError (none, more than ``max_queues``), CommandRefused, PortBusy, as ``recv``.
        """
    def set_receive_mode(self, mode: str, on: bool = True) -> None:
        """Turn a receive mode on or off (VIRTIO 1.3, section 5.1.6.5.1).

        ``promiscuous``, ``all-multicast``, ``all-unicast``, ``no-multicast``, ``no-unicast``,
        ``no-broadcast``. Raises ValueError, CommandRefused and as ``recv``.
        """
    def set_mac(self, mac: str) -> None:
        """Change the device's MAC address. Raises ValueError, CommandRefused and as ``recv``."""
    def set_mac_filter(self, unicast: Sequence[str] = (), multicast: Sequence[str] = ()) -> None:
        """Set the addresses that are received beside the device's own and broadcast.

        They replace those before; at most 64 together. Of no effect while the device is
        promiscuous. Raises ValueError, CommandRefused and as ``recv``.
        """
    def add_vlan(self, vlan: int) -> None:
        """Receive a VLAN's frames (0 to 4094) when the device is not promiscuous.

        Raises ValueError, CommandRefused and as ``recv``.
        """
    def remove_vlan(self, vlan: int) -> None:
        """No longer receive a VLAN's frames. Raises as ``add_vlan``."""
    def set_guest_offloads(self, offloads: Sequence[str]) -> None:
        """Say which of the negotiated offloads of received packets are in force.

        By feature name, such as ``GUEST_CSUM``. Raises ValueError for one that was not
        negotiated, CommandRefused and as ``recv``.
        """
    def set_coalescing(self, direction: str, packets: int, microseconds: int) -> None:
        """Let interrupts of all ``rx`` or ``tx`` queues wait for so many packets or so long.

        Raises CommandRefused where the device does not offer NOTF_COAL, ValueError, as ``recv``.
        """
    def reclaim(self) -> None:
        """Take back the buffers of transmitted frames that the device has finished.

        ``send`` does this when it needs room. Raises as ``recv``.
        """
    @property
    def closed(self) -> bool:
        """Whether the port was stopped."""

@disjoint_base
class NetQueue:
    """One queue pair of a port, usable from its own thread."""

    def __new__(cls, port: NetPort, index: int) -> Self: ...
    @property
    def port(self) -> NetPort:
        """The port that it is a part of."""
    @property
    def index(self) -> int:
        """Its number, from 0."""
    @property
    def active(self) -> bool:
        """Whether it moves frames: neither stopped nor one more than the device uses."""
    def send(self, frames: Burst | Iterable[_Frame], offload: _Offload = None) -> int:
        """Queue frames; as :meth:`NetPort.send`. Raises PortClosed where it is not active."""
    def recv(self, maximum: int = 256, timeout: float | None = 0.0) -> Burst:
        """Return received frames; as :meth:`NetPort.recv`.

        Raises PortClosed where it is stopped, or not in use and empty.
        """
    def fileno(self) -> int:
        """Return its eventfd; as :meth:`NetPort.fileno`."""
    def tx_fileno(self) -> int:
        """Return its transmit eventfd; as :meth:`NetPort.tx_fileno`."""
    def wait_writable(self, timeout: float | None = None) -> bool:
        """Wait until half of its transmit queue is free; as :meth:`NetPort.wait_writable`."""
    def stats(self) -> dict[str, int]:
        """Return its own counters; as :meth:`NetPort.stats`."""
    def reclaim(self) -> None:
        """Take back the buffers of finished frames; as :meth:`NetPort.reclaim`."""
    def stop(self) -> None:
        """Reset its two queues and take their buffers back; the others go on.

        Raises CommandRefused where the device does not offer RING_RESET, PortBusy, as ``recv``.
        """
    def start(self) -> None:
        """Set it up again after ``stop``. Raises as ``stop``."""
    def set_coalescing(self, direction: str, packets: int, microseconds: int) -> None:
        """Let its ``rx`` or ``tx`` interrupts wait; as :meth:`NetPort.set_coalescing`."""

@final
class Stack:
    """A TCP/IP stack (smoltcp) on top of a port: DHCP, ARP, ICMP echo."""

    def __new__(cls, port: NetPort) -> Self: ...
    @property
    def address(self) -> str | None:
        """The address with its prefix, ``10.0.2.15/24``."""
    @property
    def gateway(self) -> str | None:
        """The default gateway."""
    def configure(self, address: str, gateway: str | None = None) -> None:
        """Set the address (with prefix) and the gateway. Raises ValueError."""
    def dhcp(self, timeout: float | None = 10.0) -> Lease:
        """Take a lease by DHCP and use it.

        Raises TimeoutError when no server answers within ``timeout`` seconds.
        """
    def arp(self, address: str, timeout: float | None = 1.0) -> ArpReply:
        """Resolve an IPv4 address.

        Raises TimeoutError when nobody answers within ``timeout`` seconds.
        """
    def ping(
        self, address: str, sequence: int = 0, payload: int = 56, timeout: float | None = 1.0
    ) -> PingReply:
        """Send one ICMP echo request with ``payload`` bytes, and wait for its reply.

        Raises TimeoutError when none comes within ``timeout`` seconds.
        """
    def poll(self, timeout: float | None = 0.0) -> int:
        """Serve the network (ARP, echo requests) until the timeout; return frames handled."""

@final
class StackWire:
    """A wire of Python's: frames of any object that sends and receives them."""

    def __new__(cls, mac: Sequence[int], mtu: int) -> Self: ...
    def feed(self, frames: Iterable[_Frame]) -> int:
        """Give the stack received frames; return how many it took."""
    def take(self, timeout: float) -> list[bytes] | None:
        """Return the frames that the stack sends, waiting for the first; None when it has ended."""
    def fail(self, why: str) -> None:
        """Say that frames are carried no more, and why."""
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
        """Its own address and port; None where it has none."""
    @property
    def remote(self) -> tuple[str, int] | None:
        """Its peer's."""
    @property
    def receive_queue(self) -> int:
        """Bytes that the program has not taken yet; connections that it has not accepted."""
    @property
    def send_queue(self) -> int:
        """Bytes that the peer has not acknowledged yet."""
    @property
    def stats(self) -> dict[str, Any]:
        """What was counted, as ``stats`` of the socket."""

@disjoint_base
class NetStack:
    """A TCP/IP stack with a thread of its own, on a port, a queue or a wire of Python's."""

    def __new__(
        cls,
        port: NetPort | NetQueue | StackWire,
        *,
        ipv6: bool = True,
        mtu: int | None = None,
        **_kwargs: Any,
    ) -> Self: ...
    def close(self) -> None:
        """End the thread, reset the connections, close the sockets."""
    @property
    def closed(self) -> bool:
        """Whether it was closed."""
    @property
    def addresses(self) -> list[str]:
        """All addresses with their prefixes: ``10.0.2.15/24``, ``fe80::…/64``."""
    @property
    def gateways(self) -> list[str]:
        """The default gateways, IPv4's first."""
    @property
    def name_servers(self) -> list[str]:
        """The name servers that DHCP told of."""
    def configure(self, address: str, gateway: str | None = None) -> None:
        """Add an address with its prefix, and set its family's gateway.

        An IPv4 address takes the place of a lease. Raises ValueError.
        """
    def dhcp(self, timeout: float | None = 10.0) -> Lease:
        """Take a lease by DHCP, use it, and keep renewing it.

        Raises TimeoutError when no server answers within ``timeout`` seconds.
        """
    def wait_ipv6(self, timeout: float | None = 10.0) -> str:
        """Wait until a router has given an IPv6 address of global scope; return it with its prefix.

        Raises TimeoutError when none has within ``timeout`` seconds.
        """
    def arp(self, address: str, timeout: float | None = 1.0) -> ArpReply:
        """Resolve an IPv4 address.

        Raises TimeoutError when nobody answers within ``timeout`` seconds.
        """
    def ping(
        self, address: str, sequence: int = 0, payload: int = 56, timeout: float | None = 1.0
    ) -> PingReply:
        """Send one ICMP echo request with ``payload`` bytes, and wait for its reply.

        Raises TimeoutError when none comes within ``timeout`` seconds.
        """
    def open(self, stream: bool, ipv6: bool) -> NetSocket:
        """Make a socket: of TCP or UDP, for IPv4 or IPv6."""
    def stats(self) -> dict[str, int]:
        """Return the counters by name."""
    def connections(self) -> list[Connection]:
        """Return what sockets there are, in the order in which they were made."""

@final
class NetSocket:
    """One socket of a stack. A ``timeout`` is in seconds; None waits for ever, 0 not at all."""

    def bind(self, host: str, port: int) -> None:
        """Give it an address and a port; 0: any that is free."""
    def listen(self, backlog: int) -> None:
        """Let others connect, of which ``backlog`` may wait to be accepted."""
    def accept(self, timeout: float | None = None) -> tuple[NetSocket, tuple[str, int]]:
        """Return the next connection and its peer's address."""
    def connect(self, host: str, port: int, timeout: float | None = None) -> None:
        """Connect."""
    def send(self, data: Buffer, timeout: float | None = None) -> int:
        """Send a part of the bytes, at least one; return how many."""
    def send_all(self, data: Buffer, timeout: float | None = None) -> None:
        """Send all the bytes."""
    def recv(self, size: int, timeout: float | None = None, peek: bool = False) -> bytes:
        """Return up to ``size`` bytes; none when the peer has ended its half."""
    def recv_into(
        self, buffer: Buffer, size: int = 0, timeout: float | None = None, peek: bool = False
    ) -> int:
        """Receive into a buffer, up to ``size`` bytes (0: as many as it has); return how many."""
    def send_to(
        self, data: Buffer, address: tuple[str, int] | None, timeout: float | None = None
    ) -> int:
        """Send one datagram to an address, None: to whom it is connected; return its length."""
    def recv_from(
        self, size: int, timeout: float | None = None, peek: bool = False
    ) -> tuple[bytes, int, tuple[str, int] | None]:
        """Return one datagram, cut to ``size`` bytes, its whole length, and who sent it."""
    def recv_from_into(
        self, buffer: Buffer, size: int = 0, timeout: float | None = None, peek: bool = False
    ) -> tuple[int, int, tuple[str, int] | None]:
        """Receive a datagram into a buffer; return its length there, in whole, and who sent it."""
    def available(self) -> int:
        """Return how many bytes can be received now; of UDP, those of the next datagram."""
    def shutdown(self, how: int) -> None:
        """End a half: 0 reading, 1 writing, 2 both."""
    def close(self) -> None:
        """Close it."""
    def local(self) -> tuple[str, int] | None:
        """Its own address; None where it has none."""
    def peer(self) -> tuple[str, int]:
        """Its peer's address."""
    def option(self, name: str) -> float:
        """Return an option by its name."""
    def set_option(self, name: str, value: float) -> None:
        """Set an option by its name."""
    def take_error(self) -> int:
        """Return the number of the error that waits, 0 for none, and forget it."""
    def membership(self, group: str, join: bool) -> None:
        """Join a multicast group, or leave it."""
    def fileno(self) -> int:
        """Return a descriptor that can be waited on for reading and writing."""
    def ready(self) -> tuple[bool, bool]:
        """Return whether it can be read from, and written to, now."""
    def stats(self) -> dict[str, Any]:
        """Return what was counted of it, by name."""

#: Seconds, packets, and a function that gets the counters 20 times a second; False from it stops.
_Until: TypeAlias = tuple[float | None, int | None, Callable[[dict[str, Any]], object] | None]

def as_frames(frames: Burst | Iterable[_Frame]) -> Burst | list[Buffer] | tuple[Buffer, ...]:
    """Make a burst, a list or a tuple of what was given as frames, of which there are several.

    What shows no bytes but makes some (``__bytes__``) is made bytes of; a list or a tuple in which
    there is no such thing is returned as it is. Raises TypeError for one frame in their place
    (anything that shows or makes bytes), and what an object's ``__bytes__`` raises.
    """

def forward(a: NetPort, b: NetPort, mode: str, backpressure: bool, until: _Until) -> dict[str, Any]:
    """Forward between two ports, in both directions; see virtnic.forward."""

def reflect(port: NetPort, mode: str, backpressure: bool, until: _Until) -> dict[str, Any]:
    """Send frames back by the port they came from; see virtnic.reflect."""

def drop(port: NetPort, until: _Until) -> dict[str, Any]:
    """Receive and forget; see virtnic.drop."""

def generate(
    port: NetPort, frames: list[Buffer], rate: float | None, until: _Until
) -> dict[str, Any]:
    """Send frames in turn, again and again; see virtnic.generate."""

def exchange(
    port: NetPort, frames: list[Buffer], rate: float | None, until: _Until
) -> dict[str, Any]:
    """Send frames in turn, and receive and forget; see virtnic.exchange."""

def run(ports: Sequence[NetPort], address: int, until: _Until) -> dict[str, Any]:
    """Run the compiled function at an address over every burst; see virtnic.run."""
