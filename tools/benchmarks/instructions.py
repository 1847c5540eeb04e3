"""Instructions a frame, which no noise can change: the program ``counted`` under callgrind.

``instructions.json`` says what they were, and with which toolchain. A case that takes over
TOLERANCE more than that fails. With another toolchain, whose instructions differ, the limit is
TOLERANCE_OTHER_TOOLCHAIN. ``--update`` writes the file again.
"""

import json
import os
import platform
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from virtnic import _native

from .bench import Bench

HERE = Path(__file__).resolve().parent
FILE = HERE / "instructions.json"
HELPER = HERE / "counted.c"
TOLERANCE = 0.03
TOLERANCE_OTHER_TOOLCHAIN = 0.30

#: What callgrind writes of one part: its name, and its number of instructions.
PART = re.compile(
    r"Trigger: Client Request: (?P<case>.+)/(?P<size>\d+)\n.*?summary: (?P<ir>\d+)", re.DOTALL
)


@dataclass(frozen=True)
class Counted:
    """Instructions of a frame or call, by case, and the toolchain that they depend on."""

    toolchain: dict[str, str]
    instructions: dict[str, float]

    @classmethod
    def read(cls) -> Self:
        """Return the recorded counts."""
        return cls(**json.loads(FILE.read_text()))

    def write(self) -> None:
        """Record these counts."""
        counts = {case: round(value, 1) for case, value in self.instructions.items()}
        known = {"toolchain": self.toolchain, "instructions": counts}
        FILE.write_text(json.dumps(known, indent=1) + "\n")

    def others(self, other: Self) -> list[str]:
        """Return the tools in which two records differ."""
        return [
            f"{tool}: {self.toolchain.get(tool)}, here {version}"
            for tool, version in other.toolchain.items()
            if self.toolchain.get(tool) != version
        ]

    def grown(self, now: Self) -> list[str]:
        """Return the cases that exceed the recorded count by more than TOLERANCE."""
        limit = 1 + (TOLERANCE_OTHER_TOOLCHAIN if self.others(now) else TOLERANCE)
        return [
            f"{case}: {value:.0f} instructions, {FILE.name} says {self.instructions[case]:.0f}"
            for case, value in now.instructions.items()
            if value > limit * self.instructions.get(case, value)
        ]


def run(bench: Bench) -> None:
    """Count, show, compare; write the file where that was asked for."""
    bench.report.say("instructions: counting, for a minute")
    now = count(bench.scratch)
    known = Counted.read() if FILE.exists() else now
    rows = []
    for case, value in now.instructions.items():
        was = known.instructions.get(case)
        change = "new" if was is None else f"{100 * (value / was - 1):+.1f} %"
        rows.append((case, value, was, change))
    notes = [f"{tool}: {version}" for tool, version in now.toolchain.items()]
    notes += [f"{FILE.name} is of another toolchain: {words}" for words in known.others(now)]
    head = ("a frame, or a call", "instructions", FILE.name, "change")
    bench.report.table("Instructions, by callgrind", head, rows, notes)
    figures = {"toolchain": now.toolchain, "instructions": now.instructions}
    bench.report.section("instructions", figures)
    if bench.update:
        now.write()
        bench.report.say(f"wrote {FILE}")
    elif grown := known.grown(now):
        raise RuntimeError("\n".join(["more instructions than before:", *grown]))


def count(scratch: Path) -> Counted:
    """Count all cases; ``scratch`` is an empty directory."""
    helper, sockets, parts = (scratch / name for name in ("counted.so", "sockets", "parts"))
    sockets.mkdir()
    parts.mkdir()
    subprocess.run(["cc", "-O2", "-shared", "-fPIC", "-o", helper, HELPER], check=True)
    argv = ["valgrind", "--tool=callgrind", "-q", "--instr-atstart=no", "--collect-atstart=no"]
    argv += [f"--callgrind-out-file={parts / 'part'}", sys.executable, "-X", "utf8"]
    argv += ["-m", "benchmarks.counted", str(helper), str(sockets)]
    # The order of a dictionary of text is the same in each run.
    environment = os.environ | {"PYTHONHASHSEED": "0"}
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, sys.path))
    done = subprocess.run(argv, env=environment, check=False, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"callgrind failed: {done.stderr[-2000:]}")
    counted: dict[str, dict[int, int]] = {}
    for part in parts.glob("part.*"):
        if match := PART.search(part.read_text(errors="replace")):
            counted.setdefault(match["case"], {})[int(match["size"])] = int(match["ir"])
    instructions = {}
    for case, by_size in counted.items():
        small, large = sorted(by_size)
        instructions[case] = (by_size[large] - by_size[small]) / (large - small)
    if not instructions:
        raise RuntimeError(f"callgrind counted nothing: {done.stderr[-2000:]}")
    return Counted(toolchain(), dict(sorted(instructions.items())))


def toolchain() -> dict[str, str]:
    """What decides which instructions there are, besides the sources."""
    module = Path(_native.__file__).read_bytes()
    compiler = re.search(rb"rustc version ([\d.]+\S*)", module)
    units = {int(unit) for unit in re.findall(rb"virtnic\.[0-9a-f]+-cgu\.(\d+)", module)}
    return {
        "rustc": compiler[1].decode() if compiler else "unknown",
        "optimized": "as a whole" if units <= {0} else "in parts",
        "machine": platform.machine(),
        "python": platform.python_version(),
        "libc": "-".join(platform.libc_ver()),
    }
