r"""TCP, UDP and name resolution on any port, with sockets like Python's.

>>> with virtnic.open("user") as port, net.Stack(port, dhcp=True) as stack:
...     with stack.create_connection(("10.0.2.2", 80), timeout=5) as connection:
...         connection.sendall(b"GET / HTTP/1.0\r\n\r\n")
"""

from __future__ import annotations

from virtnic._native import ArpReply, Connection, Lease, PingReply
from virtnic.net.socket import Socket
from virtnic.net.stack import Stack

__all__ = [  # noqa: RUF022 - by importance
    "Stack",
    "Socket",
    "Connection",
    "Lease",
    "ArpReply",
    "PingReply",
]
