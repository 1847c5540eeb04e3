"""The marker of the pytest plugin, and what it does without a program."""

from __future__ import annotations

import os
from typing import Any, NoReturn

import pytest

__all__ = ["marked", "missing"]


def marked(node: pytest.Item) -> dict[str, Any]:
    """Return the arguments of the test's markers; the nearest wins."""
    found: dict[str, Any] = {}
    for marker in reversed(list(node.iter_markers("virtnic"))):
        found |= marker.kwargs
        if marker.args:
            (found["netdev"],) = marker.args
    return found


def missing(why: str) -> NoReturn:
    """Skip the test, which needs a program that is not there; fail it if ``CI`` is set."""
    if os.environ.get("CI", "").lower() not in ("", "0", "false"):
        pytest.fail(f"{why} (CI is set: what is missing is a failure)", pytrace=False)
    pytest.skip(why)
