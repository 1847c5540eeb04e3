"""A program that measures with a fleet of Ray actors and prints what came of it as JSON.

``python -m peers.ray_driver DIRECTORY``: Ray leaves threads and descriptors in the process that it
was started in, so this is a process of its own. testpmd passes frames between each actor's ports.
"""

import json
import os
import signal
import sys
import threading
import time
from contextlib import ExitStack
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import ray

from peers.testpmd import Testpmd
from virtnic import measure
from virtnic.integrations.ray import Fleet, FleetResult, Ports

HOUR = 3600 * 10**9
COUNTS = ("sent", "signed", "received", "lost", "duplicates", "reordered", "unsent")


def told(result: FleetResult) -> dict[str, Any]:
    """Return what a test looks at."""
    each = [*result.results.values()]
    return {
        "actors": [*result.results],
        "failures": {str(number): why for number, why in result.failures.items()},
        "counts": {name: getattr(result, name) for name in COUNTS},
        "added": {name: sum(getattr(one, name) for one in each) for name in COUNTS},
        "strange": result.corrupt + result.foreign,
        "histograms": [[one.histogram.steps, one.histogram.total] for one in each],
        "histogram": [result.histogram.steps, result.histogram.total],
        "ends": [result.latency.minimum, result.latency.maximum],
        "each_ends": [[one.latency.minimum, one.latency.maximum] for one in each],
        "spread": result.spread,
        "clock_error": result.clock_error,
    }


def together(first: Any, second: Any) -> dict[str, Any]:
    """Two actors measure the same streams at once."""
    streams = [
        measure.Stream(64, rate=2000, fields=[measure.Increment("ip.src", 5)]),
        measure.Stream("imix", rate=500),
    ]
    return told(Fleet([first, second]).measure(streams=streams, seconds=1.0, delay=2.0))


def other_clock(actor: Any) -> dict[str, Any]:
    """One of two machines has a clock that is an hour ahead."""
    streams = measure.Stream(64, rate=1000)
    (measured,) = Fleet([actor]).measure(streams=streams, seconds=0.2).results.values()
    ahead: list[int] = []

    def run(at: int, _options: dict[str, Any]) -> Any:
        ahead.append(at - time.time_ns())
        return ray.put((at, measured))

    wrong = SimpleNamespace(
        clock=SimpleNamespace(remote=lambda: ray.put(time.time_ns() + HOUR)),
        measure=SimpleNamespace(remote=run),
    )
    result = Fleet([actor, wrong]).measure(streams=streams, seconds=0.2, delay=5.0)
    return {**told(result), "ahead": ahead[0] / 1e9}


def refused(actor: Any) -> str:
    """No actor can send these streams."""
    streams = measure.Stream(64, fields=[measure.Increment("ip.scr", 5)])
    try:
        Fleet([actor]).measure(streams=streams, seconds=0.2)
    except RuntimeError as error:
        return str(error)
    return ""


def killed(first: Any, second: Any) -> dict[str, Any]:
    """The process of one of two actors is killed while they measure."""
    fleet = Fleet([first, second])
    victim = ray.get(second.__ray_call__.remote(lambda _: os.getpid()))
    timer = threading.Timer(3.0, os.kill, (victim, signal.SIGKILL))
    timer.start()
    streams = measure.Stream(64, rate=1000)
    result = fleet.measure(streams=streams, seconds=4.0, delay=1.0)
    timer.join()
    try:
        Fleet([second]).measure(streams=streams, seconds=0.2)
        nobody = ""
    except RuntimeError as error:
        nobody = str(error)
    again = fleet.measure(streams=streams, seconds=0.2)
    return {"during": told(result), "nobody": nobody, "again": told(again)}


def main() -> None:
    """Start all, do all, end all."""
    directory = Path(sys.argv[1])
    with ExitStack() as stack:
        sockets = [directory / f"vhu{number}" for number in range(4)]
        stack.enter_context(Testpmd(sockets, mode="io"))
        ray.init(
            num_cpus=4,
            include_dashboard=False,
            object_store_memory=80 << 20,
            _temp_dir=str(directory / "r"),
            log_to_driver=False,
        )
        stack.callback(ray.shutdown)
        netdevs = [f"vhost-user,path={path}" for path in sockets]
        first, second = (Ports.remote(tx=netdevs[at], rx=netdevs[at + 1]) for at in (0, 2))
        found = {
            "together": together(first, second),
            "other_clock": other_clock(first),
            "refused": refused(first),
            "killed": killed(first, second),
        }
        ray.get(first.close.remote())
    print(json.dumps(found))


if __name__ == "__main__":
    main()
