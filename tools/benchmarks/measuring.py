"""``virtnic.measure`` and replay: how fast, how even, and how repeatable.

Streams are sent beside testpmd's ``txonly`` and ``flowgen`` on virtio-user, and beside scapy on a
packet socket. Searches, paces, bursts and latencies are of testpmd in its ``io`` mode between two
ports, on a core of its own.
"""

import os
import statistics
import struct
import sys
from pathlib import Path
from typing import Any

import virtnic
from peers.netns import Netns
from virtnic import capture, measure
from virtnic.loops import make_frame

from . import linerate
from .bench import Bench
from .dpdk import Backend
from .report import show, spread

#: Searches that are compared.
SEARCHES = 5
RATES = (10_000, 100_000, 1_000_000)
#: A burst's frames are taken from the ring within this time; bursts are ten times as far apart.
TOGETHER = 1e-3
BURST = 32
#: Frames of the file that is replayed, and nanoseconds between them: 50 kpps.
REPLAYED, GAP = 50_000, 20_000


def run(bench: Bench) -> None:
    """Streams beside others, then what a measurement says of testpmd."""
    linerate.run_streams(bench)
    figures: dict[str, Any] = {}
    rows: list[tuple[str, str, str]] = []

    def add(what: str, values: list[float], target: str = "", factor: float = 1.0) -> None:
        figures[what] = values
        rows.append((what, spread(values, factor), target))

    if os.geteuid() == 0:
        for fields in (0, 1, 3):
            rates = [_scapy(bench, fields) for _ in range(bench.pairs)]
            add(f"scapy on a packet socket, {fields} fields, kpps", rates, factor=1e-3)
    sockets = [bench.scratch / f"io{number}" for number in range(2)]
    cores = (bench.cores.frontend, bench.cores.backend)
    with Backend(sockets, mode="io", cores=cores) as backend, virtnic.Qemu() as qemu:
        tx, rx = (qemu.attach(f"vhost-user,path={path}") for path in sockets)
        with tx, rx:
            tx.wait_ready()
            for rate in RATES:
                errors = [_pace(bench, tx, rx, rate) for _ in range(bench.pairs)]
                worst = statistics.median(errors)
                target = bench.report.target(f"pace of {rate}, ppm", worst, 1000, least=False)
                add(f"pace of {show(rate)} pps, wrong by, ppm", errors, target)
                backend.drain()
            whole = [_bursts(bench, tx, rx) for _ in range(bench.pairs)]
            target = bench.report.target("bursts", statistics.median(whole), 0.99, least=True)
            add(f"bursts of {BURST} that arrive as one, part", whole, target)
            late, latest = zip(*(_replay(bench, tx) for _ in range(bench.pairs)), strict=True)
            middle = statistics.median(late)
            target = bench.report.target("replay, % late", middle, 0.1, least=False)
            add("replay at 50 kpps: more than 10 µs late, %", [*late], target)
            add("replay at 50 kpps: latest, µs", [*latest], factor=1e6)
            for name in ("p50", "p99_9"):
                found = [getattr(_latency(bench, tx, rx), name) for _ in range(bench.pairs)]
                add(f"latency of io at 100 kpps, {name}, µs", found, factor=1e6)
            found = []
            for number in range(bench.count(SEARCHES, 2)):
                bench.report.say(f"measure: search {number + 1}")
                found.append(_search(bench, tx, rx))
                backend.drain()
            apart = (max(found) - min(found)) / max(statistics.median(found), 1.0)
            target = bench.report.target("spread of searches", apart, 0.05, least=False)
            add("throughput of io, 64 B, Mpps", found, factor=1e-6)
            add("spread of these searches", [apart], target)
    bench.report.table("Measuring testpmd, and replay", ("", "figure", "target"), rows)
    bench.report.section("measure", {"seconds": bench.seconds, "figures": figures})


def _length(bench: Bench) -> float:
    return max(bench.seconds, bench.count(2, 1))


