"""Checks of arguments whose errors name the argument and what it may be."""

from __future__ import annotations

__all__ = ["must_be", "whole_number"]


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
