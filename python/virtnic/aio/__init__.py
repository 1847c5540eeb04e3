"""Ports for asyncio, trio and anyio.

>>> async with virtnic.aio.open("user") as port:
...     await port.send_all([frame])
...     async for burst in port:
...         ...
"""

from virtnic.aio import net
from virtnic.aio.port import LinkChanges, Port, attach, open  # noqa: A004 - virtnic.aio.open

__all__ = ["LinkChanges", "Port", "attach", "net", "open"]
