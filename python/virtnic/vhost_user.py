"""A vhost-user front-end message by message, for tests of backends.

>>> with Frontend("/run/vhu0") as frontend:
...     features = frontend.get_features()
...     frontend.set_owner()
...     frontend.set_features(features & ~(1 << 34))

It sends only what you ask for. For a port that sends and receives frames, use
``virtnic.open("vhost-user,path=…", frontend="direct")``. The messages are described in QEMU's
document "Vhost-user Protocol" (docs/interop/vhost-user).
"""

from __future__ import annotations

import enum
import os
import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

from virtnic._native import DeviceError, VhostWire
from virtnic.arguments import suggest_options
from virtnic.teardown import Closing

if TYPE_CHECKING:
    from collections.abc import Iterable

    from virtnic._native import Memory

__all__ = ["Frontend", "Message", "ProtocolFeature", "Refused", "Region", "Request"]

_U64 = struct.Struct("=Q")
_STATE = struct.Struct("=II")
_ADDRESS = struct.Struct("=IIQQQQ")
_REGION = struct.Struct("=QQQQ")
_VERSION, _REPLY, _NEED_REPLY = 1, 1 << 2, 1 << 3
#: In SET_VRING_KICK, SET_VRING_CALL and SET_VRING_ERR: the message carries no descriptor.
_NO_FD = 1 << 8
#: Feature bit 30: the backend has protocol features, and rings need SET_VRING_ENABLE.
PROTOCOL_FEATURES = 1 << 30


class Request(enum.IntEnum):
    """The type of a message, with the names and numbers of QEMU's document."""

    GET_FEATURES = 1
    SET_FEATURES = 2
    SET_OWNER = 3
    RESET_OWNER = 4
    SET_MEM_TABLE = 5
    SET_LOG_BASE = 6
    SET_LOG_FD = 7
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
    SEND_RARP = 19
    NET_SET_MTU = 20
    SET_BACKEND_REQ_FD = 21
    IOTLB_MSG = 22
    SET_VRING_ENDIAN = 23
    GET_CONFIG = 24
    SET_CONFIG = 25
    GET_INFLIGHT_FD = 31
    SET_INFLIGHT_FD = 32
    RESET_DEVICE = 34
    VRING_KICK = 35
    GET_MAX_MEM_SLOTS = 36
    ADD_MEM_REG = 37
    REM_MEM_REG = 38
    SET_STATUS = 39
    GET_STATUS = 40


class ProtocolFeature(enum.IntFlag):
    """Protocol features: the bits of GET_PROTOCOL_FEATURES."""

    MQ = 1 << 0
    LOG_SHMFD = 1 << 1
    RARP = 1 << 2
    REPLY_ACK = 1 << 3
    NET_MTU = 1 << 4
    BACKEND_REQ = 1 << 5
    CROSS_ENDIAN = 1 << 6
    CONFIG = 1 << 9
    BACKEND_SEND_FD = 1 << 10
    HOST_NOTIFIER = 1 << 11
    INFLIGHT_SHMFD = 1 << 12
    RESET_DEVICE = 1 << 13
    INBAND_NOTIFICATIONS = 1 << 14
    CONFIGURE_MEM_SLOTS = 1 << 15
    STATUS = 1 << 16


class Refused(DeviceError):
    """The backend answered a request with a code other than 0; ``code`` has it."""

    __module__ = "virtnic.vhost_user"

    def __init__(self, request: int, code: int) -> None:
        super().__init__(f"the backend refused {name_of(request)} (it answered {code})")
        self.code = code


def name_of(request: int) -> str:
    """Return the name of a request, for messages."""
    known = {int(each): each.name for each in Request}
    return known.get(request, f"message {request}")


