"""A running QEMU, as a bus for virtio-net devices."""

from __future__ import annotations

import dataclasses
import errno
import functools
import logging
import os
import threading
import time
import warnings
from typing import TYPE_CHECKING, Any, Self, TypeVar, get_args

from virtnic import _native
from virtnic.deadline import bounded
from virtnic.errors import QemuDied, QemuError, QemuNotFound
from virtnic.qemu import command, find, loop, quirks
from virtnic.qemu.command import Accel, MachineType, Sandbox, Shmem
from virtnic.qemu.external import (
    ExternalProcess,
    SharedDirectory,
    accelerator_in_use,
    join,
    serve,
)
from virtnic.qemu.find import find_qemu, last_line
from virtnic.qemu.monitor import Monitor
from virtnic.qemu.netdev import Netdev, parse
from virtnic.qemu.nic import NicHandle, Nics
from virtnic.qemu.process import Process
from virtnic.qemu.rundir import RunDirectory
from virtnic.qemu.spec import Spec
from virtnic.qemu.text import check_words
from virtnic.teardown import Owner, finish_forgotten, uninterrupted

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path
    from types import TracebackType

    from virtnic.qemu.find import Binary
    from virtnic.qemu.quirks import Version

_log = logging.getLogger(__name__)

T = TypeVar("T")

#: Seconds between steps of the virtual clock. slirp's timers tick every 200 ms or slower.
CLOCK_PERIOD = 0.1
#: Properties of a device that work by a timer of QEMU.
_TIMERS = frozenset({"tx", "x-txtimer", "guest_rsc_ext", "guest_announce"})

# The accelerator chosen by ``auto``, by binary: determined only once.
_auto: dict[tuple[str, ...], Accel] = {}


