"""What the project promises about itself, checked where no linter can."""

import ast
import re
from pathlib import Path

import pytest

from virtnic.qemu.quirks import QUIRKS, Quirk

TOP = Path(__file__).resolve().parents[2]
CORE = TOP / "rust/core/src"
PYTHON = TOP / "python/virtnic"

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
