"""Another QEMU in the place of one that died, with the same ports on the same memory.

What the recoverer does, in its thread: see :mod:`virtnic.nic.supervisor` for when and how often.
"""

from __future__ import annotations

import time
from contextlib import ExitStack
from typing import TYPE_CHECKING

from virtnic._native import NetPort, QemuDied
from virtnic.errors import VirtnicError
from virtnic.qemu.machine import present
from virtnic.qemu.process import Process

if TYPE_CHECKING:
    from virtnic.nic.backend import Backend
    from virtnic.nic.port import Port
    from virtnic.nic.qemu import Qemu

__all__ = ["abandon", "attach_again", "restore", "set_aside", "whole"]

#: Seconds that the interposer has to see that QEMU is gone.
_PARTING = 2.0


def whole(qemu: Qemu) -> bool:
    """Whether QEMU runs, answers, and has all our ports."""
    alive = qemu.qtest.death is None and qemu.process.alive
    return alive and not any(port.away for port in qemu.ports)


def set_aside(qemu: Qemu) -> None:
    """Make sure that QEMU is gone, and have the ports wait."""
    with qemu._attach_lock:
        qemu.qtest.close()
        assert isinstance(qemu.process, Process)  # only our own QEMUs are started again
        qemu.process.reap()  # whatever it was that it did last, it writes no more
        ports = _returning(qemu)
        down = [port for port in ports if _link(port)]
        for port in ports:
            _await_parting(port._attachment.backend)
            port.suspend()
    for port in down:
        port.link_changed()


def restore(qemu: Qemu) -> None:
    """Start another QEMU, unless one runs, and attach the ports that wait.

    Raises what the first port failed with, once all were tried.
    """
    failures = []
    back = []
    with qemu._attach_lock:
        if qemu.closed:
            return
        if qemu.qtest.death is not None or not qemu.process.alive:
            qemu._relaunch()
            qemu._take_bus()
        returning = _returning(qemu)
        for port in returning:
            if not port.away or port.closed:
                continue
            try:
                attach_again(port)
            except QemuDied:
                raise
            except (VirtnicError, OSError, ValueError) as error:
                failures.append(error)
            else:
                back.append(port)
        if qemu._keeps_little:
            qemu.keep_little()
    if back or not returning:
        qemu._feed.put("qemu-back")
    for port in back:
        if _link(port):
            port.link_changed()
    if failures:
        raise failures[0]


def abandon(qemu: Qemu, why: str) -> None:
    """Give the ports up that did not come back."""
    for port in qemu.ports:
        if port.away:
            port.abandon(why)


def _returning(qemu: Qemu) -> list[Port]:
    """Return the ports that come back with QEMU."""
    return [port for port in qemu.ports if port._attachment.returns]


def attach_again(port: Port) -> None:
    """Plug in another device for a port whose device is gone, and go on with that.

    The caller has the lock. Raises what :meth:`virtnic.Qemu.attach` does; the device is gone then.
    """
    attachment = port._attachment
    qemu = attachment.qemu
    assert attachment.spec is not None
    with ExitStack() as undo:
        attachment.function = None
        backend = attachment.backend
        if backend is not None:
            backend.wait(_PARTING)
        attachment.qtest, attachment.plugged = qemu.qtest, None
        undo.callback(qemu._unplug, attachment)
        made = () if backend is None else (backend.expect_netdev(),)
        qemu.add_nic(attachment.spec, attachment.properties, attachment.plugging, *made)
        present(qemu._routing).lead(attachment, qemu._take_new(attachment))
        before = qemu.process.stderr_position()
        port.reattach(qemu.qtest, **attachment.registers())
        qemu._check_started(attachment, before)
        qemu._follow_peer(port)
        undo.pop_all()


def _link(port: Port) -> bool:
    """Whether the link was up when last asked; a device that is gone cannot be asked."""
    return NetPort.link.__get__(port)  # type: ignore[no-any-return]


def _await_parting(backend: Backend | None) -> None:
    """Wait until a backend serves our rings no more, after its QEMU went."""
    deadline = time.monotonic() + _PARTING
    while backend is not None and backend.interposer.connected and time.monotonic() < deadline:
        time.sleep(0.001)
