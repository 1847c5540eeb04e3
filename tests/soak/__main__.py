"""``python -m soak --seconds 600 --seed 7``; see ``make soak``."""

import argparse
import functools
import logging
import os
import sys
import time
import warnings

from peers import leaks
from virtnic.testing import FaultyPort

from .conductor import Conductor, Outcome, growth_kb
from .stage import Stage

#: Kilobytes that the process may have grown by: Python's own allocator comes and goes.
GROWTH = 16 * 1024


def main() -> int:
    """Run the soak; return 0 when everything balances."""
    parser = argparse.ArgumentParser(prog="soak", description=__doc__)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--seed", type=int, default=None, help="default: another each time")
    parser.add_argument(
        "--lose",
        type=float,
        default=0.0,
        metavar="P",
        help="lose frames behind the soak's back with this probability: it has to notice",
    )
    arguments = parser.parse_args()
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
        outcome = Conductor(stage, seed, say).run(arguments.seconds)
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
        del stage, memory, wrap
        wrong += [f"left behind: {what}" for what in leaks.wait_for_none(session, before)]
        grown = growth_kb(outcome.resident)
        if grown > GROWTH:
            wrong.append(f"the process grew by {grown} kB")
        if not outcome.balanced and not wrong:
            wrong.append("the accounts do not balance")
    finally:
        session.close()
    tell(outcome, seconds, grown, say)
    for what in wrong:
        say(f"FAILED: {what}")
    if wrong:
        say(f"repeat it: make soak SECONDS={arguments.seconds:g} SEED={seed}")
        return 1
    say("balanced: every frame is accounted for, and everything was given back")
    return 0


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
