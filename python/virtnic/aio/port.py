"""Ports for asyncio, trio and anyio.

>>> async with virtnic.aio.open("user") as port:
...     await port.send_all([frame])
...     async for burst in port:
...         ...

The running event loop, asyncio or trio (anyio runs on one of them), is used; neither is imported
here. All waiting is for the port's file descriptors, in the event loop. Threads are used only for
opening and closing, which take some 100 ms.

Every call is a checkpoint: other tasks run meanwhile, and it can be cancelled. A cancelled ``recv``
loses no frame, because taking frames and returning them is one step.
"""

from __future__ import annotations

import functools
import weakref
from collections import deque
from typing import TYPE_CHECKING, Any, Self, cast

from virtnic._native import Burst, EventFd
from virtnic.aio.threads import in_thread
from virtnic.arguments import check_names
from virtnic.async_library import readable, running
from virtnic.deadline import Deadline
from virtnic.nic.opening import OpenOptions, open_port
from virtnic.nic.port import Port as BlockingPort
from virtnic.nic.port import PortOptions, driven_of
from virtnic.nic.ready import PAUSE, Readiness
from virtnic.nic.sending import BACKOFF, Pending
from virtnic.teardown import Owner, made_at

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterable
    from types import TracebackType
    from typing import Unpack

    from virtnic._native import Feature, Memory, Offload, Offloads
    from virtnic.async_library import Descriptor, Library
    from virtnic.nic.attachment import Driven
    from virtnic.nic.options import Interrupts
    from virtnic.nic.port import Qemu
    from virtnic.protocols import Frame, PacketPort
    from virtnic.qemu import Netdev

__all__ = ["LinkChanges", "Port", "attach", "open"]

#: Link changes that nobody has fetched; more than this means a broken cable.
_LINK_CHANGES = 1024


class Opening(Owner):
    """A port to be opened: use it with ``async with`` or ``await`` it."""

    def __init__(self, call: Callable[[], BlockingPort], *, starts_qemu: bool) -> None:
        self._call = call
        self._starts_qemu = starts_qemu
        self._port: Port | None = None
        self._remember_caller()

    async def _open(self) -> Port:
        def call() -> BlockingPort:
            port = self._call()
            made_at(port, self)  # not in this thread
            if self._starts_qemu and port.frontend == "qemu":
                made_at(port.qemu, self)
            try:
                _descriptors(port)[0]()  # raises ValueError without interrupts
            except BaseException:
                port.close()
                raise
            return port

        port: BlockingPort = await in_thread(running(), call, BlockingPort.close)
        try:
            return Port(port)
        except BaseException:  # Ctrl-C: the event loop makes no further call
            port.close()
            raise

    def __await__(self) -> Generator[Any, Any, Port]:
        return self._open().__await__()

    async def __aenter__(self) -> Port:
        self._port = await self._open()
        return self._port

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        port, self._port = self._port, None
        if port is not None:
            await port.close()


def open(netdev: Netdev = "user", **options: Unpack[OpenOptions]) -> Opening:  # noqa: A001 - virtnic.aio.open
    """Open a port off the event loop, with the options of :func:`virtnic.open`.

    ``async with virtnic.aio.open("user") as port`` closes it at the end; after
    ``port = await virtnic.aio.open("user")`` the caller closes it.
    """
    check_names("virtnic.aio.open()", OpenOptions.__optional_keys__, options)
    return Opening(functools.partial(open_port, netdev, options), starts_qemu=True)


def attach(qemu: Qemu, netdev: Netdev = "user", **options: Unpack[PortOptions]) -> Opening:
    """Attach a port to a running QEMU, off the event loop: see :meth:`virtnic.Qemu.attach`."""
    check_names("virtnic.aio.attach()", PortOptions.__optional_keys__, options)
    return Opening(functools.partial(qemu.attach, netdev, **options), starts_qemu=False)


def _descriptors(
    port: Any,
) -> tuple[Callable[[], Descriptor], Callable[[], Descriptor]]:
    """Return functions for the descriptors to receive and to send, for a single wait.

    Not their numbers, which would keep a closed port's descriptors open.
    """
    attachment = driven_of(port)
    if attachment is None or not isinstance(port, BlockingPort):
        return lambda: port, lambda: _Sending(port)
    return attachment.driver.rx_descriptor, attachment.driver.tx_descriptor


class _Sending:
    """The descriptor on which a fake signals room."""

    def __init__(self, port: Any) -> None:
        self.fileno = port.tx_fileno


