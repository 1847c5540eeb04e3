"""One minute of soak, and that the soak detects faults."""

import json
import os
import struct
import subprocess
import sys
from pathlib import Path

import pytest

from soak import rings
from soak.ledger import Ledger, Unbalanced, balance_sheet
from soak.samples import bound, growth

TOP = Path(__file__).parents[2]


def soak(*arguments: str, timeout: float) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "soak", *arguments],
        cwd=TOP / "tools",
        env={**os.environ, "PYTHONPATH": str(TOP / "tests")},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )


@pytest.mark.slow
@pytest.mark.needs("testpmd")
@pytest.mark.timeout(300)
def test_a_minute(qemu_command: str) -> None:
    done = soak("--seconds", "60", timeout=280)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "balanced: every frame is accounted for" in done.stdout
    print(done.stdout)


@pytest.mark.slow
@pytest.mark.needs("testpmd")
def test_it_notices_a_frame_that_vanishes(qemu_command: str) -> None:
    """One of a thousand is lost behind its back: it fails, and says how to repeat that."""
    done = soak("--seconds", "5", "--seed", "1", "--lose", "0.001", timeout=110)
    assert done.returncode == 1, done.stdout + done.stderr
    assert "FAILED:" in done.stdout
    assert "SECONDS=5 SEED=1" in done.stdout


class FrozenPort:
    """A port that consists of one ring."""

    ring, queue_size = "packed", 4
    memory = property(lambda self: self)

    def __init__(self, *descriptors: tuple[int, int]) -> None:
        table = b"".join(struct.pack("<QIHH", 0, *d[:1], 0, *d[1:]) for d in descriptors)
        self.bytes = table + struct.pack("<HHHH", 0x8003, 2, 0, 1)
        self.queue_addresses = [("rx", 0, 64, 68)]

    def offset_of(self, address: int, _length: int) -> int:
        return address

    def read(self, offset: int, length: int) -> bytes:
        return self.bytes[offset : offset + length]


def test_it_says_where_frames_are_that_do_not_come() -> None:
    port = FrozenPort((72, 0x8082), (72, 0x82), (2060, 0x82), (2060, 0x82))
    (line,) = rings.describe(port)
    assert line == (
        "rx: interrupts at 3 (lap 1), kicks disabled; 0 used in lap 1, 1 available in lap 1 (72 "
        "bytes), 2-3 available in lap 1 (2060 bytes)"
    )


def ledger(frames: int) -> Ledger:
    """A life in which ``count`` frames were sent."""
    found = Ledger()
    found.begin()
    for number in range(frames):
        found.send(number)
    return found


def test_what_comes_back_balances() -> None:
    accounts = ledger(3)
    for number in range(3):
        accounts.receive(1, number)
    assert accounts.unexplained == 0
    assert balance_sheet({"a": accounts}, lambda line: None)


def test_what_the_device_had_taken_is_lost_and_what_not_is_awaited() -> None:
    accounts = ledger(10)
    accounts.receive(1, 0)
    assert accounts.lose("backend killed", taken=4) == 3
    assert sorted(accounts.on_the_way) == [4, 5, 6, 7, 8, 9]
    assert accounts.unexplained == 6
    assert not balance_sheet({"a": accounts}, lambda line: None)
    assert accounts.lose("QEMU killed") == 6
    assert accounts.unexplained == 0


@pytest.mark.parametrize(("life", "number"), [(1, 0), (1, 7), (2, 1)])
def test_what_cannot_come_is_noticed(life: int, number: int) -> None:
    accounts = ledger(3)
    accounts.receive(1, 0)
    with pytest.raises(Unbalanced):
        accounts.receive(life, number)


def test_what_was_lost_must_not_come() -> None:
    accounts = ledger(3)
    accounts.lose("detached")
    with pytest.raises(Unbalanced):
        accounts.receive(1, 0)


def test_the_ports_own_counters_are_compared() -> None:
    accounts = ledger(3)
    accounts.check({"tx_packets": 3, "rx_packets": 0})
    with pytest.raises(Unbalanced, match="4 tx_packets"):
        accounts.check({"tx_packets": 4, "rx_packets": 0})


@pytest.mark.alone
@pytest.mark.slow
@pytest.mark.needs("testpmd", "netns")
@pytest.mark.timeout(120)
def test_nothing_grows(qemu_command: str, tmp_path: Path) -> None:
    """A few seconds of `make soak ARGS=--steady`: echo in every way, and nothing grows."""
    found = tmp_path / "found.json"
    arguments = ("--steady", "--seconds", "12", "--turn", "0.02", "--json", str(found))
    done = soak(*arguments, timeout=110)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "nothing grows, and everything was given back" in done.stdout
    counted = json.loads(found.read_text())
    assert min(counted["frames"].values()) > 1000
    assert {"our descriptors", "our packet buffers", "QEMU's threads"} <= set(counted["series"])
    print(done.stdout)


@pytest.mark.alone
@pytest.mark.slow
@pytest.mark.needs("testpmd", "netns")
@pytest.mark.timeout(120)
def test_it_notices_what_grows(qemu_command: str) -> None:
    """One of each is lost in each round; it says which."""
    leaks = [f"--leak={kind}" for kind in ("object", "memory", "descriptor", "buffer")]
    done = soak("--steady", "--seconds", "8", "--turn", "0.02", *leaks, timeout=110)
    assert done.returncode == 1, done.stdout + done.stderr
    for what in ("Python blocks", "private anonymous kB", "descriptors", "packet buffers"):
        assert f"FAILED: our {what} grow by" in done.stdout, done.stdout


def test_the_growth_of_a_series() -> None:
    assert growth([7.0] * 40) == 0
    # What happens in the warm-up, and a peak, do not count; a slope does.
    assert growth([0.0] * 9 + [50.0] * 16 + [900.0] + [50.0] * 14) == 0
    assert growth([float(n // 3) for n in range(40)]) == pytest.approx(29 / 3, abs=0.5)
    assert growth([100.0 - n for n in range(40)]) == -29
    # One object in each round is more than what is allowed, however long it takes.
    for rounds in (16, 400, 4000):
        assert growth(list(range(rounds))) > bound("our Python blocks", rounds)
    with pytest.raises(ValueError, match="run it for longer"):
        growth([1.0, 2.0, 3.0, 4.0])
