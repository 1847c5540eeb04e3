"""Boot the machine under TCG, run a command on this machine's own root, return its status."""

from __future__ import annotations

import contextlib
import ctypes
import os
import shlex
import shutil
import signal
import stat
import subprocess
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from vm.initramfs import archive

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

__all__ = ["Failed", "Machine"]

#: What comes over from the caller's environment.
_PASSED = ("PATH", "LANG", "LC_ALL", "CI", "PYTHONPATH", "VIRTNIC_QEMU", "VIRTNIC_LOG")
_PR_SET_PDEATHSIG = 1
_LIBC = ctypes.CDLL(None)

#: First process on the root. The status goes through a port of its own.
_START = """\
{environment}
cd {folder}
b=/run/vm/busybox
$b ip link set lo up
$b stty -F /dev/hvc0 raw -echo
{mounts}
cd {folder}
{command} </dev/null >/dev/hvc0 2>&1
status=$?
for port in /dev/vport*p1; do echo "$status $($b cut -d' ' -f1 /proc/uptime)" >$port; done
$b sync
$b poweroff -f
"""


class Failed(Exception):
    """The machine did not run the command to its end."""


@dataclass(frozen=True)
class Machine:
    """How to boot."""

    kernel: Path
    initramfs: Path
    #: Folder in which the command runs, as it is called here and there.
    folder: Path
    #: Folder that the command may write to; everything else is read-only, or gone with the machine.
    results: Path
    processors: int = 2
    memory: str = "2G"
    #: Pages of 2 MiB.
    hugepages: int = 128

    def run(self, command: Sequence[str], limit: float, say: Callable[[str], None]) -> int:
        """Run a command with its output on ours; return its status. Raises Failed."""
        self.results.mkdir(parents=True, exist_ok=True)
        with contextlib.ExitStack() as stack:
            place = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="vm-")))
            shares = {"root": Path("/"), "results": self.results}
            if _hidden(self.folder):
                shares["folder"] = self.folder
            for name, path in shares.items():
                stack.enter_context(_share(path, place / name))
            initramfs = place / "initramfs"
            with initramfs.open("wb") as file:
                file.write(self.initramfs.read_bytes())
                start = self._start(command, shares).encode()
                file.write(archive({"start": (stat.S_IFREG | 0o755, start)}))
            began = time.monotonic()
            say(f"booting, to run {shlex.join(command)}")
            qemu = stack.enter_context(_child(self._qemu(place, initramfs, shares)))
            try:
                ended = qemu.wait(limit)
            except subprocess.TimeoutExpired:
                raise Failed(f"ended after {limit:g} s (--limit)") from None
            words = _text(place / "status").split()
            if len(words) != 2:
                said = "\n".join(_text(place / "boot").splitlines()[-20:])
                raise Failed(f"QEMU ended with {ended}, and the command did not:\n{said}")
            status, up = int(words[0]), float(words[1])
            wall = time.monotonic() - began
            say(f"status {status}; {wall:.1f} s, of which the machine was up for {up:.1f} s")
            return status

    def _start(self, command: Sequence[str], shares: Mapping[str, Path]) -> str:
        environment = {name: os.environ[name] for name in _PASSED if name in os.environ}
        environment |= {"HOME": "/tmp", "PYTHONDONTWRITEBYTECODE": "1", "VIRTNIC_VM": "1"}
        environment["HYPOTHESIS_STORAGE_DIRECTORY"] = "/tmp/hypothesis"
        mounts = [
            f"$b mkdir -p {shlex.quote(str(path))}\n"
            f"$b mount -t virtiofs {name} {shlex.quote(str(path))}"
            for name, path in reversed(list(shares.items()))
            if name != "root"
        ]
        return _START.format(
            environment="\n".join(
                f"export {name}={shlex.quote(value)}" for name, value in environment.items()
            ),
            folder=shlex.quote(str(self.folder)),
            mounts="\n".join(mounts),
            command=shlex.join(command),
        )

    def _qemu(self, place: Path, initramfs: Path, shares: Mapping[str, Path]) -> list[str]:
        program = shutil.which("qemu-system-x86_64")
        if program is None:
            raise SystemExit("qemu-system-x86_64 is missing: apt-get install qemu-system-x86")
        boot = (
            "console=ttyS0 quiet panic=-1 mitigations=off nokaslr no_timer_check tsc=reliable "
            f"random.trust_cpu=on audit=0 hugepages={self.hugepages}"
        )
        argv = [program, "-nodefaults", "-no-user-config", "-no-reboot"]
        argv += ["-display", "none", "-vga", "none", "-kernel", str(self.kernel)]
        argv += ["-initrd", str(initramfs), "-append", boot]
        # Five-level page tables (la57) make TCG slower; virtiofs needs shared memory.
        argv += ["-machine", "pc,usb=off,vmport=off,memory-backend=m", "-cpu", "max,la57=off"]
        argv += ["-accel", "tcg,thread=multi", "-smp", str(self.processors), "-m", self.memory]
        argv += ["-object", f"memory-backend-memfd,id=m,size={self.memory},share=on"]
        for name in shares:
            argv += ["-chardev", f"socket,id={name},path={place / name}"]
            argv += ["-device", f"vhost-user-fs-pci,chardev={name},tag={name}"]
        argv += ["-device", "virtio-rng-pci", "-device", "virtio-serial-pci"]
        argv += [
            "-chardev",
            "stdio,id=console,signal=off",
            "-device",
            "virtconsole,chardev=console",
        ]
        argv += ["-chardev", f"file,id=status,path={place / 'status'}"]
        argv += ["-device", "virtserialport,chardev=status", "-serial", f"file:{place / 'boot'}"]
        return argv


