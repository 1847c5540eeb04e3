"""A QEMU that was started elsewhere, for instance in another container.

The only thing shared is a directory of sockets. QEMU may see it at another path and as another
user, so paths for QEMU are translated, and access to the sockets follows the permissions of the
directory: see :class:`SharedDirectory`.
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
import re
import socket
import stat
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from virtnic import _native
from virtnic.errors import QemuDied, QemuError, QemuNotFound
from virtnic.qemu import command, quirks
from virtnic.qemu.ending import Ending
from virtnic.qemu.monitor import NobodyListens
from virtnic.qemu.sockets import Sockets
from virtnic.teardown import Latch, Owner

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

    from virtnic.qemu.command import Accel, MachineType, Sandbox
    from virtnic.qemu.monitor import Monitor

__all__ = ["ExternalProcess", "Joined", "SharedDirectory", "accelerator_in_use", "join", "serve"]

_SHARE = (
    "this is the directory shared with QEMU: mount it here, and start QEMU there as "
    "`virtnic qemu-args --directory` says"
)
_TOO_LONG = "mount it at a shorter path"


class SharedDirectory(Sockets):
    """The directory of sockets, as seen here and by QEMU. It is not created or removed here.

    Our sockets in it are accessible to everyone who can write to the directory; the core sets their
    mode (``rust/core/src/unix.rs``).
    """

    def __init__(self, given: str | os.PathLike[str]) -> None:
        super().__init__(Path(given).absolute())
        try:
            mode = self.path.stat().st_mode
        except PermissionError:
            raise PermissionError(_forbidden(self.path)) from None
        except FileNotFoundError:
            raise FileNotFoundError(f"there is no {self.path}; {_SHARE}") from None
        if not stat.S_ISDIR(mode):
            raise NotADirectoryError(f"{self.path} is not a directory; {_SHARE}")
        self._seen_by_qemu = Sockets(self.path)
        self._numbers = itertools.count(1)
        self.check_length(_TOO_LONG)

    def new_vhost_user(self) -> Path:
        """Return a path for another vhost-user interposer's socket (we listen)."""
        return self.vhost_user(next(self._numbers))

    def learn(self, chardevs: Iterable[Mapping[str, Any]]) -> None:
        """Determine QEMU's path of this directory from QMP's ``query-chardev``."""
        for chardev in chardevs:
            name = re.fullmatch(r"unix:(.*),server.*", str(chardev["filename"]), re.DOTALL)
            if name is not None and Path(name[1]).name == self.qmp.name:
                self._seen_by_qemu = Sockets(Path(name[1]).parent)
                self._seen_by_qemu.check_length(_TOO_LONG)

    def as_qemu_sees(self, path: str | os.PathLike[str]) -> str:
        """Translate a path for QEMU; one outside the directory is unchanged."""
        with contextlib.suppress(ValueError):
            return str(self._seen_by_qemu.path / Path(path).absolute().relative_to(self.path))
        return os.fspath(path)

    def clear(self) -> None:
        """Remove sockets left by an earlier program. Raises OSError."""
        for left in (self.shmem, *self.path.glob(self.vhost_user("*").name)):
            try:
                left.unlink(missing_ok=True)
            except PermissionError as error:
                raise PermissionError(
                    f"{left} was left by another program and cannot be removed: "
                    f"{error.strerror}; remove it, or run as the user that it belongs to"
                ) from None

    @property
    def who_connects(self) -> str:
        """A description of who can connect to our sockets in it."""
        if self.path.stat().st_mode & stat.S_ISVTX:
            return (
                "the directory has the sticky bit, as /tmp does, so only our own user may; share "
                "one without it"
            )
        return "everyone who can write to the directory"

    def close(self) -> None:
        """Do nothing: sockets are removed by their creators."""


