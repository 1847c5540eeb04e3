"""The other end of a bare exchange: ``python -m benchmarks.peer CORE QUESTION ANSWER``.

QUESTION and ANSWER are descriptors: of eventfds, or of shared memory. An eventfd it sleeps
on, memory it polls (the first byte); it answers by signalling the one, or in the byte at
``ANSWER_AT`` of the other. It runs until it is killed.
"""

import contextlib
import mmap
import os
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from peers.process import mortal

TOOLS = Path(__file__).resolve().parents[1]
#: Far enough from the question that the two share no cache line.
ANSWER_AT = 256


@contextlib.contextmanager
def peer(core: int, question: int, answer: int) -> Iterator[None]:
    """Run one."""
    argv = [sys.executable, "-m", "benchmarks.peer", str(core), str(question), str(answer)]
    process = subprocess.Popen(mortal(argv), cwd=TOOLS, pass_fds=(question, answer))
    try:
        yield
    finally:
        process.kill()
        process.wait()


@contextlib.contextmanager
def shared_memory() -> Iterator[tuple[int, mmap.mmap]]:
    """Give a page and its descriptor."""
    file = os.memfd_create("question", os.MFD_CLOEXEC)
    try:
        os.truncate(file, mmap.PAGESIZE)
        with mmap.mmap(file, mmap.PAGESIZE) as memory:
            yield file, memory
    finally:
        os.close(file)


def distance(core: int, other: int) -> float:
    """Seconds from one core to another and back, through memory, as Python sees it.

    Most of it is Python's own; but where a hypervisor moves its processors about, the rest
    may be four times what it was a moment ago, and with it all that two cores share.
    """
    before = os.sched_getaffinity(0)
    with shared_memory() as (file, memory), peer(other, file, file):
        os.sched_setaffinity(0, {core})
        try:
            times = [_round_trip(memory, number % 255 + 1) for number in range(4000)]
        finally:
            os.sched_setaffinity(0, before)
    # The first ones wait for the other's start; an interrupted one counts for nothing.
    return sorted(times[1000:])[len(times) // 10]


def _round_trip(memory: mmap.mmap, number: int) -> float:
    began = time.perf_counter()
    memory[0] = number
    while memory[ANSWER_AT] != number:
        pass
    return time.perf_counter() - began


def main() -> None:
    """Answer."""
    core, question, answer = map(int, sys.argv[1:])
    os.sched_setaffinity(0, {core})
    if not stat.S_ISREG(os.fstat(question).st_mode):
        while True:
            os.eventfd_write(answer, os.eventfd_read(question))
    shared = mmap.mmap(question, mmap.PAGESIZE)
    last = 0
    if question == answer:
        while True:
            now = shared[0]
            if now != last:
                shared[ANSWER_AT] = last = now
    while True:
        now = shared[0]
        if now != last:
            # More than one, should it have been held up.
            os.eventfd_write(answer, (now - last) % 256)
            last = now


if __name__ == "__main__":
    main()
