"""A QEMU that somebody else started, in another container perhaps.

All we have in common is one directory of sockets. It may be mounted elsewhere for QEMU, and
belong to another user there, so names that QEMU is to open are translated, and who may
connect to a socket is who may make one: see :class:`SharedDirectory`.
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

__all__ = ["Elsewhere", "Joined", "SharedDirectory", "accelerator_in_use", "join", "serve"]

_SHARE = (
    "it is the directory that is shared with QEMU: mount it here, and start QEMU there as "
    "`virtnic qemu-args --directory` says"
)
_TOO_LONG = "mount it at a shorter path"


class SharedDirectory(Sockets):
    """The directory of sockets, as we see it and as QEMU does. It is not ours: it stays.

    The sockets that we make in it are open to those for whom the directory is writable;
    the core gives them that mode (``rust/core/src/unix.rs``).
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
            raise NotADirectoryError(f"{self.path} is no directory; {_SHARE}")
        self._seen_by_qemu = Sockets(self.path)
        self._numbers = itertools.count(1)
        self.check_length(_TOO_LONG)

    def new_vhost_user(self) -> Path:
        """Return a name for one more vhost-user interposer's socket (we listen)."""
        return self.vhost_user(next(self._numbers))

    def learn(self, chardevs: Iterable[Mapping[str, Any]]) -> None:
        """Find out from QMP's ``query-chardev`` where QEMU has this directory."""
        for chardev in chardevs:
            name = re.fullmatch(r"unix:(.*),server.*", str(chardev["filename"]), re.DOTALL)
            if name is not None and Path(name[1]).name == self.qmp.name:
                self._seen_by_qemu = Sockets(Path(name[1]).parent)
                self._seen_by_qemu.check_length(_TOO_LONG)

    def as_qemu_sees(self, path: str | os.PathLike[str]) -> str:
        """Translate a path of ours; one outside of the directory stays as it is."""
        with contextlib.suppress(ValueError):
            return str(self._seen_by_qemu.path / Path(path).absolute().relative_to(self.path))
        return os.fspath(path)

    def clear(self) -> None:
        """Remove the sockets that a program before us left. Raises OSError."""
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
        """Who may connect to the sockets that we make in it, in words."""
        if self.path.stat().st_mode & stat.S_ISVTX:
            return (
                "the directory has the sticky bit, as /tmp does, so only our own user may; share "
                "one without it"
            )
        return "whoever may write to the directory"

    def close(self) -> None:
        """Do nothing: whoever made a socket in it removes it."""


class Elsewhere(Owner):
    """Stands where the process of a QEMU of our own does: its end is that of its QMP socket."""

    #: What it says goes to whoever started it.
    stderr = ""

    def __init__(self, directory: Path) -> None:
        #: Which it is, for people.
        self.where = f"at {directory}"
        self._ended = Latch()
        self._ending = Ending()
        self._verdict: str | None = None

    @property
    def pid(self) -> int:
        """Its number, which nobody knows here: raises QemuError."""
        raise QemuError(
            f"the QEMU {self.where} was started elsewhere, perhaps in another PID namespace: "
            "it has no process number here"
        )

    def stderr_position(self) -> int:
        """As :meth:`Process.stderr_position`: nothing is known of it."""
        return 0

    def asked(self) -> contextlib.AbstractContextManager[None]:
        """As :meth:`Process.asked`: nothing is heard of it."""
        return contextlib.nullcontext()

    def stderr_since(self, _position: int) -> str:
        """As :meth:`Process.stderr_since`: nothing is known of it."""
        return ""

    @property
    def alive(self) -> bool:
        """Whether it still runs, as far as we know."""
        return not self._ended.is_set()

    def death(self, patience: float = 1.0) -> str:
        """Say how it ended. Waits up to ``patience`` seconds for that."""
        if self._verdict is not None:
            return f"the QEMU {self.where} {self._verdict}: whoever started it has to end it"
        if self._ended.wait(patience):
            return (
                f"the QEMU {self.where} closed its sockets: it ended, crashed or was killed; "
                "whoever started it knows its last words"
            )
        return f"the QEMU {self.where} closed a socket but still runs"

    def on_death(self, callback: Callable[[QemuDied], object]) -> None:
        """Call back once, in the loop's thread, when it ends unasked (at once if it has)."""
        self._ending.add(callback, self.death)

    def condemn(self, why: str) -> None:
        """Take it for dead: it does not answer. It is not ours to kill."""
        self._verdict = why

    def ended(self) -> None:
        """Tell that it has: the QMP connection is at its end."""
        self._ended.set()
        self._ending.tell(self.death)

    def close(self) -> None:
        """Let it be. It goes on without us."""
        self._ending.forget()


