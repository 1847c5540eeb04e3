"""Accounting of one port: frames sent, received, and lost by cause."""

from collections import Counter
from collections.abc import Callable


class Unbalanced(AssertionError):
    """An impossible frame arrived, or an expected one did not."""


class Ledger:
    """Sent = received + each kind of counted loss + on the way.

    A port may be opened again and again: each is a *life*. Within a life frames enter the
    ring in the order of their numbers, so the device's count of completed frames tells which
    of them it has taken.
    """

    def __init__(self) -> None:
        self.life = 0
        self.sent = 0
        self.received = 0
        self.lost: Counter[str] = Counter()
        #: Number of each frame on the way: its place in the order of this life's ring.
        self.on_the_way: dict[int, int] = {}
        #: Frames of this life that entered the ring, numbered ones and others.
        self.entered = 0
        #: Frames of this life that came, likewise.
        self.came = 0

    def begin(self) -> None:
        """Start a life."""
        assert not self.on_the_way
        self.life += 1
        self.entered = self.came = 0

    def send(self, number: int) -> None:
        """Note that a numbered frame has entered the ring."""
        self.entered += 1
        self.sent += 1
        self.on_the_way[number] = self.entered

    def receive(self, life: int, number: int) -> None:
        """Note that a numbered frame came back. Raises Unbalanced."""
        if life != self.life:
            raise Unbalanced(f"frame {number} of life {life} came in life {self.life}")
        if self.on_the_way.pop(number, None) is None:
            raise Unbalanced(f"frame {number} came twice, or after it was lost")
        self.received += 1

    def lose(self, kind: str, taken: int | None = None) -> int:
        """Write off frames in flight: all, or those among the first ``taken``."""
        gone = [n for n, place in self.on_the_way.items() if taken is None or place <= taken]
        for number in gone:
            del self.on_the_way[number]
        self.lost[kind] += len(gone)
        return len(gone)

    def check(self, stats: dict[str, int]) -> None:
        """Compare with the port's own counters of this life. Raises Unbalanced."""
        for ours, name in ((self.entered, "tx_packets"), (self.came, "rx_packets")):
            if stats[name] != ours:
                raise Unbalanced(f"the port counts {stats[name]} {name}, and we {ours}")

    def totals(self) -> dict[str, object]:
        """Return the accounts."""
        names = ("sent", "received", "lost", "unexplained")
        return {name: getattr(self, name) for name in names} | {"lives": self.life}

    @property
    def unexplained(self) -> int:
        """The number of frames that are unaccounted for."""
        return self.sent - self.received - sum(self.lost.values())


def balance_sheet(ledgers: dict[str, Ledger], say: Callable[[str], object]) -> bool:
    """Print the accounts; return whether they balance."""
    kinds = sorted({kind for ledger in ledgers.values() for kind in ledger.lost})
    names = ["sent", "received", *kinds, "unexplained", "lives"]
    width = max(map(len, ledgers), default=0)
    say(" " * width + "".join(f"{name:>{len(name) + 3}}" for name in names))
    total = [0] * len(names)
    for flow, ledger in ledgers.items():
        row = [ledger.sent, ledger.received, *(ledger.lost[kind] for kind in kinds)]
        row += [ledger.unexplained, ledger.life]
        total = [a + b for a, b in zip(total, row, strict=True)]
        say(f"{flow:<{width}}" + _row(names, row))
    say(f"{'all':<{width}}" + _row(names, total))
    return all(ledger.unexplained == 0 for ledger in ledgers.values())


def _row(names: list[str], row: list[int]) -> str:
    return "".join(f"{value:>{len(name) + 3}}" for name, value in zip(names, row, strict=True))
