"""Does a vhost-user backend keep the rules? One clause after another, by a front-end of our own.

>>> from virtnic.check import run
>>> for result in run("/run/vhu0"):
...     print(result.clause.id, result.verdict, result.seen)

A clause is data: an id that stays, where it is written, what is done, what is right, and a
function that does it. Needs neither QEMU nor root. The frames go nowhere and come from nowhere:
give it a socket on which nobody else is served.
"""

from virtnic.check.clause import Bench, Clause, NotOffered, Wrong
from virtnic.check.run import CLAUSES, Result, Verdict, run

__all__ = ["CLAUSES", "Bench", "Clause", "NotOffered", "Result", "Verdict", "Wrong", "run"]
