"""Ctrl-C at a chosen moment: the n-th at which CPython may run a signal handler in our code.

CPython looks at signals where a function begins, after each call, and where a loop goes round. All
of these moments of the main thread that lie in virtnic's own code are counted, and at one of them
KeyboardInterrupt is raised, as the handler of SIGINT raises it.
"""

import contextlib
import dis
import functools
import os
import random
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

import virtnic

#: How many interruptions of each operation are tried; 0 for every moment that there is.
TRIES = int(os.environ.get("VIRTNIC_INTERRUPTIONS", "12"))

_OURS = str(Path(virtnic.__file__).parent)


@functools.cache
def _looks(code: CodeType) -> frozenset[int]:
    """Where, in a function, the instructions lie before which signals are looked at."""
    handlers: Any = dis._parse_exception_table(code)  # type: ignore[attr-defined]

    def handler(offset: int) -> Any:
        return next((entry for entry in handlers if entry.start <= offset < entry.end), None)

    found = set()
    before = None
    for instruction in dis.get_instructions(code):
        if instruction.opname == "JUMP_BACKWARD" or (
            before is not None
            and before.opname.startswith("CALL")
            # What is raised in the end of a call is handled as the call's; `return f()` in a
            # `try` is outside of that from the next instruction on.
            and handler(before.offset) == handler(instruction.offset)
        ):
            found.add(instruction.offset)
        before = instruction
    return frozenset(found)


def _goes_on(frame: FrameType) -> bool:
    """Whether a coroutine or generator resumes: signals are mostly not checked there.

    Nor where one that is given up is closed, which is traced as if it were called.
    """
    code = frame.f_code.co_code
    at = max(frame.f_lasti, 0)
    name = dis.opname[code[at]]
    return name == "YIELD_VALUE" or (name == "RESUME" and code[at + 1] & 3 >= 1)


def _in_del(frame: FrameType | None) -> bool:
    """Whether it runs for a ``__del__``: what is raised there is lost, wherever it comes from."""
    while frame is not None:
        if frame.f_code.co_name == "__del__":
            return True
        frame = frame.f_back
    return False


def _ctrl_c() -> None:
    raise KeyboardInterrupt


class _Moments:
    """Counts them, and runs a signal handler at one."""

    def __init__(self, interrupt_at: int | None, handler: Callable[[], object] = _ctrl_c) -> None:
        self.count = 0
        self.where = ""
        self._at = interrupt_at
        self._handler = handler

    def _pass(self, frame: FrameType) -> None:
        if self.count == self._at:
            code = frame.f_code
            self.where = f"{Path(code.co_filename).name}:{frame.f_lineno} ({code.co_qualname})"
            self.count += 1
            self._handler()
        else:
            self.count += 1

    def begun(self, frame: FrameType, event: str, arg: Any) -> Any:
        if not frame.f_code.co_filename.startswith(_OURS) or _in_del(frame):
            return None
        frame.f_trace_lines, frame.f_trace_opcodes = False, True
        if not _goes_on(frame):
            self._pass(frame)
        return self._step

    def _step(self, frame: FrameType, event: str, arg: Any) -> Any:
        if event == "opcode" and frame.f_lasti in _looks(frame.f_code):
            self._pass(frame)
        return self._step


def moments_of(call: Callable[[], object]) -> int:
    """Call it, and return the number of moments."""
    moments = _Moments(None)
    sys.settrace(moments.begun)
    try:
        call()
    finally:
        sys.settrace(None)
    return moments.count


def interrupted_at(
    moment: int, call: Callable[[], object], handler: Callable[[], object] = _ctrl_c
) -> str:
    """Call it and interrupt it at that moment; return where that was, "" if it never came."""
    moments = _Moments(moment, handler)
    sys.settrace(moments.begun)
    try:
        call()
    except KeyboardInterrupt:
        pass
    finally:
        sys.settrace(None)
    return moments.where


def sampled(moments: int, seed: str) -> list[int]:
    """Return the moments to try, spread over the whole operation."""
    if TRIES == 0 or moments <= TRIES:
        return list(range(moments))
    chance = random.Random(seed)
    step = moments / TRIES
    return [int(step * (i + chance.random())) for i in range(TRIES)]


@contextlib.contextmanager
def alarm(seconds: float) -> Iterator[None]:
    """Interrupt the block by a real signal after a time."""
    before = signal.signal(signal.SIGALRM, signal.default_int_handler)
    try:
        with contextlib.suppress(KeyboardInterrupt):
            try:
                signal.setitimer(signal.ITIMER_REAL, seconds)
                yield
            finally:
                signal.setitimer(signal.ITIMER_REAL, 0)
    finally:
        signal.signal(signal.SIGALRM, before)
