"""The pytest plugin's fixtures of switches, run in a separate pytest as users do."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import virtnic
from virtnic.testing import OvsDpdk, ProgramNotFound, ovs
from virtnic.testing.ovs import find_vswitchd

Run = Callable[..., pytest.RunResult]


@pytest.fixture
def run(pytester: pytest.Pytester, qemu_command: str) -> Run:
    """Run pytest on a test, in a process."""

    def start(tests: str, *arguments: str) -> pytest.RunResult:
        pytester.makepyfile(tests)
        return pytester.runpytest_subprocess("-rs", "-v", "-W", "error", *arguments)

    return start


NOBODY = 65534
PROGRAM = """
from virtnic.testing import OvsDpdk
with OvsDpdk() as switch, switch.add_bridge() as bridge:
    bridge.add_port("listens")
    print(switch.appctl("dpif/show"))
"""
BRIDGE = """
import pytest

FRAMES = [bytes.fromhex("020000000002 020000000001 88b5") + n.to_bytes(46, "big") for n in range(5)]

def test_it_forwards(virtnic_ovs):
    a, b = virtnic_ovs.ports
    a.send_all(FRAMES, timeout=5.0)
    got = []
    while len(got) < 5 and (burst := b.recv(5, timeout=5.0)):
        got += burst.tobytes()
    assert got == FRAMES
    assert virtnic_ovs.learnt()[a.mac] == virtnic_ovs.number(a)

@pytest.mark.virtnic(ports=3, queue_size=256)
def test_flows_of_ours(virtnic_ovs):
    a, b, c = virtnic_ovs.ports
    assert c.queue_size == 256
    virtnic_ovs.ofctl("del-flows")
    virtnic_ovs.add_flow(f"in_port={virtnic_ovs.number(a)},actions=output:{virtnic_ovs.number(c)}")
    a.send_all(FRAMES, timeout=5.0)
    got = []
    while len(got) < 5 and (burst := c.recv(5, timeout=5.0)):
        got += burst.tobytes()
    assert got == FRAMES
    assert len(b.recv(1)) == 0

def test_that_the_bridge_is_another(virtnic_ovs, virtnic_ovs_dpdk):
    assert "actions=NORMAL" in virtnic_ovs.ofctl("dump-flows")
    assert len(virtnic_ovs_dpdk.vsctl("list-br").split()) == 1
"""


@pytest.mark.needs("ovs")
def test_a_bridge_for_each_test(run: Run) -> None:
    """One switch for all of them; each has its own bridge, which goes with it."""
    run(BRIDGE).assert_outcomes(passed=3)


DIRECT = """
import pytest

pytestmark = pytest.mark.virtnic(frontend="direct")

def test_it_forwards(virtnic_ovs):
    a, b = virtnic_ovs.ports
    assert a.frontend == b.frontend == "direct"
    frame = bytes.fromhex("020000000002 020000000001 88b5") + bytes(46)
    a.send_all([frame], timeout=5.0)
    assert b.recv(1, timeout=5.0).tobytes() == [frame]
"""


@pytest.mark.needs("ovs")
def test_a_bridge_without_qemu(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VIRTNIC_QEMU", "/nonexistent/qemu")
    monkeypatch.setenv("CI", "true")
    run(DIRECT, "--virtnic-qemu=a", "--virtnic-qemu=b").assert_outcomes(passed=1)


def test_ports_run_with_each_qemu(run: Run, qemu_command: str) -> None:
    """Those of the function too, whose QEMU is not known before the marker."""
    found = run(
        "def test_it(virtnic_attach): assert virtnic_attach('user').link",
        f"--virtnic-qemu={qemu_command}",
        "--virtnic-qemu=/nonexistent/qemu",
    )
    found.assert_outcomes(passed=1, errors=1)


@pytest.mark.needs("ovs", "root")
def test_a_switch_needs_no_rights(scratch: Path) -> None:
    """An ordinary user without capabilities; no hugepages, no TAP device."""
    directory = scratch / "of-nobody"
    directory.mkdir()
    os.chown(directory, NOBODY, NOBODY)
    directory.parent.chmod(0o711)
    argv = ["setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups"]
    argv += ["--bounding-set=-all", sys.executable, "-c", PROGRAM]
    try:
        done = subprocess.run(
            argv,
            env={**os.environ, "TMPDIR": str(directory)},
            capture_output=True,
            text=True,
            check=False,
            timeout=100,
        )
    finally:
        directory.parent.chmod(0o700)
    directory.rmdir()
    assert done.returncode == 0, done.stderr
    assert "dummy-internal" in done.stdout
    assert "(dpdkvhostuser" in done.stdout


TESTPMD = """
import pytest

