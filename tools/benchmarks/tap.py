"""A TAP device from Python: virtnic, and a plain program that reads and writes it.

Both are Python processes in the same network namespace, one after the other, with the
same frames. Frames sent are counted by the kernel, as received by the TAP device; frames
received by the program that reads, against those the kernel says it has delivered.
"""

import contextlib
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from peers.netns import Netns
from peers.process import mortal

from .bench import Bench
from .report import show, spread

TOOLS = Path(__file__).resolve().parents[1]
SIZES = (60, 1514)


def run(bench: Bench) -> None:
    """Both directions, both sizes, alternately."""
    if os.geteuid() != 0:
        raise RuntimeError("a network namespace with a TAP device needs root")
    figures: dict[str, Any] = {}
    rows = []
    with Netns() as netns:
        for way in ("send", "receive"):
            for size in SIZES:
                rates: dict[str, list[float]] = {"virtnic": [], "plain": []}
                for pair in range(bench.pairs):
                    order = ("plain", "virtnic") if pair % 2 == 0 else ("virtnic", "plain")
                    for who in order:
                        bench.report.say(f"tap: {way} {size} B, pair {pair + 1}, {who}")
                        rates[who].append(_rate(bench, netns, who, way, size))
                ratios = [a / b for a, b in zip(rates["virtnic"], rates["plain"], strict=True)]
                figures[f"{way}_{size}"] = {"rates": rates, "ratios": ratios}
                rows.append(
                    (
                        f"{way} {size} B",
                        spread(rates["plain"], 1e-3),
                        spread(rates["virtnic"], 1e-3),
                        f"{show(statistics.median(ratios))} x",
                    )
                )
    head = ("TAP", "os.read / os.write kpps", "virtnic kpps", "ratio")
    bench.report.table("TAP from Python, thousand frames a second", head, rows)
    bench.report.section("tap", figures)


def _rate(bench: Bench, netns: Netns, who: str, way: str, size: int) -> float:
    """Frames a second that the program moved, once it is warm."""
    argv = [
        sys.executable,
        "-m",
        "benchmarks.tapend",
        who,
        way,
        netns.tap,
        str(size),
        str(bench.seconds),
    ]
    environment = {
        **os.environ,
        "VIRTNIC_QEMU": netns.qemu_command,
        "PYTHONPATH": os.pathsep.join(sys.path),
    }
    # virtnic itself stays outside: its QEMU is what opens the TAP.
    inside = ["ip", "netns", "exec", netns.name, *argv] if who == "plain" else argv
    with contextlib.ExitStack() as stack:
        process = subprocess.Popen(
            mortal(inside),
            env=environment,
            cwd=TOOLS,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        stack.callback(_finish, process)
        assert process.stdin is not None
        assert process.stdout is not None
        if process.stdout.readline().strip() != "ready":
            raise RuntimeError(f"the {who} program did not start")
        if way == "receive":
            stack.enter_context(_blast(netns, size))
        before = netns.statistics()
        process.stdin.write("go\n")
        process.stdin.flush()
        result = json.loads(process.stdout.readline() or "{}")
        after = netns.statistics()
    if not result:
        raise RuntimeError(f"the {who} program gave no result")
    # The kernel's count, for as long as the program ran; its rx is what we sent.
    counted = after["rx_packets"] - before["rx_packets"] if way == "send" else result["frames"]
    return float(counted) / float(result["seconds"])


def _finish(process: subprocess.Popen[str]) -> None:
    process.kill()
    process.wait()
    for stream in (process.stdin, process.stdout):
        if stream is not None:
            stream.close()


@contextlib.contextmanager
def _blast(netns: Netns, size: int) -> Iterator[None]:
    """Have the namespace send frames to the TAP as fast as it can."""
    argv = [
        sys.executable,
        "-m",
        "benchmarks.tapend",
        "kernel",
        "send",
        netns.tap,
        str(size),
        "3600",
    ]
    command = mortal(["ip", "netns", "exec", netns.name, *argv])
    with subprocess.Popen(
        command,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        cwd=TOOLS,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            assert process.stdin is not None
            assert process.stdout is not None
            process.stdout.readline()
            process.stdin.write("go\n")
            process.stdin.flush()
            yield
        finally:
            process.kill()
