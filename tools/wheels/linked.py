"""The software bill of materials of a wheel, with only the crates that are linked into it.

The one from maturin also lists crates that only the build used (procedural macros and their
dependencies), and contains the directory of our own crates on the build machine.
"""

import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

OWN = "virtnic-python"


def crates(target: str) -> set[tuple[str, str]]:
    """Return name and version of each crate that is linked for a target."""
    argv = [
        "cargo", "tree", "--package", OWN, "--edges", "normal,no-proc-macro", "--target", target,
        "--prefix", "none", "--format", "{p}", "--locked",
    ]  # fmt: skip
    output = subprocess.run(argv, check=True, capture_output=True, text=True).stdout
    words = [line.split() for line in output.splitlines() if line]
    return {(name, version.removeprefix("v")) for name, version, *_ in words}


def only_linked(bill: dict[str, Any], wanted: set[tuple[str, str]]) -> dict[str, Any]:
    """Return the bill without crates that are not linked and without paths of this machine."""
    kept = [each for each in bill["components"] if (each["name"], each["version"]) in wanted]
    refs = {each["bom-ref"] for each in kept} | {bill["metadata"]["component"]["bom-ref"]}
    edges = [
        {**edge, "dependsOn": [ref for ref in edge.get("dependsOn", []) if ref in refs]}
        for edge in bill.get("dependencies", [])
        if edge["ref"] in refs
    ]
    made = {**bill, "components": kept, "dependencies": edges}
    made.pop("serialNumber", None)  # keep the bill reproducible
    made["metadata"] = {k: v for k, v in bill["metadata"].items() if k != "timestamp"}
    written = json.dumps(made)
    for ref in refs:
        if ref.startswith("path+file://"):
            written = written.replace(ref, "pkg:cargo/" + ref.rpartition("/")[2].replace("#", "/"))
    result: dict[str, Any] = json.loads(written, object_hook=_without_paths)
    return result


def _without_paths(fields: dict[str, Any]) -> dict[str, Any]:
    """Remove the directory from the package URLs of our own crates."""
    url = fields.get("purl")
    if isinstance(url, str):
        fields["purl"] = url.partition("?download_url=file")[0]
    return fields


def rewrite_sbom(wheel: Path, target: str) -> None:
    """Replace maturin's bill in a wheel by one with only the linked crates."""
    with tempfile.TemporaryDirectory(dir=wheel.parent) as place:
        _wheel("unpack", "--dest", place, str(wheel))
        (root,) = Path(place).iterdir()
        (file,) = root.glob("*.dist-info/sboms/*.cyclonedx.json")
        bill = only_linked(json.loads(file.read_text()), crates(target))
        file.write_text(json.dumps(bill, indent=1) + "\n")
        packed = Path(place) / "packed"
        packed.mkdir()
        _wheel("pack", "--dest-dir", str(packed), str(root))
        (made,) = packed.glob("*.whl")
        shutil.move(made, wheel)


def _wheel(*arguments: str) -> None:
    argv = [sys.executable, "-m", "wheel", *arguments]
    subprocess.run(argv, check=True, capture_output=True, text=True)
