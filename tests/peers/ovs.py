"""A private Open vSwitch with DPDK as the peer.

Database, sockets and logs are in a directory of its own and the kernel datapath is left
out, so that a vSwitch of the machine is neither used nor touched. See Open vSwitch's
"DPDK vHost User Ports" and ovs-vswitchd.conf.db(5).
"""

import contextlib
import os
import re
import shutil
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from peers.closing import Closing

from .process import mortal, run

VSWITCHD = Path("/usr/lib/openvswitch-switch-dpdk/ovs-vswitchd-dpdk")
SCHEMA = Path("/usr/share/openvswitch/vswitch.ovsschema")


class Ovs(Closing):
    """A running ovsdb-server and ovs-vswitchd with one userspace bridge.

    ``clients`` are the paths that the bridge's ports connect to (we listen there:
    ``server=on``), by the port's name; ``servers`` are names of ports that listen
    themselves, at ``socket(name)``.
    """

    def __init__(
        self,
        directory: Path,
        *,
        clients: Mapping[str, Path] | None = None,
        servers: Sequence[str] = (),
        bridge: str = "br0",
        timeout: float = 30.0,
    ) -> None:
        """Start it and wait until the ports are there. ``directory`` is made, and removed."""
        self.directory = directory
        self.bridge = bridge
        self._timeout = timeout
        #: Name of DPDK's own runtime directory.
        self._prefix = f"ovs{os.getpid()}"
        self._running: list[subprocess.Popen[bytes]] = []
        directory.mkdir()
        try:
            self._start_database()
            self._start_switch()
            self._add_bridge(clients or {}, servers)
        except BaseException as error:
            error.add_note(self._words())
            self.kill()
            raise

    def socket(self, name: str) -> Path:
        """Where a port of ``servers`` listens."""
        return self.directory / name

    @property
    def log(self) -> str:
        """What ovs-vswitchd wrote."""
        file = self.directory / "vswitchd.log"
        return file.read_text(errors="replace") if file.exists() else ""

    def _words(self) -> str:
        """The switch's last output, without DPDK's help text."""
        lines = [line for line in self.log.splitlines() if re.match(r"\d{4}-|ovs", line)]
        return "\n".join(lines[-25:])

    def vsctl(self, *argv: str) -> str:
        """Run ovs-vsctl, which waits until the switch has done it."""
        limit = f"--timeout={self._timeout:.0f}"
        return self._run("ovs-vsctl", f"--db=unix:{self._database}", limit, *argv)

    def appctl(self, *argv: str) -> str:
        """Run ovs-appctl on the switch."""
        return self._run("ovs-appctl", f"--target={self._control}", *argv)

    def ofctl(self, command: str, *argv: str) -> str:
        """Run a command of ovs-ofctl on the bridge."""
        bridge = f"unix:{self.directory / self.bridge}.mgmt"
        return self._run("ovs-ofctl", command, bridge, *argv)

    def add_flow(self, flow: str) -> None:
        """Add a flow that applies at once: the caches of older flows are flushed."""
        self.ofctl("add-flow", flow)
        self.appctl("revalidator/wait")
        self.appctl("revalidator/purge")

    def number(self, name: str) -> int:
        """Return the OpenFlow number of a port."""
        return int(self.vsctl("get", "Interface", name, "ofport"))

    def learnt(self) -> dict[str, int]:
        """Return the addresses that the bridge has learnt, and on which port number."""
        lines = self.appctl("fdb/show", self.bridge).splitlines()[1:]
        rows = [line.split() for line in lines]
        return {row[2]: int(row[0]) for row in rows if row[0].isdigit()}

    def packets_received(self) -> int:
        """Return how many frames the polling threads have taken from all ports."""
        text = self.appctl("dpif-netdev/pmd-stats-show")
        return sum(map(int, re.findall(r"packets received: (\d+)", text)))

    def kill(self) -> None:
        """End it at once and remove its directories."""
        for process in reversed(self._running):
            process.kill()
            process.wait()
        for directory in (self.directory, Path("/run/dpdk") / self._prefix):
            shutil.rmtree(directory, ignore_errors=True)

    def close(self) -> None:
        """As :meth:`kill`."""
        self.kill()

    @property
    def _database(self) -> Path:
        return self.directory / "db.sock"

    @property
    def _control(self) -> Path:
        return self.directory / "vswitchd.ctl"

    def _environment(self) -> dict[str, str]:
        places = ("OVS_RUNDIR", "OVS_LOGDIR", "OVS_DBDIR", "OVS_SYSCONFDIR")
        return {**os.environ, **dict.fromkeys(places, str(self.directory))}

    def _run(self, *argv: str) -> str:
        return run(argv, self._timeout)

    def _popen(self, argv: Sequence[str], log: str) -> None:
        with (self.directory / log).open("wb") as output:
            self._running.append(
                subprocess.Popen(
                    mortal(argv),
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    env=self._environment(),
                )
            )

    def _wait_for(self, what: str, there: Callable[[], bool]) -> None:
        deadline = time.monotonic() + self._timeout
        while not there():
            for process in self._running:
                if process.poll() is not None:
                    raise RuntimeError(f"Open vSwitch ended with {process.returncode}")
            if time.monotonic() > deadline:
                raise TimeoutError(f"Open vSwitch: no {what} in {self._timeout} s")
            time.sleep(0.02)

    def _start_database(self) -> None:
        file = self.directory / "conf.db"
        run(["ovsdb-tool", "create", str(file), str(SCHEMA)], self._timeout)
        control = self.directory / "ovsdb.ctl"
        remote = f"--remote=punix:{self._database}"
        self._popen(
            ["ovsdb-server", str(file), remote, f"--unixctl={control}", "--no-chdir"], "ovsdb.log"
        )
        self._wait_for("database", self._database.is_socket)

    def _start_switch(self) -> None:
        cpus = sorted(os.sched_getaffinity(0))
        options = {
            "dpdk-init": "true",
            # Ordinary memory: slower than hugepages, and always there. Without legacy-mem the
            # switch would add --in-memory, which DPDK does not take together with no-huge.
            "dpdk-extra": f"--no-huge --legacy-mem --file-prefix={self._prefix} -m 256 "
            "--no-pci --no-telemetry",
            # Packets for these few ports; else it makes 262,144.
            "per-port-memory": "true",
            "dpdk-lcore-mask": f"{1 << cpus[0]:#x}",
            "pmd-cpu-mask": f"{1 << cpus[-1]:#x}",
        }
        settings = [f'other_config:{key}="{value}"' for key, value in options.items()]
        self.vsctl("--no-wait", "init", "--", "set", "Open_vSwitch", ".", *settings)
        self._popen(
            [
                str(VSWITCHD),
                f"unix:{self._database}",
                f"--unixctl={self._control}",
                "--no-chdir",
                "--disable-system",
                "-vconsole:info",
            ],
            "vswitchd.log",
        )
        self._wait_for("switch", self._initialized)

    def _initialized(self) -> bool:
        return self.vsctl("get", "Open_vSwitch", ".", "dpdk_initialized").strip() == "true"

    def _add_bridge(self, clients: Mapping[str, Path], servers: Sequence[str]) -> None:
        bridge = self.bridge
        argv = ["add-br", bridge, "--", "set", "bridge", bridge, "datapath_type=netdev"]
        for name, path in clients.items():
            argv += ["--", "add-port", bridge, name, "--", "set", "Interface", name]
            argv += ["type=dpdkvhostuserclient", f"options:vhost-server-path={path}"]
        for name in servers:
            argv += ["--", "add-port", bridge, name, "--", "set", "Interface", name]
            argv += ["type=dpdkvhostuser"]
        self.vsctl(*argv)
        for name in (*clients, *servers):
            error = self.vsctl("get", "Interface", name, "error").strip()
            if error not in ("[]", ""):
                raise RuntimeError(f"the port {name}: {error}")
        # The bridge's own port would send frames that disturb the tests.
        with contextlib.suppress(RuntimeError):
            self.ofctl("mod-port", bridge, "down")
