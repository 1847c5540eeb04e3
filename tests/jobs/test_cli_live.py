"""What the loops' commands show while they run: a table on a terminal, lines elsewhere."""

import fcntl
import os
import pty
import re
import select
import struct
import subprocess
import termios
import time

import pytest

from support.program import command, virtnic
from virtnic.cli.live import Live, drops_text, occupancy_text, rate_text
from virtnic.cli.loops import line_rates
from virtnic.loops.engine import Result


def test_elsewhere_it_is_a_line_at_a_time(qemu_command: str) -> None:
    out = virtnic(
        "generate", "--rate", "10kpps", "--seconds", "1.25", "--interval", "0.25"
    ).stdout.splitlines()
    assert out[0] == "GENERATE on user, frames of 64 bytes, 10000 frames/s"
    assert out[1].split() == [
        "time",
        "Mpps",
        "Gb/s",
        "L2",
        "burst",
        "occupied",
        "dropped",
        "so",
        "far",
    ]
    rows = out[2 : out.index("--- generate statistics ---")]
    assert 1 <= len(rows) <= 5
    for row in rows:
        assert re.fullmatch(r" *\d+\.\d s +0\.\d+ +0\.\d+ +\d+\.\d +<?\d.* %  0", row), row
    assert "\x1b" not in "".join(out)
    quiet = virtnic("generate", "--rate", "10kpps", "--seconds", "0.5", "--interval", "0").stdout
    assert "Mpps " not in quiet.split("---")[0]


class Screen:
    """As much of a terminal as the table needs: up, erase to the end of the line, newline."""

    def __init__(self, columns: int) -> None:
        self.columns = columns
        self.lines = [""]
        self.row = 0
        self.redrawn = 0

    def write(self, text: str) -> None:
        for token in re.findall(r"\x1b\[\d*[A-Z]|\r|\n|[^\x1b\r\n]+", text):
            if token.endswith("A") and token[0] == "\x1b":
                self.row -= int(token[2:-1])
                self.redrawn += 1
                assert self.row >= 0
            elif token == "\n":
                self.row += 1
                if self.row == len(self.lines):
                    self.lines.append("")
            elif token == "\x1b[K":
                # A line of the table: written whole, and its rest erased.
                assert len(self.lines[self.row]) < self.columns, "wrapped: the next is off"
            elif token != "\r":
                self.lines[self.row] = token


def on_a_terminal(
    columns: int, *arguments: str, term: str = "xterm", ctrl_c_after: bytes | None = None
) -> tuple[Screen, str, int]:
    """Run a command on a pseudo terminal; return its screen, all it wrote, and its status.

    Ctrl-C is pressed when what it wrote matches ``ctrl_c_after``.
    """
    controller, terminal = pty.openpty()
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    environment = {k: v for k, v in os.environ.items() if k not in ("COLUMNS", "LINES")}
    process = subprocess.Popen(
        command(*arguments),
        stdin=terminal,
        stdout=terminal,
        stderr=terminal,
        env={**environment, "TERM": term},
        start_new_session=True,
        preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
    )
    os.close(terminal)
    written = b""
    began = time.monotonic()
    with process:
        while time.monotonic() - began < 60:
            if ctrl_c_after is not None and re.search(ctrl_c_after, written):
                os.write(controller, b"\x03")
                ctrl_c_after = None
            if not select.select([controller], [], [], 0.1)[0]:
                continue
            try:
                written += os.read(controller, 65536)
            except OSError:  # EIO: nobody has the terminal open any more
                break
        process.kill()  # where it has not ended
        status = process.wait()
    os.close(controller)
    screen = Screen(columns)
    screen.write(written.decode())
    return screen, written.decode(), status


@pytest.mark.parametrize("columns", [100, 50])
def test_on_a_terminal_it_is_redrawn_in_place(qemu_command: str, columns: int) -> None:
    again = rb"\x1b\[3A(.*\r\n){3}"
    screen, written, status = on_a_terminal(
        columns, "generate", "--rate", "10kpps", ctrl_c_after=again
    )
    assert status == 0
    assert screen.redrawn >= 1
    assert "^C" in written
    assert screen.lines[0].startswith("GENERATE on user")
    heading, row, everything, after, summary = screen.lines[1:6]
    assert re.match(r"\d\.\d s ", heading)
    assert re.match(r"user +0\.000 +0\.000 +0\.\d+ ", row)
    assert re.match(r"all +0\.\d+ Mpps +0\.\d+ Gb", everything)
    assert (after, summary) == ("^C", "--- generate statistics ---")
    assert all(len(line) < columns for line in screen.lines[1:4])


