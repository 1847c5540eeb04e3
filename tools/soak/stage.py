"""The objects that are killed and restarted: QEMUs, a vhost-user backend, ports, links."""

import contextlib
import functools
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import virtnic
from peers.testpmd import Testpmd, TestpmdError
from virtnic.nic.port import attachment_of, host_of

from . import rings
from .flow import Flow
from .ledger import Unbalanced
from .wire import Echo, Ping

#: Each port of testpmd sends back what it gets; what came before it started is not thrown away.
_LOOP = ("--port-topology=loop", "--no-flush-rx")


class Seat:
    """A place for a port: the netdev, and the traffic over it."""

    def __init__(self, name: str, number: int, netdev: str, ring: str) -> None:
        self.name = name
        self.netdev = netdev
        self.ring: Any = ring
        self.mac = f"52:54:00:50:00:{number:02x}"
        self.has_backend = netdev.startswith("vhost-user")
        self.flow = Flow(name, (Echo if self.has_backend else Ping)(number, self.mac))


class Machine:
    """A QEMU and its ports; the QEMU is another one after each kill."""

    def __init__(self, stage: "Stage", name: str, seats: list[Seat]) -> None:
        self.stage = stage
        self.name = name
        self.seats = seats
        #: The seats whose port is plugged in.
        self.taken: set[Seat] = set()
        self.qemu = self._start()
        #: The last of them is a guest: it comes and goes.
        self.guest = seats[-1]
        for seat in seats[:-1]:
            self.attach(seat)

    def _start(self) -> virtnic.Qemu:
        return virtnic.Qemu(self.stage.memory)

    def attach(self, seat: Seat) -> None:
        """Plug a port in and let its traffic go on."""
        port: Any = self.qemu.attach(seat.netdev, mac=seat.mac, ring=seat.ring)
        self.taken.add(seat)
        seat.flow.begin(self.stage.wrap(port))

    def detach(self, seat: Seat) -> None:
        """Detach a port under traffic."""
        self.qemu.detach(seat.flow.port.port if self.stage.wrapped else seat.flow.port)
        seat.flow.wait_for_end()
        self.taken.discard(seat)

    def kill(self) -> None:
        """Kill QEMU, and start another with the same ports."""
        os.kill(self.qemu.pid, signal.SIGKILL)
        for seat in self.taken:
            seat.flow.wait_for_end()
        self.qemu.close()
        self.qemu = self._start()
        for seat in sorted(self.taken, key=self.seats.index):
            self.attach(seat)

    def flip(self, seat: Seat) -> None:
        """Take the link down, send, and bring it up again, in the flow's own thread."""
        flow = seat.flow
        handle = next(h for h in host_of(self.qemu).machine.nics if h.id == _handle(flow.port))
        kind = "link down"

        def flip() -> None:
            self.qemu.execute("set_link", name=handle.id, up=False)
            flow.write_off(kind)
            came = flow.ledger.came
            flow.send(32)
            # slirp's device drops them; a backend is stopped, and they stay in the ring.
            deadline = time.monotonic() + 5.0
            while not seat.has_backend:
                flow.port.reclaim()
                if flow.port.stats()["tx_completed"] == flow.ledger.entered:
                    break
                if time.monotonic() > deadline:
                    raise Unbalanced(f"{seat.name}: frames wait in front of a link that is down")
            flow.write_off(kind)
            if flow.ledger.came != came:
                raise Unbalanced(f"{seat.name}: frames came through a link that is down")
            self.qemu.execute("set_link", name=handle.id, up=True)

        flow.do(flip)

    def close(self) -> None:
        """End QEMU and the traffic."""
        self.qemu.close()
        for seat in self.taken:
            if seat.flow.failure is None:
                seat.flow.wait_for_end()
        self.taken.clear()
        for seat in self.seats:
            seat.flow.stop()


def _text(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError as error:
        return str(error)


def _handle(port: Any) -> str:
    return str(attachment_of(port).handle.id)


class Stage:
    """Two QEMUs on one memory, a backend that serves both, and six ports."""

    def __init__(self, directory: Path, wrap: Callable[[Any], Any] | None = None) -> None:
        self.wrapped = wrap is not None
        self.wrap = wrap or (lambda port: port)
        self.memory = virtnic.Memory("64M")
        self._paths = [directory / f"soak{number}" for number in range(2)]
        self.backend = self._start_backend()
        self.machines: list[Machine] = []
        try:
            for index, (name, ring) in enumerate((("a", "packed"), ("b", "split"))):
                vhost = f"vhost-user,path={self._paths[index]},wait=20"
                seats = [
                    Seat(f"{name}/{kind}", 3 * index + number, netdev, rings)
                    for number, (kind, netdev, rings) in enumerate(
                        (
                            (f"vhost-{ring}", vhost, ring),
                            ("user", "user", "split"),
                            ("guest", "user", "split"),
                        )
                    )
                ]
                self.machines.append(Machine(self, name, seats))
        except BaseException:
            self.close()
            raise

    def _start_backend(self) -> Testpmd:
        return Testpmd(self._paths, extra=_LOOP)

    @property
    def flows(self) -> dict[str, Flow]:
        """The traffic of all seats, by name."""
        return {seat.name: seat.flow for machine in self.machines for seat in machine.seats}

    def backend_seats(self) -> list[Seat]:
        """The seats whose port has the backend behind it."""
        return [seat for m in self.machines for seat in m.taken if seat.has_backend]

    def kill_backend(self) -> None:
        """Kill testpmd, see what it had taken, and start another."""
        self.backend.kill()
        for machine in self.machines:
            for seat in machine.taken:
                if seat.has_backend:
                    # QEMU takes the rings over when it learns of the loss, and drops what waits
                    # in the transmit ring; what is sent after that is for the next backend.
                    seat.flow.wait_for_link(up=False)
                    for _ in range(3):
                        machine.qemu.execute("query-status")
                    seat.flow.do(functools.partial(seat.flow.write_off, "backend killed"))
        self.backend = self._start_backend()

    def describe(self) -> list[str]:
        """Describe the state, to find the cause of a failure."""
        tasks = Path(f"/proc/{self.backend.pid}/task").iterdir()
        waits = {
            f"{_text(t / 'comm')}: {_text(t / 'wchan')}, {_text(t / 'syscall')}" for t in tasks
        }
        found = [f"backend's thread {wait}" for wait in sorted(waits)]
        self.backend.drain()
        found += [f"backend: {line}" for line in self.backend.output.splitlines()[-60:]]
        for command in ("show port stats all", "show fwd stats all"):
            try:
                said = self.backend.command(command)
            except TestpmdError as error:
                said = f"{command}: {error}"
            found += [f"backend: {line}" for line in said.splitlines() if line.strip()]
        for machine in self.machines:
            for seat in machine.seats:
                port = seat.flow.port
                if port is None:
                    found.append(f"{seat.name}: no port")
                    continue
                backend = attachment_of(port).backend
                link = "up" if port.link else "down"
                found.append(f"{seat.name}: link {link}, {port.stats()}")
                if backend is not None:
                    interposer = backend.interposer
                    found.append(
                        f"{seat.name}: connected {interposer.connected}, serving "
                        f"{interposer.serving}, refused {interposer.refusal}, "
                        f"{interposer.stats()}"
                    )
                found += [f"{seat.name}: {line}" for line in rings.describe(port)]
        return found

    def close(self) -> None:
        """End everything."""
        with contextlib.ExitStack() as stack:
            stack.callback(self.backend.kill)
            for machine in self.machines:
                stack.callback(machine.close)