@dataclass(frozen=True, slots=True)
class Message:
    """One message. Whoever receives it closes its descriptors, with :meth:`close`.

    Attributes
    ----------
    request
        The type: a :class:`Request`, or a number without a name.
    flags
        The flags of the header: the version, and whether it is a reply or needs one.
    payload
        The bytes after the header.
    fds
        The descriptors that came with it.

    """

    request: int
    flags: int
    payload: bytes = b""
    fds: tuple[int, ...] = ()

    @property
    def is_reply(self) -> bool:
        """Whether the message is a reply."""
        return bool(self.flags & _REPLY)

    @property
    def number(self) -> int:
        """The payload as one 64-bit number. Raises DeviceError if it is not 8 bytes long."""
        if len(self.payload) != _U64.size:
            raise DeviceError(
                f"{name_of(self.request)} has {len(self.payload)} bytes where 8 should be"
            )
        return int(_U64.unpack(self.payload)[0])

    @property
    def state(self) -> tuple[int, int]:
        """The payload as the index of a ring and a number.

        Raises DeviceError if it is not 8 bytes long.
        """
        if len(self.payload) != _STATE.size:
            raise DeviceError(
                f"{name_of(self.request)} has {len(self.payload)} bytes where 8 should be"
            )
        ring, number = _STATE.unpack(self.payload)
        return ring, number

    def close(self) -> None:
        """Close its descriptors."""
        for fd in self.fds:
            os.close(fd)


@dataclass(frozen=True, slots=True)
class Region:
    """A region of shared memory: one entry of SET_MEM_TABLE.

    Attributes
    ----------
    iova
        The address by which descriptors refer to the region.
    size
        The length in bytes.
    address
        The address at which this process has mapped it.
    offset
        Where the region begins in the file.
    fd
        The descriptor of the file.

    """

    iova: int
    size: int
    address: int
    offset: int
    fd: int

    @classmethod
    def of(cls, memory: Memory) -> Self:
        """Return the region that covers a whole :class:`virtnic.Memory`."""
        return cls(memory.iova, memory.size, memory.address, 0, memory.fileno())

    def pack(self) -> bytes:
        """Return the bytes of the entry."""
        return _REGION.pack(self.iova, self.size, self.address, self.offset)