def _hidden(folder: Path) -> bool:
    """Whether a folder is below one that is empty in the machine."""
    return folder.is_relative_to("/tmp") or folder.is_relative_to("/run")


def _text(file: Path) -> str:
    return file.read_text(errors="replace") if file.exists() else ""


def _die_with_parent() -> None:
    _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


@contextlib.contextmanager
def _child(argv: Sequence[str], log: Path | None = None) -> Iterator[subprocess.Popen[bytes]]:
    """Start a program that lives as long as this context, and gets no Ctrl-C of its own."""
    output = None if log is None else log.open("wb")
    with contextlib.ExitStack() as stack:
        if output is not None:
            stack.enter_context(output)
        process = subprocess.Popen(
            argv,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
            preexec_fn=_die_with_parent,
        )
        try:
            yield process
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


@contextlib.contextmanager
def _share(path: Path, socket: Path) -> Iterator[None]:
    """Share a folder by virtiofs at a socket."""
    log = socket.with_suffix(".log")
    with _child(_virtiofsd(path, socket), log) as process:
        deadline = time.monotonic() + 30
        while not socket.exists():
            if process.poll() is not None or time.monotonic() > deadline:
                raise Failed(f"virtiofsd does not share {path}:\n{_text(log).strip()}")
            time.sleep(0.02)
        yield


def _virtiofsd(path: Path, socket: Path) -> list[str]:
    """Return the command line: QEMU's own program up to 7.2, another in Rust since."""
    for name in ("/usr/libexec/virtiofsd", "/usr/lib/virtiofsd", "virtiofsd"):
        if found := shutil.which(name):
            argv = [found, f"--socket-path={socket}", f"--shared-dir={path}", "--cache=always"]
            return [*argv, "--sandbox=" + ("chroot" if os.geteuid() == 0 else "none")]
    if found := shutil.which("/usr/lib/qemu/virtiofsd"):
        argv = [found, "-f", f"--socket-path={socket}", "-o", f"source={path}"]
        return [*argv, "-o", "cache=always", "-o", "sandbox=chroot"]
    raise SystemExit(
        "virtiofsd is missing: apt-get install virtiofsd (Debian 12: qemu-system-common)"
    )
