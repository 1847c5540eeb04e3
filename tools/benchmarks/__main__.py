"""Run benchmarks: ``python -m benchmarks --help``."""

import argparse
import contextlib
import shutil
import signal
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from types import FrameType

from . import (
    changes,
    costs,
    counters,
    growth,
    instructions,
    linerate,
    machine,
    measuring,
    ring,
    session,
    sockets,
    tap,
)
from .bench import Bench
from .report import Report

TOP = Path(__file__).resolve().parents[2]

#: Name: (what it says, what it needs besides QEMU, what runs it).
SECTIONS: dict[str, tuple[str, str, Callable[[Bench], None]]] = {
    "session": ("open to first reply, ARP round trip, bring-up, QEMU at rest", "", session.run),
    "ring": ("what the ring code alone costs per packet", "cargo", ring.run),
    "instructions": ("instructions a frame, beside those of before", "valgrind", instructions.run),
    "tap": ("TAP from Python: virtnic beside os.read and os.write", "ip", tap.run),
    "sockets": ("TCP of virtnic.net beside two kernels", "ip", sockets.run),
    "costs": ("kicks and interrupts beside bare eventfds", "dpdk-testpmd", costs.run),
    "counters": ("what statistics of frames cost an echo", "dpdk-testpmd", counters.run),
    "changes": ("attach, detach, and those who come back", "dpdk-testpmd", changes.run),
    "growth": ("what many ports and many QEMUs need", "", growth.run),
    "linerate": ("beside DPDK's virtio-user", "dpdk-testpmd", linerate.run),
    "measure": ("streams, paces, searches, replay", "dpdk-testpmd", measuring.run),
    "forward": ("two ports, beside DPDK's virtio-user", "dpdk-testpmd", linerate.run_forward),
}


def parse() -> argparse.Namespace:
    """Read the command line."""
    sections = "\n".join(f"  {name:12} {words}" for name, (words, *_) in SECTIONS.items())
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description="Measure what virtnic costs, beside what one would use instead.",
        epilog=f"sections:\n{sections}\n\ndocs/benchmarks.md says what each figure is.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--only", action="append", choices=SECTIONS, help="only this section; repeatable"
    )
    parser.add_argument("--case", action="append", default=[], help="of linerate: only this case")
    parser.add_argument("--seconds", type=float, default=0.5, help="length of each measurement")
    parser.add_argument("--pairs", type=int, default=5, help="how often the two sides alternate")
    parser.add_argument(
        "--update", action="store_true", help="of instructions: write instructions.json anew"
    )
    parser.add_argument("--quick", action="store_true", help="to see that it works: one short pair")
    parser.add_argument(
        "--priority", action="store_true", help="go before all else on the machine (root)"
    )
    parser.add_argument("--output", type=Path, default=TOP / "build/bench.json", help="the figures")
    options = parser.parse_args()
    if options.quick:
        options.seconds, options.pairs = min(options.seconds, 0.2), 1
    if options.seconds <= 0 or options.pairs < 1:
        parser.error("--seconds and --pairs are above 0")
    return options


def end(_signal: int, _frame: FrameType | None) -> None:
    """End as on Ctrl-C: everything that was started goes."""
    raise KeyboardInterrupt


def main() -> int:
    """Run the sections that were asked for."""
    options = parse()
    signal.signal(signal.SIGTERM, end)
    report = Report(options.output, machine.describe())
    failed = []
    with contextlib.ExitStack() as stack:
        if options.priority:
            stack.enter_context(machine.priority())
        scratch = Path(tempfile.mkdtemp(prefix="vb-"))
        stack.callback(shutil.rmtree, scratch, ignore_errors=True)
        bench = Bench(
            report=report,
            cores=machine.Cores.find(),
            scratch=scratch,
            seconds=options.seconds,
            pairs=options.pairs,
            quick=options.quick,
            cases=tuple(options.case),
            update=options.update,
        )
        for name, (words, program, run) in SECTIONS.items():
            if options.only and name not in options.only:
                continue
            if program and shutil.which(program) is None:
                report.say(f"{name}: skipped, there is no {program}")
                failed += [name] if options.only else []
                continue
            report.say(f"{name}: {words}")
            try:
                run(bench)
            except Exception as error:  # the others are worth having
                if options.only:
                    raise
                print(f"\n{name}: {type(error).__name__}: {error}", file=sys.stderr)
                failed.append(name)
    report.summary()
    return 1 if failed else 0


if __name__ == "__main__":
    try:
        code = main()
    except KeyboardInterrupt:
        print("\ninterrupted; the figures so far were kept", file=sys.stderr)
        code = 130
    sys.exit(code)
