"""A mistyped option of a public callable: an error that names the nearest one."""

from __future__ import annotations

import asyncio
import inspect
import re
from typing import Any

import pytest

import virtnic
from support.options import CALLED, PASSED_ON, options_of


def nearest(path: str, wrong: str) -> str | None:
    """Call something with an unknown option, and return the option that the error names."""
    called = CALLED[path]
    needed = [
        None
        for parameter in inspect.signature(called).parameters.values()
        if parameter.default is inspect.Parameter.empty
        and parameter.kind is inspect.Parameter.POSITIONAL_OR_KEYWORD
    ]
    with pytest.raises(TypeError) as raised:
        finished(called(*needed, **{wrong: None}))
    found = re.fullmatch(
        rf"\S+\w\(\) has no option '{wrong}'; did you mean '(\w+)'\?", str(raised.value)
    )
    return found[1] if found else None


def test_a_mistyped_option_is_answered_with_the_nearest() -> None:
    """Nothing is started, whatever the other arguments are."""
    checked = sorted(CALLED.keys() - PASSED_ON.keys())
    assert len(checked) > 40
    assert all(options_of(path) for path in checked)
    assert [
        (path, name)
        for path in checked
        for name in options_of(path)
        if nearest(path, name + name[-1]) != name
    ] == []


def finished(result: Any) -> None:
    """Wait for what can be awaited."""
    if inspect.iscoroutine(result):
        asyncio.run(result)


def test_an_option_like_no_other() -> None:
    with pytest.raises(TypeError, match=r"no option 'zzz'; there are: accel, buffer_size"):
        virtnic.open(zzz=1)  # type: ignore[call-arg]


def test_a_coroutine_function_remains_one() -> None:
    """Libraries ask."""
    assert inspect.iscoroutinefunction(virtnic.aio.net.Stack.create_server)


def test_the_signature_remains() -> None:
    assert list(inspect.signature(virtnic.Recovery).parameters) == [
        "attempts",
        "backoff",
        "backoff_max",
    ]
    assert "seconds" in inspect.signature(virtnic.forward).parameters
