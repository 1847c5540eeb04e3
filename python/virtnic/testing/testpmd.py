"""DPDK's testpmd as a vhost-user backend: an independent, polling device side.

The command line follows DPDK's "testpmd application user guide" and "vhost PMD" guide.
"""

from __future__ import annotations

import contextlib
import os
import re
import select
import shutil
import subprocess
import time
from pathlib import Path
from typing import TYPE_CHECKING

from virtnic.arguments import suggest_options
from virtnic.teardown import Closing
from virtnic.testing.programs import find_program, free_hugepages, mortal, short_directory

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import virtnic

__all__ = ["Testpmd", "TestpmdError", "answer_to", "find_testpmd"]

PROMPT = b"testpmd> "
#: What other threads print at any time, even between two letters of an echo: testpmd writes those
#: one by one.
_LOG = re.compile(rb"(?:VHOST_\w+|EAL|TELEMETRY|ETHDEV): [^\n]*\n|\n?Port \d+: [a-z ]+ event\n")


def find_testpmd() -> str:
    """Return the path of dpdk-testpmd. Raises ProgramNotFound."""
    return find_program("dpdk-testpmd", "dpdk-dev")


def answer_to(command: bytes, printed: bytes) -> bytes | None:
    """Return what was printed without log lines, if a prompt follows the echo of a command."""
    said = _LOG.sub(b"", printed)
    # What else there is of a log line, such as an empty one, may be between two letters as well.
    echo, prompt = (
        rb"\s*".join(re.escape(bytes([letter])) for letter in text) for text in (command, PROMPT)
    )
    return said if re.search(echo + b".*" + prompt, said, re.DOTALL) else None


class TestpmdError(RuntimeError):
    """The program ended or did not answer; the message quotes its output."""


