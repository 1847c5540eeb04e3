"""What a clause is, and what it is tried with."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Self

import virtnic
from virtnic.vhost_user import Frontend, ProtocolFeature

if TYPE_CHECKING:
    import os
    from collections.abc import Callable
    from types import TracebackType

__all__ = [
    "PROTOCOL_FEATURES",
    "USED",
    "VERSION_1",
    "Bench",
    "Clause",
    "Group",
    "NotOffered",
    "Wrong",
    "bits",
]

#: What a row is about.
Group = Literal["features", "messages", "rings"]

#: Feature bits: VERSION_1, and that there are protocol features.
VERSION_1, PROTOCOL_FEATURES = 1 << 32, 1 << 30
#: Protocol features that are turned on where they are offered.
USED = ProtocolFeature.MQ | ProtocolFeature.REPLY_ACK


class Wrong(Exception):
    """The backend does not keep the clause; the message says what was seen."""


class NotOffered(Exception):
    """The backend does not offer what the clause is about; the message says what."""


@dataclass(frozen=True, slots=True)
class Clause:
    """One row."""

    #: Stays for ever.
    id: str
    group: Group
    title: str
    #: The section of VIRTIO 1.3, or the message of QEMU's "Vhost-user Protocol".
    source: str
    #: What is done, and what is right, in one sentence each.
    does: str
    right: str
    #: Returns what was seen; raises :class:`Wrong` or :class:`NotOffered`.
    check: Callable[[Bench], str]


def bits(features: int) -> str:
    """Return feature bits as numbers."""
    return ", ".join(str(bit) for bit in range(64) if features >> bit & 1) or "none"


class Bench:
    """A backend, and what a clause tries it with. What was opened is closed at the end."""

    def __init__(self, path: str | os.PathLike[str], *, timeout: float = 3.0) -> None:
        self.path, self.timeout = path, timeout
        self._stack = ExitStack()

    def connect(self) -> Frontend:
        """Return a connection on which nothing was said."""
        return self._stack.enter_context(Frontend(self.path, timeout=self.timeout))

    def meet(self) -> tuple[Frontend, int, ProtocolFeature]:
        """Return a connection whose features are known, with them; those of USED are on."""
        frontend = self.connect()
        features = frontend.get_features()
        protocol = ProtocolFeature(0)
        if features & PROTOCOL_FEATURES:
            protocol = frontend.get_protocol_features()
            frontend.set_protocol_features(protocol & USED)
        frontend.set_owner()
        return frontend, features, protocol

    def acknowledged(self) -> tuple[Frontend, int]:
        """Return a connection on which requests are acknowledged, and its features."""
        frontend, features, _ = self.meet()
        if not frontend.acknowledged:
            raise NotOffered("REPLY_ACK is not offered: nothing tells what was refused")
        return frontend, features

    def memory(self) -> virtnic.Memory:
        """Return memory to be shared."""
        return virtnic.Memory("4M", hugepages=None)

    def event(self) -> virtnic.EventFd:
        """Return an eventfd."""
        event = virtnic.EventFd()
        self._stack.callback(event.close)
        return event

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._stack.close()
