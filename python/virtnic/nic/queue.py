"""`NetQueue`: one queue pair of a port."""

from __future__ import annotations

from virtnic import _native
from virtnic.nic.sending import SendAll
from virtnic.teardown import Owner

__all__ = ["NetQueue"]


class NetQueue(Owner, SendAll, _native.NetQueue):
    """One queue pair of a port, usable from its own thread. Made by :meth:`virtnic.Port.queue`."""
