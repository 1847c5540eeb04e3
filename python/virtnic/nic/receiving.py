"""What a port receives: its filters, and the queue that each packet goes to."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from virtnic import _native
from virtnic._native import CommandRefused
from virtnic.arguments import suggest_options
from virtnic.nic.rss import DEFAULT_KEY, Rss, RssLimits, names_of, types_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from virtnic.nic.attachment import Driven

__all__ = ["Receiving"]

_log = logging.getLogger(__name__)


class Receiving(_native.NetPort):
    """The part of :class:`virtnic.Port` that sets receive filters and steering."""

    _driven: Driven
    _filters_warned = False

    def set_promiscuous(self, on: bool = True) -> None:
        """Receive every frame, or only what the filters pass.

        A QEMU device starts in promiscuous mode, in which it filters nothing, not even VLANs. If
        frames bypass QEMU (vhost-user, vhost-vdpa, ``tap,vhost=on``), filters are accepted but have
        no effect; a warning says so. Raises CommandRefused, PortClosed, QemuDied.
        """
        self.set_receive_mode("promiscuous", on)

    def set_allmulticast(self, on: bool = True) -> None:
        """Receive all multicast frames. Raises as :meth:`set_promiscuous`."""
        self.set_receive_mode("all-multicast", on)

    def set_receive_mode(self, mode: str, on: bool = True) -> None:
        """Switch a receive filter of the device on or off.

        ``mode`` is ``promiscuous``, ``all-multicast``, ``all-unicast``, ``no-multicast``,
        ``no-unicast`` or ``no-broadcast``. A mode that passes more always works; for one that
        passes less, a warning is logged if filters have no effect. Raises ValueError,
        CommandRefused, PortClosed, QemuDied.
        """
        super().set_receive_mode(mode, on)
        # A netdev without filters passes everything.
        self._warn_of_filters(on == mode.startswith("no-"))

    def set_mac_filter(self, unicast: Sequence[str] = (), multicast: Sequence[str] = ()) -> None:
        """Set the MAC addresses that are received in addition to the port's own, replacing others.

        A warning is logged if filters have no effect. Raises ValueError, CommandRefused,
        PortClosed, QemuDied.
        """
        super().set_mac_filter(unicast, multicast)
        self._warn_of_filters(True)

    def remove_vlan(self, vlan: int) -> None:
        """Stop receiving a VLAN that :meth:`add_vlan` added.

        A warning is logged if filters have no effect. Raises ValueError, CommandRefused,
        PortClosed, QemuDied.
        """
        super().remove_vlan(vlan)
        self._warn_of_filters(True)

    def _warn_of_filters(self, narrower: bool) -> None:
        """Warn once if the device accepted a filter that has no effect."""
        bypassing = self._driven.bypassing
        if narrower and bypassing is not None and not self._filters_warned:
            self._filters_warned = True
            _log.warning(
                "the device accepts filters but they have no effect: the frames of this %s netdev "
                "bypass QEMU, so check the address of each frame yourself",
                bypassing,
            )

    @property
    def rss(self) -> Rss | None:
        """The steering set by :meth:`set_rss`; None if none was set."""
        config = self._driven.driver.rss_config()
        if config is None:
            return None
        key, table, types, unclassified = config
        return Rss(bytes(key), tuple(table), names_of(types), unclassified)

    @property
    def rss_limits(self) -> RssLimits | None:
        """The device's capabilities for steering; None without ``properties={"rss": True}``."""
        limits = self._driven.driver.rss_limits
        if limits is None:
            return None
        key, table, types = limits
        return RssLimits(key, table, names_of(types))

    @suggest_options
    def set_rss(
        self,
        key: bytes | None = None,
        table: Sequence[int] | None = None,
        types: Sequence[str] | None = None,
        *,
        unclassified: int = 0,
    ) -> None:
        """Choose the queue of each received packet by a hash (receive-side scaling).

        Parameters
        ----------
        key
            The Toeplitz key; by default Microsoft's.
        table
            A queue for each value of the hash's low bits: a power of two of entries, by default all
            queues in turn. With an empty table, hashes are only reported.
        types
            Hash types by name, such as ``"TCPV4"`` (:data:`virtnic.nic.rss.HASH_TYPES`); by default
            all that the device supports.
        unclassified
            The queue of packets without a hash.

        The port must have been opened with ``properties={"rss": True}``, and also with ``"hash":
        True`` for :attr:`Burst.hashes`. :meth:`set_queues` ends steering. Raises CommandRefused,
        ValueError, PortClosed, QemuDied.

        """
        limits = self.rss_limits
        if limits is None:
            raise CommandRefused(
                "set_rss: the device does not compute hashes; open the port with "
                "properties={'rss': True}"
            )
        if table is None:
            table = [i % self.queues for i in range(min(limits.table, 128))]
        if not all(0 <= queue < 1 << 16 for queue in (*table, unclassified)):
            raise ValueError(f"the table has an invalid queue; {self.queues} are in use")
        self._driven.driver.set_rss_config(
            list(DEFAULT_KEY if key is None else key),
            list(table),
            types_of(list(limits.types if types is None else types)),
            unclassified,
        )
