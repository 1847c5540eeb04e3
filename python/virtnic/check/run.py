"""Trying clauses, one after another, each anew."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from virtnic.check import features, messages, rings
from virtnic.check.clause import Bench, Clause, NotOffered, Wrong
from virtnic.errors import DeviceError, NetdevUnavailable

if TYPE_CHECKING:
    import os
    from collections.abc import Iterator, Sequence

__all__ = ["CLAUSES", "Result", "Verdict", "run"]

#: What becomes of a clause.
Verdict = Literal["ok", "wrong", "not offered", "not tried"]

#: All of them, in the order in which they are tried.
CLAUSES: tuple[Clause, ...] = (*features.CLAUSES, *messages.CLAUSES, *rings.CLAUSES)


@dataclass(frozen=True, slots=True)
class Result:
    """What became of one clause."""

    clause: Clause
    verdict: Verdict
    #: What was seen, in words.
    seen: str
    #: How long it took.
    seconds: float


def run(
    path: str | os.PathLike[str],
    clauses: Sequence[Clause] = CLAUSES,
    *,
    timeout: float = 3.0,
) -> Iterator[Result]:
    """Try clauses with the backend that listens at ``path``; yield each result when it is there.

    A backend that hangs up or does not answer within ``timeout`` seconds is wrong, unless the
    clause says otherwise, and the next clause begins anew. Once nobody listens any more the
    others are "not tried". Raises NetdevUnavailable where nobody listens at the beginning.
    """
    _reach(path, timeout)
    gone = ""
    for clause in clauses:
        began = time.monotonic()
        if gone:
            yield Result(clause, "not tried", gone, 0.0)
            continue
        verdict, seen = _try(clause, path, timeout)
        yield Result(clause, verdict, seen, time.monotonic() - began)
        try:
            _reach(path, timeout)
        except NetdevUnavailable as error:
            gone = f"the backend is gone since {clause.id}: {error}"


def _try(clause: Clause, path: str | os.PathLike[str], timeout: float) -> tuple[Verdict, str]:
    try:
        with Bench(path, timeout=timeout) as bench:
            return "ok", clause.check(bench)
    except Wrong as wrong:
        return "wrong", str(wrong)
    except NotOffered as missing:
        return "not offered", str(missing)
    except ConnectionError as error:
        return "wrong", f"it hung up: {error}"
    except (OSError, DeviceError) as error:  # TimeoutError is an OSError
        return "wrong", str(error)


def _reach(path: str | os.PathLike[str], timeout: float) -> None:
    """Raise NetdevUnavailable unless somebody listens there who answers."""
    try:
        with Bench(path, timeout=max(timeout, 5.0)) as bench:
            bench.connect().get_features()
    except (OSError, DeviceError) as error:  # ConnectionError and TimeoutError are OSErrors
        raise NetdevUnavailable(f"no vhost-user backend answers at {path}: {error}") from None
