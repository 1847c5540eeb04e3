"""Access to the internals behind public objects."""

from __future__ import annotations

from typing import TYPE_CHECKING

from virtnic.nic import port as _nic

if TYPE_CHECKING:
    import virtnic
    from virtnic._native import PortDriver
    from virtnic.nic.attachment import Attachment
    from virtnic.nic.backend import Backend
    from virtnic.nic.host import Host
    from virtnic.qemu import Machine

__all__ = ["attachment_of", "backend_of", "driver_of", "host_of", "machine_of"]


def host_of(qemu: virtnic.Qemu) -> Host:
    """Return the Host behind a Qemu."""
    return _nic.host_of(qemu)


def machine_of(qemu: virtnic.Qemu) -> Machine:
    """Return the process, its monitor and its QTest connection."""
    return host_of(qemu).machine


def attachment_of(port: virtnic.Port) -> Attachment:
    """Return the Attachment behind a port."""
    return _nic.attachment_of(port)


def backend_of(port: virtnic.Port) -> Backend:
    """Return the vhost-user backend of a port that has one."""
    backend = attachment_of(port).backend
    assert backend is not None
    return backend


def driver_of(port: virtnic.Port) -> PortDriver:
    """Return the driver of a port's device."""
    return attachment_of(port).driver
