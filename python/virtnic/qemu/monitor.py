"""QMP, QEMU's control protocol, from ordinary threads.

The protocol is spoken by ``qemu.qmp`` in the shared loop thread; :class:`Monitor` is
the synchronous side of it. See QEMU's documentation, "QEMU Machine Protocol".
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping, MutableMapping
from typing import Any, Self

from qemu.qmp import EventListener, ExecInterruptedError, QMPClient, QMPError
from qemu.qmp.protocol import StateError
from qemu.qmp.qmp_client import ExecuteError

from virtnic.deadline import bounded
from virtnic.errors import QemuDied, QemuError
from virtnic.qemu import text
from virtnic.qemu.identity import Identity
from virtnic.qemu.loop import Hold, LoopThread
from virtnic.qemu.quirks import Version
from virtnic.teardown import Latch, Owner

_log = logging.getLogger(__name__)

#: An event as QMP sends it: ``{"event": name, "data": {…}, "timestamp": {…}}``.
Event = Mapping[str, Any]
EventCallback = Callable[[Event], object]

# What qemu.qmp logs as errors (a peer that hangs up) reaches our callers as exceptions.
logging.getLogger("qemu.qmp.protocol.virtnic").setLevel(logging.CRITICAL)


#: A command that takes this many times the timeout, and this many seconds more, is never answered.
#: A backend that hangs holds QEMU for half the timeout at most.
HANG = (2.0, 5.0)


class NobodyListens(TimeoutError):
    """There was no QMP socket to connect to in time."""


@contextlib.contextmanager
def understanding(command: str) -> Iterator[None]:
    """Raise QemuError where a reply has not the form that QEMU documents for the command."""
    try:
        yield
    except (AttributeError, IndexError, KeyError, RecursionError, TypeError) as error:
        raise QemuError(f"QEMU's reply to {command} is not of its form: {error!r}") from error


class _Direct(EventListener):
    """Hands events on as they come: they do not queue up, however many there are."""

    def __init__(self, dispatch: EventCallback) -> None:
        super().__init__()
        self._hand_on = dispatch

    async def put(self, event: MutableMapping[str, Any]) -> None:
        event.setdefault("data", {})
        self._hand_on(event)
        # The reader goes on as long as there is input: others must have their turn.
        await asyncio.sleep(0)


class Monitor(Owner):
    """A connection to QEMU's QMP socket. Any thread may use it."""

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        timeout: float = 10.0,
        gone: Callable[[float], bool] = lambda _patience: False,
        why: Callable[[], str] = lambda: "QEMU closed its QMP socket",
        on_end: Callable[[], object] = lambda: None,
        on_hang: Callable[[str], object] = lambda _why: None,
    ) -> None:
        """``gone`` tells whether the process has ended, or does within some seconds; ``why`` how.

        ``on_end`` is called in the loop's thread when the connection ends, by whichever side.
        ``on_hang`` is called there when QEMU does not come back from a command, before the
        connection is ended for that.
        """
        self._path = os.fspath(path)
        self._timeout = timeout
        self._gone = gone
        self._why = why
        self._on_end = on_end
        self._on_hang = on_hang
        self._listeners: list[tuple[frozenset[str] | None, EventCallback]] = []
        #: Held while a descriptor is sent.
        self._sending = threading.RLock()
        self._close_lock = threading.RLock()
        self._closed = False
        self._ended_event = Latch()
        self._client = QMPClient("virtnic")
        # The client's own listener would keep every event until somebody takes it: nobody does.
        self._client.events.event_filter = lambda _event: False
        self._client.register_listener(_Direct(self._dispatch))
        self._closing = asyncio.Event()
        self._socket: tuple[socket.socket, Identity] | None = None
        self._connecting: asyncio.Task[Any] | None = None
        self._holder: asyncio.Task[None] | None = None
        self._hold = Hold()
        self._loop: LoopThread | None = None
        self._version: Version | None = None

    def connect(self) -> Self:
        """Connect, retrying until the socket is there, the timeout is over or QEMU is gone.

        Raises QemuDied, TimeoutError, QemuError, OSError. Whoever is interrupted closes it.
        """
        self._loop = self._hold.take()
        deadline = time.monotonic() + self._timeout
        try:
            self.loop.call(lambda: self._connect(deadline), self._timeout + 1.0)
            self._version = _version(self._client)
        except BaseException as error:
            self.close()
            if isinstance(error, QMPError) and self._gone(1.0):
                raise QemuDied(f"QEMU did not start: {self._why()}") from None
            if isinstance(error, QMPError):
                raise QemuError(f"{self._path} does not greet as QEMU does: {error}") from error
            raise
        return self

    @property
    def loop(self) -> LoopThread:
        """The loop that it is spoken in."""
        assert self._loop is not None  # it was connected
        return self._loop

    @property
    def version(self) -> Version:
        """QEMU's version, as it said in its greeting."""
        assert self._version is not None  # it was connected
        return self._version

    def execute(self, command: str, /, *, timeout: float | None = None, **arguments: Any) -> Any:
        """Execute a QMP command and return its result.

        Raises ValueError and TypeError for arguments that QMP cannot carry (text that is not
        UTF-8, for one), QemuError quoting QEMU's own words, QemuDied when QEMU goes meanwhile,
        TimeoutError when it does not answer in ``timeout`` seconds (default: the monitor's). Then
        it may still do it. One that it never comes back from is its death: see :data:`HANG`.
        """
        limit = self._timeout if timeout is None else bounded(timeout)
        text.check(command, "the command")
        text.check(arguments, command)
        self.check()
        try:
            return self.loop.call(lambda: self._answer(command, arguments), limit)
        except ExecuteError as error:
            raise QemuError(f"QEMU refused {command}: {error.error.error.desc}") from None
        except (ExecInterruptedError, StateError, EOFError, OSError) as error:
            if isinstance(error, TimeoutError):
                raise TimeoutError(
                    f"QEMU did not answer {command} within {limit:g} s: it is blocked, "
                    "perhaps by a backend that does not answer it"
                ) from None
            raise QemuDied(f"{command} was not answered: {self._ended()}") from None
        except QMPError as error:
            raise QemuError(f"QMP broke down during {command}: {error}") from error

    def send_descriptor(self, fd: int, name: str) -> None:
        """Give QEMU a copy of a descriptor, under a name that netdevs know it by (``getfd``).

        Raises as :meth:`execute`.
        """
        self.check()

        async def send() -> None:
            while True:
                try:
                    self._client.send_fd_scm(fd)
                except BlockingIOError:  # QEMU has not read what it was sent before
                    await asyncio.sleep(0.005)
                else:
                    return

        # One at a time: QEMU keeps the last descriptor that came until `getfd` takes it.
        with self._sending:
            try:
                self.loop.call(send, self._timeout)
            except (StateError, EOFError) as error:
                raise QemuDied(f"a descriptor was not taken: {self._ended()}") from error
            self.execute("getfd", fdname=name)

    def post(self, command: str, /, **arguments: Any) -> None:
        """Execute a command without waiting for it; for callbacks, in the loop's thread.

        What QEMU says to it is logged when it refuses.
        """

        async def execute() -> None:
            try:
                await self._client.execute(command, arguments)
            except (QMPError, EOFError, OSError) as error:
                _log.debug("%s: %s", command, error)

        self.loop.start_call(execute)

    def finish(self, command: str, /, **arguments: Any) -> Any:
        """Execute a command that changes something, and wait until it is known whether it did.

        That is when QEMU answers, or dies of not answering. Raises as :meth:`execute`, without
        TimeoutError.
        """
        return self.execute(command, timeout=threading.TIMEOUT_MAX, **arguments)

    def quit(self) -> None:
        """Ask QEMU to end; whether it does, its process tells. Never raises."""
        try:
            self.execute("quit", timeout=1.0)
        except Exception as error:
            _log.debug("QEMU was asked to quit: %s", error)

    def check(self) -> None:
        """Raise QemuDied when the connection has ended, or was never made."""
        if self._loop is None:
            raise QemuDied("there is no connection to QEMU's QMP socket yet")
        if self._closed or self._ended_event.is_set():
            raise QemuDied(self._ended())

    def listen(self, callback: EventCallback, *names: str) -> Callable[[], None]:
        """Call back for each event of these names (all without names); returns what ends that.

        Callbacks run in the loop's thread: they must be quick and must not call
        :meth:`execute`.
        """
        entry = (frozenset(names) if names else None, callback)
        # Without a lock, of which the loop's thread would wait for the end: a signal handler that
        # interrupts this may close, and wait for that thread.
        listeners = self._listeners
        listeners.append(entry)

        def remove() -> None:
            with contextlib.suppress(ValueError):
                listeners.remove(entry)

        return remove

    def hand_over(self, successor: Monitor) -> None:
        """Let the monitor of the next QEMU call back those who listen to this one."""
        successor._listeners, self._listeners = self._listeners, []

    def close(self) -> None:
        """Disconnect. A second call finishes what the first did not."""
        with self._close_lock:
            self._closed = True
            if self._loop is None:
                pass  # it was never connected
            elif self._loop.inside:
                self._loop.start_call(self._disconnect)
            else:
                with contextlib.suppress(TimeoutError, EOFError):
                    self._loop.call(self._disconnect, 5.0)
            self._hold.release()

    async def _connect(self, deadline: float) -> None:
        self._connecting = asyncio.current_task()
        while True:
            sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            sock.setblocking(False)
            try:
                # At once or not at all: that of asyncio waits until the socket is writable, which
                # one that nobody took is from the start, and then takes it for connected.
                sock.connect(self._path)
                break
            except (FileNotFoundError, ConnectionRefusedError, BlockingIOError) as error:
                sock.close()
                if self._gone(0.0):
                    raise QemuDied(f"QEMU did not start: {self._why()}") from None
                if time.monotonic() > deadline:
                    if isinstance(error, BlockingIOError):  # as many wait as QEMU lets wait: two
                        raise TimeoutError(f"{self._silent()}, and others wait for it") from None
                    raise NobodyListens(f"QEMU opened no QMP socket at {self._path}") from None
                await asyncio.sleep(0.001)
            except BaseException:
                sock.close()
                raise
        self._socket = sock, Identity.of(sock.fileno())
        greeted = asyncio.ensure_future(self._client.connect(sock))
        try:
            await asyncio.wait_for(greeted, max(0.1, deadline - time.monotonic()))
        except TimeoutError:
            raise TimeoutError(self._silent()) from None
        self._holder = self.loop.begin(self._stay())

    async def _stay(self) -> None:
        """Wait for the end of the connection, by either side, and clear it away."""
        ended = asyncio.ensure_future(self._client.runstate_changed())
        asked = asyncio.ensure_future(self._closing.wait())
        try:
            await asyncio.wait((ended, asked), return_when=asyncio.FIRST_COMPLETED)
        finally:
            self._ended_event.set()
            self._on_end()
            ended.cancel()
            asked.cancel()
            if self._socket is not None and not self._socket[1].is_still:
                self._socket[0].detach()  # its number is another's by now
            with contextlib.suppress(EOFError, OSError, QMPError):
                await self._client.disconnect()

    def _dispatch(self, message: Event) -> None:
        if not isinstance(message["event"], str) or not isinstance(message.get("data"), dict):
            _log.warning("QEMU sent something that is no event: %.200s", message)
            return
        for names, callback in self._listeners.copy():
            if names is not None and message["event"] not in names:
                continue
            try:
                callback(message)
            except BaseException:  # such as SystemExit, which would end the thread for all
                _log.exception("a callback for the event %s failed", message["event"])

    async def _answer(self, command: str, arguments: dict[str, Any]) -> Any:
        """Send a command and wait for the answer; who asked may have ceased to wait for it."""
        times, more = HANG
        seconds = times * self._timeout + more
        answer = self.loop.begin(self._client.execute(command, arguments or None))
        clock = asyncio.get_running_loop().call_later(seconds, self._hung, command, seconds)

        def answered(done: asyncio.Future[object]) -> None:
            clock.cancel()
            if not done.cancelled():
                done.exception()  # that nobody asks for it is not worth a word

        answer.add_done_callback(answered)
        return await asyncio.shield(answer)

    def _hung(self, command: str, seconds: float) -> None:
        self._on_hang(f"did not come back from {command} within {seconds:g} s")
        self._closing.set()

    async def _disconnect(self) -> None:
        """Undo what connecting did, as far as that came."""
        self._closing.set()
        for task, patience in ((self._connecting, 0.0), (self._holder, 2.0)):
            if task is not None:
                await asyncio.wait((task,), timeout=patience)
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)

    def _silent(self) -> str:
        return (
            f"QEMU said nothing on its QMP socket {self._path}: it is stopped, blocked, "
            "or another client holds the connection"
        )

    def _ended(self) -> str:
        return "the connection was closed by us" if self._closed else self._why()


def _version(client: QMPClient) -> Version:
    """Return what the greeting says (QEMU documentation, "QMP: Server Greeting")."""
    greeting = client.greeting
    try:
        qemu: Any = greeting.QMP.version["qemu"] if greeting is not None else None
        major, minor, micro = (qemu[name] for name in ("major", "minor", "micro"))
    except (KeyError, TypeError):
        major = minor = micro = None
    if not all(type(number) is int for number in (major, minor, micro)):
        raise QemuError("the greeting on the QMP socket tells no version, as QEMU's does")
    return Version(major, minor, micro)