class ExternalProcess(Owner):
    """The process of a QEMU started elsewhere: its end is that of its QMP socket."""

    #: Its stderr is not accessible.
    stderr = ""

    def __init__(self, directory: Path) -> None:
        #: A description of which QEMU it is.
        self.where = f"at {directory}"
        self._ended = Latch()
        self._ending = Ending()
        self._verdict: str | None = None

    @property
    def pid(self) -> int:
        """Its process number, which is unknown: raises QemuError."""
        raise QemuError(
            f"the QEMU {self.where} was started elsewhere, perhaps in another PID namespace: "
            "it has no process number here"
        )

    def stderr_position(self) -> int:
        """As :meth:`Process.stderr_position`: always 0."""
        return 0

    def helpers(self) -> contextlib.AbstractContextManager[None]:
        """As :meth:`Process.helpers`: does nothing."""
        return contextlib.nullcontext()

    def stderr_since(self, _position: int) -> str:
        """As :meth:`Process.stderr_since`: always empty."""
        return ""

    @property
    def alive(self) -> bool:
        """Whether it is still running, as far as known."""
        return not self._ended.is_set()

    def death(self, timeout: float = 5.0) -> str:
        """Describe how it ended. Waits up to ``timeout`` seconds."""
        if self._verdict is not None:
            return f"the QEMU {self.where} {self._verdict}: it must be ended where it was started"
        if self._ended.wait(timeout):
            return (
                f"the QEMU {self.where} closed its sockets: it ended, crashed or was killed; "
                "see its output where it was started"
            )
        return f"the QEMU {self.where} closed a socket; whether it still runs is not known here"

    def on_death(self, callback: Callable[[QemuDied], object]) -> None:
        """Call back once, in the loop's thread, when it ends unexpectedly (at once if it has)."""
        self._ending.add(callback, self.death)

    def condemn(self, why: str) -> None:
        """Treat it as dead, because it does not answer. It cannot be killed from here."""
        self._verdict = why

    def ended(self) -> None:
        """Report that it has ended: the QMP connection was closed."""
        self._ended.set()
        self._ending.tell(self.death)

    def close(self) -> None:
        """Leave it running."""
        self._ending.forget()


@dataclass(frozen=True, slots=True)
class Joined:
    """The QTest connection to a QEMU started elsewhere, and its properties."""

    qtest: _native.QTest
    machine: MachineType
    sandbox: Sandbox
    accel: Accel


def join(
    place: SharedDirectory, process: ExternalProcess, monitor: Monitor, timeout: float
) -> Joined:
    """Connect to a QEMU started elsewhere, and check that it is suitable.

    Raises QemuNotFound if there is none in time, PermissionError, QemuError if it was not started
    with virtnic's options, TimeoutError if another program uses it. The caller then closes the
    monitor and the process.
    """
    start = f"start it there as `virtnic qemu-args --directory {place.path}` says"
    with _explained(place.qmp, start, timeout):
        monitor.connect()
    name = monitor.execute("query-name").get("name")
    sandbox = command.sandbox_of(name)
    if sandbox is None:
        raise QemuError(
            f"the QEMU at {place.path} was started otherwise: its name is {name!r} and not "
            f"{command.EXTERNAL!r}, so it may run a guest or lack what is needed; {start}"
        )
    if monitor.version < quirks.OLDEST:
        raise QemuError(
            f"the QEMU at {place.path} is version {monitor.version}; "
            f"{quirks.OLDEST.major}.{quirks.OLDEST.minor} is the oldest supported version"
        )
    machine = _machine(monitor, place)
    place.learn(monitor.execute("query-chardev"))
    place.clear()
    with _explained(place.qtest, start, timeout):
        _end_line(place.qtest, process, timeout)
        qtest = _native.QTest(os.fspath(place.qtest), timeout)
    return Joined(qtest, machine, sandbox, accelerator_in_use(monitor, qtest))


