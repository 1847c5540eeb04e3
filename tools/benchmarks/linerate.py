"""virtnic and DPDK's virtio-user in turn, on the same vhost backend.

The backend's worker has a core to itself and so has the frontend's; the control threads,
which sleep, run on the other side's core. What is counted, is counted by the backend.
"""

import contextlib
import statistics
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, Self

from . import machine
from .bench import Bench
from .dpdk import CIRCULATING, RING_SIZE, Backend, VirtioUser
from .frontend import Frontend
from .peer import distance
from .report import spread

FORMATS = ("split", "packed")
SIZES = (64, 1518)
#: Pages of 2 MiB for both sides: 256 MiB for each testpmd, and some to spare.
HUGEPAGES = 448
#: Seconds before a measurement.
WARM_UP = 0.2
#: A pair is measured again if the way between the cores became so much longer or shorter
#: meanwhile; so often.
MOVED = 1.5
ATTEMPTS = 4


@dataclass(frozen=True)
class Case:
    """One kind of work, on both sides."""

    name: str
    title: str
    #: testpmd's forwarding mode in the backend; which of its counters is the rate.
    backend: str
    counted: Literal["rx", "tx"]
    #: Name in ``works``.
    ours: str
    #: testpmd's forwarding mode as virtio-user frontend; None: there is no such thing.
    dpdk: str | None
    #: Ratio to DPDK, or frames a second where there is nothing to compare.
    target: float
    #: Frames sent first, which then circulate.
    prime: int = 0
    sizes: tuple[int, ...] = SIZES


CASES = (
    Case("transmit", "transmit only, Rust loop", "rxonly", "rx", "transmit", "txonly", 1.0),
    Case("receive", "receive only, Rust loop", "txonly", "tx", "receive", "rxonly", 1.0),
    Case(
        "exchange",
        "send, be echoed, receive; Rust loop",
        "macswap",
        "tx",
        "exchange",
        "flowgen",
        1.0,
    ),
    Case("reflect", "MAC swap, Rust loop", "macswap", "rx", "reflect", "macswap", 1.0, CIRCULATING),
    Case(
        "python",
        "send(recv(256)), Python loop",
        "macswap",
        "rx",
        "python_echo",
        "io",
        0.9,
        CIRCULATING,
    ),
    Case(
        "numba", "MAC swap, numba function", "macswap", "rx", "numba", "macswap", 0.9, CIRCULATING
    ),
    Case(
        "numpy",
        "MAC swap, NumPy on headers(64)",
        "macswap",
        "rx",
        "numpy_swap",
        "macswap",
        0.4,
        CIRCULATING,
    ),
    Case(
        "bytes-send",
        "a bytes object per frame, send",
        "rxonly",
        "rx",
        "bytes_send",
        None,
        1.5e6,
        0,
        (64,),
    ),
    Case(
        "bytes-receive",
        "a bytes object per frame, receive",
        "txonly",
        "tx",
        "bytes_receive",
        None,
        1.5e6,
        0,
        (64,),
    ),
)
#: Beside testpmd's frames that never vary, and beside those whose addresses do.
STREAMS = (
    Case("generate", "the same frames, generate", "rxonly", "rx", "transmit", "txonly", 1.0),
    Case("load", "a field, no signature", "rxonly", "rx", "load_1_field", "flowgen", 1.0),
    Case("stream", "signatures", "rxonly", "rx", "stream", "txonly", 0.5),
    Case("stream-1", "signatures, a field", "rxonly", "rx", "stream_1_field", "flowgen", 0.5),
    Case("stream-3", "signatures, three fields", "rxonly", "rx", "stream_3_fields", "flowgen", 0.5),
)
FORWARD = Case("forward", "two ports, zero copy", "io", "rx", "forward", "io", 1.0, CIRCULATING)


