"""`clauses` and `verify`: the checks as tests of one's own suite."""

from __future__ import annotations

import unittest
from typing import TYPE_CHECKING

from virtnic.arguments import suggest_options
from virtnic.check.run import CLAUSES, run

if TYPE_CHECKING:
    import os
    from collections.abc import Sequence

    from virtnic.check.clause import Clause, RingFormat

__all__ = ["clauses", "verify"]


@suggest_options
def clauses(
    *names: str, rings: Sequence[RingFormat] = ("split", "packed"), hostile: bool = False
) -> list[Clause]:
    """Return the clauses of groups and ids, for ``pytest.mark.parametrize``.

    Without names, all; those of the group ``hostile`` only if it is named or ``hostile`` is true.
    ``rings`` are the formats of rings. Each clause is a test id: ``test_backend[RING-03]``.

    Raises ValueError for a name that is neither a group nor an id.
    """
    known = {name.lower() for clause in CLAUSES for name in (clause.id, clause.group)}
    wanted = {name.lower() for name in names}
    if unknown := sorted(wanted - known):
        groups = ", ".join(dict.fromkeys(clause.group for clause in CLAUSES))
        raise ValueError(f"there is no clause or group {unknown[0]!r}; the groups are {groups}")
    return [
        clause
        for clause in CLAUSES
        if (clause.ring is None or clause.ring in rings)
        and (
            not wanted.isdisjoint({clause.id.lower(), clause.group})
            if wanted
            else hostile or clause.group != "hostile"
        )
    ]


@suggest_options
def verify(
    clause: Clause,
    path: str | os.PathLike[str],
    *,
    echo: bool = False,
    pair: str | os.PathLike[str] | None = None,
    timeout: float = 3.0,
) -> str:
    """Check one clause in a test; return what was seen. The options are those of :func:`run`.

    Raises AssertionError if it is wrong, with the source of the rule, ``unittest.SkipTest``, which
    pytest takes for a skip, if it is not offered or not applicable, and NetdevUnavailable if no
    backend answers.
    """
    (result,) = run(path, [clause], echo=echo, pair=pair, timeout=timeout)
    if result.verdict in ("not offered", "not applicable"):
        raise unittest.SkipTest(f"{clause.id} is {result.verdict}: {result.seen}")
    if result.verdict != "ok":
        raise AssertionError(
            f"{clause.id}, {clause.title}: {result.seen}. {clause.source}: {clause.right}"
        )
    return result.seen
