"""`run`: checks clauses one after another, each on new connections."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from virtnic.arguments import suggest_options
from virtnic.check import features, hostile, life, messages, net, notify, rings, session
from virtnic.check.clause import Bench, Clause, NotApplicable, NotOffered, Wrong
from virtnic.errors import DeviceError, NetdevUnavailable, message_of

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Iterator, Sequence

__all__ = ["CLAUSES", "Result", "Verdict", "run"]

#: The outcome of a clause.
Verdict = Literal["ok", "wrong", "not offered", "not applicable", "not tried"]

#: All clauses, in the order in which they run.
CLAUSES: tuple[Clause, ...] = (
    *features.CLAUSES,
    *messages.CLAUSES,
    *session.CLAUSES,
    *rings.CLAUSES,
    *net.CLAUSES,
    *notify.CLAUSES,
    *life.CLAUSES,
    *hostile.CLAUSES,
)


@dataclass(frozen=True, slots=True)
class Result:
    """The outcome of one clause.

    Attributes
    ----------
    clause
        The clause.
    verdict
        ``ok``, ``wrong``, ``not offered``, ``not applicable`` or ``not tried``.
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
    clauses: Sequence[Clause] | None = None,
    *,
    echo: bool = False,
    pair: str | os.PathLike[str] | None = None,
    hostile: bool = False,
    timeout: float = 3.0,
    restart: Callable[[], object] | None = None,
) -> Iterator[Result]:
    """Check clauses on the backend that listens at ``path``; yield each result as it is known.

    A clause is "wrong" if the backend closes the connection or does not answer within ``timeout``
    seconds, unless the clause allows it. Each clause uses new connections.

    ``clauses`` are by default all, those of the group ``hostile`` only with ``hostile``. ``echo``:
    the backend sends each frame back, with or without its addresses swapped. ``pair`` is a second
    socket of the backend, where the frames come out. Without either, clauses that need received
    frames are "not applicable".

    ``restart`` is called once the backend no longer answers, and starts it again. Without it, or
    if that does not help, the remaining clauses are "not tried".

    Raises NetdevUnavailable if no backend answers at the beginning.
    """
    if clauses is None:
        clauses = [clause for clause in CLAUSES if hostile or clause.group != "hostile"]
    for each in (path, pair):
        if each is not None:
            _reach(each, timeout)
    gone = ""
    for clause in clauses:
        began = time.monotonic()
        if gone:
            yield Result(clause, "not tried", gone, 0.0)
            continue
        verdict, seen = _try(clause, Bench(path, echo=echo, pair=pair, timeout=timeout))
        try:
            _reach(path, timeout)
        except NetdevUnavailable as error:
            verdict, seen = "wrong", f"{seen}; then the backend no longer answered"
            gone = f"the backend has not answered since {clause.id}: {message_of(error)}"
        yield Result(clause, verdict, seen, time.monotonic() - began)
        if gone and restart is not None:
            restart()
            if _came_back(path, timeout):
                gone = ""


def _try(clause: Clause, bench: Bench) -> tuple[Verdict, str]:
    try:
        with bench:
            return "ok", clause.check(bench)
    except Wrong as wrong:
        return "wrong", str(wrong)
    except NotOffered as missing:
        return "not offered", str(missing)
    except NotApplicable as why:
        return "not applicable", str(why)
    except ConnectionError as error:
        return "wrong", f"the backend closed the connection: {message_of(error)}"
    except (OSError, DeviceError) as error:  # TimeoutError is an OSError
        return "wrong", message_of(error)


def _came_back(path: str | os.PathLike[str], timeout: float) -> bool:
    """Return whether a backend that was started again answers within some time."""
    deadline = time.monotonic() + max(10.0, timeout)
    while time.monotonic() < deadline:
        try:
            _reach(path, timeout)
        except NetdevUnavailable:
            time.sleep(0.05)
        else:
            return True
    return False


def _reach(path: str | os.PathLike[str], timeout: float) -> None:
    """Raise NetdevUnavailable unless a backend answers at the path."""
    try:
        with Bench(path, timeout=max(timeout, 5.0)) as bench:
            bench.connect().get_features()
    except (OSError, DeviceError) as error:  # ConnectionError and TimeoutError are OSErrors
        raise NetdevUnavailable(
            f"no vhost-user backend answers at {path}: {message_of(error)}"
        ) from None
