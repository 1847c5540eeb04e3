"""Plug NICs into and out of a running QEMU: the QMP half of hotplug.

The other half, finding the device on the bus and acknowledging its removal in place of a guest, is
done over QTest by :mod:`virtnic.pci`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import re
import threading
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from virtnic.errors import NetdevUnavailable, QemuDied, QemuError
from virtnic.qemu import command, quirks
from virtnic.qemu.descriptors import handed_over, names_in_qemu
from virtnic.qemu.monitor import understanding
from virtnic.qemu.netdev import boolean, with_reconnect
from virtnic.qemu.netdevs import advice_on, is_unavailable
from virtnic.qemu.peer import StreamPeer
from virtnic.qemu.schema import Schema, convert
from virtnic.qemu.spec import Spec
from virtnic.qemu.tap import tap_advice
from virtnic.teardown import Latch

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from virtnic.qemu.command import MachineType
    from virtnic.qemu.external import ExternalProcess
    from virtnic.qemu.find import Binary
    from virtnic.qemu.monitor import Event, Monitor
    from virtnic.qemu.process import Process
    from virtnic.qemu.spec import VhostUserSocket

_log = logging.getLogger(__name__)

DRIVER = "virtio-net-pci"

#: Reserved properties: the slot and the backend of a device are not the caller's choice.
_OURS = frozenset({"id", "driver", "bus", "addr", "netdev", "multifunction"})

#: QEMU's ids: of the shared memory's device and chardev, and of a NIC and its parts.
SHMEM, SHMEM_CHARDEV = "shmem0", "shmem"
#: Where devices with an id are in QEMU's object tree.
_DEVICES = "/machine/peripheral"
_OUR_ID = re.compile(r"\b(nic|net|char)(\d+)\b")

#: Timeout in seconds for a device whose removal is retried; most take less than 0.1 s.
_SECOND_TRY = 0.5

# Properties of a binary never change: asked once for each.
_schemas: dict[tuple[str, ...], Schema] = {}
_property_types: dict[tuple[str, ...], dict[str, str]] = {}


@dataclass(frozen=True, slots=True)
class NicHandle:
    """A virtio-net device that is plugged in."""

    #: QEMU's id of the device, as in the event DEVICE_DELETED.
    id: str
    #: QEMU's id of its netdev, as in the event NETDEV_VHOST_USER_CONNECTED.
    netdev_id: str
    spec: Spec
    #: PCI device number on bus 0: of the NIC itself (pc), or of the root port above it (q35).
    slot: int
    #: Whether the slot is a root port: the NIC is then device 0 of the bus behind it, and ejected
    #: by the port's Slot Control register instead of ACPI.
    behind_root_port: bool
    #: False if this QEMU would crash with MSI-X vectors on the device's queues.
    queue_vectors: bool
    #: The peer of a netdev for which QEMU reports it.
    peer: StreamPeer | None = None

    @property
    def chardev_id(self) -> str:
        """QEMU's id of the chardev of a vhost-user backend."""
        return self.netdev_id.replace("net", "char")


