"""vhost-user: a backend that shares our memory and polls our rings.

QEMU connects to an interposer of ours, which passes its messages on to the backend and
puts our own eventfds in the place of QEMU's: notifications then go straight between the
backend and us. See the "Vhost-user Protocol" in QEMU's documentation (docs/interop).
"""

from __future__ import annotations

import dataclasses
import os
import time
from pathlib import Path
from typing import TYPE_CHECKING

from virtnic._native import EventFd, Interposer, QemuError
from virtnic.qemu.netdev import VhostUserSocket
from virtnic.qemu.rundir import RunDirectory
from virtnic.recovery import Recovery
from virtnic.teardown import Owner

if TYPE_CHECKING:
    from virtnic.qemu import Spec
    from virtnic.qemu.elsewhere import SharedDirectory
    from virtnic.teardown import Teardown

__all__ = ["RING_PACKED", "Backend"]

#: The feature bit by which a backend offers packed rings (VIRTIO 1.3, section 6).
RING_PACKED = 34
#: Seconds that QEMU has to connect to the interposer: it retries once a second before 9.2.
_QEMU_CONNECTS = 5.0


def _retry(recover: bool | Recovery | None) -> tuple[int, float, float] | None:
    """Return a policy as the interposer takes it."""
    if recover is False:
        return 0, 0.0, 0.0
    if isinstance(recover, Recovery):
        return recover.attempts, recover.backoff, recover.backoff_max
    return None


class Backend(Owner):
    """A vhost-user backend and the interposer in front of it."""

    def __init__(
        self,
        spec: Spec,
        undo: Teardown,
        queues: int = 1,
        *,
        interrupts: bool,
        shared: SharedDirectory | None = None,
        recover: bool | Recovery | None = None,
    ) -> None:
        """Connect to the backend of a netdev. ``undo`` gets what takes it down again.

        ``shared`` is where QEMU finds the interposer's socket, when it was started elsewhere.
        ``recover`` says whether, and how often, a backend that went is looked for.

        Raises QemuError when no backend is there, TimeoutError when none came in time.
        """
        socket = spec.socket
        if socket is None:
            raise ValueError("the netdev names no vhost-user socket")
        self._recover = recover
        #: Its socket.
        self.path = socket.path
        #: What the backend signals for each pair: frames received, frames finished.
        self.events = [(EventFd(), EventFd()) for _ in range(queues)]
        if shared is None:
            directory = RunDirectory()
            undo.add(directory.close)
            directory.make()
            listen = os.fspath(directory.vhost_user())
        else:
            listen = os.fspath(shared.new_vhost_user())
        calls = [event for pair in self.events for event in pair] if interrupts else []
        try:
            self.interposer = Interposer(
                listen, socket.path, socket.server, socket.wait, calls, _retry(recover)
            )
        except (FileNotFoundError, ConnectionRefusedError) as error:
            raise QemuError(error.strerror or str(error)) from None
        undo.add(self.interposer.close)
        #: The netdev that makes QEMU connect to the interposer.
        self.spec = dataclasses.replace(
            spec, socket=VhostUserSocket(listen, server=False, wait=_QEMU_CONNECTS)
        )

    def given_up(self) -> str | None:
        """Say why no backend is looked for any more; None while one is."""
        why = self.interposer.given_up
        if why is None:
            return None
        if self._recover is False:
            return f"{why}; it is not looked for again (recover=False): attach the port anew"
        return f"{why}; start it and attach the port anew"

    def wait(self, seconds: float) -> bool:
        """Wait until the interposer has the backend again and lets a QEMU in."""
        assert self.spec.socket is not None
        deadline = time.monotonic() + seconds
        gate = Path(self.spec.socket.path)
        while not gate.exists():
            if time.monotonic() > deadline:
                return False
            time.sleep(0.001)
        return True

    @property
    def offers_packed_rings(self) -> bool:
        """Whether it does, as of when it came last."""
        return bool(self.interposer.features >> RING_PACKED & 1)
