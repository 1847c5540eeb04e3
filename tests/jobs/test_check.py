"""`virtnic check`: a correct backend passes each clause, and a backend that breaks it fails."""

import json
import xml.etree.ElementTree as ET
from collections.abc import Callable
from pathlib import Path

import pytest

import virtnic
from peers.checked_backend import CheckedBackend
from peers.testpmd import Testpmd
from virtnic.check import CLAUSES, Clause, run
from virtnic.cli import main

ALL = pytest.mark.parametrize("clause", CLAUSES, ids=lambda clause: clause.id)


def path_of(scratch: Path) -> Path:
    return scratch / "checked"


def test_a_backend_that_is_right(scratch: Path) -> None:
    with CheckedBackend(path_of(scratch)) as backend:
        results = list(run(backend.path))
    assert [result.clause for result in results] == list(CLAUSES)
    wrong = [(result.clause.id, result.seen) for result in results if result.verdict != "ok"]
    assert wrong == []


@ALL
def test_a_backend_that_breaks_it(scratch: Path, clause: Clause) -> None:
    """The clause fails, and says what it saw."""
    with CheckedBackend(path_of(scratch), clause.id) as backend:
        (result,) = run(backend.path, [clause], timeout=1.0)
    assert result.verdict == "wrong", result
    assert result.seen


def test_ids_stay_and_are_complete() -> None:
    assert len({clause.id for clause in CLAUSES}) == len(CLAUSES)
    for clause in CLAUSES:
        prefix = {"features": "FEAT", "messages": "MSG", "rings": "RING"}[clause.group]
        assert clause.id.startswith(prefix + "-")
        assert all((clause.title, clause.source, clause.does, clause.right))


def test_a_backend_that_goes(scratch: Path) -> None:
    """The remaining clauses are not tried, and name the clause after which it stopped."""
    with CheckedBackend(path_of(scratch), "MSG-06") as backend:
        results = list(run(backend.path, timeout=1.0))
    verdicts = {result.clause.id: result.verdict for result in results}
    assert (verdicts["MSG-06"], verdicts["MSG-07"]) == ("wrong", "not tried")
    assert "since MSG-06" in results[-1].seen
    with pytest.raises(virtnic.NetdevUnavailable, match="no vhost-user backend answers"):
        list(run(path_of(scratch)))


@pytest.mark.needs("testpmd")
def test_testpmd(testpmd: Callable[..., Testpmd]) -> None:
    """FEAT-03 is a known fault: without ``tso=1`` it offers HOST_ECN alone."""
    results = list(run(testpmd().sockets[0]))
    wrong = {result.clause.id: result.seen for result in results if result.verdict != "ok"}
    assert wrong.keys() <= {"FEAT-03"}, wrong


def test_the_command(scratch: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    netdev, report = f"vhost-user,path={path_of(scratch)}", tmp_path / "report.xml"
    assert main(["check", netdev]) == 3
    assert "no vhost-user backend answers" in capsys.readouterr().err
    with CheckedBackend(path_of(scratch), "RING-02"):
        assert main(["check", netdev, "--only", "rings", "--junit", str(report)]) == 1
        text = capsys.readouterr().out
        assert "RING-02" in text
        assert "VIRTIO 1.3, 2.7.8" in text
        assert "FEAT-01" not in text
        assert main(["check", netdev, "--only", "feat-02,MSG-03", "--json"]) == 0
        found = json.loads(capsys.readouterr().out)
    assert [row["id"] for row in found["rows"]] == ["FEAT-02", "MSG-03"]
    assert found["wrong"] == 0
    suite = ET.fromstring(report.read_text())
    assert (suite.get("tests"), suite.get("failures")) == ("6", "1")
    assert main(["check", "--explain", "RING-02"]) == 0
    assert "expects" in capsys.readouterr().out
    assert main(["check", "--explain", "RING-99"]) == 2
    assert main(["check"]) == 2
    assert main(["check", netdev, "--only", "nonsense"]) == 2
    assert main(["check", "tap,ifname=tap0"]) == 2
    capsys.readouterr()