class Nics:
    """The NICs of one QEMU and their slots."""

    def __init__(
        self,
        monitor: Monitor,
        machine: MachineType,
        binary: Binary | None,
        process: Process | ExternalProcess,
    ) -> None:
        """``binary`` is None for a QEMU started elsewhere."""
        self._monitor = monitor
        self._binary = binary
        self._key = () if binary is None else binary.argv
        self._schemas = {} if binary is None else _schemas
        self._property_types = {} if binary is None else _property_types
        self._process = process
        self._lock = threading.RLock()
        self._count = 0
        self._machine = machine
        self._behind_port = machine == "q35"
        first = command.FIRST_ROOT_PORT
        self._slots = (
            range(first, first + command.ROOT_PORTS) if self._behind_port else command.PC_SLOTS
        )
        self._used: dict[int, NicHandle] = {}
        #: Devices that were not removed in time, and how to eject them; retried when slots run out.
        self._stuck: list[tuple[NicHandle, Callable[[], object] | None]] = []

    def all(self) -> list[NicHandle]:
        """Return the NICs in the order of their slots."""
        with self._lock:
            return [handle for _slot, handle in sorted(self._used.items())]

    def add(
        self,
        spec: Spec,
        properties: Mapping[str, Any],
        plugging: Callable[[NicHandle], object] = lambda _handle: None,
        made: Callable[[str], object] = lambda _said: None,
    ) -> NicHandle:
        """Plug one in; leaves nothing behind if QEMU refuses.

        ``plugging`` gets the handle before QEMU is told anything, so that an interrupted caller can
        remove it. ``made`` is called after the netdev and before the device is created, with QEMU's
        output so far; an exception from it undoes the netdev.
        """
        typed = self._typed(properties)
        self._make_room()
        crashes = spec.type == "vhost-user" and quirks.has(
            self._monitor.version, "vhost-user-msix-crash"
        )
        handle = self._reserve(spec, plugging, queue_vectors=not crashes)
        chardev = None
        try:
            if spec.socket is not None:
                chardev = handle.chardev_id
                self._add_chardev(chardev, spec.socket)
            with self._quoting(spec):
                if handle.peer is not None:
                    handle.peer.listen()
                before = self._process.stderr_position()
                self._add_netdev(spec, handle.netdev_id, chardev)
                if handle.peer is not None:
                    self._await(spec, handle.peer, handle.netdev_id)
                made(self._process.stderr_since(before))
                self._monitor.finish(
                    "device_add",
                    **{
                        "driver": DRIVER,
                        "id": handle.id,
                        "netdev": handle.netdev_id,
                        **self._at(handle.slot),
                        "romfile": "",
                        **typed,
                    },
                )
            if handle.peer is not None:
                handle.peer.follow(handle.id)
        except TimeoutError:
            with self._lock:
                self._stuck.append((handle, None))  # QEMU may still execute the unanswered command
            raise
        except QemuDied:
            self._free(handle)  # with everything in it
            raise
        except (QemuError, ValueError):
            # What QEMU refused does not exist; what came before does.
            self._clear_away(handle)
            self._free(handle)
            raise
        return handle

    def add_memory(self, socket: str) -> None:
        """Plug in the shared memory, from the ivshmem server at a socket."""
        address = {"type": "unix", "data": {"path": socket}}
        data = {"addr": address, "server": False}
        backend = {"type": "socket", "data": data}
        self._monitor.execute("chardev-add", id=SHMEM_CHARDEV, backend=backend)
        try:
            self._monitor.execute(
                "device_add",
                driver="ivshmem-doorbell",
                id=SHMEM,
                chardev=SHMEM_CHARDEV,
                vectors=1,
                **self._at(command.SHMEM_SLOT[self._machine]),
            )
        except BaseException:
            self._try("chardev-remove", id=SHMEM_CHARDEV)
            raise

    def remove_memory(self, eject: Callable[[], object], timeout: float) -> None:
        """Unplug the shared memory, if there is any."""
        deadline = time.monotonic() + timeout
        self._unplug(SHMEM, eject, timeout)
        # The chardev of a deleted device may remain in use for some 50 ms (RCU).
        while not self._chardev_goes(SHMEM_CHARDEV):
            if time.monotonic() > deadline:
                raise TimeoutError(f"QEMU did not let go of {SHMEM_CHARDEV} within {timeout:g} s")
            time.sleep(0.01)

    def _chardev_goes(self, name: str) -> bool:
        """Remove a chardev; False while it is in use."""
        try:
            self._monitor.execute("chardev-remove", id=name)
        except QemuDied:
            raise
        except QemuError as error:
            return "busy" not in str(error)
        return True

    def adopt(self) -> None:
        """Take over NICs left by an earlier program, for removal; delete their unused parts."""
        execute = self._monitor.execute
        listed = execute("qom-list", path=_DEVICES)
        with understanding("qom-list"):
            present = {item["name"] for item in listed}
        words: dict[str, Any] = {"command-line": "info network"}
        said = " ".join(
            [
                *present,
                *(chardev["label"] for chardev in execute("query-chardev")),
                execute("human-monitor-command", **words),
            ]
        )
        for kind, digits in sorted(set(_OUR_ID.findall(said))):
            name, number = kind + digits, int(digits)
            self._count = max(self._count, number)
            if name in present:
                spec, slot = Spec("left by another program"), self._slot_of(name)
                self._used[slot] = NicHandle(
                    name, f"net{number}", spec, slot, self._behind_port, True
                )
            elif f"nic{number}" not in present:
                # Left by an attempt that did not create a device.
                self._try("netdev_del" if kind == "net" else "chardev-remove", id=name)

    def _at(self, slot: int) -> dict[str, Any]:
        """Return the properties that place a device in a slot."""
        if self._behind_port:
            return {"bus": command.root_port(slot), "addr": "0"}
        return {"bus": "pci.0", "addr": f"{slot:x}"}

    def _slot_of(self, device: str) -> int:
        """Return the slot of a NIC."""
        what = "parent_bus" if self._behind_port else "addr"
        found = self._monitor.execute("qom-get", path=f"{_DEVICES}/{device}", property=what)
        with understanding("qom-get"):
            if self._behind_port:  # /machine/peripheral/port1/port1
                ports = {command.root_port(slot): slot for slot in self._slots}
                return ports[found.rpartition("/")[2]]
            return int(found >> 3)  # device and function number

    def remove(self, handle: NicHandle, eject: Callable[[], object] | None, timeout: float) -> None:
        """Unplug one; its slot is free afterwards, unless ``eject`` is None.

        Where ``eject`` returns True the slot is known to be empty: QEMU's event is not waited for.
        One that was plugged in by half, or removed by half, is removed as far as it is there.
        """
        with self._lock:
            if self._used.get(handle.slot) is not handle:
                return
        try:
            if self._unplug(handle.id, eject, timeout):
                self._clear_away(handle)
                self._free(handle)
        except TimeoutError:
            with self._lock:
                self._stuck.append((handle, eject))
            raise

    def _clear_away(self, handle: NicHandle) -> None:
        """Delete the netdev and chardev of a removed device. Raises QemuDied, TimeoutError."""
        if handle.peer is not None:
            handle.peer.close()
        # QEMU has taken the descriptors unless it refused the netdev before looking at them.
        for name in names_in_qemu(handle.spec, handle.netdev_id):
            self._try("closefd", fdname=name)
        try:
            self._monitor.execute("netdev_del", id=handle.netdev_id)
        except QemuDied:
            raise
        except QemuError as error:
            if "not found" not in str(error):
                raise
        if handle.spec.socket is not None:
            self._try(
                "chardev-remove", id=handle.chardev_id
            )  # it may have been deleted with the netdev

    def _unplug(self, device: str, eject: Callable[[], object] | None, timeout: float) -> bool:
        """Remove a device; False if ``eject`` is None. One that is gone counts as removed."""
        deadline = time.monotonic() + timeout
        deleted = Latch()

        def seen(event: Event) -> None:
            if event["data"].get("device") == device:
                deleted.set()

        stop = self._monitor.listen(seen, "DEVICE_DELETED")
        try:
            try:
                self._monitor.execute("device_del", id=device)
            except QemuDied:
                raise
            except QemuError as error:
                if "not found" in str(error):
                    deleted.set()  # an earlier attempt got this far
                elif "in the process of unplug" not in str(error):
                    raise
            if not deleted.is_set():
                if eject is None:
                    return False
                if eject() is True:
                    return True
            while not deleted.wait(0.05):
                self._monitor.check()
                if time.monotonic() > deadline:
                    raise TimeoutError(
                        f"QEMU did not delete {device} within {timeout:g} s of its removal"
                    )
        finally:
            stop()
        return True

    def _make_room(self) -> None:
        """If all slots are taken, retry the removal of devices that were not removed in time."""
        with self._lock:
            if not self._stuck or not all(slot in self._used for slot in self._slots):
                return
            stuck, self._stuck = self._stuck, []
        for handle, eject in stuck:
            with contextlib.suppress(QemuError, TimeoutError):
                self.remove(handle, eject, _SECOND_TRY)

    def _reserve(
        self, spec: Spec, plugging: Callable[[NicHandle], object], *, queue_vectors: bool
    ) -> NicHandle:
        with self._lock:
            for slot in self._slots:
                if slot not in self._used:
                    self._count += 1
                    netdev = f"net{self._count}"
                    peer = StreamPeer(self._monitor, netdev) if spec.kind.peer == "qmp" else None
                    handle = NicHandle(
                        f"nic{self._count}",
                        netdev,
                        spec,
                        slot,
                        self._behind_port,
                        queue_vectors,
                        peer,
                    )
                    # Before the slot is taken: whoever is interrupted then can free it.
                    plugging(handle)
                    self._used[slot] = handle
                    return handle
        raise ValueError(f"all {len(self._slots)} slots of this machine are in use; detach a port")

    def _free(self, handle: NicHandle) -> None:
        with self._lock:
            if self._used.get(handle.slot) is handle:
                del self._used[handle.slot]

    def _try(self, name: str, **arguments: Any) -> None:
        """Undo a step; QEMU may be gone, or may have undone it itself."""
        with contextlib.suppress(QemuError, TimeoutError):
            self._monitor.execute(name, **arguments)

    def _add_netdev(self, spec: Spec, netdev: str, chardev: str | None) -> None:
        """Add a netdev, first with its options as strings, which most options are.

        Other types are taken from QEMU's schema, which takes tens of milliseconds to get.
        """
        with handed_over(self._monitor, self._for_this_version(spec), netdev) as named:
            plain = named.arguments(netdev, chardev)
            try:
                self._monitor.finish("netdev_add", **plain)
            except QemuDied:
                raise
            except QemuError:
                schema = self._schema()
                with understanding("query-qmp-schema"):
                    typed = schema.arguments("netdev_add", plain, what="netdev")
                if typed == plain:
                    raise
                self._monitor.finish("netdev_add", **typed)

    def _for_this_version(self, spec: Spec) -> Spec:
        """Convert the reconnect interval to this QEMU's unit. Raises ValueError."""
        if spec.type != "stream":
            return spec
        if quirks.has(self._monitor.version, "stream-no-reconnect"):
            if spec.options.keys() & {"reconnect", "reconnect-ms"}:
                raise ValueError(
                    f"QEMU {self._monitor.version} cannot reconnect a stream: omit reconnect "
                    "(wait=SECONDS waits for the peer at the start), or use 8.0 or later"
                )
            return spec
        in_seconds = quirks.has(self._monitor.version, "reconnect-in-seconds")
        return dataclasses.replace(spec, options=with_reconnect(spec.options, in_seconds))

    def _await(self, spec: Spec, peer: StreamPeer, netdev: str) -> None:
        """Wait for the peer of a netdev as long as it says; without ``wait``, warn of none.

        Raises QemuError.
        """

        def again() -> None:
            self._monitor.execute("netdev_del", id=netdev)
            self._add_netdev(spec, netdev, None)

        connects = not boolean(spec.options.get("server", False), "server")
        repeats = not connects or spec.options.keys() & {"reconnect", "reconnect-ms"}
        why = peer.settle(spec.wait, None if repeats else again)
        if why is None:
            return
        if spec.wait:
            raise NetdevUnavailable(f"no peer of the netdev stream within {spec.wait:g} s: {why}")
        if repeats:
            then = "QEMU goes on " + ("connecting" if connects else "listening")
        else:
            then = (
                "it is not retried: start the peer first, wait for it (wait=SECONDS), or make QEMU "
                "retry (reconnect-ms=, since 8.0)"
            )
        _log.log(
            logging.WARNING if connects else logging.INFO,  # a listener has no peer at first
            "the link is down: the stream has no peer (%s); %s",
            why,
            then,
        )

    @property
    def _pid(self) -> int | None:
        with contextlib.suppress(QemuError):  # started elsewhere
            return self._process.pid
        return None

    @contextlib.contextmanager
    def _quoting(self, spec: Spec) -> Iterator[None]:
        """Add QEMU's stderr output meanwhile, and advice, to its refusal."""
        before = self._process.stderr_position()
        try:
            with self._process.helpers():
                yield
        except QemuDied:
            raise
        except QemuError as error:
            words = refused = str(error)
            said = [
                line for line in self._process.stderr_since(before).splitlines() if line.strip()
            ]
            if more := [line for line in said if line not in refused]:
                words = f"{refused} (QEMU also said: {' | '.join(more[-4:])})"
            of_tap = tap_advice(spec, words, self._pid)
            kind = NetdevUnavailable if of_tap or is_unavailable(words) else QemuError
            if advice := of_tap or advice_on(spec.kind, words):
                words = f"{words}; {advice}"
            raise kind(words) from None

    def _schema(self) -> Schema:
        if self._key not in self._schemas:
            if self._binary is None:
                entities = self._monitor.execute("query-qmp-schema")
            else:
                (entities,) = self._binary.ask("query-qmp-schema")
            with understanding("query-qmp-schema"):
                self._schemas[self._key] = Schema(entities)
        return self._schemas[self._key]

    def _typed(self, properties: Mapping[str, Any]) -> dict[str, Any]:
        """Give each property the JSON type that this QEMU requires. Raises ValueError."""
        if not properties:
            return {}
        for name in properties:
            if name in _OURS:
                raise ValueError(f"the property {name!r} is chosen by virtnic")
        if self._key not in self._property_types:
            listed = self._monitor.execute("device-list-properties", typename=DRIVER)
            with understanding("device-list-properties"):
                types = {item["name"]: str(item["type"]) for item in listed}
            self._property_types[self._key] = types
        types = self._property_types[self._key]
        return {
            name: convert(_json_type(types.get(name, "")), value, name)
            for name, value in properties.items()
        }

    def _add_chardev(self, name: str, backend: VhostUserSocket) -> None:
        """Create the socket and wait for the backend, which would block QEMU in netdev_add."""
        data: dict[str, Any] = {
            "addr": {"type": "unix", "data": {"path": backend.path}},
            "server": backend.server,
        }
        if backend.server:
            data["wait"] = False
        elif quirks.has(self._monitor.version, "reconnect-in-seconds"):
            data["reconnect"] = 1
        else:
            data["reconnect-ms"] = 100
        before = self._process.stderr_position()
        self._monitor.execute("chardev-add", id=name, backend={"type": "socket", "data": data})
        # A local connection is immediate, but is made by QEMU's loop, not by the command.
        deadline = time.monotonic() + max(backend.wait, 0.2)
        while not self._connected(name):
            if time.monotonic() > deadline:
                self._try("chardev-remove", id=name)
                said = self._process.stderr_since(before).strip().splitlines()
                raise NetdevUnavailable(_no_backend(backend, said[-1] if said else None))
            time.sleep(0.005)

    def _connected(self, name: str) -> bool:
        chardevs = self._monitor.execute("query-chardev")
        with understanding("query-chardev"):
            for chardev in chardevs:
                if chardev["label"] == name:
                    return not str(chardev["filename"]).startswith("disconnected:")
        raise QemuError(f"the chardev {name} vanished")


def _no_backend(backend: VhostUserSocket, said: str | None) -> str:
    if backend.server:
        return f"no vhost-user backend connected to {backend.path} within {backend.wait:g} s"
    after = f" within {backend.wait:g} s" if backend.wait else ""
    quoted = f" (QEMU: {said})" if said else ""
    return (
        f"no vhost-user backend accepted us at {backend.path}{after}{quoted}; start it first, "
        "or wait for it with wait=SECONDS"
    )


def _json_type(property_type: str) -> str:
    """Map a QOM property type to a JSON type. QEMU itself reports unknown properties."""
    if property_type == "bool":
        return "boolean"
    if property_type.startswith(("int", "uint", "size")):
        return "int"
    return "string" if property_type else "any"
