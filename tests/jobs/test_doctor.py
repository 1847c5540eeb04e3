"""`virtnic doctor`."""

import platform
import shutil
from pathlib import Path

import pytest

from virtnic import _native, cli, doctor
from virtnic.qemu import find_qemu


def by_name(checks: list[doctor.Check]) -> dict[str, doctor.Check]:
    names = [check.name for check in checks]
    assert len(set(names)) == len(names)
    return {check.name: check for check in checks}


def test_this_machine(qemu_command: str) -> None:
    found = by_name(doctor.checks(qemu_command))
    binary = find_qemu(qemu_command)
    assert found["QEMU"].status == "ok"
    assert str(binary.version) in found["QEMU"].found
    assert found["QEMU device ivshmem-doorbell"].status == "ok"
    assert found["accelerator"].status == "ok"
    for name in ("qtest", "tcg", "kvm"):
        works = binary.has_accelerator(name)
        assert found[f"accelerator {name}"].status == ("ok" if works else "warn")
    for size, total, free in _native.hugepages():
        row = next(c for n, c in found.items() if n.startswith("hugepages") and _is(n, size))
        assert row.found == f"{free} of {total} free"
    testpmd = shutil.which("dpdk-testpmd")
    assert found["dpdk-testpmd"].status == ("ok" if testpmd else "warn")


def _is(name: str, size: int) -> bool:
    number, unit = name.split()[1:]
    return int(number) << {"GiB": 30, "MiB": 20, "KiB": 10}[unit] == size


def test_everything_that_is_not_ok_has_advice(qemu_command: str) -> None:
    for check in doctor.checks(qemu_command):
        assert check.found
        assert check.advice or check.status == "ok", check


def test_a_port_that_nothing_passes(
    qemu_command: str, scratch: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Opened, but nobody is at the other end: not "works here"."""
    if find_qemu(qemu_command).version < (7, 2):
        pytest.skip("stream came with 7.2")
    nobody = f"stream,server=off,addr.type=unix,addr.path={scratch}/nobody"
    status = cli.main(["doctor", "--netdev", nobody, "--hugepages", "none", "--qemu", qemu_command])
    out = capsys.readouterr().out
    assert status == 3
    assert "works here, but no frames would pass this port" in out
    assert "the stream has no peer" in " ".join(out.split())


def test_no_qemu(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("VIRTNIC_QEMU", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr("virtnic.qemu.find.PLACES", ())
    found = by_name(doctor.checks())
    assert found["QEMU"].status == "missing"
    assert "no QEMU found" in found["QEMU"].found
    assert "qemu-system-x86-core" in found["QEMU"].advice
    assert "qemu-system-x86-core" not in found["QEMU"].found
    assert found["dpdk-testpmd"].status == "warn"
    assert found["memfd"].status == "ok"


def test_a_program_that_is_no_qemu() -> None:
    found = by_name(doctor.checks("/bin/true"))
    assert found["QEMU"].status == "missing"
    assert "does not answer like QEMU but with" in found["QEMU"].found
    assert "accelerator" not in found


def test_capabilities_are_read_from_the_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Path, "read_text", lambda *_a, **_k: "CapEff:\t0000000000001000\n")
    found = by_name(list(doctor._capabilities()))
    assert found["CAP_NET_ADMIN"].status == "ok"
    assert found["CAP_SYS_ADMIN"].status == "warn"
    assert "iova='pa'" in found["CAP_SYS_ADMIN"].advice


def test_module_states(tmp_path: Path) -> None:
    release = tmp_path / "lib/modules" / platform.release()
    release.mkdir(parents=True)
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc/modules").write_text("vhost_net 36864 0 - Live 0x0\n")
    (tmp_path / "sys/module/kvm").mkdir(parents=True)
    (release / "modules.builtin").write_text("kernel/drivers/net/tun.ko\n")
    (release / "modules.dep").write_text("kernel/net/vhost-vdpa.ko.xz: kernel/x.ko\n")
    states = {
        name: doctor.module_state(name, tmp_path)
        for name in ("vhost_net", "kvm", "tun", "vhost_vdpa", "nothing")
    }
    assert states == {
        "vhost_net": "loaded",
        "kvm": "built in",
        "tun": "built in",
        "vhost_vdpa": "available",
        "nothing": "absent",
    }


@pytest.mark.parametrize(
    ("exists", "state", "status", "words"),
    [(False, "available", "warn", "modprobe tun"), (False, "absent", "warn", "a kernel with tun")],
)
def test_devices_that_are_not_there(
    monkeypatch: pytest.MonkeyPatch, exists: bool, state: str, status: str, words: str
) -> None:
    monkeypatch.setattr(Path, "exists", lambda _path: exists)
    monkeypatch.setattr(doctor, "module_state", lambda _name: state)
    check = by_name(list(doctor._devices()))["/dev/net/tun"]
    assert check.status == status
    assert words in check.advice
    assert state in check.found
