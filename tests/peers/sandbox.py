"""Containers without a container engine.

Each has its own user, mount, PID, network, IPC, UTS and cgroup namespaces, an unprivileged
user of its own, and its own root: of the host it sees ``/usr``, read-only, or with ``root``
another system's root instead of that. They have one directory in common, and not even the path
where they find it.
"""

import json
import os
import select
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from virtnic.teardown import Closing

from .leaks import MARK
from .process import mortal

#: The namespaces that no two containers have in common.
NAMESPACES = ("user", "mnt", "pid", "net", "ipc", "uts", "cgroup")
TOP = Path(__file__).resolve().parents[2]
#: Where ``make containers`` has put a root for each kind of container.
ROOTS = os.environ.get("VIRTNIC_TEST_ROOTS")
#: The group that all users have, as the containers of a Kubernetes pod have its fsGroup.
GROUP = 61000


@dataclass(frozen=True)
class Container:
    """One kind of container: its user, and where it has the shared directory."""

    name: str
    user: int
    shared_at: str
    #: Paths of the host that are mounted as well.
    extra: Sequence[Path] = ()
    environment: Mapping[str, str] = field(default_factory=dict)

    @property
    def root(self) -> Path | None:
        """The system's root that it has, None for the host's ``/usr``."""
        return Path(ROOTS) / self.name if ROOTS else None

    def argv(self, shared: Path, command: Sequence[str]) -> list[str]:
        """Return the command line that runs a command in one."""
        # fmt: off
        words = [
            "bwrap", "--die-with-parent", "--new-session", "--clearenv",
            "--unshare-pid", "--unshare-net", "--unshare-ipc", "--unshare-uts",
            "--unshare-cgroup",
            *self._system(),
            "--proc", "/proc", "--dev", "/dev", "--ro-bind", "/sys", "/sys",
            "--perms", "1777", "--tmpfs", "/tmp", "--tmpfs", "/run",
            *(word for path in self.extra for word in _mounted(path, path)),
            *_mounted(shared, self.shared_at, "--bind"),
            "--setenv", "PATH", "/usr/sbin:/usr/bin:/sbin:/bin",
        ]
        mark = {MARK: os.environ[MARK]} if MARK in os.environ else {}
        for name, value in {**self.environment, **mark}.items():
            words += ["--setenv", name, value]
        # bwrap makes the mounts as root; then privileges go, and a user namespace of its own
        # is made by the unprivileged user, as a rootless container engine would.
        for capability in ("SETUID", "SETGID", "SETPCAP"):
            words += ["--cap-add", f"CAP_{capability}"]
        words += [
            "--", "setpriv", f"--reuid={self.user}", f"--regid={self.user}", f"--groups={GROUP}",
            "--bounding-set=-all", "--no-new-privs",
            "unshare", "--user", "--map-current-user", *command,
        ]
        # fmt: on
        return mortal(words)

    def _system(self) -> list[str]:
        if self.root is not None:
            return ["--ro-bind", str(self.root), "/"]
        words = ["--ro-bind", "/usr", "/usr", "--ro-bind-try", "/etc/alternatives"]
        words += ["/etc/alternatives", "--ro-bind-try", "/etc/ld.so.cache", "/etc/ld.so.cache"]
        for name in ("bin", "sbin", "lib", "lib64"):
            top = Path("/", name)
            if top.is_symlink():
                words += ["--symlink", str(top.readlink()), str(top)]
            else:
                words += ["--ro-bind", str(top), str(top)]
        return words


def _mounted(path: Path, at: str | Path, how: str = "--ro-bind") -> list[str]:
    """Mount a path of the host where every user can reach it."""
    words = []
    for above in reversed(Path(at).parents[:-1]):
        words += ["--perms", "0755", "--dir", str(above)]
    return [*words, how, str(path), str(at)]


