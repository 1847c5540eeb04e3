"""Checks of arguments whose errors name the argument and what it may be."""

from __future__ import annotations

import functools
import inspect
from typing import TYPE_CHECKING, Any, TypeVar, cast

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable

__all__ = ["check_names", "loop_limits", "must_be", "suggest_options", "whole_number"]

_Called = TypeVar("_Called", bound="Callable[..., Any]")


def must_be(name: str, value: object, ok: bool, what: str) -> None:
    """Raise TypeError unless the value of an argument is ``ok``."""
    if not ok:
        raise TypeError(f"{name} must be {what}, not {value!r}")


def whole_number(
    name: str, value: object, *, optional: bool = False, negative: bool = False
) -> None:
    """Raise TypeError unless a value is an integer, and ValueError if it is negative.

    ``negative`` leaves that to the caller, who knows what the value may be.
    """
    if value is None and optional:
        return
    is_one = hasattr(type(value), "__index__") and not isinstance(value, bool)
    must_be(name, value, is_one, "an integer or None" if optional else "an integer")
    if not negative and value < 0:  # type: ignore[operator]
        raise ValueError(f"{name} must be 0 or more, not {value}")


def loop_limits(
    seconds: float | None, packets: int | None, progress: object, cpus: Iterable[int]
) -> tuple[float | None, int | None, list[int]]:
    """Return the limits of a loop and the processors of its threads.

    Raises ValueError, or TypeError for a ``progress`` that is no function.
    """
    if packets is not None and not 0 <= packets < 1 << 64:
        raise ValueError(f"packets must be 0 or more and below 2**64, not {packets}")
    if seconds is not None and not seconds >= 0:
        raise ValueError(f"seconds must be 0 or more, or None for no end, not {seconds}")
    called = progress is None or callable(progress)
    must_be("progress", progress, called, "a function of one argument, or None")
    chosen = [*cpus]
    if any(cpu < 0 for cpu in chosen):
        raise ValueError(f"cpus must be numbers of processors, not {chosen}")
    return seconds, packets, chosen


def check_names(what: str, names: Collection[str], options: Iterable[str]) -> None:
    """Raise TypeError for an unknown option, with a suggestion."""
    for name in options:
        if name not in names:
            import difflib  # for this error only

            known = sorted(names)
            like = difflib.get_close_matches(name, known, 1)
            hint = f"did you mean {like[0]!r}?" if like else f"there are: {', '.join(known)}"
            raise TypeError(f"{what} has no option {name!r}; {hint}")


def suggest_options(called: _Called) -> _Called:
    """Make a call with an unknown option raise TypeError with a suggestion.

    For functions, and for classes whose constructor is ``__init__``. Each call passes one more
    Python function: do not use it for what is called for each burst of frames.
    """
    if isinstance(called, type):
        called.__init__ = suggest_options(called.__init__)  # type: ignore[misc]
        return called
    code = called.__code__
    first, last = code.co_posonlyargcount, code.co_argcount + code.co_kwonlyargcount
    names = frozenset(code.co_varnames[first:last]) - {"self", "cls"}
    what = called.__qualname__.removesuffix(".__init__").removesuffix(".__new__") + "()"

    if inspect.iscoroutinefunction(called):

        @functools.wraps(called)
        async def wait(*arguments: Any, **options: Any) -> Any:
            check_names(what, names, options)
            return await called(*arguments, **options)

        return cast("_Called", wait)

    @functools.wraps(called)
    def call(*arguments: Any, **options: Any) -> Any:
        check_names(what, names, options)
        return called(*arguments, **options)

    return cast("_Called", call)
