"""Find QEMU and its properties: version, machines, accelerators.

A :class:`Binary` is a command prefix, not only a path: ``VIRTNIC_QEMU`` may hold a
shell-quoted command such as ``chroot /srv/sid qemu-system-x86_64``.
"""

from __future__ import annotations

import contextlib
import ctypes
import itertools
import json
import os
import shlex
import shutil
import signal
import subprocess
import tempfile
import threading
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from virtnic.errors import QemuError, QemuNotFound, message_of
from virtnic.qemu import environment, quirks
from virtnic.qemu.quirks import Version
from virtnic.teardown import uninterrupted

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

T = TypeVar("T")

#: Names looked up in PATH, in this order.
NAMES = ("qemu-system-x86_64", "qemu-kvm")
#: Places outside PATH where distributions install it (Red Hat's first).
PLACES = ("/usr/libexec/qemu-kvm", "/usr/local/bin/qemu-system-x86_64", "/usr/bin/kvm")
#: Accelerators in the order of preference of ``auto``.
ACCELERATORS: tuple[Literal["qtest", "tcg", "kvm"], ...] = ("qtest", "tcg", "kvm")

INSTALL = (
    "install the package qemu-system-x86 (Debian, Ubuntu) or qemu-system-x86-core (Fedora), "
    "or name a binary with VIRTNIC_QEMU or qemu=PATH"
)

#: A parked processor translates almost nothing; the default would reserve 1 GiB for that.
TCG = "tcg,tb-size=1"

# Looked up here, not in a child between fork and exec.
_LIBC = ctypes.CDLL(None)
_PR_SET_PDEATHSIG = 1
_QUICK = 30.0  # seconds for a call that only prints something, on a busy machine too
#: Characters of a QMP reply; QEMU's longest, its schema, has some hundred thousand.
_LONGEST_LINE = 16 << 20


@dataclass(frozen=True, slots=True)
class Binary:
    """A QEMU command: everything before the first QEMU option."""

    argv: tuple[str, ...]

    def __str__(self) -> str:
        return shlex.join(self.argv)

    @property
    def version(self) -> Version:
        """The version, from ``--version``. Raises QemuNotFound if this is not QEMU."""
        return Version.parse(self.banner)

    @property
    def banner(self) -> str:
        """The first line of ``--version``. Raises QemuNotFound if this is not QEMU."""
        return _banner(self.argv)

    @property
    def machines(self) -> frozenset[str]:
        """Names of the machine types, from ``-machine help``."""
        return _machines(self.argv)

    def has_accelerator(self, name: str) -> bool:
        """Whether an accelerator really starts, which ``-accel help`` does not show."""
        return self.accelerator_error(name) is None

    def accelerator_error(self, name: str) -> str | None:
        """QEMU's error message for an accelerator that does not start; None if it does."""
        return self.error_with("-accel", self.accelerator(name))

    @property
    def chooses_accelerator(self) -> bool:
        """Whether the command itself names an accelerator."""
        for word, value in itertools.pairwise((*self.argv, "")):
            option = "-" + word.lstrip("-")  # QEMU accepts one dash or two
            if option in ("-accel", "-enable-kvm"):
                return True
            if option in ("-machine", "-M") and "accel=" in value:
                return True
        return False

    def accelerator(self, name: str) -> str:
        """Return the ``-accel`` argument for an accelerator."""
        if name != "tcg":
            return name
        if environment.forbids_jit() and not quirks.has(self.version, "no-split-wx"):
            return TCG + ",split-wx=on"  # separate mappings to write and to execute
        return TCG

    def error_with(self, *options: str) -> str | None:
        """QEMU's error message with these options; None if it starts."""
        return _error_with(self.argv, options)

    def has_device(self, name: str) -> bool:
        """Whether it was built with a device model."""
        return _has_device(self.argv, name)

    def ask(self, *commands: str) -> list[Any]:
        """Start one on an empty machine, run QMP commands without arguments, and end it.

        For answers that take much memory, which would stay with the QEMU in use. Raises QemuError.
        """
        return _ask(self.argv, (), *commands)

    def check(self, machine: str = "pc") -> Version:
        """Check that this is a QEMU with the machine, and return its version.

        Raises QemuNotFound with the package to install.
        """
        version = self.version
        if machine not in self.machines:
            if not self.machines & {"pc", "q35"}:
                raise QemuNotFound(
                    f"`{self}` is QEMU {version}, but not an x86_64 one: it has neither the "
                    f"machine pc nor q35; {INSTALL}"
                )
            have = ", ".join(sorted(self.machines & {"pc", "q35"}))
            raise QemuNotFound(f"`{self}` (QEMU {version}) has no machine {machine}; it has {have}")
        return version


