"""``python -m soak --seconds 600 --seed 7``; see ``make soak``."""

import argparse
import contextlib
import functools
import json
import logging
import os
import signal
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any

from peers import leaks
from virtnic.testing import FaultyPort

from .conductor import Conductor, Outcome, growth_kb
from .samples import table
from .stage import Stage
from .steady import LEAKS, Steady

#: Kilobytes that the process may have grown by: Python's own allocator comes and goes.
GROWTH = 16 * 1024


def main() -> int:
    """Run the soak; return 0 when everything balances."""
    parser = argparse.ArgumentParser(
        prog="soak",
        description="Numbered traffic while QEMUs, backends, ports and links come and go. Ctrl-C "
        "ends it early, with the accounts so far. The status is 0 when every frame is accounted "
        "for and everything was given back, 1 when not.",
    )
    parser.add_argument("--seconds", type=_seconds, default=60.0, help="default: 60")
    parser.add_argument("--seed", type=int, default=None, help="default: another each time")
    parser.add_argument(
        "--lose",
        type=float,
        default=0.0,
        metavar="P",
        help="lose frames behind the soak's back with this probability: it has to notice",
    )
    parser.add_argument(
        "--steady",
        action="store_true",
        help="no faults: echo in every way, and fail when anything grows",
    )
    parser.add_argument(
        "--turn", type=float, default=0.25, help="with --steady: seconds for each way in turn"
    )
    parser.add_argument(
        "--leak",
        action="append",
        default=[],
        choices=LEAKS,
        help="with --steady: leak one of these in each round: it has to notice",
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write what was found here")
    arguments = parser.parse_args()
    if arguments.steady:
        return steady(arguments, functools.partial(print, flush=True))
    seed = arguments.seed
    if seed is None:
        seed = int.from_bytes(os.urandom(4), "big")
    # Dying is what these QEMUs are for.
    logging.getLogger("virtnic").setLevel(logging.ERROR)
    warnings.simplefilter("ignore", RuntimeWarning)
    say = functools.partial(print, flush=True)
    say(f"soak for {arguments.seconds:g} s, seed {seed}")
    wrap = None
    if arguments.lose:
        wrap = functools.partial(FaultyPort, seed=seed, drop=arguments.lose, on="rx")

    session = leaks.Session()
    before = leaks.snapshot(session)
    try:
        began = time.monotonic()
        stage = Stage(session.directory, wrap)
        conductor = Conductor(stage, seed, say)
        with _ended_early(conductor, say):
            outcome = conductor.run(arguments.seconds)
        accounts = {name: flow.ledger.totals() for name, flow in stage.flows.items()}
        seconds = time.monotonic() - began
        wrong = [] if outcome.failure is None else [outcome.failure]
        for line in stage.describe() if wrong else ():
            say(line)
        try:
            stage.close()
        except AssertionError as error:
            wrong.append(str(error))
        memory = stage.memory
        if memory.buffers_free != memory.buffers:
            wrong.append(f"{memory.buffers - memory.buffers_free} packet buffers are lost")
        interrupted = conductor.stop
        del stage, memory, wrap, conductor
        wrong += [f"left behind: {what}" for what in leaks.wait_for_none(session, before)]
        grown = growth_kb(outcome.resident)
        if grown > GROWTH:
            wrong.append(f"the process grew by {grown} kB")
        if not outcome.balanced and not wrong:
            wrong.append("the accounts do not balance")
    finally:
        session.close()
    tell(outcome, seconds, grown, say)
    if arguments.json is not None:
        found = {
            "seed": seed,
            "seconds": seconds,
            "interrupted": interrupted,
            "kills": outcome.kills,
            "acts": outcome.done,
            "recovery": outcome.recovery,
            "ports": accounts,
            "growth_kb": grown,
            "failures": wrong,
        }
        arguments.json.write_text(json.dumps(found, indent=2) + "\n")
    for what in wrong:
        say(f"FAILED: {what}")
    if wrong:
        say(f"repeat it: make soak SECONDS={arguments.seconds:g} SEED={seed}")
        return 1
    say("balanced: every frame is accounted for, and everything was given back")
    return 0


def steady(arguments: argparse.Namespace, say: functools.partial[None]) -> int:
    """Echo without faults; return 0 when nothing grows."""
    session = leaks.Session()
    before = leaks.snapshot(session)
    try:
        with Steady(session.directory, arguments.leak) as stage:
            began = time.monotonic()
            samples = stage.run(arguments.seconds, arguments.turn)
            seconds = time.monotonic() - began
            judged = samples.judge()
            tally, slowest = stage.tally(), stage.slowest()
            buffers = stage.memory
        wrong = [
            f"{name} grow by {row['growth']:g}" for name, row in judged.items() if not row["ok"]
        ]
        if buffers.buffers_free != buffers.buffers:
            wrong.append(f"{buffers.buffers - buffers.buffers_free} packet buffers are lost")
        del stage, buffers
        wrong += [f"left behind: {what}" for what in leaks.wait_for_none(session, before)]
    finally:
        session.close()
    say(f"in {seconds:.0f} s {len(samples)} rounds; frames echoed:")
    for name, count in tally.items():
        say(f"  {name:<18}{count:>12,}")
    say(f"slowest window of frames: {slowest:.3f} s")
    table(judged, say)
    if arguments.json:
        found = {"seconds": seconds, "rounds": len(samples), "frames": tally}
        found |= {"slowest": slowest, "series": judged}
        arguments.json.write_text(json.dumps(found, indent=2) + "\n")
    for what in wrong:
        say(f"FAILED: {what}")
    if not wrong:
        say("nothing grows, and everything was given back")
    return 1 if wrong else 0


def _seconds(text: str) -> float:
    """Parse a number of seconds above zero."""
    seconds = float(text)
    if not 0 < seconds < float("inf"):
        raise ValueError(text)
    return seconds


_seconds.__name__ = "number of seconds"  # argparse says it


@contextlib.contextmanager
def _ended_early(conductor: Conductor, say: Callable[[str], object]) -> Iterator[None]:
    """Let Ctrl-C and SIGTERM end the soak after the act that it is at; a second one at once."""
    before: dict[int, Any] = {}

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    def stop(_number: int, _frame: FrameType | None) -> None:
        restore()
        conductor.stop = True
        say("interrupted: the accounts so far follow")

    for number in (signal.SIGINT, signal.SIGTERM):
        before[number] = signal.signal(number, stop)
    try:
        yield
    finally:
        restore()


def tell(outcome: Outcome, seconds: float, grown: int, say: functools.partial[None]) -> None:
    """Print what was done and how long recovery took."""
    say(f"in {seconds:.0f} s {outcome.kills} kills, {sum(outcome.done.values())} acts in all")
    for act, times in sorted(outcome.recovery.items()):
        ordered = sorted(times)
        middle, late = (ordered[len(ordered) * share // 100] for share in (50, 95))
        say(
            f"  {act:<13}{len(times):>5} times; traffic again after {middle:.3f} s (median), "
            f"{late:.3f} s (95 %), {ordered[-1]:.3f} s (worst)"
        )
    say(f"memory: {grown:+} kB from the first to the last quarter")


if __name__ == "__main__":
    sys.exit(main())
