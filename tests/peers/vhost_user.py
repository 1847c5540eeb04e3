"""Messages between a vhost-user frontend and a backend (QEMU: ``vhost-user.rst``)."""

from __future__ import annotations

import array
import enum
import socket
import struct
from dataclasses import dataclass

HEADER = struct.Struct("=III")
U64 = struct.Struct("=Q")
STATE = struct.Struct("=II")
_VERSION, _REPLY, _NEED_REPLY = 1, 1 << 2, 1 << 3

#: Feature bits.
MRG_RXBUF, PROTOCOL_FEATURES, VERSION_1, RING_PACKED = 1 << 15, 1 << 30, 1 << 32, 1 << 34
MQ = 1 << 22
EVENT_IDX, INDIRECT_DESC = 1 << 29, 1 << 28
#: CSUM, GUEST_CSUM, GUEST_TSO4, GUEST_TSO6, GUEST_ECN, HOST_TSO4, HOST_TSO6 and HOST_ECN.
OFFLOADS = 1 << 0 | 1 << 1 | 1 << 7 | 1 << 8 | 1 << 9 | 1 << 11 | 1 << 12 | 1 << 13
#: Protocol feature bits.
PROTOCOL_MQ, PROTOCOL_REPLY_ACK = 1 << 0, 1 << 3


class Request(enum.IntEnum):
    """The messages of a frontend that have a meaning here."""

    GET_FEATURES = 1
    SET_FEATURES = 2
    SET_OWNER = 3
    SET_MEM_TABLE = 5
    SET_VRING_NUM = 8
    SET_VRING_ADDR = 9
    SET_VRING_BASE = 10
    GET_VRING_BASE = 11
    SET_VRING_KICK = 12
    SET_VRING_CALL = 13
    SET_VRING_ERR = 14
    GET_PROTOCOL_FEATURES = 15
    SET_PROTOCOL_FEATURES = 16
    GET_QUEUE_NUM = 17
    SET_VRING_ENABLE = 18


@dataclass(frozen=True, slots=True)
class Message:
    """One message; its descriptors are closed once it is handled."""

    request: int
    flags: int
    payload: bytes
    fds: tuple[int, ...] = ()

    @property
    def wants_ack(self) -> bool:
        """Whether it asks for an answer where there usually is none."""
        return bool(self.flags & _NEED_REPLY)

    @property
    def number(self) -> int:
        """The payload as one number."""
        return int(U64.unpack_from(self.payload)[0])

    @property
    def state(self) -> tuple[int, int]:
        """The payload as a ring and a number."""
        ring, number = STATE.unpack_from(self.payload)
        return ring, number

    def reply(self, payload: bytes) -> bytes:
        """Return the bytes of a reply to it."""
        return HEADER.pack(self.request, _VERSION | _REPLY, len(payload)) + payload

    def pack(self, payload: bytes) -> bytes:
        """Return its bytes with another payload."""
        return HEADER.pack(self.request, self.flags, len(payload)) + payload


def receive(connection: socket.socket) -> Message | None:
    """Read one message; None at the end. Descriptors come with the header."""
    fds = array.array("i")
    room = socket.CMSG_SPACE(32 * fds.itemsize)
    header = b""
    while len(header) < HEADER.size:
        data, controls, _flags, _address = connection.recvmsg(HEADER.size - len(header), room)
        for _level, _kind, control in controls:
            fds.frombytes(control[: len(control) - len(control) % fds.itemsize])
        if not data:
            return None
        header += data
    request, flags, size = HEADER.unpack(header)
    payload = b""
    while len(payload) < size:
        data = connection.recv(size - len(payload))
        if not data:
            return None
        payload += data
    return Message(request, flags, payload, tuple(fds))
