"""``virtnic check``: checks whether a vhost-user backend follows the specifications."""

from __future__ import annotations

from functools import partial
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
  virtnic check vhost-user,path=/run/vhu0 --echo --rings packed
  virtnic check vhost-user,path=/run/vhu0 --pair /run/vhu1
  virtnic check vhost-user,path=/run/vhu0 --junit report.xml --html report.html
  virtnic check --explain RING-03

exit status:
  0    no clause failed
  1    a clause failed, or could not be tried because the backend stopped answering
  2    the command line is wrong
  3    no backend answers at the beginning
  130  interrupted by Ctrl-C
"""


def add(parser: argparse.ArgumentParser) -> None:
    """Describe the command."""
    parser.description = (
        "Check whether a vhost-user backend follows the vhost-user protocol and VIRTIO, clause by\n"
        "clause. Needs neither QEMU nor root. The backend must not serve another front-end, and\n"
        "must accept the test frames."
    )
    parser.epilog = EXAMPLES
    parser.set_defaults(run=run, check=_wrong, imports=("virtnic.check", "virtnic.cli.checked"))
    group = parser.add_argument_group("what is checked")
    group.add_argument(
        "netdev", nargs="?", metavar="NETDEV", help="the backend: vhost-user,path=SOCKET"
    )
    group.add_argument(
        "--only",
        metavar="WHAT",
        help="groups (features, messages, rings, …) and ids, separated by commas",
    )
    group.add_argument(
        "--rings",
        metavar="FORMATS",
        help="formats of rings: split, packed (default: both)",
    )
    group.add_argument(
        "--timeout",
        type=options.seconds,
        default=3.0,
        metavar="TIME",
        help="how long the backend may take for an answer (default: 3)",
    )
    group.add_argument(
        "--restart",
        metavar="COMMAND",
        help="a command line that starts the backend again, once it no longer answers",
    )
    group.add_argument("--junit", metavar="FILE", help="also write a JUnit XML report")
    group.add_argument("--html", metavar="FILE", help="also write an HTML report, in one file")
    group.add_argument(
        "--hostile",
        action="store_true",
        help="also check what a hostile driver could do: only for a backend of your own, which may "
        "crash",
    )
    group.add_argument("--explain", metavar="ID", help="print what a clause checks, and exit")
    frames = parser.add_argument_group(
        "what the backend does with frames"
    ).add_mutually_exclusive_group()
    frames.add_argument(
        "--sink", action="store_true", help="it takes them, and sends none (the default)"
    )
    frames.add_argument(
        "--echo", action="store_true", help="it sends them back, as testpmd does in mode macswap"
    )
    frames.add_argument(
        "--pair", metavar="PATH", help="it passes them on to its port with this socket"
    )
    options.add_common(parser)


def _clauses(
    only: str | None, rings: str | None = None, *, hostile: bool = True
) -> Sequence[Clause] | str:
    """Return the clauses that the options name, or an error message."""
    from virtnic.check import CLAUSES

    chosen: Sequence[Clause] = CLAUSES
    if only is not None:
        names = [name.strip().lower() for name in only.split(",")]
        known = {name.lower() for clause in CLAUSES for name in (clause.id, clause.group)}
        if unknown := [name for name in names if name not in known]:
            groups = ", ".join(dict.fromkeys(clause.group for clause in CLAUSES))
            return f"there is no clause or group {unknown[0]!r}; the groups are {groups}"
        chosen = [
            clause for clause in CLAUSES if not {clause.id.lower(), clause.group}.isdisjoint(names)
        ]
    if not hostile:
        if only is not None and any(clause.group == "hostile" for clause in chosen):
            return "hostile clauses may crash the backend: give --hostile too if it is your own"
        chosen = [clause for clause in chosen if clause.group != "hostile"]
    if rings is not None:
        formats = [name.strip() for name in rings.split(",")]
        if unknown := [name for name in formats if name not in ("split", "packed")]:
            return f"rings are split or packed, not {unknown[0]!r}"
        chosen = [clause for clause in chosen if clause.ring is None or clause.ring in formats]
    return chosen


def _chosen(arguments: argparse.Namespace) -> Sequence[Clause] | str:
    """Return the clauses to check or explain, or an error message."""
    if arguments.explain is not None:
        return _clauses(arguments.explain)
    return _clauses(arguments.only, arguments.rings, hostile=arguments.hostile)


def _path(netdev: str) -> str | None:
    """Return the backend's socket; None unless the netdev is a vhost-user client."""
    from virtnic.qemu import parse

    try:
        socket = parse(netdev).socket
    except ValueError:
        return None
    return None if socket is None or socket.server else socket.path


def _wrong(arguments: argparse.Namespace) -> str | None:
    """Return what is wrong with the options; None if nothing is."""
    if isinstance(found := _chosen(arguments), str):
        return found
    if arguments.explain is not None:
        return None
    if arguments.netdev is None or _path(arguments.netdev) is None:
        return "name the backend's socket: vhost-user,path=SOCKET"
    return None


def _restart(command: str) -> None:
    """Start the backend again, in a process group of its own that outlives this command."""
    import shlex
    import subprocess

    subprocess.Popen(
        shlex.split(command),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )


def run(arguments: argparse.Namespace, output: Output) -> int:
    """Check the clauses, and print the outcome of each."""
    from virtnic.check import run as try_all
    from virtnic.cli.checked import as_json, explain, html, junit, line

    clauses = _chosen(arguments)
    assert not isinstance(clauses, str)
    if arguments.explain is not None:
        output.result({"clauses": [as_json(clause) for clause in clauses]})
        for text in explain(clauses):
            output.line(text)
        return Status.OK
    path = _path(arguments.netdev)
    assert path is not None
    results = []
    restart = None if arguments.restart is None else partial(_restart, arguments.restart)
    options = {"echo": arguments.echo, "pair": arguments.pair, "restart": restart}
    for result in try_all(path, clauses, timeout=arguments.timeout, **options):
        results.append(result)
        for text in line(result):
            output.line(text)
    wrong = sum(result.verdict == "wrong" for result in results)
    if arguments.html is not None:
        html(arguments.html, arguments.netdev, results)
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
