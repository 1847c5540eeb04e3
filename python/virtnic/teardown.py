"""Clean-up that can be interrupted anywhere and is finished by the next call.

A signal handler that raises, as that of Ctrl-C does, can interrupt the main thread between any two
bytecodes. So each clean-up step is registered before the resource is acquired, does nothing if
there is nothing to release, and is removed only once it is done. What cannot be made so is done in
another thread, where no signal handler runs: see :func:`uninterrupted`.
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

from virtnic.background import take_no_signals
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


#: Seconds after which to check whether a started thread has ever begun to run.
_BEGINS = 1.0


class Teardown:
    """Clean-up steps, run in reverse order.

    A step is kept until it has completed. Any thread may call; a second one waits. So may a signal
    handler in the middle of a call: like all virtnic locks taken outside the loop thread, this one
    is reentrant.
    """

    def __init__(self) -> None:
        self._steps: list[Callable[[], object]] = []
        self._lock = threading.RLock()

    def add(self, step: Callable[[], object]) -> None:
        """Add a step, before the action it undoes. It may be called more than once."""
        self._steps.append(step)

    def run(self) -> None:
        """Run the remaining steps.

        An interruption (KeyboardInterrupt, SystemExit) ends the run; the next call runs what is
        left. A step that fails is logged and kept for the next call; the others are run.
        """
        with self._lock:
            for step in reversed(self._steps.copy()):
                try:
                    step()
                except Exception:
                    _log.exception("a clean-up step failed; the next call tries it again")
                    continue
                with contextlib.suppress(ValueError):  # a signal handler may have closed as well
                    self._steps.remove(step)

    def __bool__(self) -> bool:
        """Whether steps are left."""
        return bool(self._steps)


def uninterrupted(function: Callable[[], T], hurry: Callable[[], object] | None = None) -> T:
    """Call a quick function in a thread without signal handlers, and wait for it.

    An interruption is raised afterwards; by then the function has returned or will never run. Its
    result is lost in that case, so it must store what it made where the clean-up finds it.
    ``hurry`` is called on an interruption, to shorten a slow function.
    """
    if threading.current_thread() is not threading.main_thread():
        return function()
    claim, done = _thread.allocate_lock(), _thread.allocate_lock()
    done.acquire()
    caller = threading.get_ident()
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
                if threading.get_ident() != caller:
                    take_no_signals()
                done.release()

    interruption = None
    try:
        try:
            _thread.start_new_thread(run, ())
        except RuntimeError:
            run()  # no more threads can be started
        while not done.acquire(timeout=_BEGINS):
            run()  # the thread had no memory to begin; does nothing if it has begun
    except BaseException as error:
        if claim.acquire(blocking=False):
            raise
        interruption = error
    if interruption is not None:
        try:
            if hurry is not None:
                hurry()
            if not over:  # it may have ended meanwhile
                done.acquire()
            raise interruption
        finally:
            interruption = None  # break the cycle of exception and frame
    if errors:
        try:
            raise errors[0]
        finally:
            errors.clear()
    if not results:
        raise MemoryError("out of memory, even for the error message")
    return results.pop()


class Latch:
    """An event that happens once.

    :class:`threading.Event` is written in Python: a signal handler that raises in the middle of it
    leaves its lock taken, and the thread that sets the event hangs.
    """

    def __init__(self) -> None:
        self._lock = _thread.allocate_lock()
        self._lock.acquire()
        self._came = False

    def set(self) -> None:
        """Set the event; repeated calls have no effect."""
        self._came = True
        with contextlib.suppress(RuntimeError):  # not locked: already set
            self._lock.release()

    def is_set(self) -> bool:
        """Whether it is set."""
        return self._came

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until it is set; False after the timeout, in seconds."""
        length = seconds(timeout)
        try:
            if not self._came:
                self._lock.acquire(timeout=-1 if length is None else length)
            return self._came
        finally:
            if self._came:
                self.set()  # for other waiters


class Owner:
    """Base of classes that hold resources outside Python; cannot be copied.

    An object that is forgotten without being closed causes a warning that names where it was made.
    """

    #: Where it was made, for the warning.
    _made_at = ""

    def __reduce_ex__(self, protocol: object) -> NoReturn:
        """Refuse ``copy``, ``deepcopy`` and ``pickle``, which all call this."""
        raise TypeError(
            f"a {type(self).__name__} cannot be copied or pickled: it holds resources that exist "
            "once, and two owners would close them for each other; pass the object itself on"
        )

    def _remember_caller(self) -> None:
        """Remember the line outside virtnic that made the object."""
        frame = sys._getframe(1)
        while frame.f_back is not None and _is_ours(frame.f_globals.get("__name__", "")):
            frame = frame.f_back
        self._made_at = f"{frame.f_code.co_filename}:{frame.f_lineno}"

    def _warn_unclosed(self) -> None:
        """Warn as for an unclosed file. For ``__del__``."""
        where = f", which was opened at {self._made_at}" if self._made_at else ""
        warnings.warn(f"unclosed {self!r}{where}", ResourceWarning, stacklevel=3, source=self)


class Closing(Owner):
    """An owner that the end of a ``with`` block closes."""

    @abstractmethod
    def close(self) -> object:
        """Release its resources. Closing twice is allowed."""

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


#: Forgotten objects that are still to be closed.
_forgotten: collections.deque[Callable[[], object]] = collections.deque()


def close_later(close: Callable[[], object]) -> None:
    """Close a forgotten object, in a thread of its own. For ``__del__``.

    The collector runs at any allocation in any thread, with any lock held. If no thread can be
    started, the next call of :func:`finish_forgotten` closes the object.
    """
    _forgotten.append(close)
    if not sys.is_finalizing():
        with contextlib.suppress(RuntimeError):
            _thread.start_new_thread(finish_forgotten, ())


def finish_forgotten() -> None:
    """Close forgotten objects that are not closed yet."""
    while _forgotten:
        try:
            close = _forgotten[0]
        except IndexError:
            return  # another thread did it
        try:
            close()
        except Exception:
            _log.exception("closing a forgotten object failed")
        with contextlib.suppress(ValueError):
            _forgotten.remove(close)


os.register_at_fork(after_in_child=_forgotten.clear)
