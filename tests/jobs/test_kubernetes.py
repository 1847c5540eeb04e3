"""The manifests for Kubernetes: their form, and the program of the pod beside a userspace CNI."""

import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

import virtnic
from peers.process import mortal
from peers.sandbox import GROUP, PROGRAM, PYTHON
from virtnic.testing import OvsBridge, OvsDpdk

MANIFESTS = sorted((Path(__file__).resolve().parents[2] / "docs/containers").glob("*.yaml"))
MANIFESTS = [file for file in MANIFESTS if "apiVersion" in file.read_text()]


def resources(file: str) -> list[dict[str, Any]]:
    """Return the documents of a manifest."""
    (path,) = (path for path in MANIFESTS if path.name == file)
    return [each for each in yaml.safe_load_all(path.read_text()) if each]


@pytest.mark.parametrize("file", [path.name for path in MANIFESTS])
@pytest.mark.parametrize("version", ["1.33", "1.34"])
def test_a_manifest_is_valid(file: str, version: str) -> None:
    for resource in resources(file):
        if resource["apiVersion"].startswith("k8s.cni.cncf.io/"):
            continue  # defined by Multus, not by Kubernetes
        kubernetes_validate.validate(resource, version, strict=True)


def test_an_invalid_one_is_found() -> None:
    (pod,) = (each for each in resources("userspace-cni.yaml") if each["kind"] == "Pod")
    pod["spec"]["restart"] = "Never"
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(pod, "1.33", strict=True)


@pytest.fixture
def shared(scratch: Path) -> Iterator[Path]:
    """The directory of the pod's sockets, for the group that the program has."""
    directory = scratch / "shared"
    directory.mkdir()
    os.chown(directory, -1, GROUP)
    directory.chmod(0o2770)
    yield directory
    for left in directory.iterdir():
        left.unlink()
    directory.rmdir()


@pytest.fixture
def bridge() -> Iterator[OvsBridge]:
    """A bridge without ports."""
    with OvsDpdk() as switch, switch.add_bridge() as bridge:
        yield bridge


def start(shared: Path) -> subprocess.Popen[str]:
    """Start the pod's program in a container: no privileges, a read-only root."""
    resource = next(each for each in resources("userspace-cni.yaml") if each["kind"] == "ConfigMap")
    command = [PYTHON, "-c", resource["data"]["echo.py"], PROGRAM.shared_at]
    return subprocess.Popen(
        mortal(PROGRAM.argv(shared, command)),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def make_socket(bridge: OvsBridge, shared: Path, mode: int) -> None:
    """Do what the plugin does: have the switch make a socket, and move it to the pod."""
    path = bridge.add_port("0123456789ab-net1")
    os.chown(path, -1, GROUP)
    path.chmod(mode)
    path.rename(shared / path.name)


@pytest.mark.needs("ovs", "bwrap", "root")
def test_the_program_of_the_pod(bridge: OvsBridge, shared: Path) -> None:
    """It waits for the socket, which comes later, and sends back what the switch sends it."""
    with start(shared) as program:
        try:
            assert program.stdout is not None
            make_socket(bridge, shared, 0o660)
            said = program.stdout.readline()
            ready = re.fullmatch(r"ready: (\S+) on 0123456789ab-net1\n", said)
            assert ready, said + program.stdout.read()
            netdev = f"vhost-user,path={bridge.add_port('ours')}"
            memory = virtnic.Memory("8M", hugepages=None)
            with virtnic.open(netdev, frontend="direct", memory=memory) as port:
                port.wait_ready(20.0)
                there, here = (bytes.fromhex(mac.replace(":", "")) for mac in (ready[1], port.mac))
                port.send_all([there + here + b"\x88\xb5" + bytes(46)], timeout=10.0)
                (frame,) = port.recv(1, timeout=20.0).tobytes()
                assert frame == here + there + b"\x88\xb5" + bytes(46)
        finally:
            program.kill()


@pytest.mark.needs("ovs", "bwrap", "root")
def test_a_socket_that_the_program_may_not_use(bridge: OvsBridge, shared: Path) -> None:
    make_socket(bridge, shared, 0o600)
    with start(shared) as program:
        output, _ = program.communicate(timeout=60.0)
    assert program.returncode == 1
    assert "Permission" in output
    assert "0123456789ab-net1" in output


def test_a_path_that_is_too_long(scratch: Path) -> None:
    """The error says how to shorten it."""
    path = f"/run/{'d' * 110}/0123456789ab-net1"
    for frontend in ("qemu", "direct"):
        with pytest.raises(
            ValueError, match=r"133 bytes, 107 fit .*`ln -s /run/d{110} /run/vhost`"
        ):
            virtnic.open(f"vhost-user,path={path}", frontend=frontend, size="8M", hugepages=None)
