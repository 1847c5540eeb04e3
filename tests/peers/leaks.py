"""Leak checks: descriptors, threads, processes, hugepages, files.

Everything is compared with a snapshot taken before the test. Children are found by
parent and by a mark in their environment, so one that escaped to init is found too.
"""

import gc
import os
import shutil
import tempfile
import time
import uuid
from dataclasses import dataclass
from pathlib import Path

from virtnic import _native

MARK = "VIRTNIC_TEST_SESSION"


class Session:
    """A private temporary directory and an environment mark for one test session."""

    def __init__(self) -> None:
        """Redirect everything temporary of this process and its children."""
        # pytest's own tmp_path directories stay where they always are.
        os.environ.setdefault("PYTEST_DEBUG_TEMPROOT", tempfile.gettempdir())
        self._saved = {name: os.environ.get(name) for name in ("TMPDIR", "XDG_RUNTIME_DIR", MARK)}
        # Short: a UNIX socket's path holds 107 bytes.
        self.directory = Path(tempfile.mkdtemp(prefix="vt-"))
        self.mark = uuid.uuid4().hex
        os.environ.update(
            {"TMPDIR": str(self.directory), "XDG_RUNTIME_DIR": str(self.directory), MARK: self.mark}
        )
        tempfile.tempdir = str(self.directory)
        # The first child creates what lasts as long as the process: a thread, and a pipe whose end
        # tells children of ours.
        with Path(os.devnull).open("wb") as nothing:
            _native.spawn(["true"], dict(os.environ), nothing.fileno()).wait(10.0)

    def close(self) -> None:
        """Put the environment back and remove the directory."""
        tempfile.tempdir = None
        for name, value in self._saved.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
        shutil.rmtree(self.directory, ignore_errors=True)


@dataclass(frozen=True)
class Snapshot:
    """What a process holds at one moment. Keys identify, values describe."""

    descriptors: dict[tuple[int, str], str]
    threads: dict[int, str]
    processes: dict[int, str]
    hugetlb_kb: int
    hugepages_used: dict[str, int]
    files: frozenset[str]


def _read(path: Path) -> str:
    """Read a file of /proc whose subject may be gone by now."""
    try:
        return path.read_bytes().decode(errors="replace")
    except OSError:
        return ""


def _descriptors() -> dict[tuple[int, str], str]:
    found = {}
    for entry in Path("/proc/self/fd").iterdir():
        try:
            target = str(entry.readlink())
        except OSError:
            continue  # the listing's own descriptor
        found[int(entry.name), target] = f"descriptor {entry.name}: {target}"
    return found


def _threads() -> dict[int, str]:
    tasks = Path("/proc/self/task").iterdir()
    names = {int(task.name): _read(task / "comm").strip() for task in tasks}
    return {tid: f"thread {tid} ({name})" for tid, name in names.items()}


def _processes(mark: str) -> dict[int, str]:
    me = os.getpid()
    needle = f"{MARK}={mark}"
    found = {}
    for process in Path("/proc").glob("[0-9]*"):
        pid = int(process.name)
        if pid == me:
            continue
        stat = _read(process / "stat").rpartition(")")[2].split()
        if not stat:
            continue
        state, parent = stat[0], int(stat[1])
        if state == "Z" and (parent != me or me == 1):
            continue  # it has ended; who adopted it may reap it late, and some init never does
        if parent == me or needle in _read(process / "environ").split("\0"):
            command = _read(process / "cmdline").replace("\0", " ").strip()
            kind = "zombie" if state == "Z" else "process"
            found[pid] = f"{kind} {pid} (parent {parent}): {command[:200]}"
    return found


def _hugetlb_kb(process: Path) -> int:
    for line in _read(process / "status").splitlines():
        if line.startswith("HugetlbPages:"):
            return int(line.split()[1])
    return 0


def _hugepages_used() -> dict[str, int]:
    used = {}
    for size in Path("/sys/kernel/mm/hugepages").glob("hugepages-*"):
        total, free = (_read(size / name) for name in ("nr_hugepages", "free_hugepages"))
        if total and free:
            used[size.name] = int(total) - int(free)
    return used


def _others_use_hugepages() -> bool:
    me = os.getpid()
    return any(
        _hugetlb_kb(process) > 0
        for process in Path("/proc").glob("[0-9]*")
        if int(process.name) != me
    )


def snapshot(session: Session) -> Snapshot:
    """Look at this process, its descendants and the session's directory."""
    return Snapshot(
        descriptors=_descriptors(),
        threads=_threads(),
        processes=_processes(session.mark),
        hugetlb_kb=_hugetlb_kb(Path("/proc/self")),
        hugepages_used=_hugepages_used(),
        files=frozenset(str(path) for path in session.directory.iterdir()),
    )


def difference(before: Snapshot, after: Snapshot) -> list[str]:
    """Describe what is there now but was not before."""
    found = [text for key, text in after.descriptors.items() if key not in before.descriptors]
    found += [text for key, text in after.threads.items() if key not in before.threads]
    found += [text for key, text in after.processes.items() if key not in before.processes]
    found += [f"file {path}" for path in sorted(after.files - before.files)]
    if after.hugetlb_kb > before.hugetlb_kb:
        found.append(f"{after.hugetlb_kb - before.hugetlb_kb} kB of hugepages mapped")
    for size, used in after.hugepages_used.items():
        more = used - before.hugepages_used.get(size, 0)
        # Pages that nobody maps belong to a file that was left; pages that another
        # program maps are its own business.
        if more > 0 and not _others_use_hugepages():
            found.append(f"{more} {size} not given back")
    return found


def wait_for_none(session: Session, before: Snapshot, seconds: float = 10.0) -> list[str]:
    """Return what is left after things had time to end."""
    deadline = time.monotonic() + seconds
    left = difference(before, snapshot(session))
    while left and time.monotonic() < deadline:
        gc.collect()
        time.sleep(0.02)
        left = difference(before, snapshot(session))
    return left
