"""A running QEMU that is nothing but a bus for virtio-net devices."""

from __future__ import annotations

import dataclasses
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
    Elsewhere,
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
from virtnic.teardown import Owner, finish_forgotten

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
#: Properties of a device whose effect comes by a timer of QEMU's.
_TIMERS = frozenset({"tx", "x-txtimer", "guest_rsc_ext", "guest_announce"})

# Which accelerator ``auto`` turned out to be, by binary: asked only once.
_auto: dict[tuple[str, ...], Accel] = {}


class Machine(Owner):
    """QEMU with our memory on its PCI bus; NICs come and go with :meth:`add_nic`.

    It holds nothing until :meth:`start`, or the ``with`` block, and nothing after :meth:`close`.
    :class:`virtnic.Qemu` sees to it that it is closed.
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
        """Find QEMU and look at the arguments.

        ``qemu``: path or command line of the binary (else ``VIRTNIC_QEMU``, else PATH).
        ``accel``: ``auto`` is qtest where QEMU has it, else tcg with a parked vCPU.
        ``shmem``: ``doorbell`` gives interrupts by eventfd and shares only a socket, ``plain``
        shares the memory's file by path and gives none.
        ``timeout``: seconds for the start and for each answer. ``sandbox``: True denies QEMU
        all that can be, ``"spawn"`` lets it run helpers and scripts, False is none.
        ``directory``: where the sockets go and stay; by default they are in a private one that
        is removed once all are connected.
        ``extra``: further QEMU options, word by word.
        ``connect``: start none, but drive the one whose sockets are in this directory: see
        :meth:`virtnic.Qemu.connect`. Only ``timeout`` goes with it.
        ``restartable``: keep what another start takes, the sockets' directory above all; see
        :class:`virtnic.Recovery`.

        Raises QemuNotFound, ValueError, TypeError.
        """
        self._owner = os.getpid()
        self._closed = False
        self._is_over = True  #: Whether there is nothing to give back.
        self._close_lock = threading.RLock()
        self._directory: RunDirectory | SharedDirectory | None = None
        self._server: _native.IvshmemServer | None = None
        self._process: Process | Elsewhere | None = None
        self._starting: Process | None = None  #: The same, from before there is one.
        self._monitor: Monitor | None = None
        self._qtest: _native.QTest | None = None
        self._clock_runs = False
        self._hold: loop.Hold | None = None
        self._death_callbacks: list[Callable[[QemuDied], object]] = []
        self._restartable = restartable
        self.keeps_little = False
        if not isinstance(memory, _native.Memory):
            raise TypeError(f"memory is the virtnic.Memory that QEMU is to see, not {memory!r}")
        _one_of("accel", accel, Accel)
        _one_of("machine", machine, MachineType)
        _one_of("shmem", shmem, Shmem)
        if sandbox not in (True, False, "spawn"):
            raise ValueError(f"sandbox={sandbox!r} is not True, False or 'spawn'")
        extra = check_words(extra, "extra")
        chosen = (qemu, accel, machine, shmem, sandbox, directory, extra)
        if connect is not None and chosen != (None, "auto", "pc", "doorbell", True, None, ()):
            raise ValueError(
                "connect= goes with timeout= only: the program, accelerator, machine "
                "and sandbox are chosen by whoever starts QEMU, with `virtnic qemu-args`"
            )
        self.memory = memory
        self.machine: MachineType = machine
        self.sandbox: Sandbox = sandbox
        self.timeout = bounded(timeout)
        #: The program; None when somebody else started it.
        self.binary = find_qemu(qemu) if connect is None else None
        self._connect = connect
        self._start_options = accel, shmem, directory, extra

    def start(self) -> Self:
        """Start QEMU, or connect to it. Once: whatever interrupts it, closes it.

        Raises QemuNotFound, QemuError quoting QEMU, ValueError, TimeoutError, OSError.
        """
        finish_forgotten()
        self._is_over = False
        try:
            if self._restartable:
                # Descriptors are watched from one QEMU to the next.
                self._hold = loop.Hold()
                self._hold.take()
            if self.binary is not None:
                self._start(self.binary, *self._start_options)
            elif self._connect is not None:
                self._join(self._connect)
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
            place.firmware.write_bytes(command.PARKING_FIRMWARE)
        except OSError as error:
            error.filename = error.filename or str(place.firmware)  # a full disk has no name
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
            # All sockets are connected: nothing is left to find, even after SIGKILL.
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
                gone=lambda patience: process.wait(patience) is not None,
                why=process.death,
                on_end=process.disconnected,
                on_hang=process.condemn,
            ),
        )
        if before is not None:
            before.hand_over(self._monitor)
        try:
            self._monitor.connect()
            process.asked_by(self._monitor.quit)
            self._qtest = _native.QTest(os.fspath(place.qtest), self.timeout)
        except (QemuDied, TimeoutError) as error:
            self._explain(binary, process, error)
        if self._server is not None:
            self._server.stop_listening()  # it has the memory
        if self.version < quirks.OLDEST:
            _log.warning("QEMU %s is older than what is tested (%s)", self.version, quirks.OLDEST)
        self._accel = accelerator_in_use(self.monitor, self.qtest)
        process.started()
        self._silence_timer(self.qtest)
        self._nics = Nics(self.monitor, self.machine, binary, process)

    def _join(self, directory: str | os.PathLike[str]) -> None:
        place = self._directory = SharedDirectory(directory)
        process = self._process = Elsewhere(place.path)
        self._monitor = Monitor(
            place.qmp,
            timeout=self.timeout,
            why=process.death,
            on_end=process.ended,
            on_hang=process.condemn,
        )
        joined = join(place, process, self._monitor, self.timeout)
        self._qtest = joined.qtest
        # One that hangs has both its sockets open.
        process.on_death(lambda _error: joined.qtest.close())
        self.machine, self.sandbox, self._accel = joined.machine, joined.sandbox, joined.accel
        self._nics = Nics(self.monitor, self.machine, None, process)
        self._silence_timer(self.qtest)
        self._nics.adopt()
        self._server = serve(place, self.memory)

    def relaunch(self) -> None:
        """End what is left of a QEMU and start another; the memory and its interrupts stay.

        Raises as the constructor; then this can be tried again.
        """
        place = self._directory
        assert isinstance(place, RunDirectory)  # only our own QEMUs are started again
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
        """Say why QEMU did not start, in its own words where it left some."""
        # Its sockets are closed a moment before its end can be seen.
        status = process.wait(1.0 if isinstance(error, QemuDied) else 0.0)
        if status is None:
            raise error
        binary.check(self.machine)
        words = last_line(process.stderr)
        if not words or status < 0:  # killed: what it said before is not why
            raise QemuError(f"QEMU did not start: {process.death()}") from None
        advice = ""
        if "sandbox" in words or "seccomp" in words:
            advice = " (this QEMU has no seccomp: pass sandbox=False)"
        elif "invalid accelerator" in words:
            advice = " (leave accel=auto to take what it has)"
        elif "KVM" in words or "kvm" in words:
            advice = " (/dev/kvm has to exist and be writable; accel=auto needs none)"
        # With an advice it is one that cannot be used so.
        raise (QemuNotFound if advice else QemuError)(
            f"QEMU did not start: {words}{advice}"
        ) from None

    # What it consists of.

    @property
    def qtest(self) -> _native.QTest:
        """The QTest connection."""
        return present(self._qtest)

    @property
    def monitor(self) -> Monitor:
        """The QMP connection."""
        return present(self._monitor)

    @property
    def process(self) -> Process | Elsewhere:
        """The process, or what we know of one that somebody else started."""
        if self._process is None:
            raise QemuError("this QEMU is closed")
        return self._process

    @property
    def server(self) -> _native.IvshmemServer | None:
        """The ivshmem server, whose vectors are our interrupts; None with ``shmem="plain"``."""
        return self._server

    @property
    def version(self) -> Version:
        """QEMU's version, as it says itself."""
        return self.monitor.version

    @property
    def accel(self) -> Accel:
        """The accelerator in use; never ``auto``."""
        return self._accel

    def death(self) -> str:
        """Say how QEMU ended. Raises QemuError where it was never there."""
        return self.process.death()

    @property
    def directory(self) -> Path | None:
        """Where the sockets are, when the caller named it."""
        place = self._directory
        return place.path if place is not None and not place.private else None

    @property
    def shared(self) -> SharedDirectory | None:
        """The directory that we share with a QEMU that somebody else started; else None."""
        return self._directory if isinstance(self._directory, SharedDirectory) else None

    @property
    def closed(self) -> bool:
        """Whether :meth:`close` was called."""
        return self._closed

    @property
    def is_over(self) -> bool:
        """Whether it holds nothing: it was never started, or all was given back."""
        return self._is_over

    def execute(self, name: str, /, *, timeout: float | None = None, **arguments: Any) -> Any:
        """Execute a QMP command: see :meth:`Monitor.execute`."""
        return self.monitor.execute(name, timeout=timeout, **arguments)

    def on_death(self, callback: Callable[[QemuDied], object]) -> None:
        """Call back once, from the loop's thread, when QEMU ends unasked."""
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
        """Plug in a virtio-net device on a new netdev. It still has to be probed on the bus.

        ``properties`` are those of virtio-net-pci (``mac``, ``mq``, ``rx_queue_size``, …).
        ``plugging`` is told the handle before QEMU is asked: what to remove after an interruption.
        ``made`` is called when the netdev is there, before the device is, with what QEMU said
        meanwhile; what it raises undoes that.

        Raises ValueError (syntax, a key or type this QEMU does not know, no free slot),
        QemuError quoting QEMU, QemuDied, TimeoutError.
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

        No guest acknowledges the removal, so ``eject`` does: it writes the slot's eject
        register (see :attr:`NicHandle.slot`) once QEMU has been asked. With None QEMU is only
        asked: device, netdev and slot stay taken. Removing one that is gone does nothing.

        Raises QemuError, QemuDied, TimeoutError.
        """
        self._nics.remove(handle, eject, self.timeout if timeout is None else bounded(timeout))

    def plug_memory(self, eject: Callable[[int], object]) -> None:
        """Plug our memory into a QEMU started elsewhere, in the place of all that was left there.

        ``eject`` lets go of what is in a slot of the root bus: see :meth:`remove_nic`.
        Raises QemuError, QemuDied, TimeoutError.
        """
        shared, server = present(self.shared), present(self._server)
        for left in self._nics.all():
            _log.info("removing %s, which another program left", left.id)
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
        """Let go of what only more devices would need, and ``memory``'s file where it is ours.

        From now on QEMU is told of no more interrupt vectors. What another start takes stays.
        Nothing of a QEMU that somebody else started, whose end of it we do not see.
        """
        if self.shared is not None:
            return
        if self._server is not None:
            self._server.hang_up()
        self.keeps_little = True
        if memory and not self._restartable:
            self.memory.forget_file()

    def unplug_memory(self, eject: Callable[[int], object]) -> None:
        """Unplug our memory from a QEMU started elsewhere; fine where there is none."""
        if self._server is None:
            return  # it did not get as far as that
        slot = command.SHMEM_SLOT[self.machine]
        self._nics.remove_memory(functools.partial(eject, slot), self.timeout)

    @property
    def nics(self) -> list[NicHandle]:
        """The devices that are plugged in."""
        return self._nics.all()

    # The end.

    def hang_up(self) -> None:
        """Close the QTest connection: nothing is asked of the devices any more. Twice is fine."""
        if self._qtest is not None:
            self._qtest.close()

    @property
    def is_forked(self) -> bool:
        """Whether this is a forked child's copy: QEMU and all about it are its parent's."""
        return os.getpid() != self._owner

    def close(self) -> None:
        """End QEMU and all that belongs to it. A second call finishes what the first did not."""
        if self.is_forked:
            return
        with self._close_lock:
            self._closed = True
            if self._is_over:
                return
            started = time.monotonic()
            left = True
            # The monitor after all that has sockets in a directory that we share with QEMU: once it
            # is disconnected, the next program may come, whose sockets have the same names.
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
                # Their descriptors go with them, whoever keeps this object.
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
        """Which it is, and where, for people."""
        process = self._process
        state = "closed" if self._closed else process.where if process else "starting"
        return f"{self.machine} {state}"

    def __repr__(self) -> str:
        return f"<Machine {self.state}>"


def _path_of(memory: _native.Memory) -> str:
    """Return where a process that we start can open the memory's file."""
    return memory.path or f"/proc/{os.getpid()}/fd/{memory.fileno()}"


def _one_of(name: str, value: object, literal: Any) -> None:
    allowed = get_args(literal)
    if value not in allowed:
        raise ValueError(f"{name}={value!r} is not one of {', '.join(allowed)}")


def present(part: T | None) -> T:
    """Return a part that is there until all is closed. Raises QemuError."""
    if part is None:
        raise QemuError("this QEMU is closed")
    return part


def _accelerators(binary: Binary, accel: Accel) -> list[str]:
    """Return what ``-accel`` takes; nothing where the command chooses for itself."""
    names: tuple[Accel, ...] = (accel,)
    if accel == "auto":
        if binary.chooses_accelerator:
            return []
        known = _auto.get(binary.argv)
        names = find.ACCELERATORS if known is None else (known,)
    return [binary.accelerator(name) for name in names]
