"""Loops that run in the Rust core, without the interpreter.

Each claims the queues it uses (others get PortBusy meanwhile), polls them, and ends after
``seconds`` or ``packets``, with KeyboardInterrupt on Ctrl-C, when ``progress`` returns False,
or with the exception that ended a port.

They take all queue pairs that the port uses (its ``queues=``, :meth:`Port.set_queues`), and have a
thread for each; what they return is the sum. ``cpus`` are the processors of these threads, in
turn, while the loop runs: the first is the caller's own. Of ``packets`` and of a rate each takes
its part. Ports of one loop use the same number of pairs, else it is a ValueError.
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from virtnic import _native
from virtnic.arguments import loop_limits, suggest_options
from virtnic.loops.traffic import IMIX, MAX_FRAME, make_frame, parse_rate
from virtnic.nic.port import Port
from virtnic.units import CHECKSUM

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from typing_extensions import Buffer

    from virtnic.protocols import Frame

Mode = Literal["io", "mac", "macswap"]


@dataclass(frozen=True, slots=True)
class Result:
    """The result of a loop.

    Attributes
    ----------
    packets
        Frames moved: sent, or received by a loop that only receives.
    bytes
        Their bytes, without virtio headers and checksums.
    seconds
        The duration of the loop.
    received, sent
        Frames received, and frames sent.
    bursts, idle
        Iterations of the loop that moved frames, and iterations that found nothing to do.
    ring_full, dropped, bad_verdict
        Frames dropped: no room in the transmit ring, dropped by a verdict, or by an invalid
        verdict.
    no_offload
        Frames dropped because the sending port cannot apply their offloads (checksum,
        segmentation), or because the offloads do not fit the frame.
    held
        Iterations in which nothing was received because the transmit ring was full
        (``backpressure``).

    """

    packets: int
    bytes: int
    seconds: float
    received: int
    sent: int
    bursts: int
    idle: int
    ring_full: int
    dropped: int
    bad_verdict: int
    no_offload: int = 0
    held: int = 0

    @property
    def pps(self) -> float:
        """Frames a second."""
        return self.packets / self.seconds if self.seconds else 0.0

    @property
    def bps(self) -> float:
        """Bits a second."""
        return 8 * self.bytes / self.seconds if self.seconds else 0.0


def _until(
    seconds: float | None,
    packets: int | None,
    progress: Callable[[Result], object] | None,
    cpus: Iterable[int],
) -> tuple[float | None, int | None, Callable[[dict[str, Any]], object] | None, list[int]]:
    seconds, packets, chosen = loop_limits(seconds, packets, progress, cpus)
    tell = None if progress is None else lambda counters: progress(Result(**counters))
    return seconds, packets, tell, chosen


@suggest_options
def forward(
    a: Port,
    b: Port,
    *,
    mode: Mode = "io",
    backpressure: bool = True,
    seconds: float | None = None,
    packets: int | None = None,
    progress: Callable[[Result], object] | None = None,
    cpus: Iterable[int] = (),
) -> Result:
    """Forward between two ports in both directions.

    Ports on one memory exchange buffers: no byte is copied. ``mode``: ``io`` changes nothing,
    ``mac`` sets the source to the sending port's address, ``macswap`` swaps the two addresses.
    ``backpressure``: while one port's transmit ring is full, frames for it are left in the other's
    receive ring, so that the sender slows down; after 0.1 s without room they are dropped until
    there is some. With False, frames that do not fit are dropped at once (``ring_full``).
    """
    until = _until(seconds, packets, progress, cpus)
    return Result(**_native.forward(a, b, mode, backpressure, until))


@suggest_options
def reflect(
    port: Port,
    *,
    mode: Mode = "macswap",
    backpressure: bool = True,
    seconds: float | None = None,
    packets: int | None = None,
    progress: Callable[[Result], object] | None = None,
    cpus: Iterable[int] = (),
) -> Result:
    """Send every frame back on the port it came from.

    ``mode`` and ``backpressure`` as for :func:`forward`.
    """
    until = _until(seconds, packets, progress, cpus)
    return Result(**_native.reflect(port, mode, backpressure, until))


@suggest_options
def drop(
    port: Port,
    *,
    seconds: float | None = None,
    packets: int | None = None,
    progress: Callable[[Result], object] | None = None,
    cpus: Iterable[int] = (),
) -> Result:
    """Receive frames and forget them."""
    return Result(**_native.drop(port, _until(seconds, packets, progress, cpus)))


@suggest_options
def generate(
    port: Port,
    *,
    frames: Iterable[Frame] | None = None,
    size: int | Literal["imix"] = 64,
    rate: float | str | None = None,
    seconds: float | None = None,
    packets: int | None = None,
    progress: Callable[[Result], object] | None = None,
    cpus: Iterable[int] = (),
) -> Result:
    """Send frames cyclically.

    ``frames``: the frames to send; by default UDP frames of ``size`` bytes on the wire (including
    the 4-byte checksum, so 64 is the minimum), or the simple IMIX. Frames longer than a buffer use
    jumbo buffers, at most half of the free ones. ``rate``: frames a second, or text such as
    ``"10Mpps"`` or ``"1Gbit/s"`` (bits of frames including checksums); None for as fast as
    possible.
    """
    load, per_second = _load(port, frames, size, rate)
    until = _until(seconds, packets, progress, cpus)
    return Result(**_native.generate(port, load, per_second, until))


@suggest_options
def exchange(
    port: Port,
    *,
    frames: Iterable[Frame] | None = None,
    size: int | Literal["imix"] = 64,
    rate: float | str | None = None,
    seconds: float | None = None,
    packets: int | None = None,
    progress: Callable[[Result], object] | None = None,
    cpus: Iterable[int] = (),
) -> Result:
    """Send frames as :func:`generate` does, while receiving and discarding frames.

    With a peer that echoes, this measures both directions. ``packets`` counts sent frames.
    """
    load, per_second = _load(port, frames, size, rate)
    until = _until(seconds, packets, progress, cpus)
    return Result(**_native.exchange(port, load, per_second, until))


def _load(
    port: Port, frames: Iterable[Frame] | None, size: int | str, rate: float | str | None
) -> tuple[list[Buffer], float | None]:
    load = _frames_of(port, size) if frames is None else _given(port, frames)
    mean = sum(memoryview(frame).nbytes for frame in load) / len(load)
    return load, None if rate is None else parse_rate(rate, mean + CHECKSUM)


def _given(port: Port, frames: Iterable[Frame]) -> list[Buffer]:
    """Check all given frames before the first is sent."""
    load = [*_native.as_frames(frames)]
    if not load:
        raise ValueError("frames must not be empty")
    most = port.memory.largest_frame
    for number, frame in enumerate(load):
        try:
            length = memoryview(frame).nbytes
        except TypeError as error:
            raise TypeError(f"frame {number} to send: {error}") from None
        if not 0 < length <= most:
            raise ValueError(
                f"frame {number} to send has {length} bytes; a buffer of this port "
                f"holds 1 to {most}"
            )
    return load


def _frames_of(port: Port, size: int | str) -> list[Buffer]:
    if size == "imix":
        return [make_frame(length, source=port.mac) for length in IMIX]
    most = min(port.memory.largest_frame, MAX_FRAME) + CHECKSUM
    if not isinstance(size, int) or isinstance(size, bool) or not 64 <= size <= most:
        raise ValueError(f"size must be 64 to {most} bytes on the wire, or 'imix', not {size!r}")
    return [make_frame(size - CHECKSUM, source=port.mac)]


#: The verdict that drops a frame.
DROP = 0


def to_port(length: int, port: int) -> int:
    """Return the verdict that sends a frame on the ``port``-th port of :func:`run`."""
    if not 0 < length < 1 << 24 or not 0 <= port < 256:
        raise ValueError(
            f"a verdict has 24 bits of length and 8 bits of port, not {length} and {port}"
        )
    return length | port << 24


class PacketFunction:
    """A compiled function that :func:`run` calls once per burst."""

    def __init__(self, address: int, keep: object) -> None:
        #: The function's address.
        self.address = address
        self._keep = keep


def packet_function(function: Any) -> PacketFunction:
    """Wrap a compiled function for :func:`run`. Usable as a decorator.

    In C it is ``void f(uint8_t **packets, uint32_t *lengths, uint32_t count)``. It may change the
    bytes of each packet and decides by ``lengths[i]``: 0 drops the packet; otherwise the low 24
    bits are its (new) length and the high 8 bits the port to send it on, an index into the ports
    given to
    :func:`run`. Any other value is counted as a bad verdict, and the packet dropped.

    ``function`` is a numba ``@cfunc`` with the signature
    ``void(CPointer(CPointer(uint8)), CPointer(uint32), uint32)``, a plain Python function (compiled
    here, if numba is installed), a ctypes function, the address of a cffi function pointer, or an
    address.

    Raises TypeError for anything else or another signature, ValueError for an address that cannot
    be that of a function.
    """
    if isinstance(function, PacketFunction):
        return function
    if isinstance(function, int) and not isinstance(function, bool):
        return _at(function, None)
    if hasattr(function, "_wrapper_address") or hasattr(function, "native_name"):
        return _from_numba(function)
    if isinstance(function, ctypes._CFuncPtr):  # type: ignore[attr-defined]
        address = ctypes.cast(function, ctypes.c_void_p).value
        return _at(address or 0, function)
    if callable(function) and hasattr(function, "__code__"):
        return _compile(function)
    raise TypeError(
        "a packet function must be a numba cfunc, a ctypes function or an address, "
        f"not {function!r}"
    )


def _at(address: int, keep: object) -> PacketFunction:
    """Check that the address is in executable memory."""
    with open("/proc/self/maps", encoding="ascii", errors="replace") as maps:  # noqa: PTH123
        for line in maps:
            span, permissions = line.split()[:2]
            first, end = (int(part, 16) for part in span.split("-"))
            if first <= address < end and "x" in permissions:
                return PacketFunction(address, keep)
    raise ValueError(f"{address:#x} is not in executable memory, so not the address of a function")


def _numba_signature() -> Any:
    from numba import types

    return types.void(
        types.CPointer(types.CPointer(types.uint8)), types.CPointer(types.uint32), types.uint32
    )


def _from_numba(function: Any) -> PacketFunction:
    wanted = _numba_signature()
    if function._sig.args != wanted.args or function._sig.return_type != wanted.return_type:
        raise TypeError(f"a packet function must have the signature {wanted}, not {function._sig}")
    return _at(function.address, function)


def _compile(function: Any) -> PacketFunction:
    try:
        import numba
    except ImportError:
        raise TypeError(
            "a plain Python function needs numba, which is not installed; "
            "pip install numba, or pass a compiled function"
        ) from None
    return _from_numba(numba.cfunc(_numba_signature())(function))


@suggest_options
def run(
    ports: Port | Sequence[Port],
    function: Any,
    *,
    seconds: float | None = None,
    packets: int | None = None,
    progress: Callable[[Result], object] | None = None,
    cpus: Iterable[int] = (),
) -> Result:
    """Receive from the first port and let a compiled function decide on each burst.

    ``function``: what :func:`packet_function` takes; where the ports have several queue pairs, as
    many threads call it. Frames go back by the port they came from
    unless the function names another of ``ports``.
    """
    compiled = packet_function(function)
    chosen = [ports] if isinstance(ports, Port) else list(ports)
    until = _until(seconds, packets, progress, cpus)
    return Result(**_native.run(chosen, compiled.address, until))