def test_a_terminal_without_a_table(qemu_command: str) -> None:
    screen, _, status = on_a_terminal(
        100, "drop", "--interval", "0", "--seconds", "60", ctrl_c_after=rb"DROP .*\r\n"
    )
    assert status == 130
    assert screen.redrawn == 0
    assert screen.lines[1:3] == ["^C", "--- drop statistics ---"]
    assert screen.lines[-2].startswith("user: 0 received")


@pytest.mark.parametrize(
    ("words", "begun", "then", "wanted"),
    [
        (
            ["ping", "10.0.2.2", "--count", "0"],
            rb"seq=0.*\r\n",
            r"--- 10.0.2.2 ping statistics",
            130,
        ),
        (["watch"], rb"attached.*\r\n", r"[\d:.]+  detached", 0),
        (
            ["demo", "--netdev", "hubport,hubid=0"],
            rb" s  port .*\r\n",
            r"virtnic: interrupted",
            130,
        ),
    ],
    ids=["ping", "watch", "demo"],
)
def test_ctrl_c_on_a_terminal_ends_its_line(
    qemu_command: str, words: list[str], begun: bytes, then: str, wanted: int
) -> None:
    """The terminal writes ^C there; what follows begins in the next."""
    _, written, status = on_a_terminal(100, *words, ctrl_c_after=begun)
    assert status == wanted, written
    lines = [re.sub(r"\x1b\[[\d;]*m", "", line) for line in written.split("\r\n")]
    at = next(number for number, line in enumerate(lines) if line.endswith("^C"))
    assert re.match(then, lines[at + 1]), written


def test_a_dumb_terminal_gets_lines(qemu_command: str) -> None:
    _, written, status = on_a_terminal(
        100, "drop", "--interval", "0.05", term="dumb", ctrl_c_after=rb"0 %  0\r\n"
    )
    assert status == 0
    assert "\x1b" not in written
    assert "time       Mpps" in written


def test_numbers_in_words() -> None:
    assert rate_text(12_345_678, 1e6) == "12.346"
    assert rate_text(1_000, 1e6) == "0.001000"
    assert rate_text(0, 1e6) == "0.000"
    assert [occupancy_text(*turns) for turns in ((0, 0), (1, 3), (3, 997), (1, 10**7))] == [
        "0 %",
        "25 %",
        "0.30 %",
        "<0.01 %",
    ]
    assert drops_text({"tx_ring_full": 0}) == "0"
    drops = {"tx_ring_full": 12, "tx_no_buffer": 0, "rx_bad_chain": 3}
    assert drops_text(drops) == "15: 12 ring full, 3 broken chain"


def result(seconds: float, packets: int, bursts: int, idle: int) -> Result:
    return Result(packets, 60 * packets, seconds, packets, packets, bursts, idle, 0, 0, 0)


def test_a_line_of_ten_gigabits() -> None:
    """14.88 million frames of 64 bytes a second fill it: RFC 2544, and everybody since."""
    l2, l1 = line_rates(result(1.0, 14_880_952, 1, 0))
    assert l2 == pytest.approx(7.619e9, rel=1e-3)
    assert l1 == pytest.approx(10e9, rel=1e-6)
    assert line_rates(result(0.0, 0, 0, 0)) == (0.0, 0.0)


def test_rates_are_those_since_the_last_refresh(capsys: pytest.CaptureFixture[str]) -> None:
    counters = dict.fromkeys(("rx_packets", "rx_bytes", "tx_packets", "tx_bytes"), 0)
    live = Live(["user"], lambda: [counters], 1.0)
    live.show(result(0.9, 1, 1, 1))
    live.show(result(1.0, 1_000_000, 100_000, 100_000))
    live.show(result(1.5, 1_500_000, 200_000, 200_000))
    counters["tx_ring_full"] = 7
    live.show(result(2.0, 3_000_000, 200_000, 400_000))
    # Held up: the next one is an interval later, not at once.
    live.show(result(9.0, 3_000_000, 200_000, 400_000))
    live.show(result(9.1, 9_000_000, 200_000, 400_000))
    heading, *rows = capsys.readouterr().out.splitlines()
    assert heading.split()[0] == "time"
    assert [row.split() for row in rows] == [
        ["1.0", "s", "1.000", "0.512", "10.0", "50", "%", "0"],
        ["2.0", "s", "2.000", "1.024", "20.0", "25", "%", "7:", "7", "ring", "full"],
        ["9.0", "s", "0.000", "0.000", "-", "0", "%", "7:", "7", "ring", "full"],
    ]