@dataclass(frozen=True)
class Pair:
    """One measurement of each side, one right after the other."""

    dpdk: float | None
    virtnic: float
    #: Seconds from core to core and back, before and after.
    distance: tuple[float, float]
    #: Which part of the turns of our loop found nothing to do, where the loop counts that.
    idle: float | None

    @property
    def ratio(self) -> float | None:
        return self.virtnic / self.dpdk if self.dpdk else None


#: By ring format, case and frame size.
Measured = dict[tuple[str, str, int], list[Pair]]


def run(bench: Bench) -> None:
    """One port: every case."""
    cases = [case for case in CASES if not bench.cases or case.name in bench.cases]
    _compare(bench, "linerate", "One port, beside DPDK's virtio-user", cases, ports=1)


def run_streams(bench: Bench) -> None:
    """One port: streams of :mod:`virtnic.measure`."""
    cases = [case for case in STREAMS if not bench.cases or case.name in bench.cases]
    _compare(bench, "streams", "Streams, beside DPDK's virtio-user", cases, ports=1)


def run_forward(bench: Bench) -> None:
    """Two ports: forwarding between them."""
    title = "Forwarding between two ports, beside DPDK's virtio-user (frames from both)"
    _compare(bench, "forward", title, [FORWARD], ports=2)


def _compare(bench: Bench, name: str, title: str, cases: Sequence[Case], ports: int) -> None:
    measured: Measured = {}
    notes: list[str] = []
    for ring in FORMATS:
        bench.report.say(f"{name}: {ring} rings, connecting")
        with Setup(bench, ring, ports, notes) as setup:
            for number in range(bench.pairs):
                for case in cases:
                    for size in case.sizes:
                        what = f"{number + 1} of {bench.pairs}, {case.name}, {size} B"
                        bench.report.say(f"{name}: {ring} rings, pair {what}")
                        pair = setup.pair(case, size, dpdk_first=number % 2 == 0)
                        measured.setdefault((ring, case.name, size), []).append(pair)
    rows = []
    figures = []
    for ring in FORMATS:
        for case in cases:
            for size in case.sizes:
                pairs = measured[ring, case.name, size]
                rows.append(_row(bench, ring, case, size, pairs))
                figures.append(
                    {
                        "ring": ring,
                        "case": case.name,
                        "size": size,
                        "pairs": list(map(asdict, pairs)),
                    }
                )
    head = ("ring", "case", "bytes", "virtio-user Mpps", "virtnic Mpps", "ratio", "target", "idle")
    notes.append(
        "idle: turns of our loop that found nothing to do; much means: the backend is the limit"
    )
    distances = [pair.distance[0] * 1e9 for pairs in measured.values() for pair in pairs]
    notes.append(f"core to core and back, as Python sees it: {spread(distances)} ns")
    bench.report.table(title, head, rows, notes)
    bench.report.section(name, {"seconds": bench.seconds, "measured": figures, "notes": notes})


def _row(bench: Bench, ring: str, case: Case, size: int, pairs: Sequence[Pair]) -> tuple[str, ...]:
    label = f"{ring}, {case.name}, {size} B"
    ours = [pair.virtnic for pair in pairs]
    theirs = [pair.dpdk for pair in pairs if pair.dpdk]
    ratios = [pair.ratio for pair in pairs if pair.ratio]
    if ratios:
        words = bench.report.target(label, statistics.median(ratios), case.target, least=True)
    else:
        rate, least = statistics.median(ours) / 1e6, case.target / 1e6
        words = bench.report.target(f"{label}, Mpps", rate, least, least=True)
    idle = [pair.idle for pair in pairs if pair.idle is not None]
    return (
        ring,
        case.title,
        str(size),
        spread(theirs, 1e-6) if theirs else "-",
        spread(ours, 1e-6),
        spread(ratios) if ratios else "-",
        words,
        f"{100 * statistics.median(idle):.0f} %" if idle else "-",
    )