def _program() -> Container:
    """The program: Python and virtnic, from here or in its own root."""
    user, shared_at = 61001, "/srv/net"
    if ROOTS:
        return Container("program", user, shared_at, (), {"PYTHONPATH": "/opt/virtnic"})
    # A virtual environment, the interpreter that it was made from, and the sources.
    sources = [TOP / "python", TOP / "tests"]
    places = {Path(sys.prefix), Path(sys.base_prefix), *sources} - {Path("/usr")}
    path = {"PYTHONPATH": ":".join(map(str, sources)), "PYTHONDONTWRITEBYTECODE": "1"}
    return Container("program", user, shared_at, sorted(places), path)


PROGRAM = _program()
QEMU = Container("qemu", 61002, "/run/virtnic")
BACKEND = Container("backend", 61003, "/sockets")

#: How the program's container calls Python.
PYTHON = "python3" if ROOTS else sys.executable


class Sandboxed(Closing):
    """A command that runs in a container, with pipes to it."""

    def __init__(self, container: Container, shared: Path, command: Sequence[str]) -> None:
        """Start it."""
        self.container = container
        self._process = subprocess.Popen(
            container.argv(shared, command),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def ask(self, line: str, timeout: float = 60.0) -> str:
        """Send it a line and return its answer."""
        stdin, stdout = self._process.stdin, self._process.stdout
        assert stdin is not None
        assert stdout is not None
        stdin.write(line + "\n")
        stdin.flush()
        ready, _, _ = select.select([stdout], [], [], timeout)
        assert ready, f"the container {self.container.name} did not answer {line!r}"
        answer = stdout.readline()
        assert answer, f"the container {self.container.name} has ended before {line!r}"
        return answer

    def output(self, timeout: float = 60.0) -> str:
        """Wait for its end and return what it printed."""
        output, _ = self._process.communicate(timeout=timeout)
        return output

    @property
    def pid(self) -> int:
        """The process id, here, of the command itself."""
        return innermost(self._process.pid)

    def kill(self) -> None:
        """Kill everything in it at once."""
        self._process.kill()
        self._process.communicate()

    def close(self) -> None:
        """As :meth:`kill`."""
        self.kill()


#: Executes what it is told, line by line; what that calls ``result`` is the answer.
_INTERPRETER = """
import json, sys
names = {}
for line in sys.stdin:
    try:
        names["result"] = None
        exec(json.loads(line), names)
        answer = {"result": names["result"]}
    except BaseException as error:
        answer = {"error": type(error).__name__, "message": str(error)}
    print(json.dumps(answer), flush=True)
"""


class ProgramError(Exception):
    """What a program's code raised: the kind and the message."""


class Program(Sandboxed):
    """A Python program in a container, told what to do step by step."""

    def __init__(self, shared: Path, container: Container = PROGRAM) -> None:
        """Start it."""
        super().__init__(container, shared, [PYTHON, "-c", _INTERPRETER])
        try:
            self.run(
                "import os, time, virtnic\n"
                "from support.inside import machine_of\n"
                "from support.traffic import echo"
            )
        except BaseException:
            self.kill()
            raise

    def run(self, code: str) -> Any:
        """Execute code in it and return what it calls ``result``."""
        answer = json.loads(self.ask(json.dumps(code)))
        if "error" in answer:
            raise ProgramError(f"{answer['error']}: {answer['message']}")
        return answer["result"]


def innermost(pid: int) -> int:
    """Follow the only children down to the last one."""
    while children := Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
        pid = int(children[0])
    return pid


def namespaces(pid: int) -> dict[str, str]:
    """Return the namespaces of a process, by kind."""
    return {name: str(Path(f"/proc/{pid}/ns/{name}").readlink()) for name in NAMESPACES}


def shared_memory(pid: int) -> set[tuple[str, str]]:
    """Return the files that a process has mapped to share, by device and inode; see proc(5)."""
    found = set()
    for line in Path(f"/proc/{pid}/maps").read_text().splitlines():
        _addresses, flags, _offset, device, inode, *_name = line.split(maxsplit=5)
        if flags.endswith("s"):
            found.add((device, inode))
    return found
