"""Interrupts of a device: the eventfds of a port, and what signals them."""

from __future__ import annotations

import contextlib
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from virtnic._native import EventFd, QemuError
from virtnic.pci import MsixTable, doorbell_message
from virtnic.qemu.loop import SharedWatch
from virtnic.teardown import uninterrupted

if TYPE_CHECKING:
    from collections.abc import Iterable

    from virtnic._native import IvshmemServer, QTest
    from virtnic.nic.attachment import Attachment
    from virtnic.nic.backend import Backend
    from virtnic.pci import Function, PciBus

__all__ = ["ConfigVector", "InterruptRouting", "Wires", "vectors_of"]

#: The MSI-X vector that means none (VIRTIO 1.3, section 4.1.5.1.2).
_NO_VECTOR = 0xFFFF


@dataclass(frozen=True, slots=True)
class Wires:
    """Interrupts of a device, as arguments of a driver."""

    vectors: tuple[list[tuple[int, int]], int] | None = None
    events: tuple[list[tuple[EventFd, EventFd]], EventFd] | None = None
    intx: EventFd | None = None
    #: Signalled for configuration changes: the second of ``events``.
    config: SharedWatch | None = None


class ConfigVector:
    """The MSI-X vector of configuration changes, shared by all ports of one QEMU.

    Such changes are rare, so every port may check on each.
    """

    def __init__(self) -> None:
        self._taken: list[int] = []
        self._events: list[EventFd] = []
        self._server: IvshmemServer | None = None
        self.message = 0
        self.watch: SharedWatch | None = None

    @property
    def is_taken(self) -> bool:
        """Whether the vector exists."""
        return self.watch is not None

    def take(self, server: IvshmemServer) -> SharedWatch:
        """Create the vector if necessary; return its watch. Raises as taking a vector."""
        if self.watch is None:
            uninterrupted(lambda: self._take(server))
        assert self.watch is not None
        return self.watch

    def _take(self, server: IvshmemServer) -> None:
        messages: list[int] = []
        self._server = server
        _take_vectors(server, 1, self._taken, messages, self._events)
        (self.message,) = messages
        self.watch = SharedWatch(self._events[-1])

    @property
    def entries(self) -> list[tuple[int, int, EventFd]]:
        """The vector, the value that raises it, and its eventfd; or nothing."""
        taken = zip(self._taken, self._events, strict=False)
        return [(vector, self.message, event) for vector, event in taken]

    def give(self) -> None:
        """Give it back, when nobody needs it. Repeated calls are allowed."""
        self.watch = None
        self._events.clear()
        if self._server is not None:
            _give_vectors(self._server, self._taken)