class Testpmd(Closing):
    """A running testpmd with one vhost port for each socket path. A context manager."""

    __test__ = False  # not a test class, whatever its name looks like

    @suggest_options
    def __init__(
        self,
        sockets: Sequence[Path | str],
        *,
        mode: str = "macswap",
        queues: int = 1,
        client: bool = False,
        ring_size: int = 1024,
        cores: tuple[int, int] | None = None,
        device_options: str = "",
        extra: Sequence[str] = (),
        timeout: float = 30.0,
        seen_at: str | None = None,
        contain: Callable[[list[str]], list[str]] = mortal,
    ) -> None:
        """Start it, and wait until it takes commands and its sockets are there.

        ``client=True`` makes testpmd connect to the ``sockets`` (we listen); otherwise it makes
        them and waits. ``mode`` is one of its forwarding modes: ``macswap`` echoes each frame with
        its addresses swapped, ``io`` passes it to the other port (with one port: back), ``rxonly``
        drops, ``txonly`` and ``flowgen`` generate. ``queues``: pairs of each port. ``ring_size``:
        descriptors of its queues. ``cores``: the CPUs of its commands and of its polling thread,
        by default the first and the last that the process may use. ``device_options``: further
        arguments of each ``net_vhost`` device; ``extra``: of testpmd. ``timeout``: seconds for the
        start and for each command. ``contain`` makes the command line that runs it in a container,
        where the sockets' directory is seen at ``seen_at``.

        It uses hugepages if 256 MiB of them are free, else ordinary memory. Raises ProgramNotFound,
        TestpmdError.
        """
        program = find_testpmd() if contain is mortal else "dpdk-testpmd"
        #: Ports of ours that the fixture ``virtnic_testpmd`` has connected to it.
        self.ports: tuple[virtnic.Port, ...] = ()
        self.forward_mode = mode
        self.sockets = [Path(path) for path in sockets]
        self._timeout = timeout
        self._output = b""
        cpus = sorted(os.sched_getaffinity(0))
        control, worker = cores or (cpus[0], cpus[-1])
        # Hugepages where 256 MiB of them are free; ordinary memory does as well, slower.
        memory = ["--in-memory"] if free_hugepages() >= 160 else ["--no-huge"]
        devices = [
            f"--vdev=net_vhost{number},iface={path},queues={queues},client={int(client)}"
            + (f",{device_options}" if device_options else "")
            for number, path in enumerate(Path(seen_at or p.parent, p.name) for p in self.sockets)
        ]
        # fmt: off
        argv = [
            # Its output is a pipe, so it would be buffered by the page: make it line-buffered.
            "stdbuf", "-oL",
            program, "--lcores", f"0@{control},1@{worker}", "--main-lcore", "0",
            "-m", "256", "--no-pci", "--no-telemetry", f"--file-prefix=vt{os.getpid()}",
            *memory, *devices, "--",
            "-i", "--auto-start", f"--forward-mode={mode}", "--nb-cores=1",
            "--no-lsc-interrupt", "--disable-link-check", f"--rxq={queues}", f"--txq={queues}",
            f"--rxd={ring_size}", f"--txd={ring_size}", "--total-num-mbufs=16384", *extra,
        ]
        # fmt: on
        #: DPDK's own files, which it leaves behind. In a container they go with it.
        self._files = short_directory("dpdk-") if contain is mortal else None
        self._process = subprocess.Popen(
            contain(argv),
            env={**os.environ, **({"RUNTIME_DIRECTORY": str(self._files)} if self._files else {})},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            process_group=0,  # Ctrl-C is not for it, but for us
        )
        try:
            self._read_to_prompt(after=b"")
            if not client:
                self._wait_for_sockets()
        except BaseException:
            self.kill()
            raise

    @property
    def pid(self) -> int:
        """The process id."""
        return self._process.pid

    def command(self, line: str) -> str:
        """Send a command and return what testpmd printed before its next prompt."""
        stdin = self._process.stdin
        assert stdin is not None
        try:
            stdin.write(line.encode() + b"\n")
            stdin.flush()
        except BrokenPipeError as error:
            raise TestpmdError(f"testpmd is gone: {self.output}") from error
        return self._read_to_prompt(after=line.encode())

    def stats(self, port: int = 0) -> dict[str, int]:
        """Return a port's counters: ``RX-packets``, ``TX-packets``, ``RX-missed``, ..."""
        output = self.command(f"show port stats {port}")
        found = {name: int(value) for name, value in re.findall(r"([RT]X-\w+): +(\d+)", output)}
        if not found:
            raise TestpmdError(f"no counters in: {output}")
        return found

    def clear_stats(self) -> None:
        """Set all counters to zero."""
        self.command("clear port stats all")

    def drain(self) -> None:
        """Read what testpmd has printed: it blocks when its pipe is full.

        Needed only after many connections without a command.
        """
        stdout = self._process.stdout
        assert stdout is not None
        while select.select([stdout], [], [], 0.0)[0] and (
            chunk := os.read(stdout.fileno(), 65536)
        ):
            self._output = (self._output + chunk)[-65536:]

    @property
    def output(self) -> str:
        """The last of what was printed."""
        return self._output.decode(errors="replace")[-4000:]

    def kill(self) -> None:
        """End it at once (SIGKILL), as a crash would, and remove its sockets."""
        self._process.kill()
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout):
            assert stream is not None
            with contextlib.suppress(BrokenPipeError):
                stream.close()
        for path in self.sockets:
            path.unlink(missing_ok=True)
        if self._files:
            shutil.rmtree(self._files, ignore_errors=True)

    def close(self) -> None:
        """As :meth:`kill`."""
        self.kill()

    def _read_to_prompt(self, after: bytes) -> str:
        """Read until a prompt follows the echo of a command, and return that without log lines."""
        stdout = self._process.stdout
        assert stdout is not None
        deadline = time.monotonic() + self._timeout
        answer = b""
        while (said := answer_to(after, answer)) is None:
            ready, _, _ = select.select([stdout], [], [], max(0.0, deadline - time.monotonic()))
            if not ready:
                raise TestpmdError(f"testpmd did not answer in {self._timeout} s: {self.output}")
            chunk = os.read(stdout.fileno(), 65536)
            if not chunk:
                code = self._process.wait()
                raise TestpmdError(f"testpmd ended with {code}: {self.output}")
            answer += chunk
            self._output = (self._output + chunk)[-65536:]
        return said.decode(errors="replace")

    def _wait_for_sockets(self) -> None:
        deadline = time.monotonic() + self._timeout
        while not all(path.is_socket() for path in self.sockets):
            if time.monotonic() > deadline:
                raise TestpmdError(f"testpmd made no socket: {self.output}")
            time.sleep(0.01)