class Frontend(Closing):
    """A connection to a vhost-user backend, with a method for each message of a front-end.

    Each method sends one message. If the message has a reply, or an acknowledgement was asked for
    (:attr:`acknowledged`), the method waits for it.

    Methods raise TimeoutError if there is no reply within ``timeout`` seconds, ConnectionError if
    the backend closed the connection, :class:`Refused` if its acknowledgement is not 0, and
    DeviceError if the reply is malformed. An object must not be used by several threads at once.
    """

    @suggest_options
    def __init__(self, path: str | os.PathLike[str], *, timeout: float = 5.0) -> None:
        """Connect. Raises FileNotFoundError or ConnectionRefusedError if nobody listens."""
        self.timeout = timeout
        #: Whether requests that have no reply ask for an acknowledgement.
        #: :meth:`set_protocol_features` sets it if REPLY_ACK is among the features.
        self.acknowledged = False
        self._wire = VhostWire(os.fspath(path))

    # Any message.

    @suggest_options
    def send(
        self,
        request: int,
        payload: bytes = b"",
        fds: Iterable[int] = (),
        *,
        need_reply: bool = False,
        flags: int | None = None,
    ) -> None:
        """Send a message without waiting for a reply.

        ``need_reply`` asks for an acknowledgement; ``flags`` replaces all flags of the message.
        """
        right = _VERSION | (_NEED_REPLY if need_reply else 0)
        self._wire.send(request, right if flags is None else flags, payload, [*fds], self.timeout)

    def receive(self, timeout: float | None = None) -> Message | None:
        """Return the next message, or None after ``timeout`` seconds.

        The default is the timeout of the connection. Raises DeviceError if what came is malformed.
        """
        heard = self._wire.receive(self.timeout if timeout is None else timeout)
        if heard is None:
            return None
        request, flags, payload, fds = heard
        return Message(request, flags, payload, tuple(fds))

    def ask(self, request: int, payload: bytes = b"", fds: Iterable[int] = ()) -> Message:
        """Send a message that has a reply, and return the reply."""
        self.send(request, payload, fds)
        return self._answer(request)

    def tell(self, request: int, payload: bytes = b"", fds: Iterable[int] = ()) -> None:
        """Send a message that has no reply; with :attr:`acknowledged`, wait until it is done."""
        self.send(request, payload, fds, need_reply=self.acknowledged)
        if self.acknowledged and (code := self._answer(request).number):
            raise Refused(request, code)

    def _answer(self, request: int) -> Message:
        answer = self.receive()
        if answer is None:
            raise TimeoutError(
                f"the backend did not answer {name_of(request)} within {self.timeout:g} s"
            )
        if answer.request != request or answer.flags != _VERSION | _REPLY:
            answer.close()
            raise DeviceError(
                f"the backend answered {name_of(request)} with {name_of(answer.request)}, flags "
                f"{answer.flags:#x}"
            )
        return answer

    # One message each.

    def get_features(self) -> int:
        """Return the feature bits that the backend offers."""
        return self.ask(Request.GET_FEATURES).number

    def set_features(self, features: int) -> None:
        """Set the feature bits that are in use."""
        self.tell(Request.SET_FEATURES, _U64.pack(features))

    def get_protocol_features(self) -> ProtocolFeature:
        """Return the protocol features that the backend offers."""
        return ProtocolFeature(self.ask(Request.GET_PROTOCOL_FEATURES).number)

    def set_protocol_features(self, features: int) -> None:
        """Set the protocol features that are in use. With REPLY_ACK, sets :attr:`acknowledged`."""
        self.tell(Request.SET_PROTOCOL_FEATURES, _U64.pack(features))
        self.acknowledged = bool(features & ProtocolFeature.REPLY_ACK)

    def set_owner(self) -> None:
        """Take ownership of the session: the first request that changes anything."""
        self.tell(Request.SET_OWNER)

    def get_queue_num(self) -> int:
        """Return the largest number of queue pairs (protocol feature MQ)."""
        return self.ask(Request.GET_QUEUE_NUM).number

    def set_mem_table(self, regions: Iterable[Region]) -> None:
        """Share memory: up to 8 regions, which replace those before."""
        table = list(regions)
        payload = _STATE.pack(len(table), 0) + b"".join(region.pack() for region in table)
        self.tell(Request.SET_MEM_TABLE, payload, [region.fd for region in table])

    def set_vring_num(self, ring: int, entries: int) -> None:
        """Set the number of entries of a ring."""
        self.tell(Request.SET_VRING_NUM, _STATE.pack(ring, entries))

    def set_vring_base(self, ring: int, base: int) -> None:
        """Set the index from which the backend serves a ring."""
        self.tell(Request.SET_VRING_BASE, _STATE.pack(ring, base))

    @suggest_options
    def set_vring_addr(
        self,
        ring: int,
        descriptors: int,
        used: int,
        available: int,
        *,
        flags: int = 0,
        log: int = 0,
    ) -> None:
        """Set the addresses of a ring, in the address space of this process.

        For a packed ring, ``available`` is the driver's event suppression area and ``used`` the
        device's. ``log`` is the guest address of the used ring, for the flag VHOST_VRING_F_LOG, 1.
        """
        payload = _ADDRESS.pack(ring, flags, descriptors, used, available, log)
        self.tell(Request.SET_VRING_ADDR, payload)

    def set_vring_kick(self, ring: int, fd: int | None) -> None:
        """Set the eventfd by which the driver kicks a ring, and start the ring.

        None: the backend polls the ring instead.
        """
        self._with_fd(Request.SET_VRING_KICK, ring, fd)

    def set_vring_call(self, ring: int, fd: int | None) -> None:
        """Set the eventfd by which the backend signals used buffers; None: no signal."""
        self._with_fd(Request.SET_VRING_CALL, ring, fd)

    def set_vring_err(self, ring: int, fd: int | None) -> None:
        """Set the eventfd by which the backend signals an error of a ring; None: no signal."""
        self._with_fd(Request.SET_VRING_ERR, ring, fd)

    def _with_fd(self, request: int, ring: int, fd: int | None) -> None:
        self.tell(
            request, _U64.pack(ring | (_NO_FD if fd is None else 0)), [] if fd is None else [fd]
        )

    def set_vring_enable(self, ring: int, on: bool = True) -> None:
        """Enable or disable a ring (needs protocol features)."""
        self.tell(Request.SET_VRING_ENABLE, _STATE.pack(ring, int(on)))

    def get_vring_base(self, ring: int) -> int:
        """Stop a ring; return the index from which it would continue."""
        answer = self.ask(Request.GET_VRING_BASE, _STATE.pack(ring, 0))
        named, base = answer.state
        if named != ring:
            raise DeviceError(
                f"the backend answered GET_VRING_BASE of ring {ring} with that of ring {named}"
            )
        return base

    def set_mtu(self, mtu: int) -> None:
        """Tell the backend the MTU in bytes (protocol feature NET_MTU)."""
        self.tell(Request.NET_SET_MTU, _U64.pack(mtu))

    def reset_device(self) -> None:
        """Reset the device: the backend stops all rings (protocol feature RESET_DEVICE)."""
        self.tell(Request.RESET_DEVICE)

    def get_max_mem_slots(self) -> int:
        """Return the largest number of regions (protocol feature CONFIGURE_MEM_SLOTS)."""
        return self.ask(Request.GET_MAX_MEM_SLOTS).number

    def add_mem_reg(self, region: Region) -> None:
        """Share one more region (protocol feature CONFIGURE_MEM_SLOTS)."""
        self.tell(Request.ADD_MEM_REG, bytes(8) + region.pack(), [region.fd])

    def rem_mem_reg(self, region: Region) -> None:
        """Stop sharing a region (protocol feature CONFIGURE_MEM_SLOTS)."""
        self.tell(Request.REM_MEM_REG, bytes(8) + region.pack())

    @suggest_options
    def set_log_base(self, fd: int, size: int, *, offset: int = 0) -> None:
        """Share the log of written pages (protocol feature LOG_SHMFD); it has a reply.

        Bit n stands for the page of 4,096 bytes at guest address n * 4,096.
        """
        self.ask(Request.SET_LOG_BASE, struct.pack("=QQ", size, offset), [fd]).close()

    def send_rarp(self, mac: bytes) -> None:
        """Have the backend broadcast a RARP request for a MAC address (protocol feature RARP)."""
        self.tell(Request.SEND_RARP, mac.ljust(8, b"\0"))

    def get_config(self, offset: int, size: int) -> bytes:
        """Return bytes of the device's configuration space (protocol feature CONFIG).

        Empty if the backend could not. Raises DeviceError if it replied with another size.
        """
        request = struct.pack("=III", offset, size, 0)
        payload = self.ask(Request.GET_CONFIG, request + bytes(size)).payload
        if payload and len(payload) != len(request) + size:
            raise DeviceError(
                f"GET_CONFIG of {size} bytes was answered with {len(payload)} bytes of payload"
            )
        return payload[len(request) :]

    def get_inflight_fd(self, queues: int, entries: int) -> Message:
        """Ask for the memory in which the backend tracks buffers (protocol feature INFLIGHT_SHMFD).

        Its first 20 payload bytes are size and offset (64 bits), queues and entries (16 bits).
        """
        return self.ask(Request.GET_INFLIGHT_FD, struct.pack("=QQHHI", 0, 0, queues, entries, 0))

    def set_inflight_fd(self, fd: int, size: int, queues: int, entries: int) -> None:
        """Hand that memory back to a backend (protocol feature INFLIGHT_SHMFD)."""
        payload = struct.pack("=QQHHI", size, 0, queues, entries, 0)
        self.tell(Request.SET_INFLIGHT_FD, payload, [fd])

    def get_status(self) -> int:
        """Return the device status (VIRTIO 1.3, 2.1; protocol feature STATUS)."""
        return self.ask(Request.GET_STATUS).number

    def set_status(self, status: int) -> None:
        """Write the device status (protocol feature STATUS)."""
        self.tell(Request.SET_STATUS, _U64.pack(status))

    def close(self) -> None:
        """Close the connection. A second call does nothing."""
        self._wire.close()
