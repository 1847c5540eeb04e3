"""`Clause`: one rule to check. `Bench`: the backend that it is checked on."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Self

import virtnic
from virtnic.arguments import suggest_options
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

#: What a clause is about.
Group = Literal["features", "messages", "rings"]

#: Feature bits 32 (VERSION_1) and 30 (the backend has protocol features).
VERSION_1, PROTOCOL_FEATURES = 1 << 32, 1 << 30
#: Protocol features that :meth:`Bench.meet` enables if the backend offers them.
USED = ProtocolFeature.MQ | ProtocolFeature.REPLY_ACK


class Wrong(Exception):
    """The backend breaks the rule; the message says what was seen."""


class NotOffered(Exception):
    """The backend lacks the feature that the clause needs; the message says which."""


@dataclass(frozen=True, slots=True)
class Clause:
    """One rule, and the function that checks it.

    Attributes
    ----------
    id
        Permanent: a clause whose demand changes gets a new id.
    group, title
        What the clause is about, and its short name.
    source
        The section of VIRTIO 1.3, or the message of QEMU's "Vhost-user Protocol".
    does, right
        What the check does, and what it expects: one sentence each.
    check
        Returns what was seen; raises :class:`Wrong` or :class:`NotOffered`.

    """

    id: str
    group: Group
    title: str
    source: str
    does: str
    right: str
    check: Callable[[Bench], str]


def bits(features: int) -> str:
    """Return the numbers of the bits that are set, for messages."""
    return ", ".join(str(bit) for bit in range(64) if features >> bit & 1) or "none"


class Bench:
    """The backend under test. Closes every connection and eventfd that it made."""

    @suggest_options
    def __init__(self, path: str | os.PathLike[str], *, timeout: float = 3.0) -> None:
        self.path, self.timeout = path, timeout
        self._stack = ExitStack()

    def connect(self) -> Frontend:
        """Return a new connection; no message has been sent on it."""
        return self._stack.enter_context(Frontend(self.path, timeout=self.timeout))

    def meet(self) -> tuple[Frontend, int, ProtocolFeature]:
        """Connect, and enable the protocol features in USED that are offered.

        Returns the connection, the feature bits and the protocol features that were offered.
        """
        frontend = self.connect()
        features = frontend.get_features()
        protocol = ProtocolFeature(0)
        if features & PROTOCOL_FEATURES:
            protocol = frontend.get_protocol_features()
            frontend.set_protocol_features(protocol & USED)
        frontend.set_owner()
        return frontend, features, protocol

    def acknowledged(self) -> tuple[Frontend, int]:
        """Connect with REPLY_ACK; return the connection and the feature bits.

        Raises NotOffered where the backend has no REPLY_ACK.
        """
        frontend, features, _ = self.meet()
        if not frontend.acknowledged:
            raise NotOffered("REPLY_ACK is not offered, so a refusal cannot be seen")
        return frontend, features

    def memory(self) -> virtnic.Memory:
        """Return new memory to share with the backend."""
        return virtnic.Memory("4M", hugepages=None)

    def event(self) -> virtnic.EventFd:
        """Return a new eventfd."""
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
