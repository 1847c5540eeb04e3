""":func:`virtnic.open`: one port on its own QEMU."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, TypedDict, cast

from virtnic.arguments import check_names
from virtnic.limits import descriptors
from virtnic.memory import Memory
from virtnic.nic.direct import open_direct
from virtnic.nic.options import PortRequest, StartOptions, jumbo_size, one_of
from virtnic.nic.port import Port, PortOptions, Qemu, attachment_of, host_of

if TYPE_CHECKING:
    from virtnic.memory import Hugepages
    from virtnic.qemu import Netdev

__all__ = ["OpenOptions", "open_port"]


class _MemoryOptions(TypedDict, total=False):
    """Options of :class:`virtnic.Memory`."""

    size: int | str
    hugepages: Hugepages
    iova: Literal["va", "pa"] | int
    node: int | None
    directory: str | None
    buffer_size: int
    jumbo_buffers: int | None
    jumbo_size: int | None


class OpenOptions(_MemoryOptions, StartOptions, PortOptions, total=False):
    """Options of :func:`virtnic.open` besides the netdev."""

    memory: Memory | None
    frontend: Literal["qemu", "direct"]


@descriptors()
def open_port(netdev: Netdev, given: OpenOptions) -> Port:
    """Open a port: see :func:`virtnic.open`."""
    options: dict[str, Any] = {**given}
    check_names("virtnic.open()", OpenOptions.__optional_keys__, options)
    for_memory, for_qemu = (
        {name: options.pop(name) for name in kind.__optional_keys__ if name in options}
        for kind in (_MemoryOptions, StartOptions)
    )
    frontend = options.pop("frontend", "qemu")
    one_of("frontend", frontend, ("qemu", "direct"))
    if frontend == "direct" and for_qemu:
        raise ValueError(f"frontend='direct' has no QEMU: leave out {', '.join(sorted(for_qemu))}")
    recover = options.get("recover")
    if recover is not None and for_qemu.get("connect") is None:
        for_qemu["recover"] = recover
    memory = options.pop("memory", None)
    if memory is not None and for_memory:
        raise ValueError(f"memory cannot be combined with {', '.join(for_memory)}")
    if memory is None and "jumbo_size" not in for_memory:
        for_memory["jumbo_size"] = jumbo_size(netdev, options, for_memory.get("buffer_size", 2048))
    if frontend == "direct":
        given_memory, memory = memory, Memory(**for_memory) if memory is None else memory
        return open_direct(PortRequest(netdev, **options), memory, given_memory is None)
    qemu = Qemu(Memory(**for_memory) if memory is None else memory, **for_qemu)
    try:
        host = host_of(qemu)
        host.owns_memory = memory is None
        port = qemu.attach(netdev, **cast("PortOptions", options))
        host.machine.keep_little(memory=memory is None)
        attachment_of(port).owns_qemu = True
    except BaseException:
        qemu.close()
        raise
    return port
