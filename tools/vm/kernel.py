"""Debian's cloud kernel, from a package that is downloaded but not installed."""

from __future__ import annotations

import lzma
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

__all__ = ["Kernel", "fetch", "newest", "unpack"]

_NAME = re.compile(r"linux-image-(\d[\w.+~]*(?:-\d+)?)-cloud-(?:amd64)")


@dataclass(frozen=True)
class Kernel:
    """An unpacked kernel package."""

    package: str
    folder: Path

    @property
    def image(self) -> Path:
        """Return the file that QEMU boots."""
        return next(iter(self.folder.glob("boot/vmlinuz-*")))

    @property
    def _modules(self) -> Path:
        return next(iter(self.folder.glob("**/lib/modules/*")))

    def modules(self, names: Iterable[str]) -> tuple[list[tuple[str, bytes]], list[str]]:
        """Return modules in the order of loading, with those they need, and names it lacks.

        What is built into the kernel is in neither.
        """
        files = {_plain(file.name): file for file in self._modules.rglob("*.ko*")}
        built_in = {
            _plain(Path(line).name)
            for line in (self._modules / "modules.builtin").read_text().split()
        }
        order: dict[str, bytes] = {}
        missing: list[str] = []

        def add(name: str) -> None:
            if name in order or name in built_in:
                return
            if name not in files:
                missing.append(name)
                return
            content = _content(files[name])
            for needed in _needs(content):
                add(needed)
            order[name] = content

        for name in names:
            add(_plain(name))
        return list(order.items()), missing


def _plain(name: str) -> str:
    """Return a module's name as the kernel has it."""
    return name.partition(".ko")[0].replace("-", "_")


def _content(file: Path) -> bytes:
    if file.suffix == ".xz":
        return lzma.decompress(file.read_bytes())
    if file.suffix != ".ko":
        raise SystemExit(f"{file.name}: compressed in a way that this program does not know")
    return file.read_bytes()


def _needs(module: bytes) -> Iterator[str]:
    """Yield the modules that one needs: `depends=` of its section .modinfo."""
    found = re.search(rb"\0depends=([^\0]+)\0", module)
    for name in found[1].decode().split(",") if found else ():
        yield _plain(name)


def newest() -> str:
    """Return the name of the newest cloud kernel that apt knows."""
    apt = ["apt-cache", "pkgnames", "linux-image-"]
    listed = subprocess.run(apt, check=True, capture_output=True, text=True).stdout.split()
    versions = {name: found[1] for name in listed if (found := _NAME.fullmatch(name))}
    if not versions:
        raise SystemExit(
            "apt knows no kernel linux-image-…-cloud-amd64: `apt-get update` fetches Debian's "
            "lists; elsewhere, name a package with --kernel"
        )
    return max(versions, key=lambda name: [int(word) for word in re.findall(r"\d+", name)])


def fetch(package: str, into: Path) -> Path:
    """Download a package's file, as any user, and return it."""
    into.mkdir(parents=True, exist_ok=True)
    apt = ["apt-get", "-qq", "download", package]
    done = subprocess.run(apt, check=False, cwd=into, capture_output=True, text=True)
    files = sorted(into.glob(f"{package}_*.deb"))
    if done.returncode or not files:
        raise SystemExit(
            f"`apt-get download {package}` failed: {done.stderr.strip() or 'no file'}; "
            "`apt-get update` may be due"
        )
    return files[-1]


def unpack(package: str, cache: Path, say: Callable[[str], None]) -> Path:
    """Return the folder of an unpacked package; download it unless it is there."""
    folder = cache / package
    if folder.is_dir():
        return folder
    # Aside, and renamed when complete: an interrupted run leaves no half of a package.
    partial = cache / f"{package}.partial"
    shutil.rmtree(partial, ignore_errors=True)
    say(f"downloading {package}")
    file = fetch(package, partial)
    say(f"unpacking {file.name}, {file.stat().st_size >> 20} MiB")
    subprocess.run(["dpkg-deb", "-x", file, partial / "files"], check=True)
    (partial / "files").rename(folder)
    shutil.rmtree(partial)
    return folder
