"""Socket addresses in the form of Python's ``socket`` module."""

from __future__ import annotations

import ipaddress
import socket
from typing import Any

__all__ = ["Address", "family_of", "is_numeric", "show"]

#: ``(host, port)`` of IPv4, ``(host, port, 0, 0)`` of IPv6.
Address = tuple[Any, ...]


def show(family: int, address: tuple[str, int] | None) -> Address:
    """Return the address tuple of a family; None is the unspecified address."""
    host, port = address or ("::" if family == socket.AF_INET6 else "0.0.0.0", 0)  # noqa: S104
    return (host, port, 0, 0) if family == socket.AF_INET6 else (host, port)


def is_numeric(host: str) -> bool:
    """Return whether a host is a numeric address, not a name. Raises TypeError."""
    if not isinstance(host, str):
        raise TypeError(f"a host is a string or None, not {host!r}")
    try:
        ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return False
    return True


def family_of(host: str) -> int:
    """Return the family of a numeric address."""
    return socket.AF_INET6 if ":" in host else socket.AF_INET