class Setup:
    """A backend with both frontends, of which one works while the other sleeps.

    Each frontend has sockets of its own; the backend polls only those that are measured.
    """

    def __init__(self, bench: Bench, ring: str, ports: int, notes: list[str]) -> None:
        self._bench, self._notes = bench, notes
        cores = bench.cores
        # Each side's control threads are on the other's core.
        pinned = (cores.backend, cores.frontend)
        self._ports = {"dpdk": range(ports), "virtnic": range(ports, 2 * ports)}
        sockets = [bench.scratch / f"vhu{number}" for number in range(2 * ports)]
        with contextlib.ExitStack() as stack:
            # For all, or for none.
            free = stack.enter_context(machine.reserve_hugepages(HUGEPAGES))
            hugepages = free >= HUGEPAGES
            if not hugepages:
                notes.append(f"without hugepages: {free} of {HUGEPAGES} were free")
            self.backend = stack.enter_context(
                Backend(sockets, mode="rxonly", cores=(cores.frontend, cores.backend))
            )
            self.dpdk = stack.enter_context(
                VirtioUser(
                    sockets[:ports], packed=ring == "packed", cores=pinned, hugepages=hugepages
                )
            )
            self.virtnic = stack.enter_context(
                Frontend(sockets[ports:], ring=ring, cores=pinned, hugepages=hugepages)
            )
            about = self.virtnic.about
            if (about["ring"], about["entries"]) != (ring, RING_SIZE):
                raise RuntimeError(f"these are not the rings that were asked for: {about}")
            time.sleep(0.5)  # the backend hears of its last queue a moment later
            self._stack = stack.pop_all()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        self._stack.close()

    def pair(self, case: Case, size: int, *, dpdk_first: bool) -> Pair:
        """Measure both, again if the cores have moved apart or together meanwhile."""
        bench = self._bench
        for attempt in range(ATTEMPTS):
            before = distance(bench.cores.frontend, bench.cores.backend)
            theirs = self._dpdk(case, size) if dpdk_first else None
            ours, counted = self._virtnic(case, size)
            if not dpdk_first:
                theirs = self._dpdk(case, size)
            after = distance(bench.cores.frontend, bench.cores.backend)
            if max(before, after) < MOVED * min(before, after) or attempt + 1 == ATTEMPTS:
                break
        turns = counted.get("idle", 0) + counted.get("bursts", 0)
        idle = counted["idle"] / turns if turns else None
        return Pair(theirs, ours, (before, after), idle)

    def _dpdk(self, case: Case, size: int) -> float | None:
        if case.dpdk is None:
            return None
        self._start_backend(case, size, "dpdk")
        self.dpdk.mode(case.dpdk, size, case.prime, range(len(self._ports["dpdk"])))
        rate = self._rate(case)
        self.backend.command("stop")
        self.dpdk.command("stop")
        return rate

    def _virtnic(self, case: Case, size: int) -> tuple[float, dict[str, Any]]:
        self.virtnic.drain()
        self._start_backend(case, size, "virtnic")
        self.virtnic.start(case.ours, size=size, prime=case.prime)
        rate = self._rate(case)
        self.backend.command("stop")
        counted = self.virtnic.stop()
        if case.prime and counted.get("ring_full"):
            raise RuntimeError(f"{counted['ring_full']} circulating frames were lost: {case.name}")
        return rate, counted

    def _start_backend(self, case: Case, size: int, side: Literal["dpdk", "virtnic"]) -> None:
        self.backend.mode(case.backend, size, ports=self._ports[side])

    def _rate(self, case: Case) -> float:
        """Frames a second, counted by the backend once the loops are warm."""
        time.sleep(WARM_UP)
        rates = self.backend.rates(self._bench.seconds)
        rate = rates.rx if case.counted == "rx" else rates.tx
        if not rate:
            raise RuntimeError(f"{case.name}: the backend has seen no frame")
        return rate
