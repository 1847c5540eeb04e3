"""Which QEMU is chosen, and the error if there is none."""

import shlex
from pathlib import Path

import pytest

from virtnic.errors import QemuError, QemuNotFound
from virtnic.qemu import find
from virtnic.qemu.find import Binary, find_qemu
from virtnic.qemu.quirks import Version


def script(path: Path, body: str) -> str:
    """Make a program that pretends to be some QEMU."""
    path.write_text(f"#!/bin/sh\n{body}\n")
    path.chmod(0o755)
    return str(path)


def test_version_is_read_from_the_banner(qemu_command: str) -> None:
    binary = find_qemu(qemu_command)
    assert binary.banner.startswith("QEMU emulator version ")
    assert binary.version >= Version(5, 2)
    assert str(binary.version) in binary.banner


@pytest.mark.parametrize(
    ("text", "version"),
    [
        ("QEMU emulator version 7.2.22 (Debian 1:7.2+dfsg-7)", Version(7, 2, 22)),
        ("QEMU emulator version 5.2.0", Version(5, 2, 0)),
        ("QEMU emulator version 11.1.3 (Debian 1:11.1.3+ds-1)", Version(11, 1, 3)),
        ("QEMU emulator version 10.0.50 (v10.0.0-12-gabcdef)", Version(10, 0, 50)),
    ],
)
def test_versions_are_parsed(text: str, version: Version) -> None:
    assert Version.parse(text) == version


def test_versions_compare_as_numbers() -> None:
    assert Version(9, 2) < Version(10, 0) < Version(10, 0, 13)
    with pytest.raises(ValueError, match="no version number"):
        Version.parse("something else")


def test_explicit_path_comes_first(
    qemu_command: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    other = script(tmp_path / "other", "true")
    monkeypatch.setenv("VIRTNIC_QEMU", other)
    assert find_qemu() == Binary((other,))
    assert find_qemu(qemu_command) != Binary((other,))


def test_environment_may_hold_a_command_line(
    qemu_command: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VIRTNIC_QEMU", f"env LC_ALL='C' {qemu_command}")
    binary = find_qemu()
    assert Path(binary.argv[0]).name == "env"
    assert binary.argv[1:] == ("LC_ALL=C", *shlex.split(qemu_command))
    assert binary.version >= Version(5, 2)


def test_path_is_searched(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("VIRTNIC_QEMU", raising=False)
    here = script(tmp_path / "qemu-system-x86_64", "true")
    monkeypatch.setenv("PATH", str(tmp_path))
    assert find_qemu() == Binary((here,))


def test_no_qemu_names_the_package(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("VIRTNIC_QEMU", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr("virtnic.qemu.find.PLACES", (str(tmp_path / "nowhere"),))
    with pytest.raises(QemuNotFound, match=r"qemu-system-x86 .*qemu-system-x86-core") as caught:
        find_qemu()
    assert "qemu-system-x86_64 in PATH" in str(caught.value)


@pytest.mark.parametrize("given", ["/nowhere/qemu", "no-such-program --x", "'unbalanced", " "])
def test_what_cannot_be_run_is_not_found(given: str) -> None:
    with pytest.raises(QemuNotFound, match="the given QEMU"):
        find_qemu(given)


def test_a_program_that_is_no_qemu(tmp_path: Path) -> None:
    binary = find_qemu(script(tmp_path / "ls", "echo 'ls (GNU coreutils) 9.1'"))
    with pytest.raises(QemuNotFound, match=r"does not answer like QEMU.*coreutils"):
        binary.check("pc")


def test_a_qemu_for_another_processor(tmp_path: Path) -> None:
    binary = find_qemu(
        script(
            tmp_path / "qemu-system-aarch64",
            'case "$1" in --version) echo "QEMU emulator version 9.2.0";; '
            '-machine) printf "Supported machines are:\\nvirt  QEMU ARM\\nnone empty\\n";; esac',
        )
    )
    with pytest.raises(QemuNotFound, match=r"QEMU 9\.2\.0, but not an x86_64 one"):
        binary.check("pc")


def test_a_qemu_without_the_machine(tmp_path: Path) -> None:
    binary = find_qemu(
        script(
            tmp_path / "qemu-kvm",
            'case "$1" in --version) echo "QEMU emulator version 9.1.0";; '
            '-machine) printf "Supported machines are:\\nq35 Standard PC\\n";; esac',
        )
    )
    assert binary.check("q35") == Version(9, 1, 0)
    with pytest.raises(QemuError, match="has no machine pc; it has q35"):
        binary.check("pc")


def test_accelerators_are_tried_for_real(qemu_command: str) -> None:
    binary = find_qemu(qemu_command)
    assert binary.error_with("-accel", "tcg") is None
    assert binary.error_with("-accel", "no-such") is not None
    assert binary.has_accelerator("tcg")
    assert not binary.has_accelerator("no-such")


def test_an_answer_that_comes_too_late_is_no_answer(
    qemu_command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is not kept as one, and the error says what was waited for."""
    script, answers = tmp_path / "qemu", tmp_path / "answers"
    script.write_text(f'#!/bin/sh\n[ -e {answers} ] || exec sleep 60\nexec {qemu_command} "$@"\n')
    script.chmod(0o755)
    binary = Binary((str(script),))
    monkeypatch.setattr(find, "_QUICK", 0.2)
    with pytest.raises(QemuError, match=r"qemu .*-qmp stdio` did not answer within 0\.2 s"):
        binary.ask("query-version")
    assert "did not answer" in str(binary.error_with("-accel", "tcg"))
    monkeypatch.undo()
    answers.touch()
    assert binary.error_with("-accel", "tcg") is None


def test_built_in_devices(qemu_command: str) -> None:
    binary = find_qemu(qemu_command)
    assert binary.has_device("virtio-net-pci")
    assert binary.has_device("ivshmem-doorbell")
    assert not binary.has_device("no-such-device")
