"""Wireshark's capture interface: a program that Wireshark and tshark start (extcap(4)).

Wireshark asks it for interfaces, link types and options, then starts it with a pipe to write to.
``virtnic extcap`` is this program; :func:`install` makes Wireshark find it.
"""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import virtnic
from virtnic.capture import Writer

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

__all__ = ["INTERFACE", "answer", "capture", "directory", "install"]

#: What the interface is called.
INTERFACE = "virtnic"
#: Where recent versions look for a user's own programs, if they cannot be asked.
_USUAL = Path("~/.local/lib/wireshark/extcap")
_FOLDER = re.compile(
    r"^(Personal Extcap path|Extcap path):\s*(\S.*)$", re.IGNORECASE | re.MULTILINE
)

#: The answer to each question, in the syntax of extcap(4).
_ANSWERS = {
    "interfaces": f"""\
extcap {{version={virtnic.__version__}}}{{display=virtnic}}
interface {{value={INTERFACE}}}{{display=a port of its own (virtnic)}}
""",
    "dlts": "dlt {number=1}{name=EN10MB}{display=Ethernet}\n",
    "config": """\
arg {number=0}{call=--netdev}{display=Netdev}{type=string}{default=user}\
{tooltip=what the port is connected to, as for QEMU's -netdev: tap,ifname=tap0}
arg {number=1}{call=--second}{display=Second netdev}{type=string}\
{tooltip=forward between both and capture what passes}
arg {number=2}{call=--snaplen}{display=Bytes of each frame}{type=unsigned}{range=1,262144}\
{default=262144}{tooltip=bytes of each frame to keep}
""",
}


def answer(question: Literal["interfaces", "dlts", "config"]) -> str:
    """Return the text that Wireshark expects."""
    return _ANSWERS[question]


def capture(
    fifo: str | os.PathLike[str],
    *ports: virtnic.Port,
    names: Sequence[str],
    snaplen: int | None = None,
    filter: str | None = None,  # noqa: A002 - what tcpdump calls it
    seconds: float | None = None,
    go_on: Callable[[], bool] = lambda: True,
) -> None:
    """Receive frames of a port, or forward between two, and write them to a pipe as pcapng.

    Ends when nobody reads the pipe any more, after ``seconds``, or when ``go_on``, which is called
    20 times a second, returns False. Raises OSError, ValueError, and what ends a port.
    """
    move = virtnic.forward if len(ports) == 2 else virtnic.drop
    writer = Writer(fifo, *ports, names=names, snaplen=snaplen, filter=filter)
    try:
        move(*ports, seconds=seconds, progress=lambda _: go_on() and not writer.failed)
    finally:
        with contextlib.suppress(BrokenPipeError):  # Wireshark ended the capture
            writer.close()


def directory() -> Path:
    """Return where Wireshark on this machine looks for such programs.

    What ``tshark -G folders`` says: a user's own directory, if this version has one. It is
    ``$WIRESHARK_EXTCAP_DIR`` where that is set, which Wireshark ignores when root runs it.
    """
    found: dict[str, str] = {}
    if tshark := shutil.which("tshark"):
        asked = subprocess.run(
            [tshark, "-G", "folders"], capture_output=True, text=True, timeout=60, check=False
        )
        found = {name.lower(): path for name, path in _FOLDER.findall(asked.stdout)}
    path = found.get("personal extcap path") or found.get("extcap path")
    return Path(path) if path else _USUAL.expanduser()


def install(place: str | os.PathLike[str] | None = None) -> Path:
    """Write the program that Wireshark starts into :func:`directory` or another, and return it.

    It runs this Python's ``virtnic extcap``. Raises OSError.
    """
    folder = directory() if place is None else Path(place)
    folder.mkdir(parents=True, exist_ok=True)
    program = folder / "virtnic"
    command = shlex.join([sys.executable, "-m", "virtnic", "extcap"])
    fresh = folder / f".virtnic-{os.getpid()}"
    fresh.write_text(f'#!/bin/sh\nexec {command} "$@"\n')
    fresh.chmod(0o755)
    fresh.replace(program)
    return program
