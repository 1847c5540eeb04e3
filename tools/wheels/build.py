"""Build a wheel for a platform, with zig as the linker, so that old C libraries will do."""

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

#: The stable ABI serves every Python from 3.11 on, but none that is free-threaded.
STABLE, FREE_THREADED = "abi3", "cp314t"


@dataclass(frozen=True)
class Platform:
    """What a wheel is for: an architecture and the oldest C library that it runs with."""

    architecture: str
    library: str

    @property
    def name(self) -> str:
        """The platform's name, as wheels have it."""
        return f"{self.library}_{self.architecture}"

    @property
    def target(self) -> str:
        """The name that Rust has for it."""
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
    """Pack the sources and return the path."""
    for old in out.glob("*.tar.gz"):
        old.unlink()
    _run([sys.executable, "-m", "maturin", "sdist", "--out", str(out)], env=_environment())
    (found,) = out.glob("*.tar.gz")
    return found


def _environment() -> dict[str, str]:
    """No path of this machine goes into a wheel: the compiler names sources by shorter ones."""
    cargo = Path(os.environ.get("CARGO_HOME", Path.home() / ".cargo"))
    names = [f"--remap-path-prefix={TOP}=virtnic", f"--remap-path-prefix={cargo}=cargo"]
    names += [f"--remap-path-prefix={place}=crates" for place in _registries(cargo)]
    # The separator allows for spaces in paths.
    flags = [*filter(None, os.environ.get("CARGO_ENCODED_RUSTFLAGS", "").split("\x1f")), *names]
    path = os.pathsep.join((str(Path(sys.executable).parent), os.environ.get("PATH", "")))
    return {
        **os.environ,
        "PATH": path,
        "CARGO_ENCODED_RUSTFLAGS": "\x1f".join(flags),
        "PYO3_BUILD_EXTENSION_MODULE": "1",
    }


def _registries(cargo: Path) -> Iterator[Path]:
    """Sources of crates; the last prefix that fits counts, so the longest come last."""
    yield from sorted((cargo / "registry/src").glob("*"))


def _has_target(target: str) -> None:
    """Have Rust's library for a target, or raise RuntimeError with what to do."""
    if shutil.which("rustup") is None:
        return  # the system's Rust: cargo says what is missing
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
    """Have a place for the wheels; remove what an interrupted build leaves there."""
    out.mkdir(parents=True, exist_ok=True)
    try:
        yield out
    finally:
        shutil.rmtree(out / "new", ignore_errors=True)
