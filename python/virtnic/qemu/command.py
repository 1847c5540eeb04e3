"""The QEMU command line: a machine that runs no guest and waits for devices.

QEMU starts with only the shared-memory device; every NIC is plugged in later: on ``pc`` into the
root bus, on ``q35`` behind root ports created here. A QEMU started elsewhere does not have even
that device, and needs no file: see :func:`external`.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from virtnic.qemu import find, quirks
from virtnic.qemu.sockets import Sockets

if TYPE_CHECKING:
    from collections.abc import Sequence

    from virtnic.qemu.quirks import Version

Accel = Literal["auto", "qtest", "tcg", "kvm"]
MachineType = Literal["pc", "q35"]
Shmem = Literal["doorbell", "plain"]
#: True: everything denied; "spawn": helpers and scripts allowed; False: no sandbox.
Sandbox = bool | Literal["spawn"]

ROOT_PORTS = 16
#: PCI device number on the root bus of the first root port (q35).
FIRST_ROOT_PORT = 2
#: PCI device numbers for NICs on the root bus (pc): 0 is the host bridge, 1 the PIIX3.
PC_SLOTS = range(3, 32)
#: Prefixes of QEMU's names for these machines; a version follows.
MACHINES: dict[str, MachineType] = {"pc-i440fx-": "pc", "pc-q35-": "q35"}
#: PCI device number of the shared-memory device, free on both machines. On a q35 started elsewhere
#: it is that of a root port, with the device behind it.
SHMEM_SLOT = {"pc": 2, "q35": 1}

#: 64 KiB ending where the processor starts: the reset vector, 16 bytes before the end, holds
#: ``cli; hlt; jmp`` back. The vCPU sleeps for ever and executes nothing else.
PARKING_FIRMWARE = b"\xff" * 0xFFF0 + b"\xfa\xf4\xeb\xfd" + b"\xff" * 12


#: The same for a QEMU that gets no file from us: QEMU's generic loader writes the three
#: instructions (little-endian) to main memory and starts the processor there. It starts in real
#: mode with CS at 0xFFFF0000, so adding 64 KiB gives the intended address. KVM enforces the 64 KiB
#: limit of CS and cannot do that (QEMU: docs/system/generic-loader).
_PARKING_ADDRESS = 0x7000
_PARKING_LOADER = (
    "-device",
    f"loader,addr={_PARKING_ADDRESS:#x},data=0xfdebf4fa,data-len=4",
    "-device",
    f"loader,addr={_PARKING_ADDRESS + 0x10000:#x},cpu-num=0",
)

#: Name of a QEMU started elsewhere (QMP: ``query-name``), by which it is recognised. What its
#: sandbox allows follows after a ``+``.
EXTERNAL = "virtnic-external"
_SANDBOX_NAMES: dict[Sandbox, str] = {True: "", "spawn": "+spawn", False: "+anything"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """Everything that determines the command line."""

    version: Version | None
    machine: MachineType
    #: Values for ``-accel`` in order: QEMU uses the first it has and reports those it has not. None
    #: if the command itself names one.
    accelerators: Sequence[str]
    qmp: str | os.PathLike[str]
    qtest: str | os.PathLike[str]
    firmware: str | os.PathLike[str]
    memory_size: int
    #: The ivshmem server's socket, or None for ivshmem-plain.
    shmem_socket: str | os.PathLike[str] | None
    #: The memory's file for ivshmem-plain.
    memory_path: str | os.PathLike[str] | None = None
    sandbox: Sandbox = True
    extra: Sequence[str] = ()


def options(plan: Plan) -> list[str]:
    """Build the options, without the binary. Only q35 needs the version."""
    argv = _bare("virtnic", plan.machine, plan.sandbox)
    argv += [word for accel in plan.accelerators for word in ("-accel", accel)]
    argv += ["-bios", os.fspath(plan.firmware)]
    argv += _sockets(plan.qmp, plan.qtest)
    argv += _shared_memory(plan)
    if plan.machine == "q35":
        argv += _native_hotplug(plan.version)
        argv += _root_ports(FIRST_ROOT_PORT)
    return [*argv, *plan.extra]


def external(
    directory: str | os.PathLike[str],
    *,
    accel: Accel = "auto",
    machine: MachineType = "pc",
    sandbox: Sandbox = True,
    extra: Sequence[str] = (),
) -> list[str]:
    """Build the options of a QEMU to be started elsewhere, for ``Qemu.connect``.

    ``directory`` is the path in QEMU's view. Nothing else is shared: all devices, the shared memory
    first, are plugged in by the program that connects; on a ``q35`` into root ports, because its
    root bus has no hotplug. Hotplug is left at QEMU's default, as its version is not known here.
    ``accel`` must not be kvm.
    """
    if accel == "kvm":
        raise ValueError("kvm cannot start at the address of QEMU's loader; use auto, tcg or qtest")
    every = {"qtest": "qtest", "tcg": find.TCG}
    names = every.values() if accel == "auto" else (every[accel],)
    argv = _bare(EXTERNAL + _SANDBOX_NAMES[sandbox], machine, sandbox)
    argv += [word for name in names for word in ("-accel", name)]
    place = Sockets(directory)
    # QEMU locks this file first. Otherwise a second QEMU would take the sockets' names, and the
    # first to end would remove the other's.
    argv += ["-pidfile", str(place.lock)]
    argv += [*_PARKING_LOADER, *_sockets(place.qmp, place.qtest)]
    if machine == "q35":
        argv += _root_ports(SHMEM_SLOT[machine])
    return [*argv, *extra]


def sandbox_of(name: str | None) -> Sandbox | None:
    """Return the sandbox of a QEMU started elsewhere, from its name; None for any other QEMU."""
    return next((key for key, end in _SANDBOX_NAMES.items() if name == EXTERNAL + end), None)


def _bare(name: str, machine: MachineType, sandbox: Sandbox) -> list[str]:
    return [
        *("-no-user-config", "-nodefaults", "-name", name),
        *("-display", "none", "-vga", "none", "-m", "16", "-machine", machine),
        *sandbox_options(sandbox),
    ]


def _sockets(qmp: str | os.PathLike[str], qtest: str | os.PathLike[str]) -> list[str]:
    # The short form `-qmp unix:PATH` does not allow `=` in the path.
    return [
        *("-chardev", f"socket,id=qmp,path={quote(qmp)},server=on,wait=off"),
        *("-chardev", f"socket,id=qtest,path={quote(qtest)},server=on,wait=off"),
        *("-qmp", "chardev:qmp", "-qtest", "chardev:qtest", "-qtest-log", "/dev/null"),
    ]


def quote(value: str | os.PathLike[str]) -> str:
    """Double the commas, as QEMU's option syntax requires."""
    return os.fspath(value).replace(",", ",,")


