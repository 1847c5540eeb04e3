"""A port: what users hold."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal, Self

from virtnic import _native

if TYPE_CHECKING:
    from types import TracebackType

    from virtnic.hotplug import Attachment, Qemu

__all__ = ["Interrupts", "LinkCallback", "Port"]

_log = logging.getLogger(__name__)

#: How the device tells us: a message to an eventfd, an interrupt line, or not at all.
Interrupts = Literal["msix", "intx", "none"]
#: Called with the port when its link went up or down, from a thread of virtnic's.
LinkCallback = Callable[["Port"], None]


class Port(_native.NetPort):
    """A virtio-net device that this process drives.

    Made by :func:`virtnic.open` and :meth:`virtnic.Qemu.attach`. The data path, ``send``,
    ``recv``, ``fileno`` and ``stats``, is that of the Rust core; all methods may be called
    from any thread. As a context manager it closes itself.
    """

    def __new__(cls, *, attachment: Attachment, **options: Any) -> Self:  # noqa: ARG004
        """Start the device; for :meth:`virtnic.Qemu.attach` only."""
        return super().__new__(cls, **options)

    def __init__(self, *, attachment: Attachment, **_options: Any) -> None:
        self._attachment = attachment
        self._callbacks: list[LinkCallback] = []
        self._close_lock = threading.Lock()
        self._owns_qemu = False

    @property
    def qemu(self) -> Qemu:
        """The QEMU whose device it is."""
        return self._attachment.qemu

    @property
    def memory(self) -> _native.Memory:
        """The memory that its frames lie in."""
        return self.qemu.memory

    @property
    def interrupts(self) -> Interrupts:
        """How the device tells us."""
        return self._attachment.interrupts

    @property
    def link(self) -> bool:
        """Whether the link is up. Without interrupts this asks the device (some 50 µs)."""
        if self.interrupts == "none" and not self.closed:
            return self.refresh_link()
        return super().link

    def on_link(self, callback: LinkCallback) -> None:
        """Have ``callback(port)`` called when the link goes up or down (``port.link`` says which).

        Raises ValueError when the port has no interrupts.
        """
        if self.interrupts == "none":
            raise ValueError("a port without interrupts cannot tell of its link; ask port.link")
        self._callbacks.append(callback)

    def configuration_changed(self) -> None:
        """Look at the device's configuration; called when its interrupt came."""
        before = super().link
        try:
            now = self.refresh_link()
        except (_native.VirtnicError, OSError) as error:
            _log.debug("the link was not read: %s", error)
            return
        if now == before:
            return
        for callback in list(self._callbacks):
            try:
                callback(self)
            except Exception:
                _log.exception("a link callback failed")

    def _obituary(self) -> str:
        """Say how QEMU ended; called when the data path finds that it has."""
        return self.qemu.process.death()

    def close(self) -> None:
        """Stop the device, take every buffer back, and unplug it.

        A port of :func:`virtnic.open` takes its QEMU down with it. Calls that wait raise
        PortClosed; bursts stay readable. Closing twice is fine. A forked child closes nothing:
        the port is its parent's.
        """
        if self.qemu._is_forked:
            return  # and somebody who is not here may have the lock
        with self._close_lock:
            if self._owns_qemu:
                self.qemu.close()
            else:
                self.qemu.detach(self)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        if self.closed:
            return f"<virtnic.Port {self.mac}: closed>"
        return f"<virtnic.Port {self.mac}: {self.ring} rings of {self.queue_size}>"
