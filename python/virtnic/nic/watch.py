"""What is told of a port while it is attached: its link, its backend, its peer, its end."""

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
    """Return the link callback of a port that tells the feed."""

    def changed(port: NetPort) -> None:
        with contextlib.suppress(PortClosed):
            feed.put("link-up" if port.link else "link-down", port)

    return changed


def follow_backend(feed: Feed, attachment: Attachment, devices: Devices, backend: Backend) -> None:
    """Tell when a port's backend goes and comes back, and end the port that has none any more.

    It is back when it serves: its rings are started, and it answers. It ends with the port.
    """
    interposer, path = backend.interposer, backend.path
    # Not as of now: it may have gone since its rings were started.
    losses, refusals = backend.before["backend_losses"], backend.before["refusals"]
    doubts = 0
    there = True
    told: str | None = None
    # Neither is kept: a port that is forgotten is collected.
    made, weak = attachment.made, weakref.ref(attachment)

    def failed(why: str) -> None:
        nonlocal told
        if why != told:
            told = why
            _log.warning("the vhost-user backend %s has less, and %s", path, why)
            feed.put("backend-refused", made(), f"{path}: it is there with less, but {why}")

    renegotiation = Renegotiation(attachment, devices, backend, failed)
    attachment.settle = renegotiation.close

    def look() -> None:
        nonlocal losses, refusals, doubts, there, told
        stats, refusal = interposer.stats(), interposer.refusal
        refused = stats["refusals"] != refusals
        port, attachment = made(), weak()
        said = "" if attachment is None else attachment.machine.process.stderr
        # A QEMU that went lost its backend too, which is not the backend's doing; one that
        # hangs up and lives does so again.
        doubts += refused
        gone = stats["backend_losses"] != losses or doubts > 1
        losses, refusals = stats["backend_losses"], stats["refusals"]
        if there and gone:
            there = False
            feed.put("backend-lost", port, path)
            interposer.changed.signal()  # whether it is back is looked at once more
        elif not there and refused and refusal is not None and refusal != told:
            # One that is there again, and does not serve: why is said once.
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
    # Lost already while it was being attached: it looks at that, too.
    backend.changed.add(attachment.machine.monitor.loop, look, look)


def follow_peer(feed: Feed, attachment: Attachment) -> None:
    """Tell of the peer's coming and going, where QEMU does."""
    peer = attachment.handle.peer
    if peer is None:
        return
    weak = weakref.ref(attachment)  # a port that is forgotten is collected

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
    """Have the port look at its configuration when its interrupt came, and see the end of QEMU.

    ``replaced`` begins to replace a QEMU that is gone, and is False where nobody does.
    """
    made, weak = attachment.made, weakref.ref(attachment)  # what is forgotten is collected

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
