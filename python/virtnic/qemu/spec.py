"""`Spec`: a parsed netdev."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from virtnic.qemu import netdevs

if TYPE_CHECKING:
    from virtnic.qemu.netdevs import Helper, NetdevType

__all__ = ["Spec", "VhostUserSocket"]


@dataclass(frozen=True, slots=True)
class VhostUserSocket:
    """The socket of the short form ``vhost-user,path=…``, for which virtnic creates the chardev."""

    path: str
    #: True: virtnic listens and the backend connects.
    server: bool = False
    #: Seconds to wait for the backend; 0 fails at once.
    wait: float = 0.0


@dataclass(frozen=True, slots=True)
class Spec:
    """A netdev as given by the user; strings are not typed yet."""

    type: str
    options: dict[str, Any] = field(default_factory=dict)
    socket: VhostUserSocket | None = None
    #: Seconds to wait for the peer of a netdev that reports it; None does not require one.
    wait: float | None = None

    @property
    def kind(self) -> NetdevType:
        """What virtnic knows about its type."""
        return netdevs.kind_of(self.type)

    @property
    def helper(self) -> Helper | None:
        """The program that QEMU would start for it; None if none."""
        return self.kind.helper(self.options)

    def arguments(self, netdev_id: str, chardev: str | None = None) -> dict[str, Any]:
        """Build the untyped arguments of ``netdev_add``."""
        own = {"id": netdev_id} if chardev is None else {"id": netdev_id, "chardev": chardev}
        return {"type": self.type, **self.options, **own}
