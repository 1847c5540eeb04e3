"""Several actors of a local Ray cluster measure at once, with testpmd between their ports."""

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytestmark = [pytest.mark.needs("qemu", "testpmd", "ray"), pytest.mark.timeout(400)]
TESTS = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def found() -> Iterator[dict[str, Any]]:
    """What a program found that measures with a fleet; see there."""
    # Ray's sockets need a short path, and a process that is killed leaves its files.
    directory = Path(tempfile.mkdtemp(prefix="vr", dir="/tmp"))
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join([str(TESTS), *filter(None, sys.path)]),
        "TMPDIR": str(directory),
        "HOME": str(directory),
        "RAY_AUTH_MODE": "disabled",
        "RAY_USAGE_STATS_ENABLED": "0",
    }
    try:
        done = subprocess.run(
            [sys.executable, "-m", "peers.ray_driver", str(directory)],
            env=environment,
            capture_output=True,
            text=True,
            timeout=360,
            check=False,
        )
        assert done.returncode == 0, done.stderr[-4000:]
        yield json.loads(done.stdout.splitlines()[-1])
    finally:
        shutil.rmtree(directory, ignore_errors=True)


def whole(told: dict[str, Any], actors: list[int]) -> None:
    """Whether so many actors have results, and the totals are their sums."""
    assert told["actors"] == actors
    counts = told["counts"]
    assert counts == told["added"]
    assert counts["signed"] == counts["received"] + counts["lost"]
    assert counts["received"] > 0
    assert told["strange"] == 0


def test_a_fleet_adds_up_exactly(found: dict[str, Any]) -> None:
    told = found["together"]
    assert told["failures"] == {}
    whole(told, [0, 1])
    # The sum has the steps of both, each with the counts of both.
    steps: dict[int, int] = {}
    for each, _ in told["histograms"]:
        for value, count in each:
            steps[value] = steps.get(value, 0) + count
    assert told["histogram"][0] == [list(step) for step in sorted(steps.items())]
    assert told["histogram"][1] == sum(total for _, total in told["histograms"])
    assert sum(steps.values()) == told["counts"]["received"]
    lowest, highest = zip(*told["each_ends"], strict=True)
    assert told["ends"] == [min(lowest), max(highest)]
    assert told["spread"] >= 0
    assert told["clock_error"] > 0


def test_clocks_that_differ_are_read_first(found: dict[str, Any]) -> None:
    """A machine whose clock is an hour ahead is told an hour later, and began with the others."""
    told = found["other_clock"]
    whole(told, [0, 1])
    assert 3600 < told["ahead"] < 3700
    assert told["spread"] < 60


def test_an_actor_that_dies_is_named_and_the_others_go_on(found: dict[str, Any]) -> None:
    told = found["killed"]
    for each in (told["during"], told["again"]):
        whole(each, [0])
        ((number, why),) = each["failures"].items()
        assert number == "1"
        assert "Actor" in why
    assert told["nobody"].startswith("no actor of the fleet has a result: actor 0: Actor")


def test_an_actor_that_refuses_says_why(found: dict[str, Any]) -> None:
    assert 'actor 0: ValueError: stream 0: there is no field "ip.scr"' in found["refused"]


def test_a_fleet_has_an_actor() -> None:
    from virtnic.integrations.ray import Fleet

    with pytest.raises(ValueError, match="one actor at least"):
        Fleet([])