def find_qemu(given: str | os.PathLike[str] | None = None) -> Binary:
    """Return the QEMU to use: the given one, ``VIRTNIC_QEMU``, or the first one installed.

    A string that is not the path of a file is split like a shell command. Raises QemuNotFound
    listing where it looked; starts nothing.
    """
    if given is not None:
        return _command(os.fspath(given), "the given QEMU")
    from_environment = os.environ.get("VIRTNIC_QEMU")
    if from_environment:
        return _command(from_environment, "VIRTNIC_QEMU")
    for name in (*NAMES, *PLACES):
        path = shutil.which(name)
        if path is not None:
            return Binary((path,))
    looked = ", ".join((*(f"{name} in PATH" for name in NAMES), *PLACES))
    raise QemuNotFound(f"no QEMU found (looked for {looked}); {INSTALL}")


def _command(text: str, source: str) -> Binary:
    """Convert a path or a command line to a Binary whose program exists."""
    if Path(text).is_file():
        argv = [text]
    else:
        try:
            argv = shlex.split(text)
        except ValueError as error:
            raise QemuNotFound(f"{source} ({text!r}) cannot be split: {error}") from None
    program = shutil.which(argv[0]) if argv else None
    if program is None:
        raise QemuNotFound(f"{source} ({text!r}) does not name an executable program; {INSTALL}")
    return Binary((program, *argv[1:]))


def _run(argv: tuple[str, ...], *options: str, stdin: str = "") -> tuple[int, str, str]:
    """Run QEMU briefly; return exit status, stdout, stderr."""
    command = [*argv, *options]

    def run(started: list[subprocess.Popen[str]]) -> tuple[int, str, str]:
        pipe = subprocess.PIPE
        with subprocess.Popen(
            command,
            stdin=pipe,
            stdout=pipe,
            stderr=pipe,
            env=environment.for_qemu(),
            text=True,
            errors="replace",
        ) as process:
            started.append(process)
            try:
                out, err = process.communicate(stdin, timeout=_QUICK)
            except BaseException:
                process.kill()
                raise
        return process.returncode, out, err

    try:
        return _whole(run)
    except subprocess.TimeoutExpired:
        raise QemuNotFound(
            f"`{shlex.join(command)}` did not end within {_QUICK:.0f} s; is it QEMU?"
        ) from None
    except OSError as error:
        raise QemuNotFound(
            f"`{shlex.join(command)}` cannot be run: {error.strerror or error}; {INSTALL}"
        ) from None


def _whole(run: Callable[[list[subprocess.Popen[str]]], T]) -> T:
    """Run a child such that an interruption cannot leave it behind.

    ``run`` adds it to the given list; an interruption kills it.
    """
    started: list[subprocess.Popen[str]] = []

    def kill() -> None:
        for process in started:
            process.kill()

    return uninterrupted(lambda: run(started), hurry=kill)


