"""Fault injection into a real device."""

from __future__ import annotations

import os
import signal
from typing import TYPE_CHECKING, Literal

from virtnic.nic.port import attachment_of, host_of
from virtnic.qemu.process import Process

if TYPE_CHECKING:
    from virtnic.nic.port import Port, Qemu

__all__ = ["kill_qemu", "lie", "set_link"]


def set_link(port: Port, up: bool) -> None:
    """Unplug the cable of a port, or plug it in again (QMP ``set_link``).

    Raises QemuError, QemuDied.
    """
    port.qemu.execute("set_link", name=attachment_of(port).handle.id, up=up)


def kill_qemu(qemu: Qemu, timeout: float = 5.0) -> None:
    """Kill a QEMU with SIGKILL, as the kernel's out-of-memory killer does, and wait for its end.

    Raises TimeoutError; TypeError for a QEMU that was started elsewhere.
    """
    process = host_of(qemu).machine.process
    if not isinstance(process, Process):
        raise TypeError("only a QEMU started by this process can be killed")
    os.kill(process.pid, signal.SIGKILL)
    if process.wait(timeout) is None:
        raise TimeoutError(f"QEMU (pid {process.pid}) is still alive {timeout:g} s after SIGKILL")


def lie(port: Port, about: Literal["id", "length", "twice"] = "id") -> None:
    """Write an invalid used descriptor into a port's receive ring.

    ``"id"``: of a buffer that does not exist; ``"length"``: longer than its buffer; ``"twice"``:
    one buffer used twice. The next ``recv`` raises DeviceError, and the port is broken. The device
    itself must be silent meanwhile, and each frame received so far must have fitted one buffer. See
    VIRTIO
    1.3, sections 2.7.8 and 2.8.13.
    """
    ring = _ReceiveRing(port)
    match about:
        case "id":
            ring.use(0xFFF0, 64)
        case "length":
            ring.use(ring.in_flight(), 1 << 20)
        case "twice":
            identifier = ring.in_flight()
            ring.use(identifier, 64)
            ring.use(identifier, 64)
        case _:
            raise ValueError(f"about must be 'id', 'length' or 'twice', not {about!r}")


class _ReceiveRing:
    """The device's side of a receive ring whose buffers have one descriptor each."""

    def __init__(self, port: Port) -> None:
        self._memory = port.memory
        self._size = port.queue_size
        _name, descriptors, _driver, used = port.queue_addresses[0]
        self._packed = port.ring == "packed"
        self._at = self._memory.offset_of(descriptors if self._packed else used)
        #: Buffers used so far: the device's position.
        self._done = port.stats()["rx_packets"]

    def in_flight(self) -> int:
        """Return the identifier of the next buffer that the device would use."""
        if not self._packed:
            # The ring is full and ids are taken in turn: any has been posted again.
            return self._done % self._size
        at = self._at + 16 * (self._done % self._size)
        return int.from_bytes(self._memory.read(at + 12, 2), "little")

    def use(self, identifier: int, length: int) -> None:
        """Report a buffer as used."""
        position, lap = self._done % self._size, self._done // self._size % 2
        if self._packed:
            # AVAIL and USED both equal the wrap counter, which starts at 1.
            flags = 0x8080 if lap == 0 else 0
            entry = length.to_bytes(4, "little") + identifier.to_bytes(2, "little")
            self._memory.write(self._at + 16 * position + 8, entry)
            self._memory.write(self._at + 16 * position + 14, flags.to_bytes(2, "little"))
        else:
            entry = identifier.to_bytes(4, "little") + length.to_bytes(4, "little")
            self._memory.write(self._at + 4 + 8 * position, entry)
            index = (self._done + 1) & 0xFFFF
            self._memory.write(self._at + 2, index.to_bytes(2, "little"))
        self._done += 1
