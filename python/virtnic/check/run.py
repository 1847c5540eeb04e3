"""`run`: checks clauses one after another, each on new connections."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from virtnic.arguments import suggest_options
from virtnic.check import features, messages, rings
from virtnic.check.clause import Bench, Clause, NotOffered, Wrong
from virtnic.errors import DeviceError, NetdevUnavailable, message_of

if TYPE_CHECKING:
    import os
    from collections.abc import Iterator, Sequence

__all__ = ["CLAUSES", "Result", "Verdict", "run"]

#: The outcome of a clause.
Verdict = Literal["ok", "wrong", "not offered", "not tried"]

#: All clauses, in the order in which they run.
CLAUSES: tuple[Clause, ...] = (*features.CLAUSES, *messages.CLAUSES, *rings.CLAUSES)


@dataclass(frozen=True, slots=True)
class Result:
    """The outcome of one clause.

    Attributes
    ----------
    clause
        The clause.
    verdict
        ``ok``, ``wrong``, ``not offered`` or ``not tried``.
    seen
        What the backend did, or what was missing, as a sentence.
    seconds
        How long the check took.

    """

    clause: Clause
    verdict: Verdict
    seen: str
    seconds: float


@suggest_options
def run(
    path: str | os.PathLike[str],
    clauses: Sequence[Clause] = CLAUSES,
    *,
    timeout: float = 3.0,
) -> Iterator[Result]:
    """Check clauses on the backend that listens at ``path``; yield each result as it is known.

    A clause is "wrong" if the backend closes the connection or does not answer within ``timeout``
    seconds, unless the clause allows it. Each clause uses new connections. Once the backend no
    longer answers, the remaining clauses are "not tried".

    Raises NetdevUnavailable if no backend answers at the beginning.
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
            gone = f"the backend has not answered since {clause.id}: {message_of(error)}"


def _try(clause: Clause, path: str | os.PathLike[str], timeout: float) -> tuple[Verdict, str]:
    try:
        with Bench(path, timeout=timeout) as bench:
            return "ok", clause.check(bench)
    except Wrong as wrong:
        return "wrong", str(wrong)
    except NotOffered as missing:
        return "not offered", str(missing)
    except ConnectionError as error:
        return "wrong", f"the backend closed the connection: {message_of(error)}"
    except (OSError, DeviceError) as error:  # TimeoutError is an OSError
        return "wrong", message_of(error)


def _reach(path: str | os.PathLike[str], timeout: float) -> None:
    """Raise NetdevUnavailable unless a backend answers at the path."""
    try:
        with Bench(path, timeout=max(timeout, 5.0)) as bench:
            bench.connect().get_features()
    except (OSError, DeviceError) as error:  # ConnectionError and TimeoutError are OSErrors
        raise NetdevUnavailable(
            f"no vhost-user backend answers at {path}: {message_of(error)}"
        ) from None
