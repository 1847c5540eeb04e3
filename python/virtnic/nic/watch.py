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

    from virtnic.nic.backend import Backend
    from virtnic.nic.events import Feed
    from virtnic.nic.port import Port
    from virtnic.qemu.loop import LoopThread, SharedWatch

__all__ = ["follow_backend", "follow_configuration", "follow_peer", "tell_link"]

_log = logging.getLogger(__name__)


def tell_link(feed: Feed[Port]) -> Callable[[Port], None]:
    """Return the link callback of a port that tells the feed."""

    def changed(port: Port) -> None:
        with contextlib.suppress(PortClosed):
            feed.put("link-up" if port.link else "link-down", port)

    return changed


def follow_backend(feed: Feed[Port], port: Port, backend: Backend, loop: LoopThread) -> None:
    """Tell when a port's backend goes and comes back, and end the port that has none any more.

    It is back when it serves: its rings are started, and it answers. It ends with the port.
    """
    interposer, path = backend.interposer, backend.path
    # Not as of now: it may have gone since its rings were started.
    losses, refusals = backend.before["backend_losses"], backend.before["refusals"]
    doubts = 0
    there = True
    told: str | None = None
    weak = weakref.ref(port)  # one that is forgotten is collected

    def failed(why: str) -> None:
        nonlocal told
        if why != told:
            told = why
            _log.warning("the vhost-user backend %s has less, and %s", path, why)
            feed.put("backend-refused", weak(), f"{path}: it is there with less, but {why}")

    renegotiation = Renegotiation(port, backend, failed)
    port._attachment.settle = renegotiation.close

    def look() -> None:
        nonlocal losses, refusals, doubts, there, told
        stats, refusal = interposer.stats(), interposer.refusal
        refused = stats["refusals"] != refusals
        port = weak()
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
            words = refusal if port is None else quoting(refusal, port.qemu.process.stderr)
            _log.warning("the vhost-user backend %s does not serve: %s", path, words)
            feed.put("backend-refused", port, f"{path}: {words}")
        elif interposer.serving and not renegotiation.busy:
            doubts = 0
            if not there:
                there, told = True, None
                lost, renegotiation.lost = renegotiation.lost, []
                less = f" without {', '.join(lost)}" if lost else ""
                feed.put("backend-back", port, path + less)
        if port is not None and interposer.held is not None and not port._attachment.is_lost:
            renegotiation.begin()
        if port is not None and (why := backend.given_up(port.qemu.process.stderr)) is not None:
            port.abandon(why)

    interposer.spare(port)
    port._attachment.undo.add(functools.partial(backend.changed.remove, look))
    # Lost already while it was being attached: it looks at that, too.
    backend.changed.add(loop, look, look)


def follow_peer(feed: Feed[Port], port: Port) -> None:
    """Tell of the peer's coming and going, where QEMU does."""
    attachment = port._attachment
    peer = attachment.handle.peer
    if peer is None:
        return
    weak = weakref.ref(port)  # one that is forgotten is collected

    def told(there: bool, address: str) -> None:
        if (port := weak()) is not None:
            port._attachment.peer_known = there
            feed.put("peer-connected" if there else "peer-disconnected", port, address)

    if attachment.peer_known is None:
        attachment.peer_known = peer.connected
    peer.tell(told, attachment.peer_known)


def follow_configuration(
    port: Port, config: SharedWatch, loop: LoopThread, replaced: Callable[[], bool]
) -> None:
    """Have the port look at its configuration when its interrupt came, and see the end of QEMU.

    ``replaced`` begins to replace a QEMU that is gone, and is False where nobody does.
    """
    weak = weakref.ref(port)  # one that is forgotten is collected, and closed then

    def changed() -> None:
        port = weak()
        if port is None:
            config.remove(changed)
            return
        over = port.closed
        if not over and port._attachment.is_lost:
            if replaced():
                return
            over = True
        if over:
            config.remove(changed)
            port.ended()
            return
        port.configuration_changed()

    port._attachment.undo.add(functools.partial(config.remove, changed))
    config.add(loop, changed, changed)
