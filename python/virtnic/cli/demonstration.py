"""The steps of ``virtnic demo``."""

from __future__ import annotations

import os
import re
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import virtnic
from virtnic.cli.description import (
    describe_features,
    describe_function,
    describe_memory,
    describe_qemu,
)
from virtnic.cli.echoes import Echoes
from virtnic.cli.session import attach, blamed, configure, make_memory, start_qemu
from virtnic.cli.status import Status
from virtnic.cli.text import bytes_text, seconds_text
from virtnic.cli.wording import of_options
from virtnic.net import Stack
from virtnic.qemu import find_qemu

if TYPE_CHECKING:
    import argparse
    from collections.abc import Sequence

    from virtnic.cli.output import Output

__all__ = ["demonstrate"]


class Steps:
    """Prints the steps with their times."""

    def __init__(self, output: Output) -> None:
        self._output = output
        self._start = time.perf_counter()
        self.done: list[dict[str, Any]] = []

    def add(self, name: str, text: str | Sequence[str], **facts: Any) -> None:
        """Report a finished step."""
        at = time.perf_counter() - self._start
        self.done.append({"step": name, "at": at, **facts})
        first, *more = [text] if isinstance(text, str) else text
        self._output.line(f"{at:7.3f} s  {name:<9} {first}")
        for line in more:
            self._output.line(f"{'':21}{line}")


def demonstrate(arguments: argparse.Namespace, output: Output) -> int:
    """Run the demo; return OK if a ping was answered."""
    steps = Steps(output)
    output.line(
        f"virtnic {virtnic.__version__}: a virtio-net NIC for process {os.getpid()}, "
        f"on netdev {arguments.netdev}"
    )
    binary = find_qemu(arguments.qemu)
    steps.add("found", f"{binary}", command=str(binary))
    memory = make_memory(arguments)
    fallback = [f"({of_options(memory.fallback)})"] if memory.fallback else []
    steps.add(
        "memory",
        [
            (
                f"{bytes_text(memory.size)} in pages of {bytes_text(memory.page_size)}, "
                f"{memory.buffers} packet buffers; the device sees it at {memory.iova:#x}"
            ),
            *fallback,
        ],
        **describe_memory(memory),
    )
    with start_qemu(arguments, memory) as qemu:
        pid = qemu.pid
        steps.add(
            "qemu",
            f"QEMU {qemu.version} runs as process {pid}: machine {qemu.machine}, "
            f"accelerator {qemu.accel}",
            **describe_qemu(qemu),
        )
        with attach(arguments, qemu) as port:
            received = _use(arguments, steps, qemu, port)
    gone = not Path(f"/proc/{pid}").exists()
    steps.add("closed", "QEMU has ended" if gone else f"QEMU {pid} is STILL THERE", gone=gone)
    ok = received and gone
    output.result({"ok": ok, "version": virtnic.__version__, "steps": steps.done})
    return Status.OK if ok else Status.FAILED


def _use(
    arguments: argparse.Namespace, steps: Steps, qemu: virtnic.Qemu, port: virtnic.Port
) -> int:
    """Do all that is done with an open port; return how many pings were answered."""
    functions = [describe_function(function) for function in qemu.bus.functions]
    steps.add(
        "pci",
        [f"{each['address']}  {each['id']}  {each['name']}" for each in functions],
        functions=functions,
    )
    features = describe_features(port)
    accepted = [feature["name"] for feature in features if feature["accepted"]]
    offered = sum(feature["offered"] for feature in features)
    steps.add(
        "features",
        f"{len(accepted)} accepted of {offered} offered: {', '.join(accepted)}",
        features=features,
    )
    steps.add(
        "port",
        f"MAC {port.mac}, MTU {port.mtu}, link {'up' if port.link else 'down'}, "
        f"{port.ring} rings of {port.queue_size}, interrupts {port.interrupts}",
        mac=port.mac,
        mtu=port.mtu,
        link=port.link,
        ring=port.ring,
        queue_size=port.queue_size,
        interrupts=port.interrupts,
    )
    with blamed(port), Stack(port) as stack:
        return _talk(arguments, steps, qemu, port, stack)


