"""The schedule of faults, and whether everything recovers."""

import random
import statistics
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from .flow import Flow
from .ledger import balance_sheet
from .stage import Machine, Stage

#: How often each is done.
WEIGHTS = {"kill QEMU": 5, "kill backend": 2, "detach": 2, "guest": 3, "flip": 3}
#: Seconds between two lines that say how far it is.
PROGRESS = 10.0
#: The acts that count as a kill.
KILLS = ("kill QEMU", "kill backend")


@dataclass
class Outcome:
    """What happened."""

    done: Counter[str] = field(default_factory=Counter)
    #: Seconds from each act to traffic again, on all ports that it met.
    recovery: dict[str, list[float]] = field(default_factory=dict)
    #: Kilobytes of ordinary memory, whenever all was up and quiet.
    resident: list[int] = field(default_factory=list)
    balanced: bool = False
    failure: str | None = None

    @property
    def kills(self) -> int:
        """QEMUs and backends that were killed."""
        return sum(self.done[name] for name in KILLS)


class Conductor:
    """Does what the seed says."""

    def __init__(self, stage: Stage, seed: int, say: Callable[[str], object]) -> None:
        self._stage = stage
        self._random = random.Random(seed)
        self._say = say
        self.outcome = Outcome()
        #: Set by whoever wants it to end after the act that it is at.
        self.stop = False

    def run(self, seconds: float) -> Outcome:
        """Run for ``seconds``; the outcome says whether all went well."""
        outcome = self.outcome
        try:
            self._warm_up()
            began = told = time.monotonic()
            while (now := time.monotonic()) < began + seconds and not self.stop:
                time.sleep(self._random.uniform(0.02, 0.3))
                self._act()
                outcome.resident.append(resident_kb())
                if now - told >= PROGRESS:
                    told = now
                    self._tell(now - began)
            for flow in self._stage.flows.values():
                flow.settle()
        except Exception as error:
            outcome.failure = f"{type(error).__name__}: {error}"
        ledgers = {name: flow.ledger for name, flow in self._stage.flows.items()}
        for ledger in ledgers.values():
            # Frames that are still in flight have had enough time.
            if not outcome.failure and ledger.on_the_way:
                outcome.failure = f"{len(ledger.on_the_way)} frames never came"
        outcome.balanced = balance_sheet(ledgers, self._say) and outcome.failure is None
        return outcome

    def _tell(self, seconds: float) -> None:
        ledgers = [flow.ledger for flow in self._stage.flows.values()]
        self._say(
            f"{seconds:4.0f} s: {self.outcome.kills} kills survived, "
            f"{sum(self.outcome.done.values())} acts, "
            f"{sum(ledger.received for ledger in ledgers)} frames came back, "
            f"{sum(sum(ledger.lost.values()) for ledger in ledgers)} lost and accounted for"
        )

    def _warm_up(self) -> None:
        for machine in self._stage.machines:
            for seat in machine.taken:
                seat.flow.wait_for_traffic()

    def _act(self) -> None:
        act = self._random.choices(list(WEIGHTS), list(WEIGHTS.values()))[0]
        machine = self._random.choice(self._stage.machines)
        began = time.monotonic()
        met = self._do(act, machine)
        for flow in met:
            flow.wait_for_traffic()
        took = time.monotonic() - began
        self._stage.backend.drain()
        for flow in self._stage.flows.values():
            flow.check()
        self.outcome.done[act] += 1
        self.outcome.recovery.setdefault(act, []).append(took)

    def _do(self, act: str, machine: Machine) -> list[Flow]:
        """Carry out an act; return the flows whose traffic must continue."""
        if act == "kill QEMU":
            machine.kill()
            return [seat.flow for seat in machine.taken]
        if act == "kill backend":
            self._stage.kill_backend()
            return [seat.flow for seat in self._stage.backend_seats()]
        seat = self._random.choice(sorted(machine.taken, key=lambda seat: seat.name))
        if act == "flip":
            machine.flip(seat)
            return [seat.flow]
        if act == "detach":
            machine.detach(seat)
            machine.attach(seat)
            return [seat.flow]
        if machine.guest in machine.taken:
            machine.detach(machine.guest)
            return [other.flow for other in machine.taken]
        machine.attach(machine.guest)
        return [seat.flow for seat in machine.taken]


def resident_kb() -> int:
    """Return this process's ordinary memory."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1])
    return 0


def growth_kb(resident: list[int]) -> int:
    """Return by how much memory grew from the first to the last quarter of a run."""
    quarter = max(1, len(resident) // 4)
    if len(resident) < 8:
        return 0
    first = resident[quarter // 2 :][:quarter]  # the very first acts fill caches
    return round(statistics.median(resident[-quarter:]) - statistics.median(first))
