"""Checks whether a vhost-user backend follows the vhost-user protocol and VIRTIO 1.3.

>>> from virtnic.check import run
>>> for result in run("/run/vhu0"):
...     print(result.clause.id, result.verdict, result.seen)

Each rule is a :class:`Clause`: a permanent id, its source in the specification, what the test
does, what it expects, and the function that runs it. Neither QEMU nor root is needed. Use a
backend that serves nobody else: the clauses connect, disconnect and send test frames.
"""

from virtnic.check.clause import Bench, Clause, NotApplicable, NotOffered, Wrong
from virtnic.check.run import CLAUSES, Result, Verdict, run
from virtnic.check.suite import clauses, verify

__all__ = [
    "CLAUSES",
    "Bench",
    "Clause",
    "NotApplicable",
    "NotOffered",
    "Result",
    "Verdict",
    "Wrong",
    "clauses",
    "run",
    "verify",
]
