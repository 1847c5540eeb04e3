"""virtnic as a front-end in its own process, controlled over a pipe.

``Frontend`` is the handle; ``python -m benchmarks.frontend OPTIONS`` the process. They talk
by lines of JSON: ``{"do": "start", "work": NAME, …}``, ``{"do": "stop"}``.
"""

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

from peers.process import mortal

from .dpdk import RING_SIZE

TOOLS = Path(__file__).resolve().parents[1]


class Frontend:
    """A running frontend."""

    def __init__(
        self,
        sockets: Sequence[Path | str],
        *,
        ring: str,
        cores: tuple[int, int],
        hugepages: bool = True,
    ) -> None:
        """Connect. ``cores``: of its control thread and QEMU, and of the thread that polls."""
        options = {
            "sockets": [str(path) for path in sockets],
            "ring": ring,
            "cores": cores,
            "hugepages": hugepages,
        }
        self._process = subprocess.Popen(
            mortal([sys.executable, "-m", "benchmarks.frontend", json.dumps(options)]),
            cwd=TOOLS,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            process_group=0,  # Ctrl-C is for us; it ends with its input
        )
        try:
            self.about = self._answer()
        except BaseException:
            self.close()
            raise

    def start(self, work: str, **arguments: Any) -> None:
        """Start a loop. Returns when it runs."""
        self._ask({"do": "start", "work": work, **arguments})

    def stop(self) -> dict[str, Any]:
        """End the loop; what it counted."""
        return self._ask({"do": "stop"})

    def drain(self) -> None:
        """Discard frames that are still arriving."""
        self._ask({"do": "drain"})

    def close(self) -> None:
        """End it."""
        stdin, stdout = self._process.stdin, self._process.stdout
        assert stdin is not None
        assert stdout is not None
        with contextlib.suppress(BrokenPipeError):
            stdin.close()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        stdout.close()

    def _ask(self, request: dict[str, Any]) -> dict[str, Any]:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        return self._answer()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError("the virtnic frontend ended; what it said is above")
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise RuntimeError(f"the virtnic frontend: {answer['error']}")
        return answer

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        self.close()


class Worker(threading.Thread):
    """Does one kind of work until it is stopped, on a core of its own."""

    def __init__(
        self, work: str, ports: Sequence[Any], core: int, arguments: dict[str, Any]
    ) -> None:
        super().__init__(name=work)
        self._work, self._ports, self._core, self._arguments = work, ports, core, arguments
        self._running = threading.Event()
        self.stopped = False
        self.result: dict[str, Any] = {}

    def begin(self) -> None:
        """Start, and wait until the loop is reached."""
        self.start()
        self._running.wait()

    def run(self) -> None:
        from . import works

        try:
            os.sched_setaffinity(0, {self._core})  # of this thread
            prepared = works.prepare(self._work, self._ports, self, **self._arguments)
            self._running.set()
            self.result = prepared()
        except Exception as error:
            self.result = {"error": f"{type(error).__name__}: {error}"}
        finally:
            self._running.set()


def serve(options: dict[str, Any]) -> None:
    """Open the ports and do what comes on the standard input."""
    import virtnic

    control, core = options["cores"]
    os.sched_setaffinity(0, {control})
    memory = virtnic.Memory("64M", hugepages="2M" if options["hugepages"] else None)
    with virtnic.Qemu(memory=memory) as qemu:
        ports = [
            qemu.attach(
                f"vhost-user,path={path},wait=10",
                ring=options["ring"],
                queue_size=RING_SIZE,
            )
            for path in options["sockets"]
        ]
        accepted = [feature.name for feature in ports[0].features if feature.accepted]
        say({"ring": ports[0].ring, "entries": ports[0].queue_size, "features": accepted})
        worker: Worker | None = None
        for line in sys.stdin:
            request = json.loads(line)
            do = request.pop("do")
            if do == "start":
                worker = Worker(request.pop("work"), ports, core, request)
                worker.begin()
                say({})
            elif do == "stop" and worker is not None:
                worker.stopped = True
                worker.join()
                say(worker.result)
            elif do == "drain":
                drain(ports)
                say({})
            else:
                say({"error": f"cannot {do}"})
        if worker is not None:
            worker.stopped = True
            worker.join()


def drain(ports: Sequence[Any]) -> None:
    """Receive until nothing has come for a moment."""
    quiet_since = time.monotonic()
    while time.monotonic() - quiet_since < 0.02:
        for port in ports:
            if len(port.recv(256)):
                quiet_since = time.monotonic()


def say(answer: dict[str, Any]) -> None:
    """Answer."""
    print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    serve(json.loads(sys.argv[1]))
