"""Arguments of a wrong type: the error names the argument and what it may be."""

import math
import re
from typing import Any

import pytest

import virtnic
from virtnic.deadline import seconds
from virtnic.nic.options import PortRequest

WRONG: list[tuple[str, object]] = [
    ("mac", 5),
    ("mac", b"52:54:00:12:34:56"),
    ("queues", "4"),
    ("queues", 2.5),
    ("queues", True),
    ("queue_size", "64"),
    ("queue_size", 2.0),
    ("queue_size", None),
    ("spin", "1"),
    ("spin", None),
    ("features", ["MRG_RXBUF"]),
    ("features", {"MAC": "yes"}),
    ("features", {5: True}),
    ("properties", ["rss"]),
    ("properties", {5: 1}),
    ("on_link", 5),
    ("legacy", "yes"),
    ("timestamps", "yes"),
    ("offload", "yes"),
    ("recover", "yes"),
]


@pytest.mark.parametrize(("name", "value"), WRONG)
def test_options_of_a_port(name: str, value: object) -> None:
    """Those of ``attach`` and ``open``."""
    given: dict[str, Any] = {name: value}
    with pytest.raises(TypeError, match=f"^{name} must be .*not {re.escape(repr(value))}$"):
        PortRequest("user", **given)


def test_right_types_are_accepted() -> None:
    numpy = pytest.importorskip("numpy")
    PortRequest("user", queues=numpy.int64(2), queue_size=numpy.uint16(64), spin=numpy.float32(1))
    PortRequest("user", features={"MAC": None}, properties={"rss": True}, on_link=print, spin=1)


@pytest.mark.parametrize("name", ["node", "buffer_size", "jumbo_buffers", "jumbo_size"])
def test_sizes_of_a_memory(name: str) -> None:
    text: dict[str, Any] = {name: "5"}
    with pytest.raises(TypeError, match=f"^{name} must be an integer.*not '5'"):
        virtnic.Memory("1M", **text)
    negative: dict[str, Any] = {name: -5}
    with pytest.raises(ValueError, match=f"^{name} must be 0 or more, not -5"):
        virtnic.Memory("1M", **negative)


@pytest.mark.parametrize("value", ["1", [1], {}])
def test_a_timeout(value: Any) -> None:
    with pytest.raises(TypeError, match=r"^the timeout must be a number of seconds or None, not "):
        seconds(value)
    assert seconds(math.inf) is None
