"""Engine loops that run in the core, without the interpreter, and the frames they send."""

from virtnic.loops.engine import (
    DROP,
    PacketFunction,
    Result,
    drop,
    exchange,
    forward,
    generate,
    packet_function,
    reflect,
    run,
    to_port,
)
from virtnic.loops.traffic import IMIX, make_frame, parse_rate

__all__ = [
    "DROP",
    "IMIX",
    "PacketFunction",
    "Result",
    "drop",
    "exchange",
    "forward",
    "generate",
    "make_frame",
    "packet_function",
    "parse_rate",
    "reflect",
    "run",
    "to_port",
]
