"""``Writer``: a capture of what ports send and receive."""

from __future__ import annotations

import contextlib
import errno
import os
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

import virtnic
from virtnic import _native
from virtnic.arguments import suggest_options
from virtnic.capture.filters import Filter
from virtnic.capture.reading import is_pipe
from virtnic.teardown import Closing
from virtnic.units import parse_size

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

__all__ = ["Counts", "Writer", "parse_rotation"]

#: The longest frame that tools expect, which is longer than any of a port.
_ALL = 262_144


@dataclass(frozen=True, slots=True)
class Counts:
    """Counters of a capture.

    Attributes
    ----------
    seen
        Frames that the ports moved.
    dropped
        Frames dropped because the file was not written fast enough.
    filtered
        Frames that the filter rejected.
    written
        Frames that are in a file, or will be when the writer is closed.
    bytes, files
        The total size of the files so far, and their number.

    """

    seen: int
    dropped: int
    filtered: int
    written: int
    bytes: int
    files: int


def parse_rotation(
    rotate: str | tuple[int | str, int | None] | None,
) -> tuple[int, int | None] | None:
    """Return the size of a file and the number of files to keep: ``"1G:10"``, ``"1G"``, or a tuple.

    Raises ValueError.
    """
    if rotate is None:
        return None
    if isinstance(rotate, tuple):
        size, files = rotate
        return parse_size(size), files
    text, colon, count = rotate.partition(":")
    if colon and not (count.isascii() and count.isdigit()):
        raise ValueError(f"files are rotated as in '1G:10', not {rotate!r}")
    return parse_size(text), int(count) if colon else None


@contextlib.contextmanager
def _reader_of_pipe(path: str) -> Iterator[None]:
    """Wait for the reader of a named pipe: the core would wait deaf to signals."""
    if not is_pipe(path):
        yield
        return
    while True:
        try:
            end = os.open(path, os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC)
            break
        except OSError as error:
            if error.errno != errno.ENXIO:
                raise
        time.sleep(0.05)
    try:
        yield
    finally:
        os.close(end)


class Writer(Closing):
    """Writes everything that ports send and receive to a pcapng file until it is closed.

    Frames of loops and of other threads are included. They are copied when they are queued for
    sending or taken from the receive ring. A thread of the core writes them, with the time in
    nanoseconds and the direction; each port is an interface of the file. The ports never wait for
    the file: frames that do not fit ``buffer`` are dropped, and counted in the file (Interface
    Statistics Blocks) and in :attr:`counts`. A context manager.
    """

    @suggest_options
    def __init__(
        self,
        path: str | os.PathLike[str],
        *ports: virtnic.Port,
        names: Sequence[str] | None = None,
        snaplen: int | None = None,
        filter: str | None = None,  # noqa: A002 - what tcpdump calls it
        rotate: str | tuple[int | str, int | None] | None = None,
        buffer: int | str = "32M",
        comment: str | None = None,
    ) -> None:
        """Create the file, replacing an existing one, and start capturing.

        If it is a named pipe, wait until another program opens it for reading.

        ``names``: the ports' names in the file; by default, their MAC addresses. ``snaplen``: the
        number of bytes kept of each frame; by default, all. ``filter``: a filter in tcpdump's
        language. ``rotate``: ``"1G:10"`` starts another file after each GiB and keeps the ten
        newest, ``"1G"`` keeps all; they are called ``run_00001.pcapng`` and so on. ``buffer``:
        bytes of memory between the ports and the file, shared by the queues, each with at least
        256 KiB. ``comment``: a comment at the start of each file.

        Raises OSError, ValueError, FileNotFoundError for a filter without libpcap.
        """
        if not ports:
            raise ValueError("a capture needs at least one port")
        for port in ports:
            if not isinstance(port, virtnic.Port):
                raise TypeError(f"only ports can be captured, not {port!r}")
        called = [f"virtnic {port.mac}" for port in ports] if names is None else list(names)
        if len(called) != len(ports):
            raise ValueError(f"{len(called)} names are given for {len(ports)} ports")
        if snaplen is not None and not 1 <= snaplen <= _ALL:
            raise ValueError(f"snaplen must be 1 to {_ALL} bytes, or None for all, not {snaplen}")
        compiled = None if filter is None else Filter(filter)
        self._compiled = compiled  # its library runs it
        self._path = os.fspath(path)
        described = [
            (port, name, f"queues={port.max_queues} ring={port.ring}")
            for port, name in zip(ports, called, strict=True)
        ]
        with _reader_of_pipe(self._path):
            self._writer = _native.CaptureWriter(
                self._path,
                described,
                snaplen=_ALL if snaplen is None else snaplen,
                buffer=parse_size(buffer),
                rotate=parse_rotation(rotate),
                comment=comment,
                filter=None
                if compiled is None
                else (compiled.address, compiled.program, compiled.text),
            )

    @property
    def counts(self) -> Counts:
        """The counters so far."""
        return Counts(**self._writer.counts())

    @property
    def failed(self) -> bool:
        """Whether it ended because the file could not be written; :meth:`close` says why."""
        return self._writer.failed

    def comment(self, text: str) -> None:
        """Add a comment to the next frame that is written. Raises ValueError if too many wait."""
        self._writer.comment(text)

    def close(self) -> None:
        """Write the remaining frames and the counters, and end. Closing twice is allowed.

        Raises OSError, once, if the file could not be written, for example on a full disk. The file
        then ends with a complete block.
        """
        self._writer.close()

    def __repr__(self) -> str:
        counts = self.counts
        said = f"{counts.written} frames, {counts.dropped} dropped"
        return f"<virtnic.capture.Writer {self._path}: {said}>"
