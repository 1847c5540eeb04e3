"""A vhost-user backend that passes all clauses of ``virtnic.check``, or breaks one on purpose."""

from __future__ import annotations

import contextlib
import mmap
import os
import select
import socket
import struct
import threading
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from peers.device_rings import Broken, Chain, Memory, Ring
from peers.vhost_user import (
    EVENT_IDX,
    INDIRECT_DESC,
    MQ,
    MRG_RXBUF,
    OFFLOADS,
    PROTOCOL_FEATURES,
    RING_PACKED,
    STATE,
    U64,
    VERSION_1,
    Message,
    receive,
)
from virtnic.teardown import Closing

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

IN_ORDER, LOG_ALL, NET_MTU, STATUS_BIT, MAC = 1 << 35, 1 << 26, 1 << 3, 1 << 16, 1 << 5
OFFERED = (
    PROTOCOL_FEATURES | VERSION_1 | MRG_RXBUF | MQ | INDIRECT_DESC | EVENT_IDX | RING_PACKED
    | IN_ORDER | LOG_ALL | NET_MTU | OFFLOADS
)  # fmt: skip
#: MQ, LOG_SHMFD, RARP, REPLY_ACK, NET_MTU, CONFIG, INFLIGHT_SHMFD, RESET_DEVICE,
#: CONFIGURE_MEM_SLOTS, STATUS.
PROTOCOL = sum(1 << bit for bit in (0, 1, 2, 3, 4, 9, 12, 13, 15, 16))
#: The largest message, ring and number of pairs.
LARGEST, ENTRIES, PAIRS, SLOTS = 4096, 1024, 4, 8
HEADER = 12


class Leave(Exception):
    """The connection is to be closed."""


class Answered(Exception):
    """The reply was sent."""


@dataclass
class Session:
    """One front-end: what it negotiated, its memory and its rings."""

    socket: socket.socket
    number: int
    features: int = 0
    protocol: int = 0
    status: int = 0
    mtu: int = 1500
    memory: Memory = field(default_factory=Memory)
    rings: dict[int, Ring] = field(default_factory=dict)
    asked: int = 0
    said: list[int] = field(default_factory=list)
    inflight: int | None = None

    def close(self) -> None:
        """Let everything go."""
        for ring in self.rings.values():
            ring.close()
        self.memory.clear()
        if self.memory.log is not None:
            self.memory.log.close()
        if self.inflight is not None:
            os.close(self.inflight)
        self.socket.close()


