"""When a QEMU has to be recovered."""

from types import SimpleNamespace
from typing import Any

import pytest

from virtnic.nic import supervisor


@pytest.mark.parametrize(
    ("alive", "away", "closed", "whole"),
    [
        (True, False, False, True),
        (False, False, False, False),
        (True, True, False, False),
        # Its detaching waits for the recovery: a QEMU that is back was replaced once more.
        (True, True, True, True),
    ],
)
def test_what_is_whole(alive: bool, away: bool, closed: bool, whole: bool) -> None:
    port = SimpleNamespace(away=away, closed=closed)
    machine = SimpleNamespace(
        qtest=SimpleNamespace(death=None), process=SimpleNamespace(alive=alive)
    )
    devices: Any = SimpleNamespace(machine=machine, attached=[(None, port)])
    assert supervisor._whole(devices) == whole