def last_line(text: str) -> str:
    """Return the last non-empty line, or the empty string."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else ""


@cache
def _banner(argv: tuple[str, ...]) -> str:
    status, out, err = _run(argv, "--version")
    line = out.splitlines()[0].strip() if out.strip() else ""
    if status != 0 or not line.startswith("QEMU "):
        said = last_line(err) or last_line(out) or f"exit status {status}"
        if any(words in err for words in _LOADER_ERRORS):
            raise QemuNotFound(f"`{shlex.join(argv)}` cannot be started: {said}; {_loader()}")
        raise QemuNotFound(
            f"`{shlex.join(argv)} --version` does not answer like QEMU but with {said!r}; {INSTALL}"
        )
    return line


#: Messages of the dynamic loader about missing or wrong libraries (ld.so(8)).
_LOADER_ERRORS = ("error while loading shared libraries", "symbol lookup error", "' not found (req")


def _loader() -> str:
    """Return advice for a program that the dynamic loader cannot start."""
    where = environment.libraries()
    if where:
        return f"it finds other libraries than its own through {where}: unset that"
    return "libraries that it needs are missing: install its package again"


@cache
def _machines(argv: tuple[str, ...]) -> frozenset[str]:
    _status, out, _err = _run(argv, "-machine", "help")
    return frozenset(line.split()[0] for line in out.splitlines()[1:] if line.strip())


@cache
def _has_device(argv: tuple[str, ...], name: str) -> bool:
    # The exit status is no help: for an unknown device QEMU prints "no options" and succeeds.
    _status, out, _err = _run(argv, "-device", f"{name},help")
    return out.startswith(f"{name} options:")


class _Unanswered(QemuError):
    """QEMU did not answer in time."""


def _error_with(argv: tuple[str, ...], options: tuple[str, ...]) -> str | None:
    try:
        return _known_error(argv, options)
    except _Unanswered as error:
        return str(error)  # asked again next time


@cache
def _known_error(argv: tuple[str, ...], options: tuple[str, ...]) -> str | None:
    try:
        _ask(argv, options)
    except _Unanswered:
        raise
    except QemuError as error:
        return str(error)
    return None


def _ask(argv: tuple[str, ...], options: Sequence[str], *commands: str) -> list[Any]:
    return _whole(lambda started: _ask_here(argv, options, commands, started))


def _ask_here(
    argv: tuple[str, ...],
    options: Sequence[str],
    commands: Sequence[str],
    started: list[subprocess.Popen[str]],
) -> list[Any]:
    empty = ["-no-user-config", "-nodefaults", "-display", "none", "-S", "-machine", "none"]
    words = [*argv, *empty, *options, "-qmp", "stdio"]
    with tempfile.TemporaryFile("w+", errors="replace") as err:
        try:
            process = subprocess.Popen(
                words,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=err,
                text=True,
                env=environment.for_qemu(),
                preexec_fn=_die_with_us,  # noqa: PLW1509 - one system call, nothing of Python's
            )
        except OSError as error:
            raise QemuNotFound(f"`{shlex.join(argv)}` cannot be run: {message_of(error)}") from None
        started.append(process)
        # If it does not answer it is killed, which ends its output.
        late = threading.Event()

        def give_up() -> None:
            late.set()
            process.kill()

        watchdog = threading.Timer(_QUICK, give_up)
        watchdog.start()
        try:
            with process, _killing(process):
                results = [_execute(process, name) for name in ("qmp_capabilities", *commands)]
                # Only now: QEMU does not wait for long replies to be read before it quits.
                _execute(process, "quit")
        except (BrokenPipeError, EOFError, ValueError, KeyError, RecursionError):
            if late.is_set():
                raise _Unanswered(
                    f"`{shlex.join(words)}` did not answer within {_QUICK:g} s"
                ) from None
            err.seek(0)
            said = last_line(err.read()) or f"exit status {process.returncode}"
            raise QemuError(said) from None
        finally:
            watchdog.cancel()
            watchdog.join()
    return results[1:]


def _die_with_us() -> None:
    """Make the kernel kill this child when its parent thread ends: prctl(2)."""
    _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


@contextlib.contextmanager
def _killing(process: subprocess.Popen[str]) -> Iterator[None]:
    """Kill it on an interruption: QEMU does not end when its standard input does."""
    try:
        yield
    except (BrokenPipeError, EOFError):
        raise  # it is ending; its exit status is reported
    except BaseException:
        process.kill()
        raise


def _execute(process: subprocess.Popen[str], name: str) -> Any:
    """Send a QMP command over stdio and return its result; KeyError if it is refused."""
    stdin, stdout = process.stdin, process.stdout
    if stdin is None or stdout is None:
        raise EOFError
    stdin.write(json.dumps({"execute": name}) + "\n")
    stdin.flush()
    while line := stdout.readline(_LONGEST_LINE):
        # A longer line is cut, and so is not JSON.
        reply = json.loads(line)
        if isinstance(reply, dict) and ("return" in reply or "error" in reply):
            return reply["return"]
    raise EOFError
