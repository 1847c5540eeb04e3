"""Clean-up that can be interrupted anywhere, and is finished by the next call.

A signal handler that raises, as that of Ctrl-C does, cuts the main thread between any two
bytecodes. So what gives something back is written down before the thing is made, does nothing where
there is nothing to give back, and is crossed out only once it has been done. What cannot be
made so is made in another thread, where no signal handler runs: see :func:`uninterrupted`.
"""

from __future__ import annotations

import _thread
import collections
import contextlib
import logging
import os
import sys
import threading
import warnings
from abc import abstractmethod
from typing import TYPE_CHECKING, NoReturn, Self, TypeVar

from virtnic.deadline import seconds

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType

__all__ = [
    "Closing",
    "Latch",
    "Owner",
    "Teardown",
    "close_later",
    "finish_forgotten",
    "made_at",
    "uninterrupted",
]

_log = logging.getLogger(__name__)

T = TypeVar("T")


#: Seconds after which a thread that was started is asked for, which may never have begun.
_BEGINS = 1.0


class Teardown:
    """The steps that give back what something holds, last first.

    Each is kept until it has come to its end. Any thread may call; a second one waits. A signal
    handler may, too, in the middle of a call: this lock, as all of virtnic's that are taken outside
    of the loop's thread, lets the same thread in again.
    """

    def __init__(self) -> None:
        self._steps: list[Callable[[], object]] = []
        self._lock = threading.RLock()

    def add(self, step: Callable[[], object]) -> None:
        """Add a step, before what it undoes is done. It may be called more than once."""
        self._steps.append(step)

    def run(self) -> None:
        """Do the steps that are left.

        An interruption (KeyboardInterrupt, SystemExit) ends it, and what was not done is done by
        the next call. So is a step that fails; its exception is logged, and the others are done.
        """
        with self._lock:
            for step in reversed(self._steps.copy()):
                try:
                    step()
                except Exception:
                    _log.exception("a step of the clean-up failed; the next call tries it again")
                    continue
                with contextlib.suppress(ValueError):  # a signal handler may have closed, too
                    self._steps.remove(step)

    def __bool__(self) -> bool:
        """Whether there are steps left."""
        return bool(self._steps)


def uninterrupted(function: Callable[[], T], hurry: Callable[[], object] | None = None) -> T:
    """Call a function that is quick where no signal handler runs, and wait for its end.

    An interruption is raised afterwards; the function then has been called, or never will be.
    Its result is lost then, so it is to leave what it made where the clean-up finds it.
    ``hurry`` is called when there is an interruption, where the function may take its time.
    """
    if threading.current_thread() is not threading.main_thread():
        return function()
    claim, done = _thread.allocate_lock(), _thread.allocate_lock()
    done.acquire()
    # Taken out where it is called: a thread that has told of the end may be there for a while
    # yet, and holds nothing of ours then.
    called = [function]
    results: list[T] = []
    errors: list[BaseException] = []
    over = False

    def run() -> None:
        nonlocal over
        if claim.acquire(blocking=False):
            try:
                results.append(called.pop()())
            except BaseException as error:
                errors.append(error)
            finally:
                over = True
                done.release()

    interruption = None
    try:
        try:
            _thread.start_new_thread(run, ())
        except RuntimeError:
            run()  # there can be no more threads
        while not done.acquire(timeout=_BEGINS):
            run()  # there was no memory for the thread to begin with; where it has begun, nothing
    except BaseException as error:
        if claim.acquire(blocking=False):
            raise
        interruption = error
    if interruption is not None:
        try:
            if hurry is not None:
                hurry()
            if not over:  # else it may have been waited for
                done.acquire()
            raise interruption
        finally:
            interruption = None  # an exception that holds this frame, which holds the exception
    if errors:
        try:
            raise errors[0]
        finally:
            errors.clear()
    if not results:
        raise MemoryError("there is no memory left, not even to say what failed")
    return results.pop()


class Latch:
    """An event that comes once.

    :class:`threading.Event` is written in Python: where a signal handler raises in the middle of
    it, its lock stays taken, and whoever tells of the event hangs.
    """

    def __init__(self) -> None:
        self._lock = _thread.allocate_lock()
        self._lock.acquire()
        self._came = False

    def set(self) -> None:
        """Let it come; twice is fine."""
        self._came = True
        with contextlib.suppress(RuntimeError):  # nobody has the lock: it came before
            self._lock.release()

    def is_set(self) -> bool:
        """Whether it has come."""
        return self._came

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until it comes; False after the timeout, in seconds."""
        length = seconds(timeout)
        try:
            if not self._came:
                self._lock.acquire(timeout=-1 if length is None else length)
            return self._came
        finally:
            if self._came:
                self.set()  # for those who wait as well


class Owner:
    """Something that holds what lies outside of Python, once: it cannot be copied.

    Who forgets one without closing it is told so, and where it was made.
    """

    #: Where it was made, for the warning.
    _made_at = ""

    def __reduce_ex__(self, protocol: object) -> NoReturn:
        """Refuse: ``copy``, ``deepcopy`` and ``pickle`` all come here."""
        raise TypeError(
            f"a {type(self).__name__} cannot be copied or pickled: it holds what there is only "
            "once, and two would close it for each other; pass the object itself on"
        )

    def _remember_caller(self) -> None:
        """Remember which line of the program outside of virtnic made it."""
        frame = sys._getframe(1)
        while frame.f_back is not None and _is_ours(frame.f_globals.get("__name__", "")):
            frame = frame.f_back
        self._made_at = f"{frame.f_code.co_filename}:{frame.f_lineno}"

    def _warn_unclosed(self) -> None:
        """Warn as an unclosed file does. For ``__del__``."""
        where = f", which was opened at {self._made_at}" if self._made_at else ""
        warnings.warn(f"unclosed {self!r}{where}", ResourceWarning, stacklevel=3, source=self)


class Closing(Owner):
    """An owner that the end of a ``with`` block closes."""

    @abstractmethod
    def close(self) -> object:
        """Give back what it holds. Twice is fine."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


def made_at(owner: Owner, other: Owner) -> None:
    """Say that an owner was made where another was: not in the thread that made it."""
    owner._made_at = other._made_at


def _is_ours(module: str) -> bool:
    return module == "virtnic" or module.startswith(("virtnic.", "contextlib"))


#: What was forgotten and is still to be closed.
_forgotten: collections.deque[Callable[[], object]] = collections.deque()


def close_later(close: Callable[[], object]) -> None:
    """Close something that was forgotten. For ``__del__``, so in a thread of its own.

    The collector runs at any allocation of any thread, with any lock held. Where no thread can
    be started, the next call of :func:`finish_forgotten` does it.
    """
    _forgotten.append(close)
    if not sys.is_finalizing():
        with contextlib.suppress(RuntimeError):
            _thread.start_new_thread(finish_forgotten, ())


def finish_forgotten() -> None:
    """Close what was forgotten and is not closed yet."""
    while _forgotten:
        try:
            close = _forgotten[0]
        except IndexError:
            return  # another thread did it
        try:
            close()
        except Exception:
            _log.exception("closing what was forgotten failed")
        with contextlib.suppress(ValueError):
            _forgotten.remove(close)


os.register_at_fork(after_in_child=_forgotten.clear)
