"""What the project promises about itself, checked where no linter can."""

import ast
import re
from pathlib import Path

import pytest

from support.waiting import PROMPT
from virtnic.qemu.quirks import QUIRKS, Quirk

TOP = Path(__file__).resolve().parents[2]
CORE = TOP / "rust/core/src"
PYTHON = TOP / "python/virtnic"
TESTS = TOP / "tests"

# What a module of the core may use besides `error` and `process`. Nothing points up the picture in
# CONTRIBUTING.md; `notify` and `qtest` are level: a doorbell is a QTest write, and an
# interrupt that QTest reports is an eventfd.
CORE_MAY_USE: dict[str, set[str]] = {
    "process": {"notify"},
    "memory": set(),
    "notify": {"qtest"},
    "qtest": {"notify"},
    "ivshmem": {"memory", "notify"},
    "vhost_user": {"memory", "notify", "qtest", "virtio"},
    "virtio": {"memory", "notify", "qtest"},
    "net": {"memory", "notify", "qtest", "virtio"},
    "stack": {"net"},
    "engine": {"memory", "notify", "net", "virtio"},
}
# What a package of the Python side must not use: the parts know nothing of the whole.
PYTHON_MUST_NOT_USE: dict[str, set[str]] = {
    "pci": {"cli", "hotplug", "port", "qemu"},
    "qemu": {"cli", "hotplug", "pci", "port"},
}


def code_of(module: Path) -> str:
    """Return a Rust file without comments and without its test module."""
    text = re.split(r"#\[cfg\((?:all\()?test\b", module.read_text())[0]
    return re.sub(r"//[^\n]*", "", text)


@pytest.mark.parametrize("module", sorted(CORE_MAY_USE))
def test_no_module_of_the_core_points_up(module: str) -> None:
    names = "|".join(CORE_MAY_USE)
    path = rf"\bcrate::(?:({names})\b|\{{([^;]*)\}};)"
    for file in sorted((CORE / module).glob("**/*.rs")):
        if "test" in file.stem or "testing" in file.parts:
            continue
        used = set()
        for one, several in re.findall(path, code_of(file)):
            used |= {one} if one else set(re.findall(rf"\b({names})\b", several))
        assert used - {module, "process"} <= CORE_MAY_USE[module], file.relative_to(TOP)


def test_the_core_has_no_unknown_module() -> None:
    assert {folder.name for folder in CORE.iterdir() if folder.is_dir()} <= set(CORE_MAY_USE)


def test_the_threads_of_the_core_leave_signals_to_the_programs() -> None:
    """They are all started by one function, which sees to that."""
    starts = re.compile(r"thread::(Builder|spawn)\b")
    found = {
        str(file.relative_to(CORE))
        for file in CORE.glob("**/*.rs")
        if starts.search(re.sub(r"\bloom::thread", "", code_of(file)))
        and not re.search("test|loom", str(file.relative_to(CORE)))
    }
    assert found == {"process.rs"}


def test_the_core_knows_no_python() -> None:
    assert "pyo3" not in (TOP / "rust/core/Cargo.toml").read_text()


def imported(tree: ast.AST) -> set[str]:
    """Return the parts of virtnic that a module imports."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        else:
            continue
        found |= {name.split(".")[1] for name in names if name.startswith("virtnic.")}
    return found


@pytest.mark.parametrize("package", sorted(PYTHON_MUST_NOT_USE))
def test_no_package_points_up(package: str) -> None:
    files = sorted((PYTHON / package).glob("**/*.py"))
    assert files
    for file in files:
        used = imported(ast.parse(file.read_text()))
        assert not used & PYTHON_MUST_NOT_USE[package], file.relative_to(TOP)


@pytest.mark.parametrize("quirk", QUIRKS, ids=lambda quirk: quirk.name)
def test_every_quirk_has_the_test_that_it_names(quirk: Quirk) -> None:
    file, _, name = quirk.test.partition("::")
    assert re.search(rf"^def {name}\(", (TOP / file).read_text(), re.MULTILINE), quirk.test


def test_the_workflows_pin_their_actions() -> None:
    workflows = sorted((TOP / ".github/workflows").glob("*.yml"))
    assert workflows
    for workflow in workflows:
        for line in re.findall(r"uses: (.*)", workflow.read_text()):
            assert re.fullmatch(r"\S+@[0-9a-f]{40} # \S.*", line), f"{workflow.name}: {line}"


def parents_of(tree: ast.AST) -> dict[ast.AST, ast.AST]:
    """Return what each node of a tree is in."""
    return {child: node for node in ast.walk(tree) for child in ast.iter_child_nodes(node)}


def sleeps_once(node: ast.AST, parents: dict[ast.AST, ast.AST]) -> bool:
    """Whether it is a `time.sleep`, and not that of a loop that asks for something."""
    if not isinstance(node, ast.Call) or ast.unparse(node.func) != "time.sleep":
        return False
    above: ast.AST = node
    while above in parents:
        above = parents[above]
        if isinstance(above, ast.While):
            return False
        if isinstance(above, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            break
    return True


def is_in_a_hurry(node: ast.AST) -> bool:
    """Whether it wants something to have taken less than so many seconds, and those are few."""
    if not isinstance(node, ast.Compare):
        return False
    compared = zip([node.left, *node.comparators], node.ops, node.comparators, strict=False)
    return any(
        isinstance(operator, ast.Lt | ast.LtE)
        and isinstance(bound, ast.Constant)
        and isinstance(bound.value, int | float)
        and bound.value < PROMPT
        and re.match(r"time\.(monotonic|perf_counter)\(\) - ", ast.unparse(taken))
        for taken, operator, bound in compared
    )


def test_no_test_relies_on_others_having_run_by_then() -> None:
    """`eventually` of `waiting.py` waits for them; `pause` says that it waits for nobody."""
    found = []
    for file in sorted(TESTS.glob("**/test_*.py")):
        tree = ast.parse(file.read_text())
        parents = parents_of(tree)
        found += [
            f"{file.relative_to(TOP)}:{getattr(node, 'lineno', 0)}: {ast.unparse(node)}"
            for node in ast.walk(tree)
            if sleeps_once(node, parents) or is_in_a_hurry(node)
        ]
    assert not found


@pytest.mark.parametrize(
    ("code", "lucky"),
    [
        ("time.sleep(0.1)", True),
        ("while not done:\n    time.sleep(0.1)", False),
        ("def wait():\n    while work():\n        def later(): time.sleep(1)", True),
        ("assert time.monotonic() - began < 2", True),
        ("assert 0.2 <= time.monotonic() - began < 2", True),
        ("assert 0.2 <= time.monotonic() - began", False),
        ("assert time.monotonic() - began < PROMPT", False),
        ("assert time.monotonic() < deadline", False),
    ],
)
def test_what_relies_on_luck(code: str, lucky: bool) -> None:
    tree = ast.parse(code)
    parents = parents_of(tree)
    nodes = list(ast.walk(tree))
    assert any(sleeps_once(node, parents) or is_in_a_hurry(node) for node in nodes) is lucky
