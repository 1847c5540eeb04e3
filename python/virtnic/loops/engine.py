"""Loops that run in the Rust core, without the interpreter.

Each claims the queues it uses (others get PortBusy meanwhile), polls them, and ends after
``seconds`` or ``packets``, with KeyboardInterrupt on Ctrl-C, when ``progress`` returns False,
or with the exception that ended a port.
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from virtnic import _native
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
    """What a loop did."""

    #: Frames that the loop moved: sent, or received where it only receives.
    packets: int
    #: Their bytes, without headers of virtio and without checksum.
    bytes: int
    seconds: float
    received: int
    sent: int
    #: Turns of the loop that moved frames, and turns that found nothing to do.
    bursts: int
    idle: int
    #: Frames dropped: no room in the transmit ring, on purpose, a nonsensical verdict.
    ring_full: int
    dropped: int
    bad_verdict: int
    #: Frames dropped because the port that they would leave by cannot do what is left to do to
    #: them (checksum, segmentation), or because that does not fit them.
    no_offload: int = 0
    #: Turns in which nothing was received because the transmit ring was full (``backpressure``).
    held: int = 0

    @property
    def pps(self) -> float:
        """Frames a second."""
        return self.packets / self.seconds if self.seconds else 0.0

    @property
    def bps(self) -> float:
        """Bits of these frames a second."""
        return 8 * self.bytes / self.seconds if self.seconds else 0.0


def _until(
    seconds: float | None, packets: int | None, progress: Callable[[Result], object] | None
) -> tuple[float | None, int | None, Callable[[dict[str, Any]], object] | None]:
    if packets is not None and not 0 <= packets < 1 << 64:
        raise ValueError(f"packets is 0 or more, and below 2**64, not {packets}")
    if seconds is not None and not seconds >= 0:
        raise ValueError(f"seconds is 0 or more, or None for no end, not {seconds}")
    if progress is not None and not callable(progress):
        raise TypeError(f"progress is a function that takes a Result, not {progress!r}")
    tell = None if progress is None else lambda counters: progress(Result(**counters))
    return seconds, packets, tell


def forward(
    a: Port,
    b: Port,
    *,
    mode: Mode = "io",
    backpressure: bool = True,
    seconds: float | None = None,
    packets: int | None = None,
    progress: Callable[[Result], object] | None = None,
) -> Result:
    """Forward between two ports, in both directions.

    Ports of one memory exchange buffers: no byte is copied. ``mode``: ``io`` changes nothing,
    ``mac`` makes the sending port's address the source, ``macswap`` exchanges the two addresses.
    ``backpressure``: while the transmit ring of one port is full, frames for it are left in the
    receive ring of the other, so that who sends them notices; after 0.1 s without any room they
    are dropped until there is some. False drops at once what does not fit (``ring_full``).
    """
    until = _until(seconds, packets, progress)
    return Result(**_native.forward(a, b, mode, backpressure, until))


def reflect(
    port: Port,
    *,
    mode: Mode = "macswap",
    backpressure: bool = True,
    seconds: float | None = None,
    packets: int | None = None,
    progress: Callable[[Result], object] | None = None,
) -> Result:
    """Send every frame back by the port it came from.

    ``mode`` and ``backpressure`` as for :func:`forward`.
    """
    until = _until(seconds, packets, progress)
    return Result(**_native.reflect(port, mode, backpressure, until))


def drop(
    port: Port,
    *,
    seconds: float | None = None,
    packets: int | None = None,
    progress: Callable[[Result], object] | None = None,
) -> Result:
    """Receive frames and forget them."""
    return Result(**_native.drop(port, _until(seconds, packets, progress)))


def generate(
    port: Port,
    *,
    frames: Iterable[Frame] | None = None,
    size: int | Literal["imix"] = 64,
    rate: float | str | None = None,
    seconds: float | None = None,
    packets: int | None = None,
    progress: Callable[[Result], object] | None = None,
) -> Result:
    """Send frames, in turn and again and again.

    ``frames``: which; else UDP frames of ``size`` bytes on the wire (so with the four bytes of
    checksum that no software sees, 64 is the least), or the simple IMIX. Frames longer than a
    buffer take jumbo buffers, at most half of those that are free.
    ``rate``: frames a second, or text such as ``"10Mpps"`` or ``"1Gbit/s"`` (bits of frames with
    their checksum); None for as fast as they are taken.
    """
    load, per_second = _load(port, frames, size, rate)
    until = _until(seconds, packets, progress)
    return Result(**_native.generate(port, load, per_second, until))


def exchange(
    port: Port,
    *,
    frames: Iterable[Frame] | None = None,
    size: int | Literal["imix"] = 64,
    rate: float | str | None = None,
    seconds: float | None = None,
    packets: int | None = None,
    progress: Callable[[Result], object] | None = None,
) -> Result:
    """Send frames as :func:`generate` does, and at the same time receive frames and forget them.

    With a peer that echoes, this measures the way there and back. ``packets`` counts frames sent.
    """
    load, per_second = _load(port, frames, size, rate)
    until = _until(seconds, packets, progress)
    return Result(**_native.exchange(port, load, per_second, until))


def _load(
    port: Port, frames: Iterable[Frame] | None, size: int | str, rate: float | str | None
) -> tuple[list[Buffer], float | None]:
    load = _frames_of(port, size) if frames is None else _given(port, frames)
    mean = sum(memoryview(frame).nbytes for frame in load) / len(load)
    return load, None if rate is None else parse_rate(rate, mean + CHECKSUM)


def _given(port: Port, frames: Iterable[Frame]) -> list[Buffer]:
    """Check frames that were given to be sent: all that is wrong is told before any is."""
    load = [*_native.as_frames(frames)]
    if not load:
        raise ValueError("frames is empty: there is no frame to send")
    most = port.memory.largest_frame
    for number, frame in enumerate(load):
        try:
            length = memoryview(frame).nbytes
        except TypeError as error:
            raise TypeError(f"frame {number} of those to send: {error}") from None
        if not 0 < length <= most:
            raise ValueError(
                f"frame {number} of those to send has {length} bytes; a buffer of this port "
                f"holds 1 to {most}"
            )
    return load


def _frames_of(port: Port, size: int | str) -> list[Buffer]:
    if size == "imix":
        return [make_frame(length, source=port.mac) for length in IMIX]
    most = min(port.memory.largest_frame, MAX_FRAME) + CHECKSUM
    if not isinstance(size, int) or isinstance(size, bool) or not 64 <= size <= most:
        raise ValueError(
            f"a frame has 64 to {most} bytes on the wire, or size is 'imix', not {size!r}"
        )
    return [make_frame(size - CHECKSUM, source=port.mac)]


#: The verdict that drops a frame.
DROP = 0
_SIGNATURE = ctypes.CFUNCTYPE(
    None,
    ctypes.POINTER(ctypes.c_void_p),
    ctypes.POINTER(ctypes.c_uint32),
    ctypes.c_uint32,
)


def to_port(length: int, port: int) -> int:
    """Return the verdict that sends a frame by the ``port``-th port of :func:`run`."""
    if not 0 < length < 1 << 24 or not 0 <= port < 256:
        raise ValueError(f"a verdict has 24 bits of length and 8 of port, not {length} and {port}")
    return length | port << 24


class PacketFunction:
    """A compiled function that :func:`run` calls once for each burst."""

    def __init__(self, address: int, keep: object) -> None:
        #: Where the function is.
        self.address = address
        self._keep = keep


def packet_function(function: Any) -> PacketFunction:
    """Take a compiled function as one that runs over bursts. Usable as a decorator.

    In C it is ``void f(uint8_t **packets, uint32_t *lengths, uint32_t count)``. It may change
    the bytes of each packet and says by ``lengths[i]`` what becomes of it: 0 drops it; else
    the low 24 bits are its (new) length and the high 8 bits the port to send it by, an index
    into the ports given to :func:`run`. Anything else is counted as a bad verdict and dropped.

    ``function`` is a numba ``@cfunc`` with the signature
    ``void(CPointer(CPointer(uint8)), CPointer(uint32), uint32)``, a plain Python function (compiled
    here, where numba is installed), a ctypes function, a cffi function pointer's address,
    or an address.

    Raises TypeError for what is none of these or has another signature, ValueError for an
    address where there cannot be a function.
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
        f"a packet function is a numba cfunc, a ctypes function or an address, not {function!r}"
    )


