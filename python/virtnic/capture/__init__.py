"""Captures: write what ports send and receive, read capture files, replay them.

>>> with virtnic.capture.Writer("run.pcapng", port, snaplen=128):
...     virtnic.reflect(port, seconds=10)
>>> for timestamp, frame in virtnic.capture.read("run.pcapng"):
...     print(timestamp, len(frame))
>>> virtnic.capture.replay(port, "run.pcapng", speed=2.0)
"""

from virtnic._native import CapturedFrame
from virtnic.capture.filters import Filter
from virtnic.capture.reading import read
from virtnic.capture.replaying import Replayed, replay
from virtnic.capture.writing import Counts, Writer

__all__ = ["CapturedFrame", "Counts", "Filter", "Replayed", "Writer", "read", "replay"]
