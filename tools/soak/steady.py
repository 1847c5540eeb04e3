"""Echo without faults: nothing may grow.

In turns, numbered and checksummed frames go round through

- ``recv`` and ``send``, with DPDK's testpmd behind split and packed rings, and with slirp;
- :mod:`virtnic.aio`, on two ports at once;
- ``reflect``, where the frames come from the kernel's side of a TAP device;
- ``exchange``, with testpmd.

After each round all is quiet, and what is held is counted: our memory, objects, descriptors,
threads and packet buffers, and QEMU's.
"""

import asyncio
import contextlib
import os
import threading
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Self

from typing_extensions import Buffer

import virtnic
import virtnic.aio
from peers.netns import Netns
from peers.testpmd import Testpmd

from .ledger import Unbalanced
from .samples import Samples, objects, process
from .wire import Echo, Ping

#: Frames on the way at once.
WINDOW = 32
#: Seconds that they may take to come back.
TIMEOUT = 60.0
#: Rounds that are enough to tell growth from a step.
_LEAST = 100
#: Frames of `exchange` are of another life, for some of them come when it is over.
EXCHANGED = 2
PACKET_OUTGOING = 4
#: What can be leaked on purpose.
LEAKS = ("object", "memory", "descriptor", "buffer")


class Round:
    """The frames of one port, a window at a time: all of it comes back, once and unharmed."""

    def __init__(self, name: str, number: int, kind: type[Echo | Ping]) -> None:
        self.name = name
        self.mac = f"52:54:00:51:00:{number:02x}"
        self.wire = kind(number, self.mac)
        self.echoed = 0
        #: Seconds that a window took at most.
        self.slowest = 0.0
        self._began = 0.0
        self._missing: set[int] = set()

    def batch(self) -> list[bytes]:
        """Make the next frames."""
        assert not self._missing
        self._began = time.monotonic()
        numbers = range(self.echoed, self.echoed + WINDOW)
        self._missing.update(numbers)
        return [self.wire.frame(1, number) for number in numbers]

    def check(self, frames: Iterable[Buffer]) -> None:
        """Check the received frames. Raises Unbalanced, Damaged."""
        for frame in frames:
            found = self.wire.parse(bytes(frame))
            if found is None or found[0] == EXCHANGED:
                continue
            life, number = found
            if life != 1 or number not in self._missing:
                raise Unbalanced(f"{self.name}: frame {number} of life {life} came twice")
            self._missing.remove(number)
            self.echoed += 1
            if not self._missing:
                self.slowest = max(self.slowest, time.monotonic() - self._began)

    @property
    def done(self) -> bool:
        """Whether all is back."""
        return not self._missing

    def missed(self) -> Unbalanced:
        """Raise an error about missing frames."""
        return Unbalanced(f"{self.name}: {len(self._missing)} of {WINDOW} frames never came")