def _at(address: int, keep: object) -> PacketFunction:
    """Check what can be checked: that there is executable memory."""
    with open("/proc/self/maps", encoding="ascii", errors="replace") as maps:  # noqa: PTH123
        for line in maps:
            span, permissions = line.split()[:2]
            first, end = (int(part, 16) for part in span.split("-"))
            if first <= address < end and "x" in permissions:
                return PacketFunction(address, keep)
    raise ValueError(f"there is no code at {address:#x}: it is not the address of a function")


def _numba_signature() -> Any:
    from numba import types

    return types.void(
        types.CPointer(types.CPointer(types.uint8)), types.CPointer(types.uint32), types.uint32
    )


def _from_numba(function: Any) -> PacketFunction:
    wanted = _numba_signature()
    if function._sig.args != wanted.args or function._sig.return_type != wanted.return_type:
        raise TypeError(f"a packet function has the signature {wanted}, not {function._sig}")
    return _at(function.address, function)


def _compile(function: Any) -> PacketFunction:
    try:
        import numba
    except ImportError:
        raise TypeError(
            "a plain Python function is compiled with numba, which is not installed; "
            "pip install numba, or pass a compiled function"
        ) from None
    return _from_numba(numba.cfunc(_numba_signature())(function))


def run(
    ports: Port | Sequence[Port],
    function: Any,
    *,
    seconds: float | None = None,
    packets: int | None = None,
    progress: Callable[[Result], object] | None = None,
) -> Result:
    """Receive from the first port and let a compiled function decide about each burst.

    ``function``: what :func:`packet_function` takes. Frames go back by the port they came from
    unless the function names another of ``ports``.
    """
    compiled = packet_function(function)
    chosen = [ports] if isinstance(ports, Port) else list(ports)
    until = _until(seconds, packets, progress)
    return Result(**_native.run(chosen, compiled.address, until))
