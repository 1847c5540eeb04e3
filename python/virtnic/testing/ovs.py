"""A private Open vSwitch with DPDK.

Database, sockets and logs are in a directory of its own, and neither the kernel's datapath nor
hugepages nor the network devices of the machine are used: it needs no privileges and disturbs no
other vSwitch. See Open vSwitch's "DPDK vHost User Ports" and ovs-vswitchd.conf.db(5).
"""

from __future__ import annotations

import itertools
import os
import re
import shutil
import subprocess
import time
from pathlib import Path
from typing import TYPE_CHECKING

from virtnic.arguments import suggest_options
from virtnic.teardown import Closing
from virtnic.testing.programs import (
    ProgramNotFound,
    find_program,
    mortal,
    run,
    short_directory,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import virtnic

__all__ = ["OvsBridge", "OvsDpdk", "find_vswitchd"]

_PACKAGE = "openvswitch-switch-dpdk"
#: Of DPDK's plugins, which are packages of their own, the one that the switch needs.
_PLUGIN = "librte-mempool-ring*"
#: Where Debian and Ubuntu have the one with DPDK.
_DEBIAN = "/usr/lib/openvswitch-switch-dpdk/ovs-vswitchd-dpdk"
_SCHEMA = "share/openvswitch/vswitch.ovsschema"
_numbers = itertools.count()


def find_vswitchd() -> str:
    """Return the ovs-vswitchd that was built with DPDK.

    It is the one that ``VIRTNIC_OVS_VSWITCHD`` names, Debian's, or the one in ``PATH``. Raises
    ProgramNotFound.
    """
    given = os.environ.get("VIRTNIC_OVS_VSWITCHD")
    if given:
        if not os.access(given, os.X_OK):
            raise ProgramNotFound(f"VIRTNIC_OVS_VSWITCHD={given}: no such program")
        return given
    if os.access(_DEBIAN, os.X_OK):
        return _DEBIAN
    remedy = (
        f"`apt-get install {_PACKAGE} '{_PLUGIN}'`, or set VIRTNIC_OVS_VSWITCHD to an ovs-vswitchd"
    )
    try:
        found = find_program("ovs-vswitchd", _PACKAGE)
    except ProgramNotFound:
        raise ProgramNotFound(f"no Open vSwitch with DPDK; {remedy}") from None
    if "DPDK" not in run([found, "--version"]):
        raise ProgramNotFound(f"{found} was built without DPDK; {remedy}")
    return found


class OvsDpdk(Closing):
    """A running ovsdb-server and ovs-vswitchd. A context manager."""

    @suggest_options
    def __init__(
        self,
        *,
        memory: int = 1024,
        cpus: tuple[int, int] | None = None,
        datapath: str = "dummy",
        timeout: float = 30.0,
    ) -> None:
        """Start both, and wait until DPDK is ready.

        ``memory``: MiB for the packets of all ports, each of which takes about 60 MiB; what is not
        used is not allocated. ``cpus``: those of the main thread and of the polling thread, by
        default the first and the last that the process may use. ``datapath``: ``"netdev"`` gives
        each bridge a TAP device of its name on the machine, which needs privileges; frames between
        the ports take the same path with both. ``timeout``: seconds for the start and for each
        command.

        Raises ProgramNotFound, TimeoutError, RuntimeError with the switch's last messages.
        """
        self._vswitchd = find_vswitchd()
        self._tools = {
            name: find_program(name, _PACKAGE)
            for name in ("ovsdb-tool", "ovsdb-server", "ovs-vsctl", "ovs-appctl", "ovs-ofctl")
        }
        self._timeout = timeout
        self._datapath = datapath
        self._memory = memory
        own = sorted(os.sched_getaffinity(0))
        self._cpus = cpus or (own[0], own[-1])
        self._running: list[subprocess.Popen[bytes]] = []
        #: Where its sockets, its database and its logs are, until it is closed.
        self.directory = short_directory("ovs-")
        try:
            self._start_database()
            self._start_switch()
        except BaseException as error:
            error.add_note(self._words())
            self.kill()
            raise

    @property
    def pid(self) -> int:
        """The process id of ovs-vswitchd."""
        return self._running[-1].pid

    @property
    def log(self) -> str:
        """What ovs-vswitchd wrote."""
        file = self.directory / "vswitchd.log"
        return file.read_text(errors="replace") if file.exists() else ""

    def vsctl(self, *argv: str) -> str:
        """Run ovs-vsctl, which waits until the switch has done it, and return its output.

        Raises RuntimeError if it fails; so do the other commands.
        """
        limit = f"--timeout={self._timeout:.0f}"
        return self._run("ovs-vsctl", f"--db=unix:{self._database}", limit, *argv)

    def appctl(self, *argv: str) -> str:
        """Run ovs-appctl on ovs-vswitchd and return its output."""
        return self._run("ovs-appctl", f"--target={self._control}", *argv)

    def ofctl(self, bridge: str, command: str, *argv: str) -> str:
        """Run a command of ovs-ofctl on a bridge and return its output."""
        return self._run("ovs-ofctl", command, f"unix:{self.directory / bridge}.mgmt", *argv)

    def trouble(self) -> str:
        """Return the last errors that ovs-vswitchd reported, and what to do; empty without any."""
        errors = [line for line in self.log.splitlines() if "|ERR|" in line][-4:]
        if any("Failed to create mem" in line for line in errors):
            errors.append(
                f"for want of a plugin of DPDK (`apt-get install '{_PLUGIN}'`), or of memory "
                f"(OvsDpdk(memory={self._memory}) is for {self._memory // 64} ports)"
            )
        return "\n".join(errors)

    def add_bridge(self, name: str | None = None) -> OvsBridge:
        """Add a bridge without ports. Without flows of yours it is a learning switch."""
        return OvsBridge(self, name or f"br{next(_numbers)}", self._datapath)

    def packets_received(self) -> int:
        """Return how many frames the polling thread has taken from all ports."""
        text = self.appctl("dpif-netdev/pmd-stats-show")
        return sum(map(int, re.findall(r"packets received: (\d+)", text)))

    def kill(self) -> None:
        """End both at once (SIGKILL), as a crash would, and remove the directory."""
        for process in reversed(self._running):
            process.kill()
            process.wait()
        shutil.rmtree(self.directory, ignore_errors=True)

    def close(self) -> None:
        """As :meth:`kill`."""
        self.kill()

    def _words(self) -> str:
        """Return the switch's last messages, without DPDK's help text."""
        lines = [line for line in self.log.splitlines() if re.match(r"\d{4}-|ovs", line)]
        return "\n".join(lines[-25:])

    @property
    def _database(self) -> Path:
        return self.directory / "db.sock"

    @property
    def _control(self) -> Path:
        return self.directory / "vswitchd.ctl"

    def _environment(self) -> dict[str, str]:
        # The last one is DPDK's: see systemd.exec(5).
        places = ("OVS_RUNDIR", "OVS_LOGDIR", "OVS_DBDIR", "OVS_SYSCONFDIR", "RUNTIME_DIRECTORY")
        return {**os.environ, **dict.fromkeys(places, str(self.directory))}

    def _run(self, program: str, *argv: str) -> str:
        return run((self._tools[program], *argv), self._timeout)

    def _popen(self, argv: Sequence[str], log: str) -> None:
        with (self.directory / log).open("wb") as output:
            self._running.append(
                subprocess.Popen(
                    mortal(argv),
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    env=self._environment(),
                    process_group=0,  # Ctrl-C is not for it, but for us
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
        schema = self._schema()
        self._run("ovsdb-tool", "create", str(file), str(schema))
        control = self.directory / "ovsdb.ctl"
        remote = f"--remote=punix:{self._database}"
        server = self._tools["ovsdb-server"]
        self._popen([server, str(file), remote, f"--unixctl={control}", "--no-chdir"], "ovsdb.log")
        self._wait_for("database", self._database.is_socket)

    def _schema(self) -> Path:
        prefixes = [Path(self._tools["ovsdb-server"]).parents[1], Path("/usr"), Path("/usr/local")]
        for prefix in prefixes:
            if (prefix / _SCHEMA).exists():
                return prefix / _SCHEMA
        raise ProgramNotFound(f"no {_SCHEMA} in {', '.join(map(str, prefixes))}")

    def _start_switch(self) -> None:
        main, polling = self._cpus
        options = {
            "dpdk-init": "true",
            # Ordinary memory: slower than hugepages, and always there. Without legacy-mem the
            # switch would add --in-memory, which DPDK does not take together with no-huge.
            "dpdk-extra": f"--no-huge --legacy-mem --file-prefix=ovs -m {self._memory} "
            "--no-pci --no-telemetry",
            # Packets for these few ports; else it makes 262,144.
            "per-port-memory": "true",
            "dpdk-lcore-mask": f"{1 << main:#x}",
            "pmd-cpu-mask": f"{1 << polling:#x}",
        }
        settings = [f'other_config:{key}="{value}"' for key, value in options.items()]
        self.vsctl("--no-wait", "init", "--", "set", "Open_vSwitch", ".", *settings)
        argv = [self._vswitchd, f"unix:{self._database}", f"--unixctl={self._control}"]
        argv += ["--no-chdir", "--disable-system", "--enable-dummy", "-vconsole:info"]
        self._popen(argv, "vswitchd.log")
        self._wait_for("switch", self._initialized)

    def _initialized(self) -> bool:
        return self.vsctl("get", "Open_vSwitch", ".", "dpdk_initialized").strip() == "true"


class OvsBridge(Closing):
    """A bridge of an :class:`OvsDpdk`, removed by :meth:`close`. A context manager."""

    def __init__(self, switch: OvsDpdk, name: str, datapath: str) -> None:
        """Add it: see :meth:`OvsDpdk.add_bridge`."""
        self.switch = switch
        self.name = name
        #: Ports of ours that the fixture ``virtnic_ovs`` has connected to it.
        self.ports: tuple[virtnic.Port, ...] = ()
        self._names: dict[virtnic.Port, str] = {}
        switch.vsctl("add-br", name, "--", "set", "bridge", name, f"datapath_type={datapath}")
        # The bridge's own port is not to send frames, which would disturb the tests.
        self.ofctl("mod-port", name, "down")

    def add_port(self, name: str, path: Path | None = None) -> Path:
        """Add a vhost-user port and return the path of its socket.

        With ``path`` the switch connects to it, again and again (``dpdkvhostuserclient``):
        we listen, ``vhost-user,path=…,server=on``. Without, it listens itself (``dpdkvhostuser``):
        ``vhost-user,path=…``. Raises RuntimeError with the switch's reason.
        """
        if path is None:
            options, where = ["type=dpdkvhostuser"], self.switch.directory / name
        else:
            options = ["type=dpdkvhostuserclient", f"options:vhost-server-path={path}"]
            where = path
        vsctl = self.switch.vsctl
        vsctl("add-port", self.name, name, "--", "set", "Interface", name, *options)
        error = vsctl("get", "Interface", name, "error").strip()
        if error not in ("[]", ""):
            vsctl("del-port", self.name, name)
            raise RuntimeError(f"the port {name}: {error}")
        return where

    def connected(self, port: virtnic.Port, name: str) -> None:
        """Remember which port of the bridge one of ours is connected to."""
        self.ports += (port,)
        self._names[port] = name

    def number(self, port: virtnic.Port | str) -> int:
        """Return the OpenFlow number of a port, given by its name on the bridge or as ours."""
        name = port if isinstance(port, str) else self._names[port]
        return int(self.switch.vsctl("get", "Interface", name, "ofport"))

    def ofctl(self, command: str, *argv: str) -> str:
        """Run a command of ovs-ofctl on the bridge and return its output."""
        return self.switch.ofctl(self.name, command, *argv)

    def add_flow(self, flow: str) -> None:
        """Add a flow that applies at once: what the datapath has cached is flushed."""
        self.ofctl("add-flow", flow)
        self.switch.appctl("revalidator/wait")
        self.switch.appctl("revalidator/purge")

    def learnt(self) -> dict[str, int]:
        """Return the MAC addresses that it has learnt, each with the number of its port."""
        lines = self.switch.appctl("fdb/show", self.name).splitlines()[1:]
        rows = [line.split() for line in lines]
        return {row[2]: int(row[0]) for row in rows if row[0].isdigit()}

    def report(self) -> str:
        """Return its flows, its ports' counters and the switch's log, for a test that failed."""
        parts = {
            "ovs-vsctl show": self.switch.vsctl("show"),
            "ovs-ofctl dump-flows": self.ofctl("dump-flows"),
            "ovs-ofctl dump-ports": self.ofctl("dump-ports"),
            "fdb/show": self.switch.appctl("fdb/show", self.name),
            "dpif-netdev/pmd-stats-show": self.switch.appctl("dpif-netdev/pmd-stats-show"),
            "ovs-vswitchd": self.switch.log,
        }
        return "\n".join(f"=== {title}\n{text}" for title, text in parts.items())

    def close(self) -> None:
        """Remove it, with its ports, unless the switch has ended."""
        if (self.switch.directory / f"{self.name}.mgmt").is_socket():
            self.switch.vsctl("--if-exists", "del-br", self.name)
