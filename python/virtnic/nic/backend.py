"""vhost-user: a backend that shares the memory and polls the rings.

QEMU connects to an interposer, which passes its messages on to the backend and replaces QEMU's
eventfds by its own: notifications then pass directly between backend and driver. See the
"Vhost-user Protocol" in QEMU's documentation (docs/interop).
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import os
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

from virtnic._native import EventFd, Interposer, QemuError
from virtnic.errors import NetdevUnavailable, message_of
from virtnic.nic.policy import Recovery
from virtnic.qemu.backends import process_of, queue_size_for
from virtnic.qemu.loop import SharedWatch
from virtnic.qemu.rundir import RunDirectory
from virtnic.qemu.spec import VhostUserSocket
from virtnic.teardown import Owner

if TYPE_CHECKING:
    from collections.abc import Callable

    from virtnic.qemu import Spec
    from virtnic.qemu.external import SharedDirectory
    from virtnic.teardown import Teardown

__all__ = ["RING_PACKED", "Backend", "Backends", "quoting", "retry_of"]

#: The feature bit by which a backend offers packed rings (VIRTIO 1.3, section 6).
RING_PACKED = 34
#: Seconds for QEMU to connect to the interposer: it retries once a second before 9.2.
_QEMU_CONNECTS = 5.0


#: Start of the interposer's reason if QEMU knows more.
_HUNG_UP = "QEMU hung up"


def quoting(why: str, said: str) -> str:
    """Add QEMU's message to the reason why a backend does not serve, if QEMU disconnected."""
    lines = said.strip().splitlines()
    return f"{why} (QEMU: {lines[-1]})" if lines and why.find(_HUNG_UP) >= 0 else why


def retry_of(recover: bool | Recovery | None) -> tuple[int, float, float] | None:
    """Convert a policy for the core."""
    if recover is False:
        return 0, 0.0, 0.0
    if isinstance(recover, Recovery):
        return recover.attempts, recover.backoff, recover.backoff_max
    return None


class Backends:
    """Shared by the interposers of one QEMU, to save descriptors.

    It exists as long as one of them does.
    """

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._users: set[object] = set()
        self._directory: RunDirectory | None = None
        self._made = False
        self._numbers = itertools.count()
        self._changed: SharedWatch | None = None

    @property
    def changed(self) -> SharedWatch:
        """Signalled for changes of any of them."""
        assert self._changed is not None
        return self._changed

    def enter(self, who: object) -> None:
        """Register a user, who must leave in any case. Raises OSError."""
        with self._lock:
            self._users.add(who)
            if self._changed is None:
                self._changed = SharedWatch(EventFd())

    def new_vhost_user(self) -> Path:
        """Return the path for another interposer's socket. Raises OSError."""
        with self._lock:
            if self._directory is None:
                self._directory = RunDirectory()
            if not self._made:
                self._directory.make()
                self._made = True
            return self._directory.vhost_user(next(self._numbers))

    def leave(self, who: object) -> None:
        """Remove a user; can be repeated. Raises OSError if the directory cannot be removed."""
        with self._lock:
            self._users.discard(who)
            if self._users:
                return
            if self._directory is not None:
                self._directory.close()
                self._directory, self._made = None, False
            if self._changed is not None:
                self._changed.event.close()
                self._changed = None


