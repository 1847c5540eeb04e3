"""``virtnic check``: whether a vhost-user backend keeps the rules."""

from __future__ import annotations

from typing import TYPE_CHECKING

from virtnic.cli import options
from virtnic.cli.status import Status

if TYPE_CHECKING:
    import argparse
    from collections.abc import Sequence

    from virtnic.check import Clause
    from virtnic.cli.output import Output

__all__ = ["add", "run"]

EXAMPLES = """\
examples:
  virtnic check vhost-user,path=/run/vhu0
  virtnic check vhost-user,path=/run/vhu0 --only features,RING-03
  virtnic check vhost-user,path=/run/vhu0 --junit report.xml
  virtnic check --explain RING-03

exit status:
  0    every clause that was tried is kept
  1    one is not
  2    the command line is wrong
  3    no backend answers
"""


def add(parser: argparse.ArgumentParser) -> None:
    """Describe the command."""
    parser.description = (
        "Try the rules of vhost-user and VIRTIO with a backend, one after another, by a front-end\n"
        "of our own: neither QEMU nor root. It must serve nobody else, and take what it is sent."
    )
    parser.epilog = EXAMPLES
    parser.set_defaults(run=run, check=_wrong, imports=("virtnic.check", "virtnic.cli.checked"))
    group = parser.add_argument_group("what is tried")
    group.add_argument(
        "netdev", nargs="?", metavar="NETDEV", help="the backend: vhost-user,path=SOCKET"
    )
    group.add_argument(
        "--only",
        metavar="WHAT",
        help="groups (features, messages, rings) and ids, with commas between them",
    )
    group.add_argument(
        "--timeout",
        type=options.seconds,
        default=3.0,
        metavar="SECONDS",
        help="how long an answer may take (default: 3)",
    )
    group.add_argument("--junit", metavar="FILE", help="write a report as JUnit's XML, too")
    group.add_argument("--explain", metavar="ID", help="say what a clause is, and try nothing")
    options.add_common(parser)


def _clauses(only: str | None) -> Sequence[Clause] | str:
    """Return the clauses that are meant, or what is wrong with that."""
    from virtnic.check import CLAUSES

    if only is None:
        return CLAUSES
    names = [name.strip() for name in only.split(",")]
    known = {clause.id for clause in CLAUSES} | {clause.group for clause in CLAUSES}
    if unknown := [name for name in names if name not in known]:
        return f"there is no clause or group {unknown[0]!r}; --explain ID says what one is"
    return [clause for clause in CLAUSES if clause.id in names or clause.group in names]


def _path(netdev: str) -> str | None:
    """Return the backend's socket; None where it is no vhost-user netdev that listens."""
    from virtnic.qemu import parse

    try:
        socket = parse(netdev).socket
    except ValueError:
        return None
    return None if socket is None or socket.server else socket.path


def _wrong(arguments: argparse.Namespace) -> str | None:
    """Say what is wrong with the options; None where nothing is."""
    if isinstance(found := _clauses(arguments.explain or arguments.only), str):
        return found
    if arguments.explain is not None:
        return None
    if arguments.netdev is None or _path(arguments.netdev) is None:
        return "the backend is given as vhost-user,path=SOCKET, at which it listens"
    return None


def run(arguments: argparse.Namespace, output: Output) -> int:
    """Try the clauses, and print what became of each."""
    from virtnic.check import run as try_all
    from virtnic.cli.checked import as_json, explain, junit, line

    clauses = _clauses(arguments.explain or arguments.only)
    assert not isinstance(clauses, str)
    if arguments.explain is not None:
        output.result({"clauses": [as_json(clause) for clause in clauses]})
        for text in explain(clauses):
            output.line(text)
        return Status.OK
    path = _path(arguments.netdev)
    assert path is not None
    results = []
    for result in try_all(path, clauses, timeout=arguments.timeout):
        results.append(result)
        for text in line(result):
            output.line(text)
    wrong = sum(result.verdict == "wrong" for result in results)
    if arguments.junit is not None:
        junit(arguments.junit, arguments.netdev, results)
    output.line(f"{len(results)} clauses, {wrong} wrong")
    output.result(
        {
            "netdev": arguments.netdev,
            "wrong": wrong,
            "rows": [
                {
                    **as_json(result.clause),
                    "verdict": result.verdict,
                    "seen": result.seen,
                    "seconds": round(result.seconds, 4),
                }
                for result in results
            ],
        }
    )
    untried = any(result.verdict == "not tried" for result in results)
    return Status.FAILED if wrong or untried else Status.OK
