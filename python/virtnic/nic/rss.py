"""Receive-side scaling: the choice of a packet's queue."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["DEFAULT_KEY", "HASH_TYPES", "Rss", "RssLimits", "names_of", "types_of"]

#: Hash types and their bits (VIRTIO 1.3, section 5.1.6.4.3).
HASH_TYPES = {
    name: 1 << bit
    for bit, name in enumerate(
        ("IPV4", "TCPV4", "UDPV4", "IPV6", "TCPV6", "UDPV6", "IP_EX", "TCP_EX", "UDP_EX")
    )
}
#: The usual default key (Microsoft: "Verifying the RSS Hash Calculation").
DEFAULT_KEY = bytes.fromhex(
    "6d5a56da255b0ec24167253d43a38fb0d0ca2bcbae7b30b477cb2da38030f20c6a42b73bbeac01fa"
)


@dataclass(frozen=True, slots=True)
class Rss:
    """How a device steers received packets by their hash.

    Attributes
    ----------
    key
        The Toeplitz key.
    table
        A packet goes to queue ``table[hash % len(table)]``; empty if hashes are only reported.
    types
        The hash types, by name; see :data:`HASH_TYPES`.
    unclassified
        The queue of packets without a hash.

    """

    key: bytes
    table: tuple[int, ...]
    types: tuple[str, ...]
    unclassified: int = 0


@dataclass(frozen=True, slots=True)
class RssLimits:
    """A device's limits for steering (VIRTIO 1.3, section 5.1.4).

    Attributes
    ----------
    key
        Most bytes of a key.
    table
        Most entries of a table, a power of two.
    types
        The supported hash types, by name; see :data:`HASH_TYPES`.

    """

    key: int
    table: int
    types: tuple[str, ...]


def types_of(names: tuple[str, ...] | list[str]) -> int:
    """Return the bits of types. Raises ValueError."""
    bits = 0
    for name in names:
        if name not in HASH_TYPES:
            raise ValueError(f"a hash type must be one of {', '.join(HASH_TYPES)}, not {name!r}")
        bits |= HASH_TYPES[name]
    return bits


def names_of(bits: int) -> tuple[str, ...]:
    """Return the names of types."""
    return tuple(name for name, bit in HASH_TYPES.items() if bits & bit)