class Machine(Owner):
    """QEMU with the memory on its PCI bus; NICs are plugged in with :meth:`add_nic`.

    It holds nothing before :meth:`start`, or the ``with`` block, and nothing after :meth:`close`.
    :class:`virtnic.Qemu` makes sure that it is closed.
    """

    def __init__(
        self,
        memory: _native.Memory,
        *,
        qemu: str | os.PathLike[str] | None = None,
        accel: Accel = "auto",
        machine: MachineType = "pc",
        shmem: Shmem = "doorbell",
        timeout: float = 10.0,
        sandbox: Sandbox = True,
        directory: str | os.PathLike[str] | None = None,
        extra: Sequence[str] = (),
        connect: str | os.PathLike[str] | None = None,
        restartable: bool = False,
    ) -> None:
        """Find QEMU and check the arguments.

        ``qemu``: path or command line of the binary (else ``VIRTNIC_QEMU``, else PATH). ``accel``:
        ``auto`` uses qtest if QEMU has it, else tcg with a parked vCPU. ``shmem``: ``doorbell``
        provides interrupts by eventfd and shares only a socket, ``plain`` shares the memory's file
        by path, without interrupts. ``timeout``: seconds for the start and for each reply.
        ``sandbox``: True denies QEMU everything it does not need, ``"spawn"`` allows helpers and
        scripts, False disables it. ``directory``: directory for the sockets, which stay there; by
        default a private one that is removed once all are connected. ``extra``: additional QEMU
        options, word by word. ``connect``: start none, but use the one whose sockets are in this
        directory: see :meth:`virtnic.Qemu.connect`; only with ``timeout``. ``restartable``: keep
        what a restart needs, such as the sockets' directory; see
        :class:`virtnic.Recovery`.

        Raises QemuNotFound, ValueError, TypeError.
        """
        self._owner = os.getpid()
        self._closed = False
        self._is_over = True  #: Whether there is nothing to release.
        self._close_lock = threading.RLock()
        self._directory: RunDirectory | SharedDirectory | None = None
        self._server: _native.IvshmemServer | None = None
        self._process: Process | ExternalProcess | None = None
        self._starting: Process | None = None  #: The same, set before it is started.
        self._monitor: Monitor | None = None
        self._qtest: _native.QTest | None = None
        self._clock_runs = False
        self._hold: loop.Hold | None = None
        self._death_callbacks: list[Callable[[QemuDied], object]] = []
        self._restartable = restartable
        self.keeps_little = False
        if not isinstance(memory, _native.Memory):
            raise TypeError(f"memory must be a virtnic.Memory, not {memory!r}")
        _one_of("accel", accel, Accel)
        _one_of("machine", machine, MachineType)
        _one_of("shmem", shmem, Shmem)
        if sandbox not in (True, False, "spawn"):
            raise ValueError(f"sandbox={sandbox!r} is not True, False or 'spawn'")
        extra = check_words(extra, "extra")
        chosen = (qemu, accel, machine, shmem, sandbox, directory, extra)
        if connect is not None and chosen != (None, "auto", "pc", "doorbell", True, None, ()):
            raise ValueError(
                "connect= can only be combined with timeout=: the program, accelerator, machine "
                "and sandbox are chosen where QEMU is started, with `virtnic qemu-args`"
            )
        self.memory = memory
        self.machine: MachineType = machine
        self.sandbox: Sandbox = sandbox
        self.timeout = bounded(timeout)
        #: The program; None if QEMU was started elsewhere.
        self.binary = find_qemu(qemu) if connect is None else None
        self._connect = connect
        self._start_options = accel, shmem, directory, extra

    def start(self) -> Self:
        """Start QEMU, or connect to it; only once. An interruption closes it.

        Raises QemuNotFound, QemuError quoting QEMU, ValueError, TimeoutError, OSError.
        """
        finish_forgotten()
        self._is_over = False
        try:
            if self._restartable:
                # Descriptors are watched across restarts of QEMU.
                self._hold = loop.Hold()
                self._hold.take()
            if self.binary is not None:
                self._start(self.binary, *self._start_options)
            elif self._connect is not None:
                self._join(self._connect)
        except OSError as error:
            self.close()
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            raise OSError(
                error.errno,
                f"{error.strerror}: there is no room for QEMU's sockets; make some (in "
                "XDG_RUNTIME_DIR, if that is set), or set a directory with directory= or TMPDIR",
                error.filename,
            ) from None
        except BaseException:
            self.close()
            raise
        return self

    def _start(
        self,
        binary: Binary,
        accel: Accel,
        shmem: Shmem,
        directory: str | os.PathLike[str] | None,
        extra: Sequence[str],
    ) -> None:
        place = self._directory = RunDirectory(directory)
        place.make()
        try:
            uninterrupted(lambda: place.firmware.write_bytes(command.PARKING_FIRMWARE))
        except OSError as error:
            error.filename = error.filename or str(place.firmware)  # ENOSPC has no file name
            raise
        if shmem == "doorbell":
            self._server = _native.IvshmemServer(os.fspath(place.shmem), self.memory)
        self._plan = command.Plan(
            version=binary.version if self.machine == "q35" else None,
            machine=self.machine,
            accelerators=_accelerators(binary, accel),
            qmp=place.qmp,
            qtest=place.qtest,
            firmware=place.firmware,
            memory_size=self.memory.size,
            shmem_socket=place.shmem if self._server is not None else None,
            memory_path=_path_of(self.memory) if self._server is None else None,
            sandbox=self.sandbox,
            extra=extra,
        )
        self._launch(binary, place)
        if accel == "auto":
            _auto[binary.argv] = self._accel
        if directory is None and not self._restartable:
            # All sockets are connected, so nothing is left behind, even after SIGKILL.
            place.close()

    def _launch(self, binary: Binary, place: RunDirectory) -> None:
        """Start a QEMU and connect to it."""
        if self._server is not None:
            self._server.listen()
        process = self._starting = Process([*binary.argv, *command.options(self._plan)])
        process.start()
        self._process = process
        _log.debug("started %s (pid %d)", binary, process.pid)
        before, self._monitor = (
            self._monitor,
            Monitor(
                place.qmp,
                timeout=self.timeout,
                gone=lambda timeout: process.wait(timeout) is not None,
                why=process.death,
                on_end=process.disconnected,
                on_hang=process.condemn,
            ),
        )
        if before is not None:
            before.hand_over(self._monitor)
        try:
            self._monitor.connect()
            process.set_quit(self._monitor.quit)
            self._qtest = _native.QTest(os.fspath(place.qtest), self.timeout)
        except (QemuDied, TimeoutError) as error:
            self._explain(binary, process, error)
        if self._server is not None:
            self._server.stop_listening()  # QEMU has the memory
        if self.version < quirks.OLDEST:
            _log.warning(
                "QEMU %s is older than the oldest tested version (%s)", self.version, quirks.OLDEST
            )
        self._accel = accelerator_in_use(self.monitor, self.qtest)
        process.started()
        self._silence_timer(self.qtest)
        self._nics = Nics(self.monitor, self.machine, binary, process)

    def _join(self, directory: str | os.PathLike[str]) -> None:
        place = self._directory = SharedDirectory(directory)
        process = self._process = ExternalProcess(place.path)
        self._monitor = Monitor(
            place.qmp,
            timeout=self.timeout,
            why=process.death,
            on_end=process.ended,
            on_hang=process.condemn,
        )
        joined = join(place, process, self._monitor, self.timeout)
        self._qtest = joined.qtest
        # A hanging one still has both sockets open.
        process.on_death(lambda _error: joined.qtest.close())
        self.machine, self.sandbox, self._accel = joined.machine, joined.sandbox, joined.accel
        self._nics = Nics(self.monitor, self.machine, None, process)
        self._silence_timer(self.qtest)
        self._nics.adopt()
        self._server = serve(place, self.memory)

    def relaunch(self) -> None:
        """End the remains of a QEMU and start another one; the memory and its interrupts are kept.

        Raises as the constructor; it can then be tried again.
        """
        place = self._directory
        assert isinstance(place, RunDirectory)  # only a QEMU started here is restarted
        self.qtest.close()
        self.process.close()
        if self._starting is not None:
            self._starting.close()
        self.monitor.close()
        place.qmp.unlink(missing_ok=True)
        place.qtest.unlink(missing_ok=True)
        self._clock_runs = False
        self._launch(present(self.binary), place)
        for callback in self._death_callbacks:
            self.process.on_death(callback)

    def _silence_timer(self, qtest: _native.QTest) -> None:
        """Stop the 8254 timer, which wakes QEMU 36 times a second and raises interrupt 0.

        Channel 0 gets mode 0, which counts down once, and a count of one (Intel 8254,
        "Mode 0: interrupt on terminal count").
        """
        for port, value in ((0x43, 0x30), (0x40, 0x01), (0x40, 0x00)):
            qtest.outb(port, value)
        qtest.flush()
        if self._accel == "qtest":
            qtest.clock_step(1_000_000)

    def _explain(self, binary: Binary, process: Process, error: Exception) -> None:
        """Raise an error for a QEMU that did not start, with its own message if there is one."""
        # Its sockets are closed slightly before its end is visible.
        status = process.wait(1.0 if isinstance(error, QemuDied) else 0.0)
        if status is None:
            raise error
        binary.check(self.machine)
        words = last_line(process.stderr)
        if not words or status < 0:  # killed: its output is not the reason
            raise QemuError(f"QEMU did not start: {process.death()}") from None
        advice = ""
        if "sandbox" in words or "seccomp" in words:
            advice = " (this QEMU has no seccomp: pass sandbox=False)"
        elif "invalid accelerator" in words:
            advice = " (use accel=auto)"
        elif "KVM" in words or "kvm" in words:
            advice = " (/dev/kvm must exist and be writable; accel=auto does not need it)"
        # If there is advice, the QEMU is not usable this way.
        raise (QemuNotFound if advice else QemuError)(
            f"QEMU did not start: {words}{advice}"
        ) from None

    # Its parts.

    @property
    def qtest(self) -> _native.QTest:
        """The QTest connection."""
        return present(self._qtest)

    @property
    def monitor(self) -> Monitor:
        """The QMP connection."""
        return present(self._monitor)

    @property
    def process(self) -> Process | ExternalProcess:
        """The process, or a stand-in for one that was started elsewhere."""
        if self._process is None:
            raise QemuError("this QEMU is closed")
        return self._process

    @property
    def server(self) -> _native.IvshmemServer | None:
        """The ivshmem server, whose vectors are our interrupts; None with ``shmem="plain"``."""
        return self._server

    @property
    def version(self) -> Version:
        """QEMU's version, as it reports itself."""
        return self.monitor.version

    @property
    def accel(self) -> Accel:
        """The accelerator in use; never ``auto``."""
        return self._accel

    def death(self) -> str:
        """Return how QEMU ended. Raises QemuError if it was never started."""
        return self.process.death()

    @property
    def directory(self) -> Path | None:
        """The directory of the sockets, if the caller named one."""
        place = self._directory
        return place.path if place is not None and not place.private else None

    @property
    def shared(self) -> SharedDirectory | None:
        """The directory shared with a QEMU that was started elsewhere; else None."""
        return self._directory if isinstance(self._directory, SharedDirectory) else None

    @property
    def closed(self) -> bool:
        """Whether :meth:`close` was called."""
        return self._closed

    @property
    def is_over(self) -> bool:
        """Whether it holds nothing: it was never started, or everything was released."""
        return self._is_over

    def execute(self, name: str, /, *, timeout: float | None = None, **arguments: Any) -> Any:
        """Execute a QMP command: see :meth:`Monitor.execute`."""
        return self.monitor.execute(name, timeout=timeout, **arguments)

    def on_death(self, callback: Callable[[QemuDied], object]) -> None:
        """Call back once, in the loop's thread, when QEMU ends unexpectedly."""
        self._death_callbacks.append(callback)
        self.process.on_death(callback)

    # Devices.

    def add_nic(
        self,
        netdev: Netdev | Spec,
        properties: Mapping[str, Any] | None = None,
        plugging: Callable[[NicHandle], object] = lambda _handle: None,
        made: Callable[[str], object] = lambda _said: None,
    ) -> NicHandle:
        """Plug in a virtio-net device on a new netdev. It must then be found on the bus.

        ``properties`` are those of virtio-net-pci (``mac``, ``mq``, ``rx_queue_size``, …).
        ``plugging`` gets the handle before QEMU is asked, for removal after an interruption.
        ``made`` is called after the netdev and before the device is created, with QEMU's output so
        far; an exception from it undoes the netdev.

        Raises ValueError (syntax, a key or type unknown to this QEMU, no free slot), QemuError
        quoting QEMU, QemuDied, TimeoutError.
        """
        spec = netdev if isinstance(netdev, Spec) else parse(netdev)
        if spec.socket is not None and self.shared is not None:
            path = self.shared.as_qemu_sees(spec.socket.path)
            spec = dataclasses.replace(spec, socket=dataclasses.replace(spec.socket, path=path))
        helper = spec.helper
        if helper is not None and self.sandbox not in (helper.sandbox, False):
            to = " to `virtnic qemu-args`" if self.shared is not None else ""
            raise ValueError(helper.refusal(spec.type, to))
        handle = self._nics.add(spec, properties or {}, plugging, made)
        timer = spec.kind.clock or any(key in _TIMERS for key in properties or {})
        if timer and self._accel == "qtest" and not self._clock_runs:
            self.qtest.run_clock(CLOCK_PERIOD)
            self._clock_runs = True
        return handle

    def remove_nic(
        self,
        handle: NicHandle,
        eject: Callable[[], object] | None,
        timeout: float | None = None,
    ) -> None:
        """Unplug a device and delete its netdev.

        No guest acknowledges the removal, so ``eject`` does: it writes the slot's eject register
        (see
        :attr:`NicHandle.slot`) after the request to QEMU. With None, only the request is made:
        device,
        netdev and slot remain in use. Removing one that is gone does nothing.

        Raises QemuError, QemuDied, TimeoutError.
        """
        self._nics.remove(handle, eject, self.timeout if timeout is None else bounded(timeout))

    def plug_memory(self, eject: Callable[[int], object]) -> None:
        """Plug the memory into a QEMU started elsewhere, replacing everything left there.

        ``eject`` releases what is in a slot of the root bus: see :meth:`remove_nic`. Raises
        QemuError, QemuDied, TimeoutError.
        """
        shared, server = present(self.shared), present(self._server)
        for left in self._nics.all():
            _log.info("removing %s, left by another program", left.id)
            self._nics.remove(left, functools.partial(eject, left.slot), self.timeout)
        self.unplug_memory(eject)
        try:
            self._nics.add_memory(shared.as_qemu_sees(shared.shmem))
        except QemuDied:
            raise
        except QemuError as error:
            raise QemuError(
                f"{error}; the QEMU at {shared.path} needs the device ivshmem-doorbell, and to be "
                f"allowed to connect to {shared.shmem}: {shared.who_connects}"
            ) from None
        server.stop_listening()

    def keep_little(self, *, memory: bool = True) -> None:
        """Release what only further devices would need, and ``memory``'s file if it is ours.

        From now on QEMU is told of no more interrupt vectors. What a restart needs is kept. Does
        nothing for a QEMU that was started elsewhere, whose end of the connection is not visible.
        """
        if self.shared is not None:
            return
        if self._server is not None:
            self._server.hang_up()
        self.keeps_little = True
        if memory and not self._restartable:
            self.memory.forget_file()

    def unplug_memory(self, eject: Callable[[int], object]) -> None:
        """Unplug the memory from a QEMU started elsewhere, if it was plugged in."""
        if self._server is None:
            return  # it was not plugged in
        slot = command.SHMEM_SLOT[self.machine]
        self._nics.remove_memory(functools.partial(eject, slot), self.timeout)

    @property
    def nics(self) -> list[NicHandle]:
        """The devices that are plugged in."""
        return self._nics.all()

    # The end.

    def hang_up(self) -> None:
        """Close the QTest connection: no more requests to the devices. Can be repeated."""
        if self._qtest is not None:
            self._qtest.close()

    @property
    def is_forked(self) -> bool:
        """Whether this is a forked child's copy: QEMU belongs to the parent."""
        return os.getpid() != self._owner

    def close(self) -> None:
        """End QEMU and everything that belongs to it. A second call finishes an interrupted one."""
        if self.is_forked:
            return
        with self._close_lock:
            self._closed = True
            if self._is_over:
                return
            started = time.monotonic()
            left = True
            # The monitor after everything that has sockets in a directory shared with QEMU: once it
            # is disconnected, the next program may connect, whose sockets have the same names.
            parts = (self._qtest, self._process, self._starting, self._server)
            for part in (*parts, self._monitor, self._directory):
                if part is None:
                    continue
                try:
                    part.close()
                except QemuError as error:
                    left = False
                    warnings.warn(str(error), RuntimeWarning, stacklevel=2)
                except Exception:
                    left = False  # tried again by the next call
                    _log.exception("closing %s failed", part)
            if self._hold is not None:
                self._hold.release()
            if left:
                # Close their descriptors now, even if this object is kept.
                self._qtest = self._server = None
                self._is_over = True
                _log.debug("closed in %.0f ms", (time.monotonic() - started) * 1e3)

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    @property
    def state(self) -> str:
        """A description of which QEMU it is, and where."""
        process = self._process
        state = "closed" if self._closed else process.where if process else "starting"
        return f"{self.machine} {state}"

    def __repr__(self) -> str:
        return f"<Machine {self.state}>"


def _path_of(memory: _native.Memory) -> str:
    """Return a path by which a child process can open the memory's file."""
    return memory.path or f"/proc/{os.getpid()}/fd/{memory.fileno()}"


def _one_of(name: str, value: object, literal: Any) -> None:
    allowed = get_args(literal)
    if value not in allowed:
        raise ValueError(f"{name}={value!r} is not one of {', '.join(allowed)}")


def present(part: T | None) -> T:
    """Return a part that exists until everything is closed. Raises QemuError."""
    if part is None:
        raise QemuError("this QEMU is closed")
    return part


def _accelerators(binary: Binary, accel: Accel) -> list[str]:
    """Return the values for ``-accel``; nothing if the command names one."""
    names: tuple[Accel, ...] = (accel,)
    if accel == "auto":
        if binary.chooses_accelerator:
            return []
        known = _auto.get(binary.argv)
        names = find.ACCELERATORS if known is None else (known,)
    return [binary.accelerator(name) for name in names]