def _talk(
    arguments: argparse.Namespace,
    steps: Steps,
    qemu: virtnic.Qemu,
    port: virtnic.Port,
    stack: Stack,
) -> int:
    """Get an address, and ping the gateway; return how many pings were answered."""
    lease = configure(arguments, stack)
    gateway = lease["gateway"]
    how = f"in {seconds_text(lease['elapsed'])}" if "elapsed" in lease else "as given"
    dns = ", ".join(lease.get("dns") or ()) or "none"
    steps.add(
        "address" if arguments.address else "dhcp",
        f"{lease['address']}, gateway {gateway or 'none'}, DNS {dns}, {how}",
        **lease,
    )
    received = 0
    if gateway is None:
        steps.add("ping", "there is no gateway to ping; give one with --gateway")
    else:
        reply = stack.arp(gateway)
        mac, seconds = reply.mac, reply.seconds
        steps.add(
            "arp", f"{gateway} is at {mac}, in {seconds_text(seconds)}", mac=mac, seconds=seconds
        )
        before = port.stats()
        echoes = Echoes()
        echoes.send(stack, gateway, count=arguments.count)
        after = port.stats()
        summary = echoes.summary()
        received = summary["received"]
        kicks = {name: after[name] - before[name] for name in ("tx_kicks", "tx_kicks_suppressed")}
        # Back to back there are two kinds of round trip, several times apart: a median of
        # both says little without how many there were of each.
        steps.add(
            "ping",
            [
                f"{gateway}: {echoes.text()[0]}, back to back",
                *echoes.text()[1:],
                (
                    f"{kicks['tx_kicks']} had to wake QEMU by a doorbell; for "
                    f"{kicks['tx_kicks_suppressed']} it was still polling, which is much faster"
                ),
            ],
            **summary,
            **kicks,
        )
        if echoes.interrupted:
            raise KeyboardInterrupt
    stats = port.stats()
    counted = ", ".join(f"{name} {value}" for name, value in stats.items() if value)
    steps.add("counters", counted, counters=stats)
    text, facts = _guest(qemu)
    steps.add("guest", text, **facts)
    return received


def _guest(qemu: virtnic.Qemu) -> tuple[str, dict[str, Any]]:
    """Return where the machine's processor is, which shows that no guest ran, and QEMU's cost."""
    usage = process_usage(qemu.pid)
    cost = ""
    if usage is not None:
        cost = (
            f"; QEMU took {seconds_text(usage['cpu_seconds'])} of processor time, "
            f"{usage['resident_bytes'] >> 20} MiB resident"
        )
    facts: dict[str, Any] = {"qemu_usage": usage}
    words: dict[str, Any] = {"command-line": "info registers"}
    registers = qemu.execute("human-monitor-command", **words)
    position = re.search(r"\b[ER]IP=([0-9a-f]+)", registers)
    segment = re.search(r"\bCS =([0-9a-f]+)", registers)
    if position is None or segment is None:
        return f"the monitor does not say where the processor is{cost}", facts
    at = int(segment[1], 16), int(position[1], 16)
    halted = "HLT=1" in registers
    facts |= {"cs": at[0], "ip": at[1], "halted": halted}
    where = f"{at[0]:04x}:{at[1]:04x}"
    if at == (0xF000, 0xFFF0) and not halted:
        text = f"none ran: the processor is at its reset vector {where}, nothing was executed"
    elif at[0] == 0xF000 and 0xFFF0 < at[1] <= 0xFFF4:
        text = f"none ran: the processor sleeps at {where}, in the firmware `cli; hlt`"
    else:
        text = f"the processor is at {where}, which is not where virtnic parks it"
    return text + cost, facts


def process_usage(pid: int) -> dict[str, Any] | None:
    """Return the processor time and the resident memory of a process; see proc(5)."""
    process = Path(f"/proc/{pid}")
    try:
        fields = (process / "stat").read_text(encoding="ascii", errors="replace").rpartition(")")[2]
        pages = int((process / "statm").read_text(encoding="ascii").split()[1])
    except OSError:
        return None
    user, system = fields.split()[11:13]
    return {
        "cpu_seconds": (int(user) + int(system)) / os.sysconf("SC_CLK_TCK"),
        "resident_bytes": pages * os.sysconf("SC_PAGESIZE"),
    }