class InterruptRouting:
    """The interrupts of one QEMU's devices."""

    def __init__(
        self,
        bus: PciBus,
        qtest: QTest,
        ivshmem: Function,
        server: IvshmemServer | None,
        timeout: float,
        config: ConfigVector,
    ) -> None:
        """``ivshmem`` is the device whose doorbell signals the eventfds of ``server``."""
        self._config = config
        self._timeout = timeout
        self._bus = bus
        self._qtest = qtest
        self._ivshmem = ivshmem
        self._server = server
        self._intercepted = False
        #: The vectors that QEMU is known to have.
        self._proven: set[int] = set()

    def connect(
        self,
        attachment: Attachment,
        function: Function,
        pairs: int,
    ) -> Wires:
        """Route the device's interrupts to eventfds. A backend signals its own."""
        backend = attachment.backend
        if attachment.interrupts == "none":
            return Wires()
        if attachment.interrupts == "intx":
            own = [EventFd() for _ in range(2 + (2 * pairs if backend is None else 0))]
            attachment.undo.add(lambda: _close_all(own))
            attachment.line, line_config, *rest = own
            self.lead(attachment, function)
            several = _in_pairs(rest) if backend is None else backend.events
            return Wires(
                events=(several, line_config),
                intx=attachment.line,
                config=SharedWatch(line_config),
            )
        assert self._server is not None
        server = self._server
        wanted = 2 * pairs if backend is None else 0
        messages = attachment.messages
        events: list[EventFd] = []
        attachment.undo.add(lambda: _give_vectors(server, attachment.vectors))
        uninterrupted(lambda: _take_vectors(server, wanted, attachment.vectors, messages, events))
        config = self._config.take(server)
        self._prove(zip(attachment.vectors, messages, events, strict=True))
        messages.append(self._config.message)
        self.lead(attachment, function)
        if backend is not None:
            pairs_of = backend.events
            vectors = [(_NO_VECTOR, _NO_VECTOR)] * pairs
        else:
            pairs_of = _in_pairs(events)
            vectors = [(2 * pair, 2 * pair + 1) for pair in range(pairs)]
        return Wires((vectors, wanted), (pairs_of, config.event), config=config)

    def _prove(self, taken: Iterable[tuple[int, int, EventFd]]) -> None:
        """Ring new vectors until QEMU signals them, because it does not acknowledge them."""
        assert self._server is not None
        deadline = time.monotonic() + self._timeout
        new = [entry for entry in self._config.entries if entry[0] not in self._proven]
        silent = [*(entry for entry in taken if entry[0] not in self._proven), *new]
        while silent:
            self._server.tell()
            for _, value, _ in silent:
                self._qtest.writel(*doorbell_message(self._ivshmem, value))
            self._qtest.flush()
            self._proven.update(vector for vector, _, event in silent if event.drain())
            silent = [entry for entry in silent if entry[0] not in self._proven]
            if silent and time.monotonic() > deadline:
                for vector, _, _ in silent:
                    self._server.lose_vector(vector)
                if new:
                    self._config.give()
                raise QemuError(
                    f"QEMU has not accepted {len(silent)} of our interrupt eventfds within "
                    f"{self._timeout:g} s: it may have run out of descriptors; raise its limit "
                    "(RLIMIT_NOFILE, ulimit -n), or give it fewer ports or queues"
                )
        for _, _, event in new:
            event.signal()  # another port's change may have been mistaken for it

    def lead(self, attachment: Attachment, function: Function) -> None:
        """Make the device raise the interrupts for which the port has eventfds."""
        if attachment.line is not None:
            number = self._bus.route_intx(function)
            if not self._intercepted:
                self._qtest.intercept("ioapic")
                self._intercepted = True
            self._qtest.on_irq(number, attachment.line)
        if attachment.messages:
            table = MsixTable(self._qtest, self._bus.config, function)
            wanted = len(attachment.messages)
            if table.size < wanted:
                raise QemuError(
                    f"the device has {table.size} MSI-X vectors, {wanted} are needed; "
                    f"give it vectors={wanted + 1}, or use interrupts='intx'"
                )
            for entry, value in enumerate(attachment.messages):
                table.set(entry, *doorbell_message(self._ivshmem, value))
            table.enable()


def vectors_of(pairs: int, backend: Backend | None, config: ConfigVector) -> int:
    """Return how many new vectors a port needs.

    Receive and transmit for each pair, and one for all configuration changes; the control queue has
    none. A vhost-user backend signals its own eventfds.
    """
    return (2 * pairs if backend is None else 0) + (not config.is_taken)


def _in_pairs(events: list[EventFd]) -> list[tuple[EventFd, EventFd]]:
    return list(zip(events[::2], events[1::2], strict=True))


def _close_all(events: Iterable[EventFd]) -> None:
    """Close the descriptors of a port that has ended, even if it is kept."""
    for event in events:
        event.close()


def _take_vectors(
    server: IvshmemServer,
    wanted: int,
    vectors: list[int],
    messages: list[int],
    events: list[EventFd],
) -> None:
    for _ in range(wanted):
        vector, value, event = server.take_vector()
        vectors.append(vector)
        messages.append(value)
        events.append(event)


def _give_vectors(server: IvshmemServer, vectors: list[int]) -> None:
    for vector in vectors.copy():
        if vector in vectors:  # a signal handler may have given it back
            server.give_vector(vector)
        with contextlib.suppress(ValueError):
            vectors.remove(vector)
