"""The schema of what :meth:`Result.to_json` returns (JSON Schema, draft 2020-12)."""

from __future__ import annotations

from typing import Any

__all__ = ["SCHEMA"]

_COUNT = {"type": "integer", "minimum": 0}
_NUMBER = {"type": "number", "minimum": 0}


def _object(**members: Any) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": members,
        "required": [*members],
        "additionalProperties": False,
    }


def _list(items: Any) -> dict[str, Any]:
    return {"type": "array", "items": items}


_LATENCY = _object(
    count=_COUNT,
    **dict.fromkeys(
        (*("minimum", "mean", "p50", "p90", "p99", "p99_9", "p99_99", "p99_999", "maximum"),),
        _NUMBER,
    ),
)
_HISTOGRAM = _object(
    steps=_list({"type": "array", "prefixItems": [_COUNT, _COUNT], "minItems": 2, "maxItems": 2}),
    least=_COUNT,
    most=_COUNT,
    total=_COUNT,
)
_SAMPLE = _object(
    seconds=_NUMBER,
    **dict.fromkeys(
        ("sent", "signed", "received", "duplicates", "reordered", "corrupt", "foreign"), _COUNT
    ),
    latency_mean=_NUMBER,
    latency_max=_NUMBER,
)
_FLOW = _object(
    **dict.fromkeys(("sent", "received", "duplicates", "reordered", "lost"), _COUNT),
    latency_mean=_NUMBER,
    latency_max=_NUMBER,
)
_OF_BOTH: dict[str, Any] = {
    **dict.fromkeys(
        ("sent", "received", "lost", "duplicates", "reordered", "stale", "unsent", "late"), _COUNT
    ),
    "latest": _NUMBER,
    "bytes": _COUNT,
    "latency": _LATENCY,
    "histogram": _HISTOGRAM,
}
_STREAM = _object(name={"type": "string"}, flow={"type": "boolean"}, flows=_list(_FLOW), **_OF_BOTH)

#: Times are in seconds; ``steps``, ``least``, ``most`` and ``total`` of a histogram in nanoseconds.
SCHEMA: dict[str, Any] = {
    "$schema": "https://json-schema.org/draft/2020-12/schema",
    "title": "virtnic.measure.Result",
    **_object(
        version={"const": 1},
        interrupted={"type": "boolean"},
        loss={"type": "number", "minimum": 0, "maximum": 1},
        streams=_list(_STREAM),
        samples=_list(_SAMPLE),
        **dict.fromkeys(("signed", "corrupt", "foreign", "untaken"), _COUNT),
        **dict.fromkeys(("seconds", "pps", "received_pps", "l1_bps"), _NUMBER),
        **_OF_BOTH,
    ),
}