def sandbox_options(sandbox: Sandbox) -> list[str]:
    """Deny QEMU what it does not need (QEMU documentation, ``-sandbox``)."""
    if sandbox is False:
        return []
    helpers = "allow" if sandbox == "spawn" else "deny"
    return [
        "-sandbox",
        f"on,obsolete=deny,elevateprivileges={helpers},spawn={helpers},resourcecontrol=deny",
    ]


def _shared_memory(plan: Plan) -> list[str]:
    bus = "pci.0" if plan.machine == "pc" else "pcie.0"
    where = f"bus={bus},addr={SHMEM_SLOT[plan.machine]:x}"
    if plan.shmem_socket is not None:
        return [
            "-chardev",
            f"socket,id=shmem,path={quote(plan.shmem_socket)}",
            "-device",
            # Each vector is a peer of its own: see the core's ivshmem server.
            f"ivshmem-doorbell,id=shmem0,chardev=shmem,vectors=1,{where}",
        ]
    if plan.memory_path is None:
        raise ValueError("ivshmem-plain needs the path of the memory's file")
    return [
        "-object",
        (
            f"memory-backend-file,id=shmem,size={plan.memory_size},share=on,"
            f"mem-path={quote(plan.memory_path)}"
        ),
        "-device",
        f"ivshmem-plain,id=shmem0,memdev=shmem,{where}",
    ]


def _native_hotplug(version: Version | None) -> list[str]:
    if version is None:
        raise ValueError("the version determines how native hotplug is enabled on q35")
    if quirks.has(version, "q35-acpi-hotplug"):
        return ["-global", "ICH9-LPC.acpi-pci-hotplug-with-bridge-support=off"]
    return []


def root_port(slot: int) -> str:
    """Return QEMU's id of the root port with a PCI device number of the root bus (q35)."""
    return f"port{slot - FIRST_ROOT_PORT + 1}"


def _root_ports(first: int) -> list[str]:
    argv = []
    for slot in range(first, FIRST_ROOT_PORT + ROOT_PORTS):
        number = slot - FIRST_ROOT_PORT + 1
        argv += [
            "-device",
            (
                f"pcie-root-port,id={root_port(slot)},bus=pcie.0,addr={slot:x},chassis={number},"
                f"slot={number},power_controller_present=off"
            ),
        ]
    return argv