FRAME = bytes.fromhex("020000000002 020000000001 88b5") + bytes(46)

def test_it_passes_on(virtnic_testpmd):
    a, b = virtnic_testpmd.ports
    a.send_all([FRAME], timeout=5.0)
    assert b.recv(1, timeout=5.0).tobytes() == [FRAME]
    assert virtnic_testpmd.stats(0)["RX-packets"] >= 1

@pytest.mark.virtnic(ports=1, testpmd={"mode": "macswap"}, ring="split")
def test_it_echoes(virtnic_testpmd):
    (port,) = virtnic_testpmd.ports
    assert port.ring == "split"
    port.send_all([FRAME], timeout=5.0)
    assert port.recv(1, timeout=5.0).tobytes() == [FRAME[6:12] + FRAME[:6] + FRAME[12:]]
"""


@pytest.mark.needs("testpmd")
def test_testpmd(run: Run) -> None:
    run(TESTPMD).assert_outcomes(passed=2)


TAP = """
import pytest, virtnic

@pytest.mark.virtnic(tap={"address": "10.77.0.1/24", "queues": 2})
def test_the_kernel_answers(virtnic_tap):
    (port,) = virtnic_tap.ports
    assert port.queues == 2
    port.set_queues(1)  # the kernel chooses among those in use, and a stack has one
    with virtnic.net.Stack(port, address="10.77.0.2/24") as stack:
        assert stack.arp("10.77.0.1").mac == virtnic_tap.mac
    assert virtnic_tap.statistics()["rx_packets"] > 0
"""


@pytest.mark.needs("netns")
def test_a_namespace(run: Run) -> None:
    run(TAP).assert_outcomes(passed=1)


FAILS = """
import pytest, virtnic

FRAME = bytes.fromhex("020000000002 020000000001 88b5") + bytes(46)

def test_that_fails(virtnic_testpmd):
    a, b = virtnic_testpmd.ports
    a.send_all([FRAME], timeout=5.0)
    assert b.recv(1, timeout=5.0).tobytes() == ["another"]

def test_that_passes(virtnic_testpmd):
    pass

@pytest.mark.virtnic("user")
@pytest.mark.parametrize("path", ["../../x"])
def test_another_that_fails(virtnic_attach, path):
    virtnic_attach("user").send([FRAME])
    1 / 0

def test_that_is_skipped(virtnic_port):
    pytest.skip("why not")
"""


@pytest.mark.needs("testpmd")
def test_what_is_kept_of_a_test_that_failed(run: Run, pytester: pytest.Pytester) -> None:
    done = run(FAILS, "--virtnic-captures=kept/here")
    done.assert_outcomes(failed=2, passed=1, skipped=1)
    done.stdout.fnmatch_lines(["captured in kept/here/test_*test_that_fails"])
    place = pytester.path / "kept/here"
    kept = sorted(file for file in place.rglob("*") if file.is_file())
    names = [str(file.relative_to(place)).partition("_failed.py-")[2] for file in kept]
    assert names == [
        "test_another_that_fails-..-..-x/port0.pcapng",
        "test_that_fails/port0.pcapng",
        "test_that_fails/port1.pcapng",
        "test_that_fails/testpmd.txt",
    ]
    frame = bytes.fromhex("020000000002 020000000001 88b5") + bytes(46)
    for capture, direction in zip(kept[:3], ("out", "out", "in"), strict=True):
        frames = [(each.frame, each.direction) for each in virtnic.capture.read(capture)]
        assert any(data == frame for data, _ in frames), (capture, direction, frames)
    assert "testpmd>" in kept[3].read_text()


@pytest.mark.needs("ovs")
def test_what_is_kept_of_a_bridge(run: Run, pytester: pytest.Pytester) -> None:
    done = run("def test_that_fails(virtnic_ovs): 1 / 0", "--virtnic-captures=kept")
    done.assert_outcomes(failed=1)
    (text,) = (pytester.path / "kept").glob("*/ovs.txt")
    said = text.read_text()
    for title in ("ovs-vsctl show", "ovs-ofctl dump-flows", "fdb/show", "ovs-vswitchd"):
        assert f"=== {title}\n" in said
    assert "actions=NORMAL" in said
    assert "02:00:00:00:00:01" in said


SMALL = """
import pytest
from virtnic.testing import OvsDpdk

