"""Events of an attached port: its link, its backend, its peer, its end."""

from __future__ import annotations

import contextlib
import functools
import logging
import weakref
from typing import TYPE_CHECKING

from virtnic._native import PortClosed
from virtnic.nic.backend import quoting
from virtnic.nic.renegotiation import Renegotiation

if TYPE_CHECKING:
    from collections.abc import Callable

    from virtnic._native import NetPort
    from virtnic.nic.attachment import Attachment
    from virtnic.nic.backend import Backend
    from virtnic.nic.devices import Devices
    from virtnic.nic.events import EventKind, Feed
    from virtnic.qemu.loop import SharedWatch

__all__ = ["follow_backend", "follow_configuration", "follow_peer", "tell_link"]

_log = logging.getLogger(__name__)


def tell_link(feed: Feed) -> Callable[[NetPort], None]:
    """Return a link callback that reports to the feed."""

    def changed(port: NetPort) -> None:
        with contextlib.suppress(PortClosed):
            feed.put("link-up" if port.link else "link-down", port)

    return changed


def follow_backend(feed: Feed, attachment: Attachment, devices: Devices, backend: Backend) -> None:
    """Report a port's lost and returning backend; end a port that has lost it for good.

    It is back once it serves: its rings are started, and it answers. Ends with the port.
    """
    interposer, path = backend.interposer, backend.path
    # Not the current state: it may have been lost since its rings were started.
    losses, refusals = backend.before["backend_losses"], backend.before["refusals"]
    doubts = 0
    there = True
    told: str | None = None
    # Neither is kept alive: a forgotten port must be collected.
    made, weak = attachment.made, weakref.ref(attachment)

    def failed(why: str) -> None:
        nonlocal told
        if why != told:
            told = why
            _log.warning("the vhost-user backend %s has fewer features, and %s", path, why)
            feed.put("backend-refused", made(), f"{path}: it has fewer features, and {why}")

    renegotiation = Renegotiation(attachment, devices, backend, failed)
    attachment.settle = renegotiation.close

    def look() -> None:
        nonlocal losses, refusals, doubts, there, told
        stats, refusal = interposer.stats(), interposer.refusal
        refused = stats["refusals"] != refusals
        port, attachment = made(), weak()
        said = "" if attachment is None else attachment.machine.process.stderr
        # A dead QEMU has lost its backend too, which is not the backend's fault; a live one that
        # disconnected will do so again.
        doubts += refused
        gone = stats["backend_losses"] != losses or doubts > 1
        losses, refusals = stats["backend_losses"], stats["refusals"]
        if there and gone:
            there = False
            feed.put("backend-lost", port, path)
            interposer.changed.signal()  # check once more whether it is back
        elif not there and refused and refusal is not None and refusal != told:
            # Report once why a backend that came back does not serve.
            told = refusal
            words = quoting(refusal, said)
            _log.warning("the vhost-user backend %s does not serve: %s", path, words)
            feed.put("backend-refused", port, f"{path}: {words}")
        elif interposer.serving and not renegotiation.busy:
            doubts = 0
            if not there:
                there, told = True, None
                lost, renegotiation.lost = renegotiation.lost, []
                less = f" without {', '.join(lost)}" if lost else ""
                feed.put("backend-back", port, path + less)
        if attachment is None:
            return
        if interposer.held is not None and not attachment.is_lost:
            renegotiation.begin()
        if (why := backend.given_up(said)) is not None:
            attachment.abandon(why)

    interposer.spare(attachment.driver)
    attachment.undo.add(functools.partial(backend.changed.remove, look))
    # It may have been lost while being attached: check that too.
    backend.changed.add(attachment.machine.monitor.loop, look, look)


def follow_peer(feed: Feed, attachment: Attachment) -> None:
    """Report the peer's presence, if QEMU does."""
    peer = attachment.handle.peer
    if peer is None:
        return
    weak = weakref.ref(attachment)  # a forgotten port must be collected

    def told(there: bool, address: str) -> None:
        if (attachment := weak()) is not None:
            attachment.peer_known = there
            kind: EventKind = "peer-connected" if there else "peer-disconnected"
            feed.put(kind, attachment.made(), address)

    if attachment.peer_known is None:
        attachment.peer_known = peer.connected
    peer.tell(told, attachment.peer_known)


def follow_configuration(
    attachment: Attachment, config: SharedWatch, replaced: Callable[[], bool]
) -> None:
    """Make the port read its configuration on its interrupt, and notice the end of QEMU.

    ``replaced`` starts to replace a dead QEMU, and returns False if nobody does.
    """
    made, weak = attachment.made, weakref.ref(attachment)  # a forgotten port must be collected

    def changed() -> None:
        port, attachment = made(), weak()
        if port is None or attachment is None:
            config.remove(changed)
            return
        over = port.closed
        if not over and attachment.is_lost:
            if replaced():
                return
            over = True
        if over:
            config.remove(changed)
            attachment.callbacks.ended()
            return
        attachment.configuration_changed()

    attachment.undo.add(functools.partial(config.remove, changed))
    config.add(attachment.machine.monitor.loop, changed, changed)
