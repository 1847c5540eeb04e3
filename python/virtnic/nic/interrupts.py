"""How a device's interrupts reach us: the eventfds of a port, and what signals them."""

from __future__ import annotations

import contextlib
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from virtnic._native import EventFd, QemuError
from virtnic.pci import MsixTable, doorbell_message
from virtnic.teardown import uninterrupted

if TYPE_CHECKING:
    from collections.abc import Iterable

    from virtnic._native import IvshmemServer, QTest
    from virtnic.nic.attachment import Attachment
    from virtnic.nic.backend import Backend
    from virtnic.pci import Function, PciBus

__all__ = ["InterruptRouting", "Wires", "vectors_of"]

#: The MSI-X vector that means none (VIRTIO 1.3, section 4.1.5.1.2).
_NO_VECTOR = 0xFFFF


@dataclass(frozen=True, slots=True)
class Wires:
    """How a device's interrupts reach us: the arguments of a port."""

    vectors: tuple[list[tuple[int, int]], int] | None = None
    events: tuple[list[tuple[EventFd, EventFd]], EventFd] | None = None
    intx: EventFd | None = None


class InterruptRouting:
    """The interrupts of one QEMU's devices."""

    def __init__(
        self,
        bus: PciBus,
        qtest: QTest,
        ivshmem: Function,
        server: IvshmemServer | None,
        timeout: float,
    ) -> None:
        """``ivshmem`` is the device whose doorbell signals our eventfds, those of ``server``."""
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
        """Lead the device's interrupts to eventfds. A backend of ours signals its own."""
        backend = attachment.backend
        if attachment.interrupts == "none":
            return Wires()
        if attachment.interrupts == "intx":
            own = [EventFd() for _ in range(2 + (2 * pairs if backend is None else 0))]
            attachment.undo.add(lambda: _close_all(own))
            attachment.line, config, *rest = own
            self.lead(attachment, function)
            several = _in_pairs(rest) if backend is None else backend.events
            return Wires(events=(several, config), intx=attachment.line)
        assert self._server is not None
        server = self._server
        wanted = vectors_of(pairs, backend)
        events: list[EventFd] = []
        attachment.undo.add(lambda: _give_vectors(server, attachment.vectors))
        uninterrupted(lambda: _take_vectors(server, wanted, attachment, events))
        self._prove(attachment, events)
        self.lead(attachment, function)
        config = events.pop()
        if backend is not None:
            return Wires(([(_NO_VECTOR, _NO_VECTOR)] * pairs, 0), (backend.events, config))
        signalled = _in_pairs(events)
        numbers = [(2 * pair, 2 * pair + 1) for pair in range(pairs)]
        return Wires((numbers, 2 * pairs), (signalled, config))

    def _prove(self, attachment: Attachment, events: list[EventFd]) -> None:
        """Ring new vectors until QEMU has them: it is told, and does not say when it has heard."""
        assert self._server is not None
        deadline = time.monotonic() + self._timeout
        taken = zip(attachment.vectors, attachment.messages, events, strict=True)
        silent = [entry for entry in taken if entry[0] not in self._proven]
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
                raise QemuError(
                    f"QEMU has not taken {len(silent)} of our interrupt eventfds within "
                    f"{self._timeout:g} s: it has its descriptors open, perhaps; raise its limit "
                    "(RLIMIT_NOFILE, ulimit -n), or give it fewer ports or queues"
                )

    def lead(self, attachment: Attachment, function: Function) -> None:
        """Have the device raise the interrupts that the port has eventfds for."""
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


def vectors_of(pairs: int, backend: Backend | None) -> int:
    """Return how many vectors a port takes.

    Receive and transmit for each pair, and configuration; the control queue has none. A
    vhost-user backend signals eventfds of its own.
    """
    return 2 * pairs + 1 if backend is None else 1


def _in_pairs(events: list[EventFd]) -> list[tuple[EventFd, EventFd]]:
    return list(zip(events[::2], events[1::2], strict=True))


def _close_all(events: Iterable[EventFd]) -> None:
    """Give back the descriptors of a port that is over, whoever keeps it."""
    for event in events:
        event.close()


def _take_vectors(
    server: IvshmemServer, wanted: int, attachment: Attachment, events: list[EventFd]
) -> None:
    for _ in range(wanted):
        vector, value, event = server.take_vector()
        attachment.vectors.append(vector)
        attachment.messages.append(value)
        events.append(event)


def _give_vectors(server: IvshmemServer, vectors: list[int]) -> None:
    for vector in vectors.copy():
        if vector in vectors:  # a signal handler may be here, too
            server.give_vector(vector)
        with contextlib.suppress(ValueError):
            vectors.remove(vector)
