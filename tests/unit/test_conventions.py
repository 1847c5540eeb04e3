"""Project conventions that no linter checks."""

import ast
import re
import tomllib
from collections.abc import Iterable
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
    "vhost_kernel": {"memory", "virtio"},
    "virtio": {"memory", "notify", "qtest"},
    "net": {"memory", "notify", "qtest", "virtio"},
    "stack": {"net"},
    "capture": {"engine", "net"},
    "engine": {"memory", "notify", "net", "virtio"},
}
# The rooms of the Python side, from the top; each may use those below it. A file that is no folder
# is a room as well. `__init__` is the package itself: the public names.
ROOMS: list[set[str]] = [
    {"cli"},
    {"check", "doctor", "testing"},
    {"integrations"},
    {"capture", "measure"},
    {"aio"},
    {"net"},
    {"__init__"},
    {"loops"},
    {"nic"},
    {"qemu"},
    {"pci"},
    {"protocols", "vhost_user"},
    {"memory"},
    {"async_library", "limits", "streams", "teardown", "units"},
    {"background", "deadline"},
    {"arguments"},
    {"errors"},
    {"_native"},
]
#: Modules outside the rooms: those that run the command line.
APART = {"__main__"}


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


def modules() -> dict[str, Path]:
    """Return all modules of the package, by their names."""
    found = {}
    for file in sorted(PYTHON.glob("**/*.py")):
        parts = file.relative_to(PYTHON.parent).with_suffix("").parts
        found[".".join(parts).removesuffix(".__init__")] = file
    return found


def imported(file: Path, known: set[str]) -> set[str]:
    """Return the modules that a file imports, anywhere in it, also for its types only."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            for alias in node.names:
                name = f"{node.module}.{alias.name}"
                found.add(name if name in known else node.module)
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
    return found & known


def room_of(module: str) -> str:
    """Return the folder, or the file, right below the package."""
    return ([*module.split("."), "__init__"])[1]


def test_no_room_of_python_points_up() -> None:
    """Nor sideways."""
    files = modules()
    known = {*files, "virtnic._native"}
    heights = {room: height for height, rooms in enumerate(ROOMS) for room in rooms}
    wrong = []
    for module, file in files.items():
        room = room_of(module)
        if room in APART:
            continue
        for used in imported(file, known):
            other = room_of(used)
            if other != room and heights[other] <= heights[room]:
                wrong.append(f"{module} imports {used}")
    # The public names are imported for those who name them, when they do.
    assert (
        sorted(
            set(wrong)
            - {f"virtnic imports virtnic.{name}" for name in ("aio", "capture", "measure", "net")}
        )
        == []
    )


def circles(uses: dict[str, set[str]]) -> list[list[str]]:
    """Return the modules that are part of a cycle."""
    left = {module: used - {module} for module, used in uses.items()}
    while free := [module for module, used in left.items() if not used & left.keys()]:
        for module in free:
            del left[module]
    while unused := left.keys() - set().union(*left.values()):
        for module in unused:
            del left[module]
    return [sorted(left)] if left else []


def test_no_modules_of_python_import_each_other() -> None:
    """Those under TYPE_CHECKING, and in functions, included."""
    files = modules()
    uses = {module: imported(file, set(files)) for module, file in files.items()}
    uses["virtnic"] = set()  # what it names is imported later: see the test above
    assert circles(uses) == []


def handed_on(files: Iterable[Path]) -> dict[str, str]:
    """Return the re-exports of each `mod.rs`: the item's path there, and its own path."""
    found = {}
    for file in files:
        if file.stem != "mod":
            continue
        here = name_in_core(file)
        for below, items in re.findall(r"\buse (\w+(?:::\w+)*)::(\w+|\{[^}]*\});", code_of(file)):
            for item, alias in re.findall(r"(\w+)(?: as (\w+))?", items):
                found[f"{here}::{alias or item}"] = f"{here}::{below}::{item}"
    return found


def used_in_core(file: Path, names: set[str], faces: dict[str, str]) -> set[str]:
    """Return the files of the core whose items a file names by `crate` or `super`."""
    name = name_in_core(file)
    above = name if file.stem == "mod" else name.rpartition("::")[0]
    found = set()
    for path in re.findall(r"\b(?:crate|super)(?:::\w+)*(?:::\{[^;]*?\})?", code_of(file)):
        head, _, several = path.partition("::{")
        start, _, rest = head.partition("::")
        whole = rest if start == "crate" else f"{above}::{rest}".rstrip(":")
        items = re.findall(r"\w+(?:::\w+)*", several.rstrip("}"))
        for item in [f"{whole}::{item}" for item in items] or [whole]:
            at = item
            while at in faces:
                at = faces[at]
            while at and at not in names:
                at = at.rpartition("::")[0]
            found |= {at} if at else set()
    return found - {name}


def name_in_core(file: Path) -> str:
    """Return the path of a module, without `crate`."""
    return "::".join(file.relative_to(CORE).with_suffix("").parts).removesuffix("::mod")


@pytest.mark.parametrize("module", sorted(CORE_MAY_USE))
def test_no_files_of_the_core_use_each_other(module: str) -> None:
    """A re-export of a `mod.rs` counts as the file that defines it."""
    files = [file for file in (CORE / module).glob("**/*.rs") if not is_test(file)]
    names, faces = {name_in_core(file) for file in files}, handed_on(files)
    uses = {name_in_core(file): used_in_core(file, names, faces) for file in files}
    assert circles(uses) == []


def is_test(file: Path) -> bool:
    """Whether a file of the core is compiled for tests only."""
    return "test" in file.stem or "loom" in file.stem or "testing" in file.parts


@pytest.mark.parametrize("quirk", QUIRKS, ids=lambda quirk: quirk.name)
def test_every_quirk_has_the_test_that_it_names(quirk: Quirk) -> None:
    file, _, name = quirk.test.partition("::")
    assert re.search(rf"^def {name}\(", (TOP / file).read_text(), re.MULTILINE), quirk.test


def test_the_workflows_pin_their_actions() -> None:
    workflows = sorted(TOP.glob(".github/workflows/*.yml"))
    workflows += sorted(TOP.glob("docs/templates/*/.github/workflows/*.yml"))
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
    """`eventually` of `waiting.py` waits for a condition; `pause` waits for none."""
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


def test_every_extra_is_used() -> None:
    """An extra that nothing imports has no effect."""
    extras = tomllib.loads((TOP / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    imports = set()
    for file in PYTHON.glob("**/*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Import):
                imports |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module:
                imports.add(node.module.partition(".")[0])
    assert extras
    for extra, packages in extras.items():
        for package in packages:
            name = re.split(r"[<>=~!;\[ ]", package)[0].replace("-", "_")
            assert name in imports, f"nothing imports {package} of the extra {extra}"
    advised = re.findall(
        r"virtnic\[(\w+)\]", " ".join(f.read_text() for f in PYTHON.glob("**/*.py"))
    )
    assert set(advised) <= set(extras)