class CheckedBackend(Closing):
    """Serves one front-end a path. ``broken`` is the id of the clause that it breaks.

    With one path it takes frames, or sends them back (``echo``); with two it passes them on.
    """

    def __init__(
        self, *paths: Path, broken: str = "", echo: bool = False, features: int = OFFERED
    ) -> None:
        self.path, self.paths, self.echo = paths[0], paths, echo
        packed_only = broken.endswith("P")
        self._broken, self._formats = broken.removesuffix("P"), (packed_only,)
        self.features, self.protocol = features, PROTOCOL
        self._listeners: dict[int, socket.socket] = {}
        self._sessions: dict[int, Session] = {}
        #: Sessions by the number of the path, and how many there were.
        self._served: dict[int, Session] = {}
        self._kicks = self._count = self._taken = self._given = self._held_length = 0
        self._left_early = False
        self._held: Chain | None = None
        match broken:
            case "FEAT-02":
                self.features &= ~VERSION_1
            case "FEAT-03":
                self.features = PROTOCOL_FEATURES | VERSION_1 | 1 << 11
        for path in paths:
            listener = socket.socket(socket.AF_UNIX)
            listener.bind(str(path))
            listener.listen(1024)
            self._listeners[listener.fileno()] = listener
        self._stop_read, self._stop_write = os.pipe()
        self._thread = threading.Thread(target=self._run, name="checked-backend")
        self._thread.start()

    def close(self) -> None:
        """Close it, and remove its sockets. A second call does nothing."""
        if self._stop_write >= 0:
            with contextlib.suppress(BrokenPipeError):
                os.write(self._stop_write, b"x")
            self._thread.join()
            os.close(self._stop_write)
            os.close(self._stop_read)
            self._stop_write = -1
            for path in self.paths:
                path.unlink(missing_ok=True)

    def breaks(self, clause: str, ring: Ring | None = None) -> bool:
        """Return whether this clause is to be broken, for such a ring."""
        return self._broken == clause and (ring is None or ring.packed in self._formats)

    # The loop.

    def _run(self) -> None:
        try:
            while self._turn():
                pass
        finally:
            for session in self._sessions.values():
                session.close()
            for listener in self._listeners.values():
                listener.close()

    def _turn(self) -> bool:
        """Handle what is there; False when it is to end."""
        kicks = {
            ring.kick: (session, ring)
            for session in self._sessions.values()
            for ring in session.rings.values()
            if ring.kick is not None
        }
        polled = any(
            ring.polled for session in self._sessions.values() for ring in session.rings.values()
        )
        poll = select.poll()
        shared = self.breaks("LIFE-05")
        idle = [
            fd for number, fd in enumerate(self._listeners) if shared or number not in self._served
        ]
        for fd in (*idle, *self._sessions, *kicks, self._stop_read):
            poll.register(fd, select.POLLIN)
        ready = {fd for fd, _ in poll.poll(1 if polled else None)}
        if self._stop_read in ready:
            return False
        for fd in ready & kicks.keys():
            session, ring = kicks[fd]
            if ring.kick == fd:  # an earlier one may have closed it
                self._kicked(session, ring)
        for session in list(self._sessions.values()):
            for ring in list(session.rings.values()):
                if ring.polled:
                    ring.started = True
                    self._process(session, ring)
        for fd in ready & self._sessions.keys():
            self._read(self._sessions[fd])
        for number, fd in enumerate(list(self._listeners)):
            if fd in ready and self.breaks("LIFE-05") and number in self._served:
                self._leave(self._served[number])
            if fd in ready and number not in self._served:
                client, _ = self._listeners[fd].accept()
                client.settimeout(1.0)
                self._count += 1
                session = Session(client, number)
                self._sessions[client.fileno()] = self._served[number] = session
        return True

    def _leave(self, session: Session) -> None:
        if 8 in session.said:
            self._left_early = True
        early = self.breaks("LIFE-01") and 9 in session.said and 12 not in session.said
        unstopped = any(
            ring.started and self.breaks("LIFE-03", ring) for ring in session.rings.values()
        )
        tired = self._broken == "LIFE-02" and self._count > 30
        del self._sessions[session.socket.fileno()]
        del self._served[session.number]
        session.close()
        if early or unstopped or tired:
            self.crash()

    def crash(self) -> None:
        """End as a process that crashes: nobody listens any more."""
        for session in list(self._sessions.values()):
            self._leave(session)
        for listener in self._listeners.values():
            listener.close()
        self._listeners = {}
        for path in self.paths:
            path.unlink(missing_ok=True)

    def _read(self, session: Session) -> None:
        message, wrong = None, False
        try:
            ahead = session.socket.recv(12, socket.MSG_PEEK)
            wrong = len(ahead) == 12 and int.from_bytes(ahead[8:], "little") > LARGEST
            if wrong or (len(ahead) < 12 and self.breaks("LIFE-04")):
                raise Leave
            message = receive(session.socket)
            if message is None:
                raise Leave
            session.said.append(message.request)
            self._answer(session, message)
        except (Leave, OSError, struct.error):
            falls = wrong and self._broken == "HOST-11"
            falls |= self._broken == "HOST-12" and len(session.said) > 30
            if falls or (self._broken == "HOST-13" and self._count > 300):
                self.crash()
            if session.socket.fileno() in self._sessions:
                self._leave(session)
        finally:
            if message is not None:
                for fd in message.fds:
                    os.close(fd)

    # Messages.

    def _answer(self, session: Session, message: Message) -> None:
        reply: bytes | None = None
        code = 0
        try:
            if message.flags & 3 != 1:
                raise Leave
            reply = self._handle(session, message)
        except Answered:
            return
        except Broken:
            if self._broken.startswith("HOST"):
                self.crash()
                raise Leave from None
            code = 1
        if isinstance(reply, bytes):
            session.socket.sendall(message.reply(reply))
        elif message.wants_ack or (self.breaks("MSG-02") and message.request == 3):
            if self.breaks("MSG-01") and message.request == 9:
                code = 1
            session.socket.sendall(message.reply(U64.pack(code)))

    def _offered(self, session: Session) -> int:
        session.asked += 1
        features = self.features
        if self.breaks("FEAT-01") and session.asked % 2 == 0:
            features ^= MRG_RXBUF
        if self.breaks("MSG-07") and self._left_early:
            features ^= MRG_RXBUF
        return features

    def _handle(self, session: Session, message: Message) -> bytes | None:
        """Return the reply; None for an acknowledgement. Raises Broken to refuse."""
        payload, fds = message.payload, message.fds

        def exactly(size: int, descriptors: int = 0) -> None:
            fine = len(fds) == descriptors or self.breaks("MSG-20")
            if len(payload) != size or not fine:
                raise Broken("wrong size or number of descriptors")

        match message.request:
            case 1:
                return U64.pack(self._offered(session))
            case 2:
                if self.breaks("MSG-06") and len(payload) < 8:
                    self.crash()
                    raise Leave
                exactly(8)
                self._set_features(session, message.number)
            case 3:
                exactly(0)
            case 4 | 34:
                for ring in session.rings.values():
                    ring.started = ring.enabled = False
            case 5:
                self._set_table(session, payload, fds)
            case 6:
                exactly(16, 1)
                size, offset = struct.unpack("=QQ", payload)
                if os.fstat(fds[0]).st_size < offset + size or offset:
                    raise Broken("the log is not inside its file")
                session.memory.log = mmap.mmap(fds[0], size)
                session.memory.forget = self.breaks("MSG-17")
                return b""
            case 7:
                exactly(0, 1)
            case 8:
                exactly(8)
                ring = self._ring(session, payload)
                size = message.state[1]
                legal = 0 < size <= ENTRIES and (ring.packed or not size & size - 1)
                if ring.started and self.breaks("HOST-16", ring):
                    self.crash()
                    raise Leave
                if not legal and not self.breaks("MSG-08", ring):
                    raise Broken(f"a ring of {size} entries")
                ring.size = size
            case 9:
                exactly(40)
                self._set_address(session, payload)
            case 10:
                exactly(8)
                ring = self._ring(session, payload)
                ring.set_base(message.state[1])
                if self.breaks("RING-11", ring) and ring.next > 3:
                    ring.next += 1
            case 11:
                exactly(8)
                return self._stop(session, payload)
            case 12 | 13 | 14:
                self._set_eventfd(session, message)
            case 15:
                changed = session.said.count(15) << 40 if self.breaks("FEAT-04") else 0
                return U64.pack(self.protocol | changed)
            case 16:
                exactly(8)
                session.protocol = message.number
            case 17:
                return U64.pack(0 if self.breaks("MSG-03") else PAIRS)
            case 18:
                exactly(8)
                self._enable(session, self._ring(session, payload), message.state[1])
            case _:
                return self._handle_more(session, message, exactly)
        return None

    def _handle_more(
        self, session: Session, message: Message, exactly: Callable[..., None]
    ) -> bytes | None:
        """Handle the messages of protocol features."""
        payload, fds = message.payload, message.fds
        match message.request:
            case 19:
                exactly(8)
                self._announce(session, payload[:6])
            case 20:
                exactly(8)
                if not 68 <= message.number <= 65535 and not self.breaks("MSG-14"):
                    raise Broken("MTU")
            case 24:
                return self._get_config(session, payload)
            case 25:
                if not self.breaks("MSG-15"):
                    raise Broken("the configuration is read-only")
            case 31:
                return self._inflight(session, message)
            case 32:
                exactly(24, 1)
            case 36:
                return U64.pack(SLOTS)
            case 37:
                exactly(40, 1)
                _, guest, size, user, offset = struct.unpack("=QQQQQ", payload)
                if len(session.memory.regions) >= (1 if self.breaks("MSG-12") else SLOTS):
                    raise Broken("too many regions")
                session.memory.add(guest, size, user, offset, fds[0])
            case 38:
                _, guest, size, user, _ = struct.unpack("=QQQQQ", payload)
                session.memory.remove(guest, size, user)
            case 39:
                exactly(8)
                session.status = message.number
            case 40:
                return U64.pack(session.status ^ (4 if self.breaks("MSG-16") else 0))
            case _ if not self.breaks("MSG-19"):
                raise Broken("unknown request")
        return None

    def _set_features(self, session: Session, features: int) -> None:
        if features & ~self.features and not self.breaks("FEAT-07"):
            raise Broken("features that are not offered")
        if self.breaks("FEAT-05") and features & INDIRECT_DESC:
            raise Broken("one bit")
        if self.breaks("FEAT-06") and features.bit_count() > 6:
            raise Broken("many bits")
        session.features = features
        session.memory.log_all = bool(features & LOG_ALL)
        for ring in session.rings.values():
            self._configure(session, ring)

    def _configure(self, session: Session, ring: Ring) -> None:
        has = session.features
        ring.packed, ring.events = bool(has & RING_PACKED), bool(has & EVENT_IDX)
        ring.in_order, ring.indirect = bool(has & IN_ORDER), bool(has & INDIRECT_DESC)

    def _ring(self, session: Session, payload: bytes) -> Ring:
        number = int.from_bytes(payload[:4], "little")
        if number >= 2 * PAIRS and not self.breaks("MSG-21"):
            raise Broken(f"ring {number}")
        if number not in session.rings:
            session.rings[number] = Ring(number, session.memory)
            self._configure(session, session.rings[number])
        return session.rings[number]

    def _set_table(self, session: Session, payload: bytes, fds: Sequence[int]) -> None:
        count = int.from_bytes(payload[:4], "little")
        if count > SLOTS or len(payload) < 8 + 32 * count or len(fds) != count:
            raise Broken("a table of the wrong size")
        if self.breaks("MSG-05") and count > 1:
            raise Broken("one region")
        if self.breaks("MSG-22") and session.memory.regions:
            return
        session.memory.clear()
        for number, fd in enumerate(fds):
            region = struct.unpack_from("=QQQQ", payload, 8 + 32 * number)
            session.memory.add(region[0], region[1], region[2], region[3], fd)

    def _set_address(self, session: Session, payload: bytes) -> None:
        _, flags, descriptors, used, available, log = struct.unpack("=IIQQQQ", payload)
        ring = self._ring(session, payload)
        for address, align in ((descriptors, 16), (used, 4), (available, 2)):
            if address % align:
                raise Broken("an area is not aligned")
            session.memory.find(address, align, user=True)
        ring.areas = descriptors, used, available
        ring.log = log if flags & 1 else None

    def _set_eventfd(self, session: Session, message: Message) -> None:
        number = message.number
        if number & ~0x1FF or len(message.fds) != (not number & 0x100):
            raise Broken("flags or descriptors")
        ring = self._ring(session, STATE.pack(number & 0xFF, 0))
        fd = os.dup(message.fds[0]) if message.fds else None
        if message.request == 12:
            old, ring.kick = ring.kick, fd
            ring.polled = fd is None and not self.breaks("NTF-10", ring)
            ring.broken = False
        elif message.request == 13 and ring.call is not None and self.breaks("NTF-09", ring):
            old = fd
        elif message.request == 13:
            old, ring.call = ring.call, fd
        else:
            old = fd
        if old is not None:
            os.close(old)
        if not session.features & PROTOCOL_FEATURES:
            ring.enabled = True

    def _enable(self, session: Session, ring: Ring, on: int) -> None:
        ring.enabled = bool(on)
        if ring.started:
            self._process(session, ring)

    def _stop(self, session: Session, payload: bytes) -> bytes:
        ring = self._ring(session, payload)
        base = ring.base
        late = self.breaks("MSG-09", ring) and self._taken > 9
        if self.breaks("MSG-04") or self.breaks("RING-06", ring) or late:
            base += 1
        if self.breaks("RING-19", ring):
            base &= 0xFFFF
        ring.started = ring.enabled = ring.polled = False
        if ring.kick is not None:
            os.close(ring.kick)
            ring.kick = None
        return STATE.pack(ring.number, base)

    def _get_config(self, session: Session, payload: bytes) -> bytes:
        offset, size, flags = struct.unpack_from("=III", payload)
        config = bytes.fromhex("525400000001") + struct.pack("<HHH", 1, PAIRS, session.mtu)
        if offset + size > 256 or len(payload) != 12 + size:
            return b""
        content = config.ljust(256, b"\0")[offset : offset + size]
        if self.breaks("MSG-15"):
            content = content[:-1]
        return struct.pack("=III", offset, size, flags) + content

    def _inflight(self, session: Session, message: Message) -> bytes | None:
        _, _, queues, size = struct.unpack("=QQHH", message.payload[:20])
        room = queues * (64 + 32 * size)
        fd = os.memfd_create("inflight")
        try:
            os.ftruncate(fd, room)
            reply = struct.pack("=QQHHI", room, 0, queues, size, 0)
            data = message.reply(reply)
            socket.send_fds(session.socket, [data], [] if self.breaks("MSG-13") else [fd])
        finally:
            os.close(fd)
        raise Answered

    def _announce(self, session: Session, mac: bytes) -> None:
        """Broadcast a RARP request for the address (RFC 903)."""
        if not self.breaks("MSG-18"):
            body = struct.pack(">HHBBH", 1, 0x0800, 6, 4, 3) + (mac + bytes(4)) * 2
            self._forward(session, (b"\xff" * 6 + mac + b"\x80\x35" + body).ljust(60, b"\0"))

    # Rings.

    def _kicked(self, session: Session, ring: Ring) -> None:
        assert ring.kick is not None
        with contextlib.suppress(BlockingIOError):
            os.read(ring.kick, 8)
        self._kicks += 1
        if self.breaks("NTF-08", ring) and not ring.enabled:
            return
        if self.breaks("NTF-01", ring) and self._kicks == 5:
            return
        ring.started = True
        self._process(session, ring)

    def _process(self, session: Session, ring: Ring) -> None:
        if ring.number % 2 == 0 or ring.broken or not ring.size:
            return
        try:
            while True:
                self._take_all(session, ring)
                never = "NTF-07" if ring.events else "NTF-06"
                ring.ask_for_kick(never=self.breaks(never, ring))
                if not self._more(ring):
                    break
            self._call(session, ring)
        except Broken:
            ring.broken = True
            if self._broken.startswith("HOST"):
                self.crash()

    def _more(self, ring: Ring) -> bool:
        """Return whether something came before the kick was asked for."""
        before = ring.next, ring.wrap
        chain = ring.take()
        ring.next, ring.wrap = before
        return chain is not None

    def _take_all(self, session: Session, ring: Ring) -> None:
        batch: list[Chain] = []
        while (chain := ring.take()) is not None:
            self._taken += 1
            frame = b"".join(
                session.memory.read(address, length) for address, length, _ in chain.parts
            )
            if self._drops(ring, chain, frame):
                return
            off = not ring.enabled and not self.breaks("NET-14")
            if not off and len(frame) >= HEADER + 14:
                self._forward(session, frame[HEADER:], frame[:HEADER], ring)
            if ring.in_order and not self.breaks("RING-10", ring):
                batch.append(chain)
                if len(batch) == 3:
                    ring.finish_batch(batch)
                    batch = []
            else:
                self._finish(session, ring, chain)
        if batch:
            ring.finish_batch(batch)

    def _drops(self, ring: Ring, chain: Chain, frame: bytes) -> bool:
        """Break a clause: return whether the buffer is left where it is for ever."""
        parts, breaks = len(chain.parts), self.breaks
        return (
            (breaks("RING-07", ring) and ring.size == 8 and self._taken > 12)
            or (breaks("RING-08", ring) and parts > 16)
            or (breaks("RING-09", ring) and parts > chain.taken)
            or (breaks("RING-12", ring) and self._taken % 64 == 63)
            or (breaks("NTF-11", ring) and self._taken >= 9000)
            or (breaks("NET-05") and len(frame) < HEADER + 14)
            or (breaks("NET-16") and not ring.enabled)
            or (breaks("NET-17") and ring.number == 3)
            or (breaks("MSG-11") and self._taken == 30)
        )

    def _finish(self, session: Session, ring: Ring, chain: Chain) -> None:
        length, write = 0, None
        if self.breaks("RING-01", ring):
            chain.ident = 3
        elif self.breaks("RING-02", ring):
            length, write = 1, True
        elif self.breaks("RING-03", ring) and self._taken == 20:
            chain.ident ^= 1
        elif self.breaks("RING-04", ring):
            chain.ident += len(chain.parts) - 1
        elif self.breaks("RING-05", ring):
            address, size, _ = chain.parts[-1]
            mapped, at = session.memory.find(address, size)
            mapped[at + size : at + size + 1] = b"!"
        elif self.breaks("RING-10", ring) and self._held is None:
            self._held = chain
            return
        ring.finish(chain, length, write=write)
        if self._held is not None and self.breaks("RING-10", ring):
            held, self._held = self._held, None
            ring.finish(held)

    def _call(self, session: Session, ring: Ring) -> None:
        forced = ring.uncalled and self.breaks("NTF-05" if ring.events else "NTF-03", ring)
        lost = self.breaks("NTF-04" if ring.events else "NTF-02", ring) and self._taken % 7 == 6
        if (ring.wants_call() and not lost) or forced:
            ring.signal()

    # Frames.

    def _forward(
        self,
        session: Session,
        frame: bytes,
        header: bytes = bytes(HEADER),
        ring: Ring | None = None,
    ) -> None:
        """Send a frame to where it belongs."""
        target: Session | None = None
        if len(self.paths) > 1:
            target = self._served.get(1 - session.number)
        elif self.echo:
            target = session
            frame = frame[6:12] + frame[:6] + frame[12:]
        if target is None:
            return
        number = 0 if ring is None else ring.number - 1
        if self.breaks("NET-15") and 2 in target.rings and frame[12:14] == b"\x88\xb5":
            number = 2
            target.rings[2].enabled = True
        frame = self._spoilt(frame)
        receive_ring = target.rings.get(number)
        if receive_ring is None or not receive_ring.enabled or not receive_ring.started:
            receive_ring = target.rings.get(0)
        if receive_ring is None or receive_ring.broken:
            return
        if not receive_ring.enabled or not receive_ring.started:
            return
        try:
            for each, part in self._offloads(target, header, frame):
                self._deliver(target, receive_ring, part, each)
            self._call(target, receive_ring)
        except Broken:
            receive_ring.broken = True
            if self._broken.startswith("HOST"):
                self.crash()

    def _deliver(self, session: Session, ring: Ring, frame: bytes, header: bytes) -> None:
        """Put a frame into as many buffers as it needs; drop it if there are too few."""
        data = bytearray(header + b"\1\0" + frame)
        before = ring.next, ring.wrap
        chains: list[Chain] = []
        room = 0
        merge = bool(session.features & MRG_RXBUF)
        while room < len(data):
            chain = ring.take() if merge or not chains else None
            if chain is None and self.breaks("NET-07") and chains:
                for each in chains:
                    ring.finish(each, each.room)
                return
            if chain is None and self.breaks("NET-08") and chains:
                break
            if chain is None:
                ring.next, ring.wrap = before
                return
            chains.append(chain)
            room += chain.room
        data[10:12] = struct.pack(
            "<H", len(chains) + (self.breaks("NET-06") or self.breaks("NET-18"))
        )
        session.memory.beside = self.breaks("RING-14", ring)
        at = 0
        for chain in chains:
            part = bytes(data[at : at + chain.room])
            at += len(part)
            session.memory.beside |= self.breaks("NET-08") and len(data) > chain.room
            written = 0
            for address, length, _ in chain.parts:
                if self._spoils(ring, chain, written):
                    break
                if piece := part[written : written + length]:
                    session.memory.write(address, piece)
                written += length
            self._return(ring, chain, len(part))
        session.memory.beside = False
        ring.ask_for_kick()

    def _spoils(self, ring: Ring, chain: Chain, written: int) -> bool:
        """Break a clause: return whether the rest of a frame is not written."""
        parts = len(chain.parts)
        self._given += not written
        return (
            (self.breaks("RING-15", ring) and parts > 2 and written > 0)
            or (self.breaks("RING-16", ring) and parts > chain.taken)
            or (self.breaks("RING-17", ring) and ring.size == 16 and self._given == 20)
        )  # fmt: skip

    def _return(self, ring: Ring, chain: Chain, length: int) -> None:
        """Return a buffer of a receive ring."""
        if self.breaks("RING-13", ring):
            length -= 1
        if self.breaks("RING-18", ring):
            if self._held is None:
                self._held = chain
                self._held_length = length
                return
            ring.finish(chain, length)
            ring.finish(self._held, self._held_length)
            self._held = None
            return
        ring.finish(chain, length)

    def _spoilt(self, frame: bytes) -> bytes:
        """Break a clause about frames."""
        wrong = {"NET-02": 1513, "NET-03": 42, "NET-04": 4000}
        if self._broken in wrong and len(frame) == wrong[self._broken]:
            return frame[:-1] + b"?"
        if self.breaks("NET-09") and frame[12:14] == b"\x81\0":
            return frame[:12] + frame[16:]
        return frame

    def _offloads(self, session: Session, header: bytes, frame: bytes) -> list[tuple[bytes, bytes]]:
        """Return what is to be delivered of a frame: keep offloads that the receiver knows."""
        if self.breaks("NET-01"):
            return [(b"\2" + bytes(9), frame)]
        flags, gso, head, size, start, offset, _ = struct.unpack("<BBHHHHH", header)
        if not flags & 1:
            return [(bytes(10), frame)]
        kept = bool(session.features & 2)
        if gso and self.breaks("NET-12"):
            return [(header[:10], frame[:-99])]
        if gso and (session.features & 1 << 7 or self.breaks("NET-13")):
            return [(header[:10], frame)]
        if gso:
            return [(bytes(10), each) for each in self._segments(frame, head, size)]
        if kept and self.breaks("NET-10"):
            return [(bytes(10), frame)]
        if kept or self.breaks("NET-11"):
            return [(header[:10], frame)]
        return [(bytes(10), summed(frame, start, offset))]

    @staticmethod
    def _segments(frame: bytes, head: int, size: int) -> Iterator[bytes]:
        """Yield the segments of a TCP frame over IPv4."""
        ends = frame[26:34]
        for at in range(head, len(frame), size):
            data = frame[at : at + size]
            ip = frame[14:16] + struct.pack(">H", head - 14 + len(data)) + frame[18:24] + bytes(2)
            ip = summed(ip + ends, 0, 10)
            (number,) = struct.unpack_from(">I", frame, 38)
            pseudo = sum_of(ends + struct.pack(">HH", 6, head - 34 + len(data)))
            tcp = frame[34:38] + struct.pack(">I", number + at - head) + frame[42:50]
            tcp += struct.pack(">H", pseudo) + frame[52:head]
            yield summed(frame[:14] + ip + tcp + data, 34, 16)


def sum_of(data: bytes) -> int:
    """Return the Internet checksum, not inverted."""
    data += bytes(len(data) % 2)
    total: int = sum(struct.unpack(f">{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return total


def summed(frame: bytes, start: int, offset: int) -> bytes:
    """Return a frame with its checksum finished."""
    at = start + offset
    return frame[:at] + struct.pack(">H", 0xFFFF - sum_of(frame[start:])) + frame[at + 2 :]
