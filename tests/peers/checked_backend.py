"""A vhost-user backend that passes all clauses of ``virtnic.check``, or breaks one on purpose."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Self

from peers.ring_backend import Buffer, RingBackend
from peers.vhost_user import (
    INDIRECT_DESC,
    MQ,
    MRG_RXBUF,
    OFFLOADS,
    PROTOCOL_FEATURES,
    U64,
    VERSION_1,
    Message,
    Request,
)

if TYPE_CHECKING:
    from pathlib import Path

    from peers.vhost_backend import Connection

OFFERED = PROTOCOL_FEATURES | VERSION_1 | MRG_RXBUF | MQ | INDIRECT_DESC | OFFLOADS


class CheckedBackend(RingBackend):
    """Accepts every frame. ``broken`` is the id of the clause that it breaks."""

    def __init__(self, path: Path, broken: str = "") -> None:
        self.broken = broken
        self._asked = self._taken = 0
        self._over = threading.Event()
        super().__init__(path)
        self.features, self.pairs, self.hook = OFFERED, 4, self._answer
        match broken:
            case "FEAT-02":
                self.features &= ~VERSION_1
            case "FEAT-03":
                self.features = PROTOCOL_FEATURES | VERSION_1 | 1 << 11
            case "MSG-03":
                self.pairs = 0
        self._pump = threading.Thread(target=self._take_all)
        self._pump.start()

    def close(self) -> None:
        """Close it. A second call does nothing."""
        self._over.set()
        self._pump.join()
        super().close()

    def __enter__(self) -> Self:
        return self

    # Messages.

    def _answer(self, connection: Connection, message: Message) -> bool:
        """Handle what is to be refused or broken."""
        request, size = message.request, len(message.payload)
        self._asked += request == Request.GET_FEATURES
        code: int | None = None
        match self.broken, request:
            case "FEAT-01", Request.GET_FEATURES if self._asked % 2:
                connection.send(message.reply(U64.pack(self.features ^ MRG_RXBUF)))
                return True
            case "FEAT-04", Request.GET_PROTOCOL_FEATURES:
                connection.send(
                    message.reply(U64.pack(self.protocol | len(connection.messages) << 40))
                )
                return True
            case "FEAT-05", Request.SET_FEATURES:
                code = bool(message.number & INDIRECT_DESC)
            case "FEAT-06", Request.SET_FEATURES:
                code = message.number.bit_count() > 6
            case "FEAT-07", Request.SET_FEATURES:
                code = 0
            case "MSG-01", Request.SET_VRING_ADDR:
                code = 1
            case "MSG-02", Request.SET_OWNER:
                connection.send(message.reply(U64.pack(0)))
                return True
            case "MSG-05", Request.SET_MEM_TABLE:
                code = message.payload[0] > 1
            case "MSG-06", Request.SET_FEATURES if size < 8:
                self.path.unlink()
                connection.close()
                return True
            case "MSG-07", Request.GET_FEATURES if self._was_left:
                connection.send(message.reply(U64.pack(self.features ^ MRG_RXBUF)))
                return True
        if request == Request.SET_FEATURES and code is None:
            code = size != 8 or bool(message.number & ~self.features)
        if code:
            if message.wants_ack:
                connection.send(message.reply(U64.pack(int(code))))
            return True
        return False

    @property
    def _was_left(self) -> bool:
        """Return whether an earlier front-end disconnected while it set up a ring."""
        return any(
            message.request == Request.SET_VRING_NUM
            for connection in self.connections[:-1]
            for message in connection.messages
        )

    def base_of(self, ring: int) -> int:
        """Return the base of a ring that the front-end stops."""
        return super().base_of(ring) + (self.broken in ("MSG-04", "RING-06"))

    # Rings.

    def _take_all(self) -> None:
        while not self._over.wait(0.001):
            with self._changed:
                ring = self.rings.get(1)
                if ring is None or not ring.enabled or ring.kick is None:
                    continue
                try:
                    for buffer in list(self.available(1)):
                        self._finish(buffer)
                except LookupError:
                    continue  # it has just been taken away

    def _finish(self, buffer: Buffer) -> None:
        self._taken += 1
        ident, length = buffer.ident, 0
        match self.broken:
            case "RING-01":
                ident = 3
            case "RING-02":
                length = 1
            case "RING-03" if self._taken == 20:
                ident ^= 1
            case "RING-04":
                ident += len(buffer.parts) - 1
            case "RING-05":
                address, size = buffer.parts[-1]
                memory, at = self._at(address, user=False)
                memory[at + size : at + size + 1] = b"!"
        buffer.ident = ident
        self.finish(1, buffer, length)
