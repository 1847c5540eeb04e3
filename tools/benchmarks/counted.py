"""What callgrind counts: ``python -m benchmarks.counted HELPER DIRECTORY [SETUP...]``, under it.

Each case does the same work for one number of frames (or calls) and for twice as many: the
difference is what one costs.
"""

import ctypes
import gc
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from virtnic import _native
from virtnic.loops.traffic import make_frame

from .ringside import IN_ORDER, MRG_RXBUF, Format, Ringside

if TYPE_CHECKING:
    from typing_extensions import Buffer

    from virtnic._native import Burst

#: Entries of the rings: the most frames of a round.
ENTRIES = 1024
#: Rounds that are counted, after as many that are not.
ROUNDS = 2
#: Bytes of a frame, and of the header in front of it.
FRAME, HEADER = 60, 12
#: Where a UDP frame of IPv4 has its checksum.
UDP_CHECKSUM = 40
#: The header of a frame that lies in one buffer (section 5.1.6.1, ``num_buffers``).
ONE_BUFFER = bytes(10) + b"\1\0"

#: Makes ready for so many frames; does what is counted.
Step = Callable[[int], object]


@dataclass(frozen=True)
class Case:
    """``work`` on ``most`` frames or calls at once, and on half of them."""

    prepare: Step
    work: Step
    most: int = ENTRIES


@dataclass(frozen=True)
class Setup:
    """A port, and what is done with it."""

    ring: Format
    features: tuple[int, ...]
    cases: tuple[str, ...]
    statistics: Literal["basic", "sizes", "extended"] = "basic"


LOOPS = ("drop", "reflect", "generate", "run")
PYTHON = ("send", "send_burst", "recv", "recv_bytes")
CALLS = ("send_one", "recv_none", "xstats")
STREAMS = ("stream", "stream_1_field", "stream_3_fields", "stream_checksums", "load_1_field")
SETUPS = {
    "split": Setup("split", (), (*LOOPS, *STREAMS, *PYTHON, *CALLS)),
    "packed": Setup("packed", (), (*LOOPS, *STREAMS, *PYTHON, *CALLS)),
    "split, in order": Setup("split", (IN_ORDER,), ("drop", "reflect", "send")),
    "packed, in order": Setup("packed", (IN_ORDER,), ("drop", "reflect", "send")),
    "packed, merging": Setup("packed", (MRG_RXBUF,), ("drop", "reflect")),
    "packed, sizes": Setup("packed", (), ("drop", "generate"), "sizes"),
    "packed, extended": Setup("packed", (), ("drop", "generate"), "extended"),
}


def until(packets: int) -> tuple[None, int, None, tuple[()]]:
    """When a loop ends, and where it runs."""
    return None, packets, None, ()


