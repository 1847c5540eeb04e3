"""Cost of the ring code alone: the example ``ring_cost`` with an in-process device."""

import re
import subprocess
from pathlib import Path

from .bench import Bench

TOP = Path(__file__).resolve().parents[2]
LINE = re.compile(
    r"(?P<format>split|packed)\s+(?P<kicks>\w+)\s+(?P<burst>\d+)\s*\|"
    r"\s*(?P<add>[\d.]+)\s+(?P<pop>[\d.]+)\s*\|\s*(?P<ns>[\d.]+)\s+(?P<cycles>[\d.]+)\s*\|"
    r"\s*(?P<device>[\d.]+)"
)
COMMAND = ["cargo", "run", "--release", "--quiet", "-p", "virtnic", "--features", "testing"]
SIZE = 1024


def run(bench: Bench) -> None:
    """Build it, run it, show the table."""
    bench.report.say("ring: building (the first time a minute)")
    seconds = 0.05 if bench.quick else 0.5
    argv = [*COMMAND, "--example", "ring_cost", "--", str(SIZE), str(seconds)]
    done = subprocess.run(argv, cwd=TOP, check=False, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"ring_cost failed: {done.stderr[-2000:]}")
    found = [match.groupdict() for match in map(LINE.search, done.stdout.splitlines()) if match]
    if not found:
        raise RuntimeError(f"ring_cost printed no table: {done.stdout}")
    numbers = [
        {key: text if key in ("format", "kicks") else float(text) for key, text in line.items()}
        for line in found
    ]
    bench.report.table(
        f"Ring code alone, {SIZE} entries, one thread, per packet",
        ("format", "notification", "burst", "add+publish ns", "pop ns", "both ns", "both cycles"),
        [
            (
                n["format"],
                n["kicks"],
                str(int(float(n["burst"]))),
                n["add"],
                n["pop"],
                n["ns"],
                n["cycles"],
            )
            for n in numbers
        ],
        ["cycles are those of the time-stamp counter"],
    )
    bench.report.section("ring", numbers)