class Backend(Owner):
    """A vhost-user backend and the interposer in front of it."""

    def __init__(
        self,
        spec: Spec,
        undo: Teardown,
        queues: int = 1,
        *,
        backends: Backends,
        interrupts: bool,
        shared: SharedDirectory | None = None,
        recover: bool | Recovery | None = None,
        reply_timeout: float = 10.0,
    ) -> None:
        """Connect to the backend of a netdev. ``undo`` gets the steps that undo it.

        It must have this many ``queues`` (pairs), and answer each request of QEMU within
        ``reply_timeout`` seconds, while QEMU does nothing else. ``backends`` is shared by those of
        one QEMU. ``shared`` is where QEMU finds the interposer's socket if it was started
        elsewhere. ``recover`` says whether, and how often, to look for a lost backend.

        Raises NetdevUnavailable if there is no backend, QemuError if it lacks something,
        TimeoutError if none connected in time.
        """
        socket = spec.socket
        if socket is None:
            raise ValueError("the netdev names no vhost-user socket")
        self._recover = recover
        #: Its socket.
        self.path = socket.path
        #: The backend's eventfds for each pair: frames received, frames finished.
        self.events = [(EventFd(), EventFd()) for _ in range(queues)]
        undo.add(self._close_events)
        undo.add(functools.partial(backends.leave, self))
        backends.enter(self)
        #: Signalled for changes of this and other backends.
        self.changed = backends.changed
        listen = os.fspath((backends if shared is None else shared).new_vhost_user())
        calls = [event for pair in self.events for event in pair] if interrupts else []
        try:
            self.interposer = Interposer(
                listen,
                socket.path,
                socket.server,
                socket.wait,
                calls,
                retry_of(recover),
                queues,
                reply_timeout,
                self.changed.event,
            )
        except (FileNotFoundError, ConnectionRefusedError) as error:
            raise NetdevUnavailable(message_of(error)) from None
        undo.add(self.interposer.close)
        #: Its counters when QEMU had created its netdev.
        self.before = self.interposer.stats()
        #: Most queue entries when no size was requested; 0 for no limit.
        self.queue_size = queue_size_for(self._process())
        #: The netdev that makes QEMU connect to the interposer.
        self.spec = dataclasses.replace(
            spec, socket=VhostUserSocket(listen, server=False, wait=_QEMU_CONNECTS)
        )

    def _close_events(self) -> None:
        """Close the descriptors, even if the port is kept."""
        for pair in self.events:
            for event in pair:
                event.close()

    def _process(self) -> str | None:
        """Return the name of the backend's process, if known."""
        fd = self.interposer.take_first()
        if fd is None:
            return None
        try:
            return process_of(fd)
        finally:
            os.close(fd)

    def expect_netdev(self) -> Callable[[str], None]:
        """Prepare for QEMU creating its netdev; return a function to call when it has.

        That gets QEMU's output meanwhile, and raises QemuError if there is no backend behind the
        netdev: it was refused or lost, and QEMU was released from the command, in which it would
        have been stuck.
        """
        self.interposer.begin_trial()

        def made(said: str) -> None:
            # First: a loss from here on fails the trial, or is reported.
            self.before = self.interposer.stats()
            why = self.interposer.end_trial()
            if why is not None:
                raise QemuError(f"the vhost-user backend at {self.path}: {quoting(why, said)}")

        return made

    def given_up(self, said: str = "") -> str | None:
        """Return why no backend is looked for any more, with QEMU's message; None while one is."""
        why = self.interposer.given_up
        if why is None:
            return None
        why = quoting(why, said)
        if self._recover is False:
            return f"{why}; it is not looked for again (recover=False): attach the port again"
        return f"{why}; start it and attach the port again"

    def wait(self, seconds: float) -> bool:
        """Wait until the interposer has the backend again and accepts a QEMU."""
        assert self.spec.socket is not None
        deadline = time.monotonic() + seconds
        gate = Path(self.spec.socket.path)
        while not gate.exists():
            self.interposer.accept_held()  # the next QEMU has not negotiated features yet
            if time.monotonic() > deadline:
                return False
            time.sleep(0.001)
        return True

    @property
    def is_there(self) -> bool:
        """Whether there is a backend, waiting for a QEMU."""
        assert self.spec.socket is not None
        return self.interposer.held is not None or Path(self.spec.socket.path).exists()

    @property
    def attempts(self) -> int | None:
        """How many consecutive attempts may fail; None for no limit."""
        retry = retry_of(self._recover)
        return None if retry is None else retry[0]

    @property
    def offers_packed_rings(self) -> bool:
        """Whether the backend offered packed rings when it last connected."""
        return bool(self.interposer.features >> RING_PACKED & 1)
