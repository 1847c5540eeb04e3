"""QMP, QEMU's control protocol, for ordinary threads.

``qemu.qmp`` speaks the protocol in the shared loop thread; :class:`Monitor` is its synchronous
side. See QEMU's documentation, "QEMU Machine Protocol".
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
from virtnic.errors import QemuDied, QemuError, message_of
from virtnic.qemu import text
from virtnic.qemu.identity import Identity
from virtnic.qemu.loop import Hold, LoopThread
from virtnic.qemu.quirks import Version
from virtnic.teardown import Latch, Owner

_log = logging.getLogger(__name__)

#: A QMP event: ``{"event": name, "data": {…}, "timestamp": {…}}``.
Event = Mapping[str, Any]
EventCallback = Callable[[Event], object]

# What qemu.qmp logs as errors (a peer that hangs up) is raised as exceptions.
logging.getLogger("qemu.qmp.protocol.virtnic").setLevel(logging.CRITICAL)


#: A command that takes this many times the timeout plus this many seconds is considered hung. A
#: hanging backend blocks QEMU for at most half the timeout.
HANG = (2.0, 5.0)


class NobodyListens(TimeoutError):
    """No QMP socket to connect to appeared in time."""


@contextlib.contextmanager
def understanding(command: str) -> Iterator[None]:
    """Raise QemuError if a reply does not have the documented form."""
    try:
        yield
    except (AttributeError, IndexError, KeyError, RecursionError, TypeError) as error:
        raise QemuError(f"QEMU's reply to {command} is malformed: {error!r}") from error


class _Direct(EventListener):
    """Passes events on as they come, so that they do not queue up."""

    def __init__(self, dispatch: EventCallback) -> None:
        super().__init__()
        self._hand_on = dispatch

    async def put(self, event: MutableMapping[str, Any]) -> None:
        event.setdefault("data", {})
        self._hand_on(event)
        # The reader continues as long as there is input, so let other tasks run.
        await asyncio.sleep(0)


class Monitor(Owner):
    """A connection to QEMU's QMP socket, usable from any thread."""

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        timeout: float = 10.0,
        gone: Callable[[float], bool] = lambda _timeout: False,
        why: Callable[[], str] = lambda: "QEMU closed its QMP socket",
        on_end: Callable[[], object] = lambda: None,
        on_hang: Callable[[str], object] = lambda _why: None,
    ) -> None:
        """``gone`` returns whether the process ends within a number of seconds; ``why``, how.

        ``on_end`` is called in the loop's thread when either side ends the connection. ``on_hang``
        is called there if QEMU hangs in a command, before the connection is closed for that reason.
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
        # The client's own listener would keep every event, as nobody fetches them.
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
        """Connect, retrying until the socket exists, the timeout expires or QEMU ends.

        Raises QemuDied, TimeoutError, QemuError, OSError. After an interruption, call
        :meth:`close`.
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
                raise QemuError(
                    f"{self._path} does not greet like QEMU: {message_of(error)}"
                ) from error
            raise
        return self

    @property
    def loop(self) -> LoopThread:
        """The loop of the connection."""
        assert self._loop is not None  # connected
        return self._loop

    @property
    def version(self) -> Version:
        """QEMU's version, from its greeting."""
        assert self._version is not None  # connected
        return self._version

    def execute(self, command: str, /, *, timeout: float | None = None, **arguments: Any) -> Any:
        """Execute a QMP command and return its result.

        Raises ValueError and TypeError for arguments that QMP cannot carry (such as text that is
        not UTF-8), QemuError quoting QEMU, QemuDied if QEMU ends meanwhile, TimeoutError if it does
        not answer in ``timeout`` seconds (default: the monitor's); it may still execute the
        command. A QEMU that hangs in a command is ended: see :data:`HANG`.
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
            raise QemuError(f"QMP broke down during {command}: {message_of(error)}") from error

    def send_descriptor(self, fd: int, name: str) -> None:
        """Send QEMU a duplicate of a descriptor, with a name that netdevs can refer to (``getfd``).

        Raises as :meth:`execute`.
        """
        self.check()

        async def send() -> None:
            while True:
                try:
                    self._client.send_fd_scm(fd)
                except BlockingIOError:  # QEMU has not read earlier data
                    await asyncio.sleep(0.005)
                else:
                    return

        # One at a time: QEMU keeps only the last received descriptor until `getfd` takes it.
        with self._sending:
            try:
                self.loop.call(send, self._timeout)
            except (StateError, EOFError) as error:
                raise QemuDied(f"a descriptor was not taken: {self._ended()}") from error
            self.execute("getfd", fdname=name)

    def post(self, command: str, /, **arguments: Any) -> None:
        """Send a command without waiting for the reply; for callbacks, in the loop's thread.

        A refusal is logged.
        """

        async def execute() -> None:
            try:
                await self._client.execute(command, arguments)
            except (QMPError, EOFError, OSError) as error:
                _log.debug("%s: %s", command, error)

        self.loop.start_call(execute)

    def finish(self, command: str, /, **arguments: Any) -> Any:
        """Execute a command that changes something, and wait until its outcome is known.

        That is when QEMU answers, or is ended for not answering. Raises as :meth:`execute`, except
        TimeoutError.
        """
        return self.execute(command, timeout=threading.TIMEOUT_MAX, **arguments)

    def quit(self) -> None:
        """Ask QEMU to quit; its process shows whether it does. Never raises."""
        try:
            self.execute("quit", timeout=1.0)
        except Exception as error:
            _log.debug("QEMU was asked to quit: %s", error)

    def check(self) -> None:
        """Raise QemuDied if there is no connection."""
        if self._loop is None:
            raise QemuDied("there is no connection to QEMU's QMP socket yet")
        if self._closed or self._ended_event.is_set():
            raise QemuDied(self._ended())

    def listen(self, callback: EventCallback, *names: str) -> Callable[[], None]:
        """Call back for each event of these names (or for all); return a function that stops it.

        Callbacks run in the loop's thread: they must be quick and must not call :meth:`execute`.
        """
        entry = (frozenset(names) if names else None, callback)
        # No lock, which the loop's thread would wait for: a signal handler interrupting this may
        # close, and wait for that thread.
        listeners = self._listeners
        listeners.append(entry)

        def remove() -> None:
            with contextlib.suppress(ValueError):
                listeners.remove(entry)

        return remove

    def hand_over(self, successor: Monitor) -> None:
        """Transfer the listeners to the monitor of the next QEMU."""
        successor._listeners, self._listeners = self._listeners, []

    def close(self) -> None:
        """Disconnect. A second call finishes an interrupted one."""
        with self._close_lock:
            self._closed = True
            if self._loop is None:
                pass  # never connected
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
                # Do not wait: asyncio waits until the socket is writable, which a socket in a full
                # backlog is from the start, and takes that for connected.
                sock.connect(self._path)
                break
            except (FileNotFoundError, ConnectionRefusedError, BlockingIOError) as error:
                sock.close()
                if self._gone(0.0):
                    raise QemuDied(f"QEMU did not start: {self._why()}") from None
                if time.monotonic() > deadline:
                    if isinstance(error, BlockingIOError):  # QEMU's backlog of two is full
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
        """Wait until either side ends the connection, and clean up."""
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
            _log.warning("QEMU sent a malformed event: %.200s", message)
            return
        for names, callback in self._listeners.copy():
            if names is not None and message["event"] not in names:
                continue
            try:
                callback(message)
            except BaseException:  # even SystemExit must not end the shared thread
                _log.exception("a callback for the event %s failed", message["event"])

    async def _answer(self, command: str, arguments: dict[str, Any]) -> Any:
        """Send a command and wait for the answer, even if the caller has stopped waiting."""
        times, more = HANG
        seconds = times * self._timeout + more
        answer = self.loop.begin(self._client.execute(command, arguments or None))
        clock = asyncio.get_running_loop().call_later(seconds, self._hung, command, seconds)

        def answered(done: asyncio.Future[object]) -> None:
            clock.cancel()
            if not done.cancelled():
                done.exception()  # mark as retrieved

        answer.add_done_callback(answered)
        return await asyncio.shield(answer)

    def _hung(self, command: str, seconds: float) -> None:
        self._on_hang(f"did not come back from {command} within {seconds:g} s")
        self._closing.set()

    async def _disconnect(self) -> None:
        """Undo what connecting has done so far."""
        self._closing.set()
        for task, timeout in ((self._connecting, 0.0), (self._holder, 2.0)):
            if task is not None:
                await asyncio.wait((task,), timeout=timeout)
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
    """Return the version from the greeting (QEMU documentation, "QMP: Server Greeting")."""
    greeting = client.greeting
    try:
        qemu: Any = greeting.QMP.version["qemu"] if greeting is not None else None
        major, minor, micro = (qemu[name] for name in ("major", "minor", "micro"))
    except (KeyError, TypeError):
        major = minor = micro = None
    if not all(type(number) is int for number in (major, minor, micro)):
        raise QemuError("the greeting on the QMP socket has no version, unlike QEMU's")
    return Version(major, minor, micro)
