"""Sockets of a `virtnic.net.Stack` with the kernel behind a TAP, beside two kernels.

The other side of each ratio are sockets of two namespaces, whose TAPs `virtnic.forward` connects:
what QEMU's TAPs and this machine can carry. Writes and reads are of 64 KiB, from Python.
"""

import contextlib
import os
import socket
import statistics
import threading
import time
from collections.abc import Iterator
from typing import Any
from unittest.mock import patch

import virtnic
from peers.netns import Netns
from virtnic import net

from .bench import Bench
from .report import percentile, show, spread

CHUNK = 1 << 16
STREAM = socket.SOCK_STREAM
#: The two ends of a stream: whoever sends, whoever receives.
Ends = tuple[Any, Any]


def run(bench: Bench) -> None:
    """One stream each way, with and without offloads; round trips of a byte."""
    if os.geteuid() != 0:
        raise RuntimeError("a network namespace with a TAP device needs root")
    figures: dict[str, Any] = {}
    rows: list[tuple[object, ...]] = []
    for offload in (True, False):
        how = "64 KiB segments" if offload else "1,460-byte segments received"
        rates: dict[str, list[float]] = {"kernels": [], "to": [], "from": []}
        for number in range(bench.pairs):
            bench.report.say(f"sockets: {how}, pair {number + 1}")
            with _kernels(offload) as ends:
                rates["kernels"].append(_rate(ends, bench.seconds))
            with _stack(offload) as (ours, theirs):
                rates["to"].append(_rate((ours, theirs), bench.seconds))
                rates["from"].append(_rate((theirs, ours), bench.seconds))
        for way in ("to", "from"):
            pairs = zip(rates[way], rates["kernels"], strict=True)
            ratio = statistics.median(a / b for a, b in pairs)
            row = (f"{way} the kernel, {how}", spread(rates["kernels"], 1e-9))
            rows.append((*row, spread(rates[way], 1e-9), f"{show(ratio)} x"))
        figures["offload" if offload else "plain"] = rates
    head = ("one TCP stream over a TAP", "two kernels, Gb/s", "stack, Gb/s", "ratio")
    bench.report.table("Sockets", head, rows)
    bench.report.say("sockets: round trips of one byte")
    with _kernels(True) as ends:
        kernels = _round_trips(ends, bench.count(2000, 200))
    with _stack(True) as ends:
        ours = _round_trips(ends, bench.count(2000, 200))
    figures["round_trip_s"] = {"kernels": kernels, "stack": ours}
    bench.report.table(
        "Round trip of one byte, TCP",
        ("percentile", "two kernels, µs", "stack, µs"),
        [
            (f"p{p}", percentile(kernels, p / 100) * 1e6, percentile(ours, p / 100) * 1e6)
            for p in (50, 99)
        ],
    )
    bench.report.section("sockets", figures)


def _open(netns: Netns, offload: bool) -> virtnic.Port:
    with patch.dict(os.environ, {"VIRTNIC_QEMU": netns.qemu_command}):
        return virtnic.open(netns.netdev, offload=offload)


@contextlib.contextmanager
def _stack(offload: bool) -> Iterator[Ends]:
    """A connection of the stack to the kernel of a namespace."""
    with (
        Netns() as netns,
        _open(netns, offload) as port,
        net.Stack(port, address="10.99.0.2/24") as stack,
        netns.open_socket(socket.AF_INET, STREAM) as server,
    ):
        netns.wait_for_carrier()
        server.bind(("10.99.0.1", 0))
        server.listen()
        with (
            stack.create_connection(server.getsockname(), 10.0) as ours,
            server.accept()[0] as theirs,
        ):
            yield ours, theirs


@contextlib.contextmanager
def _kernels(offload: bool) -> Iterator[Ends]:
    """A connection between the kernels of two namespaces."""
    going = True
    with (
        Netns() as left,
        Netns(address="10.99.0.2/24") as right,
        _open(left, offload) as a,
        _open(right, offload) as b,
    ):
        forwarding = threading.Thread(
            target=virtnic.forward, args=(a, b), kwargs={"progress": lambda _: going}
        )
        forwarding.start()
        try:
            left.wait_for_carrier()
            right.wait_for_carrier()
            with (
                right.open_socket(socket.AF_INET, STREAM) as server,
                left.open_socket(socket.AF_INET, STREAM) as ours,
            ):
                server.bind(("10.99.0.2", 0))
                server.listen()
                ours.settimeout(10.0)
                ours.connect(server.getsockname())
                ours.settimeout(None)
                with server.accept()[0] as theirs:
                    yield ours, theirs
        finally:
            going = False
            forwarding.join()


def _rate(ends: Ends, seconds: float) -> float:
    """Bits a second that arrive."""
    sender, receiver = ends
    over = threading.Event()

    def flood() -> None:
        data = bytes(CHUNK)
        while not over.is_set():
            sender.sendall(data)
        sender.sendall(b"\1")

    flooding = threading.Thread(target=flood)
    flooding.start()
    buffer = bytearray(CHUNK)
    view = memoryview(buffer)
    for _ in range(64):
        receiver.recv_into(view)
    count, began = 0, time.perf_counter()
    while (passed := time.perf_counter() - began) < seconds:
        count += receiver.recv_into(view)
    over.set()
    # The last byte is no zero: what is on its way comes before it.
    while (length := receiver.recv_into(view)) and buffer[length - 1] != 1:
        pass
    flooding.join()
    return count * 8 / passed


def _round_trips(ends: Ends, count: int) -> list[float]:
    ours, theirs = ends
    for end in ends:
        end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def echo() -> None:
        for _ in range(count + 50):
            theirs.sendall(theirs.recv(1))

    echoing = threading.Thread(target=echo)
    echoing.start()
    times = []
    for _ in range(count + 50):
        began = time.perf_counter()
        ours.sendall(b"x")
        ours.recv(1)
        times.append(time.perf_counter() - began)
    echoing.join()
    return times[50:]