@dataclass(frozen=True, slots=True)
class Joined:
    """The QTest connection to a QEMU started elsewhere, and what it said of itself."""

    qtest: _native.QTest
    machine: MachineType
    sandbox: Sandbox
    accel: Accel


def join(place: SharedDirectory, process: Elsewhere, monitor: Monitor, timeout: float) -> Joined:
    """Connect to a QEMU started elsewhere, and see that it is one that we can drive.

    Raises QemuNotFound when there is none in time, PermissionError, QemuError when it is one
    that was started otherwise, TimeoutError when somebody else has it. The caller closes the
    monitor and the process then.
    """
    start = f"start it there as `virtnic qemu-args --directory {place.path}` says"
    with _explained(place.qmp, start, timeout):
        monitor.connect()
    name = monitor.execute("query-name").get("name")
    sandbox = command.sandbox_of(name)
    if sandbox is None:
        raise QemuError(
            f"the QEMU at {place.path} was started otherwise: its name is {name!r} and not "
            f"{command.ELSEWHERE!r}, so it may run a guest or lack what is needed; {start}"
        )
    if monitor.version < quirks.OLDEST:
        raise QemuError(
            f"the QEMU at {place.path} is version {monitor.version}; "
            f"{quirks.OLDEST.major}.{quirks.OLDEST.minor} is the oldest that works"
        )
    machine = _machine(monitor, place)
    place.learn(monitor.execute("query-chardev"))
    place.clear()
    with _explained(place.qtest, start, timeout):
        _end_line(place.qtest, process, timeout)
        qtest = _native.QTest(os.fspath(place.qtest), timeout)
    return Joined(qtest, machine, sandbox, accelerator_in_use(monitor, qtest))


def serve(place: SharedDirectory, memory: _native.Memory) -> _native.IvshmemServer:
    """Listen for QEMU, which is to map our memory. Raises OSError."""
    server = _native.IvshmemServer(os.fspath(place.shmem), memory)
    try:
        server.listen()
    except OSError as error:
        if error.errno not in (errno.EACCES, errno.EROFS):
            raise
        raise type(error)(
            error.errno,
            f"{error.strerror}: {_owned(place.path)}; we make sockets in it, so it has to be "
            "writable for us: mount it so, and give it the group of all three and mode 2770",
        ) from None
    return server


def _machine(monitor: Monitor, place: SharedDirectory) -> MachineType:
    """Return the machine that it is, such as ``pc-q35-7.2-machine``."""
    kind = monitor.execute("qom-get", path="/machine", property="type")
    for beginning, machine in command.MACHINES.items():
        if str(kind).startswith(beginning):
            return machine
    raise QemuError(
        f"the QEMU at {place.path} is a {kind}; virtnic drives pc and q35: start it with the "
        "-machine that `virtnic qemu-args` says"
    )


def _end_line(path: Path, process: Elsewhere, timeout: float) -> None:
    """End the QTest line that a killed program may have left half sent.

    QEMU glues the next client's first line to it, and aborts on most of what comes out. With
    this one a word of a command becomes none, and a number stays one: where nothing was left
    QEMU just refuses it. Only an I/O port of four digits that nothing follows becomes too large.
    """
    with socket.socket(socket.AF_UNIX) as client:
        # More is too much for poll(2).
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
    """Connect, and wait while as many wait there as QEMU lets wait. Raises OSError."""
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
    """Tell the accelerators apart: only with qtest does the clock stand still and can be stepped.

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
    """Say what to do where a socket of QEMU's cannot be connected to."""
    try:
        yield
    except PermissionError:
        raise PermissionError(_forbidden(path)) from None
    except (NobodyListens, FileNotFoundError, ConnectionRefusedError):
        found = "nobody listens at" if path.exists() else "there is no"
        raise QemuNotFound(f"no QEMU within {timeout:g} s: {found} {path}; {start}") from None


def _forbidden(path: Path) -> str:
    """Say whose a directory or a socket is, and who we are."""
    try:
        whose = _owned(path)
    except OSError:
        return f"{path}: {_us()} may not search a directory above it"
    return (
        f"{whose}: start QEMU with `umask 0`, as the script of `virtnic qemu-args --script` does "
        "(then the directory says who may connect), or as the same user"
    )


def _owned(path: Path) -> str:
    found = path.stat()
    return (
        f"{path} belongs to user {found.st_uid}, group {found.st_gid} and has mode "
        f"{found.st_mode & 0o777:03o}, but we are {_us()}"
    )


def _us() -> str:
    return f"user {os.geteuid()}, group {os.getegid()}"
