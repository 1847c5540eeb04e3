"""virtnic's side of each benchmark: native loops and user loops."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import virtnic
from virtnic import measure
from virtnic.loops import make_frame

if TYPE_CHECKING:
    from virtnic import Port, Result

#: Turns of a Python loop between looks at whether it shall stop.
STRIDE = 64
#: Frames asked for at once in Python.
BURST = 256


class Stoppable(Protocol):
    """Says when to stop."""

    stopped: bool


Loop = Callable[[], dict[str, Any]]


def prepare(
    work: str, ports: Sequence[Port], control: Stoppable, size: int = 64, prime: int = 0
) -> Loop:
    """Everything that takes time beforehand (compiling, priming); returns the loop itself."""
    loop = WORKS[work](ports, control, size)
    if prime:
        for port in ports:
            frames = [make_frame(size)] * prime
            if port.send(frames) != prime:
                raise RuntimeError(f"{prime} frames did not fit the ring")
    return loop


def _engine(run: Callable[[Callable[[Result], object]], Result], control: Stoppable) -> Loop:
    """A loop of the core; asked 20 times a second whether it goes on."""

    def loop() -> dict[str, Any]:
        result = run(lambda _so_far: not control.stopped)
        return {name: getattr(result, name) for name in result.__slots__}

    return loop


def transmit(ports: Sequence[Port], control: Stoppable, size: int) -> Loop:
    """``virtnic.generate``."""
    frames = [make_frame(size)]
    return _engine(lambda tell: virtnic.generate(ports[0], frames=frames, progress=tell), control)


def _stream(fields: int, *, flow: bool) -> Callable[[Sequence[Port], Stoppable, int], Loop]:
    """``virtnic.measure.run``, which only sends, with so many fields that vary."""
    varied: list[measure.Increment | measure.Random | measure.List] = [
        measure.Increment("ip.src", 1000),
        measure.Random("udp.sport"),
        measure.List("udp.dport", [53, 80, 443, 8080]),
    ]

    def prepared(ports: Sequence[Port], control: Stoppable, size: int) -> Loop:
        streams = measure.Stream(size, fields=varied[:fields], flow=flow)

        def loop() -> dict[str, Any]:
            result = measure.run(
                tx=ports[0],
                rx=None,
                streams=streams,
                seconds=None,
                progress=lambda _so_far: not control.stopped,
            )
            return {"packets": result.sent, "seconds": result.seconds}

        return loop

    return prepared


def receive(ports: Sequence[Port], control: Stoppable, _size: int) -> Loop:
    """``virtnic.drop``."""
    return _engine(lambda tell: virtnic.drop(ports[0], progress=tell), control)


def exchange(ports: Sequence[Port], control: Stoppable, size: int) -> Loop:
    """``virtnic.exchange``: send as fast as it goes, and count what comes back."""
    frames = [make_frame(size)]
    return _engine(lambda tell: virtnic.exchange(ports[0], frames=frames, progress=tell), control)


def reflect(ports: Sequence[Port], control: Stoppable, _size: int) -> Loop:
    """``virtnic.reflect``, exchanging the addresses."""
    return _engine(lambda tell: virtnic.reflect(ports[0], mode="macswap", progress=tell), control)


def forward(ports: Sequence[Port], control: Stoppable, _size: int) -> Loop:
    """``virtnic.forward`` between two ports of one memory."""
    a, b = ports
    return _engine(lambda tell: virtnic.forward(a, b, mode="io", progress=tell), control)


def numba(ports: Sequence[Port], control: Stoppable, _size: int) -> Loop:
    """A user's function, compiled by numba, that exchanges the addresses of each frame."""

    def swap(packets, lengths, count):  # type: ignore[no-untyped-def]
        for i in range(count):
            packet = packets[i]
            for j in range(6):
                packet[j], packet[j + 6] = packet[j + 6], packet[j]

    function = virtnic.packet_function(swap)
    return _engine(lambda tell: virtnic.run(ports[0], function, progress=tell), control)


def _python(turn: Callable[[], int], control: Stoppable) -> Loop:
    """A loop of Python code."""

    def loop() -> dict[str, Any]:
        frames = 0
        began = time.perf_counter()
        while not control.stopped:
            for _ in range(STRIDE):
                frames += turn()
        return {"packets": frames, "seconds": time.perf_counter() - began}

    return loop


def python_echo(ports: Sequence[Port], control: Stoppable, _size: int) -> Loop:
    """What DESIGN promises to be fast: ``port.send(port.recv(256))``."""
    send, recv = ports[0].send, ports[0].recv
    return _python(lambda: send(recv(BURST)), control)


def numpy_swap(ports: Sequence[Port], control: Stoppable, _size: int) -> Loop:
    """Exchanges the addresses of a burst's frames at once, with NumPy on ``headers(64)``."""
    import numpy as np

    send, recv = ports[0].send, ports[0].recv
    order = np.r_[6:12, 0:6]

    def turn() -> int:
        burst = recv(BURST)
        if not burst:
            return 0
        headers = np.asarray(burst.headers(64))
        headers[:, :12] = headers[:, order]
        burst.put_headers(headers)
        return send(burst)

    return _python(turn, control)


def bytes_send(ports: Sequence[Port], control: Stoppable, size: int) -> Loop:
    """A bytes object for each frame."""
    send = ports[0].send
    frames = [make_frame(size, source=f"02:00:00:00:00:{n:02x}") for n in range(BURST)]
    return _python(lambda: send(frames), control)


def bytes_receive(ports: Sequence[Port], control: Stoppable, _size: int) -> Loop:
    """A new bytes object for each frame."""
    recv = ports[0].recv
    return _python(lambda: len(recv(BURST).tobytes()), control)


WORKS: dict[str, Callable[[Sequence[Port], Stoppable, int], Loop]] = {
    "transmit": transmit,
    "load_1_field": _stream(1, flow=False),
    "stream": _stream(0, flow=True),
    "stream_1_field": _stream(1, flow=True),
    "stream_3_fields": _stream(3, flow=True),
    "receive": receive,
    "exchange": exchange,
    "reflect": reflect,
    "forward": forward,
    "numba": numba,
    "python_echo": python_echo,
    "numpy_swap": numpy_swap,
    "bytes_send": bytes_send,
    "bytes_receive": bytes_receive,
}