class Steady:
    """Four ports of one QEMU, and what is done with them."""

    def __init__(self, directory: Path, leak: Iterable[str] = ()) -> None:
        self._leak = tuple(leak)
        self._held: list[Any] = []
        self._exchanged = 0
        names = ("vhost-user split", "vhost-user packed", "slirp", "tap")
        self.rounds = {
            name: Round(name, number, Ping if name == "slirp" else Echo)
            for number, name in enumerate(names)
        }
        with contextlib.ExitStack() as stack:
            paths = [directory / f"steady{number}" for number in range(2)]
            loop = ("--port-topology=loop", "--no-flush-rx")
            stack.enter_context(Testpmd(paths, extra=loop))
            netns = stack.enter_context(Netns())
            self.memory = virtnic.Memory("64M")
            self.qemu = stack.enter_context(virtnic.Qemu(self.memory, qemu=netns.qemu_command))
            netdevs: tuple[tuple[str, Any], ...] = (
                (f"vhost-user,path={paths[0]},wait=20", "split"),
                (f"vhost-user,path={paths[1]},wait=20", "packed"),
                ("user", "split"),
                (netns.netdev, "split"),
            )
            self.ports = {
                name: self.qemu.attach(netdev, mac=round_.mac, ring=ring)
                for (name, round_), (netdev, ring) in zip(self.rounds.items(), netdevs, strict=True)
            }
            self._tap = stack.enter_context(netns.packet_socket(timeout=TIMEOUT))
            self._loop = asyncio.new_event_loop()
            stack.callback(self._loop.close)
            self.ports["slirp"].send(self.rounds["slirp"].wire.first())
            self._stack = stack.pop_all()

    def __enter__(self) -> Self:
        """Return itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """End everything."""
        self._held.clear()
        self._stack.close()
        self.ports.clear()

    def run(self, seconds: float, turn: float) -> Samples:
        """Go on for so long, with ``turn`` seconds for each; return what was held when.

        A busy machine gets more time: a step at the start is no growth in a long enough series.
        """
        samples = Samples()
        end = time.monotonic() + seconds
        while time.monotonic() < end or len(samples) < _LEAST:
            for name in ("vhost-user split", "vhost-user packed", "slirp"):
                self._by_calls(name, turn)
            # Not asyncio.Runner: it looks a signal handler up in an enumeration, and the words
            # of why it is not there stay in CPython's cache of attributes for long.
            self._loop.run_until_complete(self._by_tasks(("vhost-user packed", "slirp"), turn))
            self._by_reflecting("tap", turn)
            self._by_exchanging("vhost-user split", turn)
            self._lose()
            samples.add("our", objects())
            samples.add("our", process())
            samples.add("our", self._buffers())
            samples.add("QEMU's", process(self.qemu.pid))
        return samples

    def tally(self) -> dict[str, int]:
        """Return how many frames came back, by port, and how many after `exchange`."""
        counts = {name: round_.echoed for name, round_ in self.rounds.items()}
        return {**counts, "exchange": self._exchanged}

    def slowest(self) -> float:
        """Return how many seconds a window of frames took at most."""
        return max(round_.slowest for round_ in self.rounds.values())

    def _buffers(self) -> dict[str, int]:
        memory = self.memory
        # What is with devices or in bursts: transmit rings still hold what they sent.
        for port in self.ports.values():
            port.reclaim()
        return {
            "packet buffers": memory.buffers - memory.buffers_free,
            "jumbo buffers": memory.jumbo_buffers - memory.jumbo_buffers_free,
        }

    def _by_calls(self, name: str, turn: float) -> None:
        port, round_ = self.ports[name], self.rounds[name]
        end = time.monotonic() + turn
        while time.monotonic() < end:
            frames = round_.batch()
            if port.send(frames) != len(frames):
                raise Unbalanced(f"{name}: no room for {len(frames)} frames")
            deadline = time.monotonic() + TIMEOUT
            while not round_.done:
                burst = port.recv(64, timeout=1.0)
                round_.check(burst.tobytes())
                burst.release()
                if not round_.done and time.monotonic() > deadline:
                    raise round_.missed()

    async def _by_tasks(self, names: Iterable[str], turn: float) -> None:
        async def echo(port: virtnic.aio.Port, round_: Round) -> None:
            end = time.monotonic() + turn
            while time.monotonic() < end:
                try:
                    async with asyncio.timeout(TIMEOUT):
                        await port.send_all(round_.batch())
                        while not round_.done:
                            burst = await port.recv()
                            round_.check(burst)
                            burst.release()
                except TimeoutError:
                    raise round_.missed() from None

        async with asyncio.TaskGroup() as group:
            for name in names:
                port = virtnic.aio.Port(self.ports[name])
                group.create_task(echo(port, self.rounds[name]))

    def _by_reflecting(self, name: str, turn: float) -> None:
        """The engine sends back what the kernel's side sends: it is the peer that checks."""
        round_, over = self.rounds[name], threading.Event()
        errors: list[BaseException] = []

        def kernel() -> None:
            end = time.monotonic() + turn
            try:
                while time.monotonic() < end:
                    for frame in round_.batch():
                        self._tap.send(frame)
                    while not round_.done:
                        frame, sender = self._tap.recvfrom(4096)
                        if sender[2] != PACKET_OUTGOING:
                            round_.check([frame])
            except TimeoutError:
                errors.append(round_.missed())
            except BaseException as error:
                errors.append(error)
            finally:
                over.set()

        thread = threading.Thread(target=kernel, name="soak-kernel")
        thread.start()
        try:
            port = self.ports[name]
            virtnic.reflect(port, progress=lambda _: not over.is_set())
        finally:
            thread.join()
        for error in errors:
            raise error

    def _by_exchanging(self, name: str, turn: float) -> None:
        port, round_ = self.ports[name], self.rounds[name]
        frames = [round_.wire.frame(EXCHANGED, number) for number in range(WINDOW)]
        result = virtnic.exchange(port, frames=frames, seconds=turn)
        came = result.received
        # Until nothing is on the way. Those for which testpmd finds no room are lost.
        deadline = time.monotonic() + TIMEOUT
        while (burst := port.recv(64, timeout=0.02)) or self._on_the_way(port):
            came += len(burst)
            round_.check(burst.tobytes())
            burst.release()
            if time.monotonic() > deadline:
                raise Unbalanced(f"{name}: frames are still on the way after {TIMEOUT:g} s")
        if not came:
            raise Unbalanced(f"{name}: nothing came back of {result.sent} exchanged frames")
        self._exchanged += came

    def _on_the_way(self, port: virtnic.Port) -> bool:
        port.reclaim()
        stats = port.stats()
        return stats["tx_completed"] != stats["tx_packets"]

    def _lose(self) -> None:
        """Leak on purpose: the check must detect it."""
        port, round_ = self.ports["vhost-user split"], self.rounds["vhost-user split"]
        leaks: dict[str, Callable[[], object]] = {
            "object": object,
            "memory": lambda: bytearray(os.urandom(256 << 10)),
            "descriptor": lambda: os.dup(0),
            "buffer": lambda: (
                port.send([round_.wire.frame(EXCHANGED, 0)]),
                port.recv(1, timeout=TIMEOUT),
            ),
        }
        for name in self._leak:
            self._held.append(leaks[name]())