@pytest.fixture(scope="module")
def virtnic_ovs_dpdk():
    with OvsDpdk(memory=64) as switch:
        yield switch

@pytest.mark.virtnic(ports=3, ready=1.0)
def test_it(virtnic_ovs): pass
"""


@pytest.mark.needs("ovs")
def test_a_switch_that_cannot_serve_a_port(run: Run) -> None:
    """What it lacks is said, and what to do."""
    done = run(SMALL)
    done.assert_outcomes(errors=1)
    done.stdout.fnmatch_lines(
        ["*TimeoutError: the port is not ready*", "*|ERR|*", "*librte-mempool-ring*or of memory*"]
    )


def test_nothing_is_kept_where_all_pass(run: Run, pytester: pytest.Pytester) -> None:
    run("def test_ok(virtnic_port): pass", "--virtnic-captures=kept").assert_outcomes(passed=1)
    assert not (pytester.path / "kept").exists()


MISSING = """
def test_a_bridge(virtnic_ovs): pass
def test_a_program(virtnic_testpmd): pass
def test_a_namespace(virtnic_tap): pass
"""


@pytest.mark.parametrize("ci", ["", "true"])
def test_a_switch_that_is_not_there(
    run: Run, monkeypatch: pytest.MonkeyPatch, pytester: pytest.Pytester, ci: str
) -> None:
    """A clear skip here, a failure in CI."""
    monkeypatch.setenv("CI", ci)
    monkeypatch.setenv("VIRTNIC_OVS_VSWITCHD", "/nonexistent/vswitchd")
    pytester.makeconftest(
        "from virtnic.testing import programs\n"
        "programs._SYSTEM = ()\n"
        "import os, shutil\n"
        "os.environ['VIRTNIC_QEMU'] = shutil.which(os.environ.get('VIRTNIC_QEMU', '').split()[-1])"
        " or os.environ['VIRTNIC_QEMU']\n"
        "os.environ['PATH'] = '/nonexistent'\n"
    )
    found = run(MISSING)
    if ci:
        found.assert_outcomes(errors=3)
        found.stdout.fnmatch_lines(["*CI is set: what is missing is a failure*"])
    else:
        found.assert_outcomes(skipped=3)
        found.stdout.fnmatch_lines(
            [
                "SKIPPED*VIRTNIC_OVS_VSWITCHD=/nonexistent/vswitchd: no such program*",
                "SKIPPED*no dpdk-testpmd in PATH*apt-get install dpdk-dev*",
                "SKIPPED*no ip in PATH*apt-get install iproute2*",
            ]
        )


def test_a_vswitchd_without_dpdk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "ovs-vswitchd"
    program.write_text("#!/bin/sh\necho 'ovs-vswitchd (Open vSwitch) 3.1.0'\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setattr(ovs, "_DEBIAN", "/nonexistent")
    with pytest.raises(ProgramNotFound, match=r"without DPDK; .apt-get install openvswitch"):
        find_vswitchd()


@pytest.mark.needs("ovs")
def test_a_switch_that_does_not_start(
    scratch: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The error has its last messages, and nothing is left."""
    program = tmp_path / "ovs-vswitchd"
    program.write_text("#!/bin/sh\necho '2026-01-01T00:00:00Z|EAL: no memory'\nexit 7\n")
    program.chmod(0o755)
    monkeypatch.setenv("VIRTNIC_OVS_VSWITCHD", str(program))
    with pytest.raises(RuntimeError, match="Open vSwitch ended with 7") as caught:
        OvsDpdk()
    assert any("EAL: no memory" in note for note in caught.value.__notes__)
    assert list(scratch.iterdir()) == []
