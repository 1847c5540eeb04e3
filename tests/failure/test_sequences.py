"""The sequence protocol of bursts, offloads and the frames of fakes."""

import ast
import collections.abc
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

import virtnic
import virtnic.testing
from peers.netns import Netns
from support.frames import GATEWAY, arp_request, numbered
from virtnic import _native
from virtnic.testing import Frames

STUB = Path(virtnic.__file__).with_name("_native.pyi")


def check(found: Any, expected: list[Any]) -> None:
    """Compare with a list, by every operation of a sequence."""
    assert isinstance(found, Sequence)
    assert len(found) == len(expected)
    assert list(found) == expected
    assert list(reversed(found)) == expected[::-1]
    for part in (slice(1, 3), slice(None, None, -1), slice(-2, None), slice(9, 12)):
        assert found[part] == expected[part]
    for value in (*expected, object(), None, 7, "text"):
        assert (value in found) is (value in expected)
        assert found.count(value) == expected.count(value)
        for start, stop in ((0, 99), (1, 99), (-1, 99), (0, 1), (2, -1), (-9, 9)):
            if value in expected[start:stop]:
                assert found.index(value, start, stop) == expected.index(value, start, stop)
            else:
                with pytest.raises(ValueError):  # noqa: PT011 - each class has its own words
                    found.index(value, start, stop)
    match found:
        case [first, *others]:
            assert [first, *others] == expected
        case []:
            assert not expected
        case _:
            pytest.fail("it matches no pattern of a sequence")


def test_a_burst_is_a_sequence(port: virtnic.Port) -> None:
    targets = (GATEWAY, "10.0.2.3", "10.0.2.3", GATEWAY)
    requests = [arp_request(port.mac, target=target) for target in targets]
    for _attempt in range(100):
        port.send(requests)
        port.qemu.execute("query-status")  # QEMU has answered them all by then
        port.qemu.execute("query-status")
        burst = port.recv()
        if len(burst) == len(requests):
            break
        while port.recv(timeout=0.1):
            pass
    check(burst, burst.tobytes())
    burst.release()
    check(burst, [])


def test_offloads_are_a_sequence(netns: Netns) -> None:
    with virtnic.open(netns.netdev, offload=True) as port:
        netns.wait_for_carrier()
        with netns.packet_socket() as raw:
            raw.send(numbered(netns.mac, 1))
        found = port.recv(timeout=20.0).offload
        assert found is not None
        check(found, list(found))
        assert _native.Offload() in found


def test_the_frames_of_fakes_are_a_sequence() -> None:
    frames = [numbered("52:54:00:00:00:01", number) for number in (1, 2, 2, 3)]
    check(Frames(frames), frames)
    check(Frames(), [])


def abstract_classes() -> dict[str, type]:
    """Return what `collections.abc` has, by name."""
    return {name: getattr(collections.abc, name) for name in collections.abc.__all__}


def test_no_class_claims_to_be_what_it_is_not() -> None:
    """The stub's bases hold at run time, and whoever is registered has every method."""
    known = abstract_classes()
    for node in ast.walk(ast.parse(STUB.read_text())):
        if isinstance(node, ast.ClassDef):
            for base in node.bases:
                name = ast.unparse(base).partition("[")[0]
                if name in known:
                    assert issubclass(getattr(_native, node.name), known[name]), node.name
    for module in (virtnic, _native, virtnic.testing, virtnic.aio):
        for class_ in vars(module).values():
            if not isinstance(class_, type):
                continue
            for abstract in known.values():
                if issubclass(class_, abstract):
                    wanted = {name for name in vars(abstract) if callable(vars(abstract)[name])}
                    missing = {name for name in wanted if not hasattr(class_, name)}
                    assert not missing, (class_, abstract)
