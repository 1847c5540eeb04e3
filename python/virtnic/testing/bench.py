"""What the fixtures of one test have made, in the order in which it is to be closed."""

from __future__ import annotations

import contextlib
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractContextManager
    from pathlib import Path

    import virtnic
    from virtnic.testing.kept import Kept

__all__ = ["READY", "Attach", "Bench"]

#: Seconds for the peer of a port to become ready.
READY = 10.0
#: Seconds for a switch to connect to a socket of ours.
_CONNECTS = 20
T = TypeVar("T")


class Attach(Protocol):
    """What the fixture ``virtnic_attach`` gives."""

    def __call__(self, netdev: Any, *, ready: float | None = READY, **options: Any) -> virtnic.Port:
        """Attach a port to a netdev, and wait ``ready`` seconds at most until frames pass."""


class Bench:
    """Ports and peers of a test, and what is kept of them if it fails."""

    def __init__(
        self, attach: Callable[..., virtnic.Port], marked: dict[str, Any], kept: Kept
    ) -> None:
        """``attach``: makes a port. ``marked``: arguments of the test's marker for all ports."""
        self._attach = attach
        self._marked = marked
        self._stack = contextlib.ExitStack()
        self._count = 0
        self.kept = kept

    def enter(self, peer: AbstractContextManager[T]) -> T:
        """Close a peer after the ports that are attached from now on."""
        return self._stack.enter_context(peer)

    def attach(self, netdev: Any, *, ready: float | None = READY, **options: Any) -> virtnic.Port:
        """Attach a port, capture it, and wait until frames pass; None does not wait."""
        port = self._stack.enter_context(self._attach(netdev, **{**self._marked, **options}))
        self.kept.capture(port, f"port{self._count}")
        self._count += 1
        if ready is not None:
            port.wait_ready(ready)
        return port

    def attach_client(
        self, path: Path, connect: Callable[[Path], object], **options: Any
    ) -> virtnic.Port:
        """Attach a port that listens, and make a switch connect to it once it does.

        Which would otherwise try once a second only. It is not waited for that frames pass.
        """
        netdev = f"vhost-user,path={path},server=on,wait={_CONNECTS}"
        with ThreadPoolExecutor(1) as executor:
            attached = executor.submit(self.attach, netdev, ready=None, **options)
            while not path.is_socket() and not attached.done():
                time.sleep(0.002)
            if not attached.done():
                connect(path)
            return attached.result()

    def close(self, *, failed: bool) -> None:
        """End the captures, then close ports and peers, the last one first."""
        with self._stack:
            self.kept.close(failed=failed)
