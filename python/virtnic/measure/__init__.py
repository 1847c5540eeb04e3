"""Throughput, latency and frame loss: streams sent from one port to another.

>>> streams = [measure.Stream(64, rate="1Mpps", fields=[measure.Increment("ip.src", 1000)])]
>>> result = measure.run(tx=a, rx=b, streams=streams, seconds=10)
>>> result.lost, result.reordered, result.latency.p99_9
>>> measure.throughput(tx=a, rx=b, sizes=[64, 512, 1518])
"""

from virtnic.measure.counts import Histogram, Latency, Sample
from virtnic.measure.page import page
from virtnic.measure.plots import Plot
from virtnic.measure.result import FlowResult, Result, StreamResult
from virtnic.measure.running import run
from virtnic.measure.schema import SCHEMA
from virtnic.measure.search import Throughput, Trial, throughput
from virtnic.measure.streams import Increment, List, Random, Stream

__all__ = [
    "SCHEMA",
    "FlowResult",
    "Histogram",
    "Increment",
    "Latency",
    "List",
    "Plot",
    "Random",
    "Result",
    "Sample",
    "Stream",
    "StreamResult",
    "Throughput",
    "Trial",
    "page",
    "run",
    "throughput",
]
