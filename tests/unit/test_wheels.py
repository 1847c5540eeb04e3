"""The bill of materials of a wheel."""

from wheels import build, linked

BILL = {
    "serialNumber": "urn:uuid:1",
    "metadata": {
        "timestamp": "2026-01-01",
        "component": {
            "bom-ref": "path+file:///home/me/virtnic#own@1.0",
            "purl": "pkg:cargo/own@1.0",
        },
    },
    "components": [
        {"name": "used", "version": "1.0", "bom-ref": "used"},
        {"name": "macro", "version": "2.0", "bom-ref": "macro"},
        {
            "name": "ours",
            "version": "1.0",
            "bom-ref": "path+file:///home/me/virtnic/core#1.0",
            "purl": "pkg:cargo/ours@1.0?download_url=file:///home/me/virtnic/core",
        },
    ],
    "dependencies": [
        {"ref": "path+file:///home/me/virtnic#own@1.0", "dependsOn": ["used", "macro"]},
        {"ref": "macro", "dependsOn": []},
    ],
}


def test_the_bill_has_what_is_linked_and_no_paths() -> None:
    made = linked.only_linked(BILL, {("used", "1.0"), ("ours", "1.0")})
    assert [each["name"] for each in made["components"]] == ["used", "ours"]
    assert made["components"][1]["purl"] == "pkg:cargo/ours@1.0"
    assert [edge["dependsOn"] for edge in made["dependencies"]] == [["used"]]
    assert "/home/me" not in str(made)
    assert "timestamp" not in made["metadata"]


def test_the_crates_are_those_of_the_lock() -> None:
    names = {name for name, _ in linked.crates("x86_64-unknown-linux-gnu")}
    assert {"virtnic", "pyo3", "smoltcp"} <= names
    assert not names & {"syn", "proc-macro2", "pyo3-macros", "virtnic-python-macros"}


def test_targets() -> None:
    assert {platform.target for platform in build.PLATFORMS} == {
        f"{arch}-unknown-linux-{system}"
        for arch in ("x86_64", "aarch64")
        for system in ("gnu", "musl")
    }