def serve(place: SharedDirectory, memory: _native.Memory) -> _native.IvshmemServer:
    """Listen for QEMU, which maps the memory. Raises OSError."""
    server = _native.IvshmemServer(os.fspath(place.shmem), memory)
    try:
        server.listen()
    except OSError as error:
        if error.errno not in (errno.EACCES, errno.EROFS):
            raise
        raise type(error)(
            error.errno,
            f"{error.strerror}: {_owned(place.path)}; it must be writable for our sockets: "
            "mount it so, and give it the group of all three and mode 2770",
        ) from None
    return server


def _machine(monitor: Monitor, place: SharedDirectory) -> MachineType:
    """Return the machine type, from a name such as ``pc-q35-7.2-machine``."""
    kind = monitor.execute("qom-get", path="/machine", property="type")
    for beginning, machine in command.MACHINES.items():
        if str(kind).startswith(beginning):
            return machine
    raise QemuError(
        f"the QEMU at {place.path} is a {kind}; virtnic drives pc and q35: start it with the "
        "-machine that `virtnic qemu-args` says"
    )


def _end_line(path: Path, process: ExternalProcess, timeout: float) -> None:
    """Complete a QTest line that a killed program may have left unfinished.

    QEMU appends the next client's first line to it, and aborts on most results. This text turns a
    command word into an unknown one, and leaves a number valid; without a leftover QEMU refuses it.
    Only a four-digit I/O port with nothing after it becomes too large.
    """
    with socket.socket(socket.AF_UNIX) as client:
        # A longer timeout is too much for poll(2).
        client.settimeout(min(timeout, 1e6))
        try:
            _connect(client, path, timeout)
            client.sendall(b"1 1 1\n")
            with client.makefile("rb") as lines:
                while (line := lines.readline()).startswith(b"IRQ "):
                    pass
        except TimeoutError:
            raise TimeoutError(
                f"QEMU did not answer on {path} within {timeout:g} s: it is blocked"
            ) from None
        except (BrokenPipeError, ConnectionResetError):
            line = b""
    if not line:
        raise QemuDied(process.death())


def _connect(client: socket.socket, path: Path, timeout: float) -> None:
    """Connect, waiting while QEMU's backlog is full. Raises OSError."""
    deadline = time.monotonic() + timeout
    while True:
        try:
            client.connect(os.fspath(path))
        except BlockingIOError:
            if time.monotonic() > deadline:
                raise TimeoutError from None
            time.sleep(0.001)
        else:
            return


def accelerator_in_use(monitor: Monitor, qtest: _native.QTest) -> Accel:
    """Determine the accelerator: only with qtest the clock stands still and can be stepped.

    Raises QemuDied.
    """
    try:
        qtest.clock_step(1)
    except QemuDied:
        raise
    except QemuError:
        return "kvm" if monitor.execute("query-kvm").get("enabled") else "tcg"
    return "qtest"


@contextlib.contextmanager
def _explained(path: Path, start: str, timeout: float) -> Iterator[None]:
    """Raise an error with advice if a socket of QEMU cannot be connected to."""
    try:
        yield
    except PermissionError:
        raise PermissionError(_forbidden(path)) from None
    except (NobodyListens, FileNotFoundError, ConnectionRefusedError):
        found = "nobody listens at" if path.exists() else "there is no"
        raise QemuNotFound(f"no QEMU within {timeout:g} s: {found} {path}; {start}") from None


def _forbidden(path: Path) -> str:
    """Describe the owner of a directory or socket, and our own user."""
    try:
        whose = _owned(path)
    except OSError:
        return f"{path}: {_us()} may not search a directory above it"
    return (
        f"{whose}: start QEMU with `umask 0`, as the script of `virtnic qemu-args --script` does "
        "(the directory then controls who can connect), or as the same user"
    )


def _owned(path: Path) -> str:
    found = path.stat()
    return (
        f"{path} belongs to user {found.st_uid}, group {found.st_gid} and has mode "
        f"{found.st_mode & 0o777:03o}, but we are {_us()}"
    )


def _us() -> str:
    return f"user {os.geteuid()}, group {os.getegid()}"