class Cases:
    """Each method is a case of one port and its device."""

    def __init__(self, side: Ringside, helper: ctypes.CDLL) -> None:
        self._side, self._port = side, side.port
        self._function = ctypes.cast(helper.swap_addresses, ctypes.c_void_p).value or 0
        self._frames = [bytes([2] * FRAME) for _ in range(ENTRIES)]

    def _arrive(self, count: int) -> None:
        """The device has received so many frames."""
        header = ONE_BUFFER if self._side.merges else b""
        self._side.rx.use(count, HEADER + FRAME, header=header)

    def _gone(self, _count: int) -> None:
        """The device has sent all that was queued."""
        queued = self._port.stats()["tx_packets"]
        self._side.tx.use(queued - self._side.tx.done, batch=self._side.in_order)

    def _echo(self, count: int) -> None:
        self._gone(count)
        self._arrive(count)

    def drop(self) -> Case:
        return Case(self._arrive, lambda count: _native.drop(self._port, until(count)))

    def reflect(self) -> Case:
        return Case(
            self._echo,
            lambda count: _native.reflect(self._port, "macswap", True, until(count)),
        )

    def generate(self) -> Case:
        load: list[Buffer] = [self._frames[0]]
        return Case(
            self._gone, lambda count: _native.generate(self._port, load, None, until(count))
        )

    def _stream(self, fields: int, *, flow: bool = True, checksum: bytes = bytes(2)) -> Case:
        """Of UDP frames, as :mod:`virtnic.measure` sends them, with so many fields that vary."""
        made = make_frame(FRAME)
        frame = made[:UDP_CHECKSUM] + checksum + made[UDP_CHECKSUM + 2 :]
        varied = [
            ("ip.src", 0, 0, "increment", [None, 1, 1000]),
            ("udp.sport", 0, 0, "random", [1024, 65535, 7]),
            ("udp.dport", 0, 0, "list", [53, 80, 443, 8080]),
        ]
        stream = ([frame], None, 1, flow, varied[:fields])
        return Case(
            self._gone,
            lambda count: _native.measure(
                (self._port, None), [stream], (0.0, 0.0), False, until(count)
            ),
        )

    def stream(self) -> Case:
        """With signatures, and nothing else that varies."""
        return self._stream(0)

    def stream_1_field(self) -> Case:
        return self._stream(1)

    def stream_3_fields(self) -> Case:
        """One of them at random."""
        return self._stream(3)

    def stream_checksums(self) -> Case:
        """The same with a checksum of UDP, right or wrong, that follows all of it."""
        return self._stream(3, checksum=b"\x12\x34")

    def load_1_field(self) -> Case:
        """Without signatures."""
        return self._stream(1, flow=False)

    def run(self) -> Case:
        return Case(
            self._echo, lambda count: _native.run([self._port], self._function, until(count))
        )

    def send(self) -> Case:
        """Of bytes."""
        lists = {count: self._frames[:count] for count in (ENTRIES // 2, ENTRIES)}
        return Case(self._gone, lambda count: self._port.send(lists[count]))

    def send_burst(self) -> Case:
        """Of frames that were received."""
        held: list[Burst] = []

        def prepare(count: int) -> None:
            self._echo(count)
            held.append(self._port.recv(count))

        return Case(prepare, lambda _: self._port.send(held.pop()))

    def recv(self) -> Case:
        return Case(self._arrive, self._port.recv)

    def recv_bytes(self) -> Case:
        return Case(
            self._arrive, lambda count: [bytes(frame) for frame in self._port.recv(count)], 256
        )

    def send_one(self) -> Case:
        """A call for each frame."""
        frames = self._frames[:1]

        def work(count: int) -> None:
            for _ in range(count):
                self._port.send(frames)

        return Case(self._gone, work, 64)

    def recv_none(self) -> Case:
        """A call that finds nothing."""

        def work(count: int) -> None:
            for _ in range(count):
                self._port.recv()

        return Case(lambda _: None, work, 64)

    def xstats(self) -> Case:
        """A call each."""

        def work(count: int) -> None:
            for _ in range(count):
                self._port.xstats()

        return Case(lambda _: None, work, 8)


def count(helper: ctypes.CDLL, name: str, case: Case) -> None:
    """Count both sizes, once everything is warm."""
    for size in (case.most // 2, case.most):
        for number in range(2 * ROUNDS):
            case.prepare(size)
            counted = number >= ROUNDS
            if counted:
                helper.toggle()
            case.work(size)
            if counted:
                helper.toggle()
        helper.dump(f"{name}/{size * ROUNDS}".encode())


def main() -> None:
    """Count all setups, or those that are named."""
    helper = ctypes.CDLL(sys.argv[1])
    directory, wanted = Path(sys.argv[2]), sys.argv[3:]
    if not helper.on_valgrind():
        print("not on callgrind: nothing is counted", file=sys.stderr)
    gc.disable()
    helper.start()
    for title in wanted or SETUPS:
        setup = SETUPS[title]
        with Ringside(setup.ring, ENTRIES, directory, *setup.features) as side:
            side.port.set_statistics(setup.statistics)
            cases = Cases(side, helper)
            for name in setup.cases:
                case: Case = getattr(cases, name)()
                count(helper, f"{title}: {name}", case)


if __name__ == "__main__":
    main()