def _pace(bench: Bench, tx: virtnic.Port, rx: virtnic.Port, rate: int) -> float:
    """Return by how many millionths the rate was another."""
    bench.report.say(f"measure: a pace of {rate}")
    result = measure.run(
        tx=tx,
        rx=rx,
        streams=measure.Stream(64, rate=rate),
        seconds=_length(bench),
        cpus=[bench.cores.frontend],
    )
    return abs(result.pps / rate - 1) * 1e6


def _bursts(bench: Bench, tx: virtnic.Port, rx: virtnic.Port) -> float:
    """Return which part of the frames arrives in groups of the size that was asked for."""
    bench.report.say("measure: bursts")
    file = bench.scratch / "bursts.pcapng"
    stream = measure.Stream(64, rate=BURST / (10 * TOGETHER), burst=BURST)
    with capture.Writer(file, rx):
        measure.run(
            tx=tx, rx=rx, streams=stream, seconds=_length(bench), cpus=[bench.cores.frontend]
        )
    sizes: list[int] = []
    last = 0
    for frame in capture.read(file):
        now = frame.timestamp or 0
        if not sizes or now - last > TOGETHER * 1e9:
            sizes.append(0)
        sizes[-1] += 1
        last = now
    return sum(size for size in sizes if size == BURST) / max(1, sum(sizes))


def _replay(bench: Bench, tx: virtnic.Port) -> tuple[float, float]:
    """Return how many percent of the frames left more than 10 µs late, and the longest delay."""
    bench.report.say("measure: replay")
    file = bench.scratch / "even.pcap"
    frame = make_frame(60)
    with Path(file).open("wb") as out:
        out.write(struct.pack("<IHHiIII", 0xA1B23C4D, 2, 4, 0, 0, 65535, 1))
        for number in range(bench.count(REPLAYED, 5000)):
            seconds, rest = divmod(number * GAP, 10**9)
            out.write(struct.pack("<IIII", seconds, rest, len(frame), len(frame)) + frame)
    done = capture.replay(tx, file)
    return 100 * done.late / max(1, done.sent), done.latest


def _latency(bench: Bench, tx: virtnic.Port, rx: virtnic.Port) -> measure.Latency:
    bench.report.say("measure: latency")
    return measure.run(
        tx=tx,
        rx=rx,
        streams=measure.Stream(64, rate=100_000),
        seconds=_length(bench),
        warmup=0.2,
        cpus=[bench.cores.frontend],
    ).latency


def _search(bench: Bench, tx: virtnic.Port, rx: virtnic.Port) -> float:
    (found,) = measure.throughput(
        tx=tx, rx=rx, sizes=[64], seconds=bench.seconds, cpus=[bench.cores.frontend]
    )
    return found.pps


_SCAPY = """\
import sys, time
from scapy.config import conf
from scapy.layers.inet import IP, UDP
from scapy.layers.l2 import Ether
from scapy.packet import Raw
fields, seconds = int(sys.argv[1]), float(sys.argv[2])
packet = Ether(src="02:00:00:00:00:01", dst="02:00:00:00:00:02")
packet /= IP(src="198.18.0.1", dst="198.18.0.2") / UDP(sport=9, dport=9) / Raw(bytes(18))
made = Ether(bytes(packet))
sock = conf.L2socket(iface="tap0")
sent, began = 0, time.perf_counter()
while (spent := time.perf_counter() - began) < seconds:
    for number in range(32):
        if fields > 0:
            made[IP].src = f"198.18.{number}.1"
            del made[IP].chksum
        if fields > 1:
            made[UDP].sport, made[UDP].dport = 1024 + number, 53 + number
            del made[UDP].chksum
        sock.send(made)
    sent += 32
print(sent / spent)
"""


def _scapy(bench: Bench, fields: int) -> float:
    """Frames a second that scapy sends on a packet socket of a TAP, with so many fields."""
    bench.report.say(f"measure: scapy, {fields} fields")
    with Netns() as netns:
        # Somebody has to hold the TAP, or it has no carrier and drops all before the driver.
        held = netns.open()
        try:
            netns.wait_for_carrier()
            said = netns.run(sys.executable, "-c", _SCAPY, str(fields), str(bench.seconds))
        finally:
            for fd in held:
                os.close(fd)
    return float(said.split()[-1])
