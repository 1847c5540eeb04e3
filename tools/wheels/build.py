"""Build a wheel for a platform, with zig as the linker, so that it works with old C libraries."""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from . import linked

TOP = Path(__file__).resolve().parents[2]

#: The stable ABI works with every Python from 3.11 on, except free-threaded ones.
STABLE, FREE_THREADED = "abi3", "cp314t"


@dataclass(frozen=True)
class Platform:
    """The platform of a wheel: an architecture and the oldest C library that it works with."""

    architecture: str
    library: str

    @property
    def name(self) -> str:
        """The platform tag in the names of wheels."""
        return f"{self.library}_{self.architecture}"

    @property
    def target(self) -> str:
        """The Rust target triple."""
        system = "musl" if self.library.startswith("musl") else "gnu"
        return f"{self.architecture}-unknown-linux-{system}"


PLATFORMS = tuple(
    Platform(architecture, library)
    for architecture in ("x86_64", "aarch64")
    for library in ("manylinux_2_17", "musllinux_1_2")
)


def build(platform: Platform, abi: str, out: Path) -> Path:
    """Build one wheel and return its path. Raises RuntimeError."""
    _has_target(platform.target)
    place = out / "new"
    shutil.rmtree(place, ignore_errors=True)
    argv = [
        sys.executable, "-m", "maturin", "build", "--release", "--locked", "--strip", "--zig",
        "--quiet", "--target", platform.target, "--compatibility", platform.library,
        "--compression-level", "9", "--out", str(place),
    ]  # fmt: skip
    if abi == FREE_THREADED:
        argv += ["--interpreter", "python3.14t"]
    _run(argv, env=_environment())
    (wheel,) = place.glob("*.whl")
    linked.rewrite_sbom(wheel, platform.target)
    wheel = wheel.rename(out / wheel.name)
    place.rmdir()
    return wheel


def sdist(out: Path) -> Path:
    """Build the source distribution and return its path."""
    for old in out.glob("*.tar.gz"):
        old.unlink()
    _run([sys.executable, "-m", "maturin", "sdist", "--out", str(out)], env=_environment())
    (found,) = out.glob("*.tar.gz")
    return found


def _environment() -> dict[str, str]:
    """Return an environment in which the compiler keeps paths of this machine out of the wheel."""
    cargo = Path(os.environ.get("CARGO_HOME", Path.home() / ".cargo"))
    names = [f"--remap-path-prefix={TOP}=virtnic", f"--remap-path-prefix={cargo}=cargo"]
    names += [f"--remap-path-prefix={place}=crates" for place in _registries(cargo)]
    # This separator allows spaces in paths.
    flags = [*filter(None, os.environ.get("CARGO_ENCODED_RUSTFLAGS", "").split("\x1f")), *names]
    path = os.pathsep.join((str(Path(sys.executable).parent), os.environ.get("PATH", "")))
    return {
        **os.environ,
        "PATH": path,
        "CARGO_ENCODED_RUSTFLAGS": "\x1f".join(flags),
        "PYO3_BUILD_EXTENSION_MODULE": "1",
    }


def _registries(cargo: Path) -> Iterator[Path]:
    """Yield the source directories of crates, the longest paths last: the last match is used."""
    yield from sorted((cargo / "registry/src").glob("*"))


def _has_target(target: str) -> None:
    """Check that Rust's library for a target is installed. Raises RuntimeError with what to do."""
    if shutil.which("rustup") is None:
        return  # Rust without rustup: cargo reports what is missing
    done = subprocess.run(
        ["rustup", "target", "add", target], check=False, capture_output=True, text=True
    )
    if done.returncode:
        raise RuntimeError(f"rustup target add {target} failed:\n{done.stderr[-1000:]}")


def _run(argv: list[str], env: dict[str, str]) -> None:
    done = subprocess.run(argv, check=False, cwd=TOP, env=env, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{' '.join(argv[1:5])} failed:\n{done.stderr[-3000:]}")


@contextmanager
def directory(out: Path) -> Iterator[Path]:
    """Create a directory for the wheels; remove the files of an interrupted build."""
    out.mkdir(parents=True, exist_ok=True)
    try:
        yield out
    finally:
        shutil.rmtree(out / "new", ignore_errors=True)
