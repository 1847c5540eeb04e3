"""`virtnic check`: a correct backend passes each clause, and a backend that breaks it fails."""

import contextlib
import json
import re
import xml.etree.ElementTree as ET
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import virtnic
from peers.checked_backend import CheckedBackend
from peers.testpmd import Testpmd, drained
from virtnic.check import CLAUSES, Clause, clauses, run
from virtnic.cli import main

ALL = pytest.mark.parametrize("clause", CLAUSES)
MODES = pytest.mark.parametrize("mode", ["sink", "echo", "pair"])
#: What testpmd 22.11 gets wrong, each looked at by hand: see docs/check.md.
KNOWN = {"FEAT-03", "RING-15", "RING-15P", "RING-16P", "RING-19P", "NET-16", "NET-17", "NET-18"}
KNOWN.add("LIFE-04")


def path_of(scratch: Path) -> Path:
    return scratch / "checked"


@contextlib.contextmanager
def backend_in(scratch: Path, mode: str, broken: str = "") -> Iterator[dict[str, Any]]:
    """Start a backend; yield the arguments with which `run` checks it."""
    paths = [scratch / f"checked{number}" for number in range(1 + (mode == "pair"))]
    with CheckedBackend(*paths, broken=broken, echo=mode == "echo"):
        yield {
            "path": paths[0],
            "echo": mode == "echo",
            "pair": paths[1] if mode == "pair" else None,
        }


@MODES
def test_a_backend_that_is_right(scratch: Path, mode: str) -> None:
    """Every clause is ok; without returned frames, those that need them are not applicable."""
    with backend_in(scratch, mode) as options:
        results = list(run(**options, hostile=True, timeout=20.0))
    assert [result.clause for result in results] == list(CLAUSES)
    for result in results:
        needs = {None: True, "return": mode != "sink", "pair": mode == "pair"}[result.clause.needs]
        assert result.verdict == ("ok" if needs else "not applicable"), result


@ALL
def test_a_backend_that_breaks_it(scratch: Path, clause: Clause) -> None:
    """The clause fails, and says what it saw."""
    mode = "pair" if clause.needs == "pair" else "echo"
    with backend_in(scratch, mode, clause.id) as options:
        (result,) = run(clauses=[clause], **options, timeout=1.0)
    assert result.verdict == "wrong", result
    assert result.seen


def test_ids_stay_and_are_complete() -> None:
    assert len({clause.id for clause in CLAUSES}) == len(CLAUSES)
    for clause in CLAUSES:
        prefix = {
            "features": "FEAT",
            "messages": "MSG",
            "rings": "RING",
            "net": "NET",
            "notify": "NTF",
            "life": "LIFE",
            "hostile": "HOST",
        }[clause.group]
        assert re.fullmatch(prefix + r"-\d\dP?", clause.id)
        assert clause.id.endswith("P") == (clause.ring == "packed")
        assert all((clause.title, clause.source, clause.does, clause.right))


def test_a_backend_that_goes(scratch: Path) -> None:
    """The remaining clauses are not tried, and name the clause after which it stopped."""
    with CheckedBackend(path_of(scratch), broken="MSG-06") as backend:
        results = list(run(backend.path, timeout=1.0))
    verdicts = {result.clause.id: result.verdict for result in results}
    assert (verdicts["MSG-06"], verdicts["MSG-07"]) == ("wrong", "not tried")
    assert "since MSG-06" in results[-1].seen
    with pytest.raises(virtnic.NetdevUnavailable, match="no vhost-user backend answers"):
        list(run(path_of(scratch)))


def test_a_backend_that_is_started_again(scratch: Path) -> None:
    """The clause that ended it is wrong, and the next one starts anew."""
    with contextlib.ExitStack() as stack:
        first = stack.enter_context(CheckedBackend(path_of(scratch), broken="MSG-06"))

        def restart() -> None:
            first.close()
            stack.enter_context(CheckedBackend(path_of(scratch)))

        chosen = [clause for clause in CLAUSES if clause.group == "messages"]
        results = list(run(first.path, chosen, restart=restart))
    wrong = [result for result in results if result.verdict in ("wrong", "not tried")]
    assert [result.clause.id for result in wrong] == ["MSG-06"]
    assert "the backend no longer answered" in wrong[0].seen