class Port(Owner):
    """A port with awaitable calls. ``port`` is the :class:`virtnic.Port` underneath.

    Belongs to the event loop in which it was made. Any number of tasks may send and receive: they
    take turns in order. Waiting tasks raise PortClosed or QemuDied as soon as the port is closed or
    its QEMU has ended.
    """

    def __init__(self, port: BlockingPort | PacketPort) -> None:
        """Wrap an open port, or one of :mod:`virtnic.testing`.

        Raises ValueError if it has no interrupts.
        """
        self.port = cast("BlockingPort", port)
        self._library = running()
        self._rx, self._tx = _descriptors(self.port)
        self._rx()
        self._receiving = self._library.lock()
        self._sending = self._library.lock()

    async def recv(self, maximum: int = 256) -> Burst:
        """Wait for frames and return up to ``maximum``, at least one.

        Cancellation loses no frame. Raises as :meth:`virtnic.Port.recv`.
        """
        await self._receiving.acquire()
        try:
            await self._library.checkpoint()
            # From here on, no suspension between taking frames and returning them.
            while not (burst := self.port.recv(maximum)):
                await readable(self._rx, self._library)
            return burst
        finally:
            self._receiving.release()

    async def send(
        self,
        frames: Burst | Iterable[Frame],
        offload: Offload | Offloads | Iterable[Offload | None] | None = None,
    ) -> int:
        """Queue as many frames as fit, in order, and return how many.

        As :meth:`virtnic.Port.send`, in turn with other tasks; see :meth:`send_all`.
        """
        await self._sending.acquire()
        try:
            await self._library.checkpoint()
            return self.port.send(frames, offload)
        finally:
            self._sending.release()

    async def send_all(
        self,
        frames: Burst | Iterable[Frame],
        offload: Offload | Offloads | Iterable[Offload | None] | None = None,
    ) -> int:
        """Queue all frames in order, waiting for room; return their number.

        ``offload`` as for :meth:`virtnic.Port.send`. On cancellation the first frames have been
        queued and the rest have not; a burst keeps the rest. Raises as :meth:`virtnic.Port.send`.
        """
        await self._sending.acquire()
        try:
            await self._library.checkpoint()
            pending = Pending(self.port, frames, offload)
            while not pending.push():
                await readable(self._tx, self._library)
                if pending.stuck:
                    await self._library.sleep(BACKOFF)
            return pending.queued
        finally:
            self._sending.release()

    async def wait_ready(self, timeout: float | None = 10.0) -> None:
        """Wait until frames pass; as :meth:`virtnic.Port.wait_ready`."""
        readiness = Readiness(self.port, driven_of(self.port))
        deadline = Deadline(timeout)
        # In a thread, because QEMU may have to be asked.
        while not await in_thread(self._library, readiness.look):
            if deadline.is_over:
                raise readiness.late(timeout)
            await self._library.sleep(PAUSE)

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Burst:
        return await self.recv()

    def link_changes(self) -> LinkChanges:
        """Return an async iterator of the link changes from now on: ``async for up in …``.

        Ends with PortClosed or QemuDied.
        """
        attachment = driven_of(self.port)
        if attachment is None:
            raise ValueError(f"{self.port!r} cannot tell of its link here; on_link() does")
        return LinkChanges(attachment, self._library)

    async def close(self) -> None:
        """Close the port as :meth:`virtnic.Port.close`, even if cancelled meanwhile."""
        await in_thread(self._library, self.port.close)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.close()

    @property
    def mac(self) -> str:
        """The device's MAC address."""
        return self.port.mac

    @property
    def mtu(self) -> int:
        """The device's MTU."""
        return self.port.mtu

    @property
    def link(self) -> bool:
        """Whether the link is up."""
        return self.port.link

    @property
    def features(self) -> list[Feature]:
        """The outcome of each feature."""
        return self.port.features

    @property
    def queue_size(self) -> int:
        """Number of entries of each queue."""
        return self.port.queue_size

    @property
    def ring(self) -> str:
        """Ring format: ``split`` or ``packed``."""
        return self.port.ring

    @property
    def interrupts(self) -> Interrupts:
        """How the device signals: ``msix``, ``intx`` or ``none``."""
        return self.port.interrupts

    @property
    def qemu(self) -> Qemu:
        """The QEMU that the device belongs to. Raises QemuError if there is none."""
        return self.port.qemu

    @property
    def memory(self) -> Memory:
        """The memory that holds its frames."""
        return self.port.memory

    @property
    def closed(self) -> bool:
        """Whether the port was closed."""
        return self.port.closed

    def stats(self) -> dict[str, int]:
        """Return the counters."""
        return self.port.stats()

    def __repr__(self) -> str:
        return f"<virtnic.aio.Port of {self.port!r}>"


class LinkChanges(Owner):
    """An asynchronous iterator: True when the link went up, False when it went down."""

    def __init__(self, attachment: Driven, library: Library) -> None:
        self._driver = attachment.driver
        self._library = library
        changes: deque[bool] = deque(maxlen=_LINK_CHANGES)
        event = EventFd()

        def changed(port: BlockingPort) -> None:
            changes.append(port.link)
            event.signal()

        self._changes, self._event = changes, event
        made = attachment.made

        def ended() -> None:
            port = made()
            if port is None or port.closed:
                event.close()  # ends with its port, even if the iterator is kept
            else:
                event.signal()

        # Neither refers to this object: a dropped iterator stops listening.
        self._unsubscribe = weakref.finalize(self, attachment.add_link_callback(changed, ended))

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> bool:
        await self._library.checkpoint()
        while True:
            self._event.drain()
            if self._changes:
                return self._changes.popleft()
            self._driver.check()
            await readable(self._event.borrow, self._library)
