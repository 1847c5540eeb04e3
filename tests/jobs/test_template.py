"""The template of a repository that tests a switch, and the page that explains it."""

import re
import shutil
from pathlib import Path

import pytest

TOP = Path(__file__).resolve().parents[2]
TEMPLATE = TOP / "docs/templates/ovs-ci"
WORKFLOW = TEMPLATE / ".github/workflows/test.yml"
PAGE = (TOP / "docs/ovs-ci.md").read_text()


@pytest.mark.needs("ovs")
def test_the_tests_of_the_template_pass(pytester: pytest.Pytester, qemu_command: str) -> None:
    """By the command of its workflow, in a copy of it."""
    shutil.copytree(TEMPLATE, pytester.path, dirs_exist_ok=True)
    (command,) = re.findall(r"- run: pytest (.*)", WORKFLOW.read_text())
    pytester.runpytest_subprocess("-W", "error", *command.split()).assert_outcomes(passed=3)
    assert not (pytester.path / "captures").exists()


@pytest.mark.needs("ovs")
def test_the_test_of_the_page_passes(pytester: pytest.Pytester, qemu_command: str) -> None:
    (test,) = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    assert len(test.splitlines()) < 10
    pytester.makepyfile(test)
    pytester.runpytest_subprocess("-W", "error").assert_outcomes(passed=1)


def test_the_page_shows_the_workflow_of_the_template() -> None:
    assert f"```yaml\n{WORKFLOW.read_text()}```" in PAGE


def test_both_install_the_same_packages() -> None:
    packages = {"openvswitch-switch-dpdk", "'librte-mempool-ring*'", "qemu-system-x86"}
    for text in (PAGE.partition("## 2.")[0], WORKFLOW.read_text()):
        (line,) = re.findall(r"apt-get install (.*)", text)
        assert packages <= set(line.split())