@pytest.mark.needs("testpmd")
@pytest.mark.timeout(600)  # on a loaded machine, testpmd keeps its locks for seconds
@pytest.mark.parametrize(
    ("mode", "group"),
    [
        *(
            ("macswap", group)
            for group in ("features", "messages", "rings", "net", "notify", "life")
        ),
        # The rings are served by the same code.
        *(("io", group) for group in ("net", "notify", "life")),
    ],
)
def test_testpmd(testpmd: Callable[..., Testpmd], mode: str, group: str) -> None:
    """As --echo and as --pair; KNOWN are faults of its own."""
    chosen = [clause for clause in clauses(group) if mode == "macswap" or clause.needs]
    wrong = {}
    with drained(testpmd(mode=mode, ports=2 if mode == "io" else 1)) as pmd:
        pair = pmd.sockets[1] if mode == "io" else None
        for result in run(pmd.sockets[0], chosen, echo=pair is None, pair=pair, timeout=60.0):
            if result.verdict not in ("ok", "not offered"):
                wrong[result.clause.id] = result.verdict, result.seen
    assert wrong.keys() <= KNOWN, wrong


def test_as_a_suite(scratch: Path, pytester: pytest.Pytester) -> None:
    """Each clause is a test id; wrong ones fail, those that do not apply are skipped."""
    pytester.makepyfile(f"""
        import pytest
        from virtnic.check import clauses, verify

        CHOSEN = clauses("RING-01", "RING-02", "RING-13", rings=["split"])

        @pytest.mark.parametrize("clause", CHOSEN)
        def test_backend(clause):
            verify(clause, {str(path_of(scratch))!r})
    """)
    with CheckedBackend(path_of(scratch), broken="RING-02"):
        result = pytester.runpytest_subprocess("-v", "-p", "no:cacheprovider")
    result.assert_outcomes(passed=1, failed=1, skipped=1)
    result.stdout.fnmatch_lines(["*test_backend[[]RING-01[]] PASSED*"])
    result.stdout.fnmatch_lines(["*RING-02, *: the lengths of read-only buffers are*"])
    with pytest.raises(ValueError, match="no clause or group 'rong'"):
        clauses("rong")
    assert not any(clause.group == "hostile" for clause in clauses())
    assert clauses("hostile")


def test_the_command(scratch: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    netdev, report = f"vhost-user,path={path_of(scratch)}", tmp_path / "report.xml"
    assert main(["check", netdev]) == 3
    assert "no vhost-user backend answers" in capsys.readouterr().err
    with CheckedBackend(path_of(scratch), broken="RING-02"):
        assert (
            main(
                [
                    "check",
                    netdev,
                    "--only",
                    "RING-01,RING-02,RING-03",
                    "--rings",
                    "split",
                    "--junit",
                    str(report),
                ]
            )
            == 1
        )
        text = capsys.readouterr().out
        assert "RING-02" in text
        assert "VIRTIO 1.3, 2.7.8" in text
        assert "FEAT-01" not in text
        assert main(["check", netdev, "--only", "feat-02,MSG-03", "--json"]) == 0
        found = json.loads(capsys.readouterr().out)
        page = tmp_path / "report.html"
        assert main(["check", netdev, "--only", "RING-02", "--html", str(page)]) == 1
        assert main(["check", netdev, "--only", "HOST-03"]) == 2
        assert "--hostile" in capsys.readouterr().err
        assert main(["check", netdev, "--only", "HOST-03", "--hostile"]) == 0
    assert [row["id"] for row in found["rows"]] == ["FEAT-02", "MSG-03"]
    assert found["wrong"] == 0
    suite = ET.fromstring(report.read_text())
    assert (suite.get("tests"), suite.get("failures")) == ("3", "1")
    written = page.read_text()
    assert 'class="wrong"' in written
    assert "VIRTIO 1.3, 2.7.8" in written
    assert not re.search(r"(src|href)=|url\(|@import", written)
    assert main(["check", "--explain", "RING-02"]) == 0
    assert "expects" in capsys.readouterr().out
    assert main(["check", "--explain", "RING-99"]) == 2
    assert main(["check"]) == 2
    assert main(["check", netdev, "--rings", "round"]) == 2
    assert main(["check", netdev, "--echo", "--sink"]) == 2
    assert main(["check", netdev, "--only", "nonsense"]) == 2
    assert main(["check", "tap,ifname=tap0"]) == 2
    capsys.readouterr()
